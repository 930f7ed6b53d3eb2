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
				before := heapSize()
				all := make([]*Client, clients)
				for i := range all {
					c := newClient(hub, webSocket{})
					if err := hub.add(c); err != nil {
						b.Fatal(err)
					}
					c.open()
					c.out.open(new(recorder), func(p []byte) (int, error) { return len(p), nil }, format{})
					all[i] = c
				}
				size := heapSize() - before
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
					c.leaveHub()
				}
				hub.Shutdown(b.Context())
			})
		}
	}
}

func heapSize() uint64 {
	runtime.GC()
	time.Sleep(10 * time.Millisecond)
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkTopics publishes to topics of several sizes: one that all have, many
// with a handful of clients each, and what is between.
func BenchmarkTopics(b *testing.B) {
	for _, bench := range []struct{ topics, clients, each int }{
		{1, 100_000, 1}, {100_000, 100_000, 5}, {100, 10_000, 10},
	} {
		b.Run(fmt.Sprintf("topics=%d/clients=%d/topics-each=%d", bench.topics, bench.clients, bench.each), func(b *testing.B) {
			hub := NewHub()
			hub.start()
			hub.settle()
			names := make([]string, bench.topics)
			for i := range names {
				names[i] = fmt.Sprint("topic ", i)
			}
			before := heapSize()
			all := make([]*Client, bench.clients)
			for i := range all {
				c := newClient(hub, webSocket{})
				if err := hub.add(c); err != nil {
					b.Fatal(err)
				}
				for j := range bench.each {
					if err := c.Subscribe(names[(i*bench.each+j)%bench.topics]); err != nil {
						b.Fatal(err)
					}
				}
				c.open()
				c.out.open(new(recorder), func(p []byte) (int, error) { return len(p), nil }, format{})
				all[i] = c
			}
			size := heapSize() - before
			payload := make([]byte, 128)
			subscribers := bench.clients * bench.each / bench.topics
			var deliveries, next int64
			b.ReportAllocs()
			for b.Loop() {
				want := hub.shared.delivered.Load() + 64*int64(subscribers)
				for range 64 { // to different topics, where there are so many
					if err := hub.Publish(b.Context(), names[next%int64(bench.topics)], Event{Data: payload}); err != nil {
						b.Fatal(err)
					}
					next++
				}
				for hub.shared.delivered.Load() < want {
					runtime.Gosched()
				}
				deliveries += 64 * int64(subscribers)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(deliveries), "ns/delivery")
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(next), "ns/publish")
			b.ReportMetric(float64(size)/float64(bench.clients), "B/client")
			b.StopTimer()
			for _, c := range all {
				c.leaveHub()
			}
			hub.Shutdown(b.Context())
		})
	}
}
