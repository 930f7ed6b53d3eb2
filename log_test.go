package realtime_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A Logger that blocks holds up lines, but not without bound, nor is it called
// twice at once; the next line says how many there were.
func TestBlockedLogger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var lines safeBuffer
		entered, gate := make(chan struct{}, 100), make(chan struct{})
		hub.Logger = textLogger(writerFunc(func(p []byte) (int, error) {
			entered <- struct{}{}
			<-gate
			return lines.Write(p)
		}))
		for range 70 { // the first is being written, 64 wait
			hub.Broadcast <- []byte("\xff")
			if hub.Stats().Published == 0 {
				go hub.Run()
			}
			time.Sleep(time.Second)
		}
		// A TextHandler has a lock of its own: its callers are counted.
		if n := running("(*logbook).write"); n != 1 || len(entered) != 1 {
			t.Errorf("%d goroutines write lines, want 1", n)
		}
		close(gate)
		synctest.Wait()
		if got := lines.String(); strings.Count(got, "msg=\"realtime: data sent to Broadcast") != 65 || strings.Contains(got, "skipped") {
			t.Errorf("logged %d lines, want 65", strings.Count(got, "\n"))
		}
		for _, want := range []string{"skipped=5", "bytes=1\n"} {
			lines = safeBuffer{}
			hub.Broadcast <- []byte("\xff")
			time.Sleep(time.Second)
			if got := lines.String(); !strings.Contains(got, want) {
				t.Errorf("logged %q, want %q in it", got, want)
			}
		}
		hub.Shutdown(t.Context())
	})
}

// A writerFunc is a function as an io.Writer.
type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
