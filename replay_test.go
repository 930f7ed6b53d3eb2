package realtime_test

import (
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// heapAndStacks returns how much memory is in use.
func heapAndStacks() int {
	var m runtime.MemStats
	for range 2 { // what pools hold outlives one collection
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// wantGrown waits until no more than most bytes are in use above before: what
// still goes on makes garbage.
func wantGrown(t *testing.T, before, most int) {
	t.Helper()
	grown := 0
	for range 100 {
		if grown = heapAndStacks() - before; grown <= most {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%d KB are in use, want at most %d", grown>>10, most>>10)
}

// settle waits until the hub has so many clients, and delivers nothing more.
func settle(t *testing.T, hub *realtime.Hub, clients int) {
	t.Helper()
	last := int64(-1)
	for range 600 {
		now := hub.Stats().Delivered
		if now == last && hub.ClientCount() == clients {
			return
		}
		last = now
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%d clients, %d messages delivered, and no end", hub.ClientCount(), last)
}

// What a history keeps doesn't grow with the formats in which clients got it.
func TestHistoryKeepsNoEncodings(t *testing.T) {
	hub := realtime.NewHub()
	hub.History.Events = 10_000
	hub.Compression = true
	s := newTCPSite(t, hub)
	for _, stream := range []string{"", "&protocol=" + realtime.Subprotocol} {
		go io.Copy(io.Discard, s.listen("topic=a"+stream).conn)
	}
	for _, protocol := range []string{"", realtime.Subprotocol} {
		conn := s.connectAs("topic=a", protocol)
		go func() {
			for {
				if _, _, err := conn.Read(t.Context()); err != nil {
					return
				}
			}
		}()
	}
	before := heapAndStacks()
	const events, size = 5000, 2 << 10
	for range events {
		data := make([]byte, size)
		for i := range data {
			data[i] = 'a' + byte(rand.IntN(16))
		}
		if err := hub.Publish(t.Context(), "a", realtime.Event{Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, hub, 4)
	wantGrown(t, before, events*size*14/10)
}
