package realtime

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// BenchmarkHub measures what the hub itself costs: the kernel is stood in for
// by a function that takes everything.
func BenchmarkHub(b *testing.B) {
	for _, clients := range []int{1_000, 10_000, 100_000, 1_000_000} {
		for _, burst := range []int{1, 64} {
			b.Run(fmt.Sprintf("clients=%d/burst=%d", clients, burst), func(b *testing.B) {
				hub := NewHub()
				hub.start()
				hub.settle()
				before := heap()
				all := make([]*Client, clients)
				for i := range all {
					c := newClient(hub, false)
					if err := hub.add(c); err != nil {
						b.Fatal(err)
					}
					c.join()
					c.out.open(new(recorder), func(p []byte) (int, error) { return len(p), nil }, plainFormat)
					all[i] = c
				}
				size := heap() - before
				payload := make([]byte, 128)
				var deliveries int64
				b.ReportAllocs()
				for b.Loop() {
					want := hub.shared.delivered.Load() + int64(clients*burst)
					for range burst {
						hub.Broadcast <- payload
					}
					for hub.shared.delivered.Load() < want {
						runtime.Gosched()
					}
					deliveries += int64(clients * burst)
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(deliveries), "ns/delivery")
				b.ReportMetric(float64(size)/float64(clients), "B/client")
				b.StopTimer()
				for _, c := range all {
					c.discard()
				}
				hub.Shutdown(b.Context())
			})
		}
	}
}

func heap() uint64 {
	runtime.GC()
	time.Sleep(10 * time.Millisecond)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
