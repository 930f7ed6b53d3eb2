package realtime

import (
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// An outage is logged at once, then less and less often, and when it is over.
func TestOutageIsToldAtGrowingIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		l := &logbook{logger: slog.New(slog.NewTextHandler(lineWriter(func(line string) { lines = append(lines, line) }), nil))}
		o := &outage{log: l, what: "broker connection"}
		for range 2 {
			lines = nil
			for range 1800 { // an hour
				o.failed(errors.New("refused"))
				time.Sleep(2 * time.Second)
			}
			o.over()
			o.over()
			synctest.Wait()
			if n := len(lines); n < 6 || n > 12 || strings.Contains(lines[0], "still") || !strings.Contains(lines[1], "still lost") || !strings.Contains(lines[1], "for=10s") ||
				!strings.Contains(lines[n-1], "is back") || !strings.Contains(lines[n-1], "after=1h0m0s") {
				t.Errorf("an hour has %d lines:\n%s", n, strings.Join(lines, ""))
			}
			time.Sleep(time.Minute)
		}
		if slices.ContainsFunc(lines, func(line string) bool { return strings.Contains(line, "skipped") }) {
			t.Errorf("lines were skipped:\n%s", strings.Join(lines, ""))
		}
	})
}

// The end of an outage is logged, however short it was.
func TestShortOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var lines []string
		l := &logbook{logger: slog.New(slog.NewTextHandler(lineWriter(func(line string) { lines = append(lines, line) }), nil))}
		o := &outage{log: l, what: "broker connection"}
		o.failed(errors.New("refused"))
		o.over()
		synctest.Wait()
		if len(lines) != 2 || !strings.Contains(lines[1], "is back") {
			t.Errorf("got %q, want its begin and its end", lines)
		}
	})
}

type lineWriter func(line string)

func (w lineWriter) Write(p []byte) (int, error) { w(string(p)); return len(p), nil }
