package redisbroker_test

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A counter is a handler that counts.
type counter struct{ messages, gaps atomic.Int64 }

func (c *counter) Deliver(string, []byte) { c.messages.Add(1) }
func (c *counter) Gap(error)              { c.gaps.Add(1) }

func newCounter(b *testing.B, broker realtime.Broker) *counter {
	b.Helper()
	c := new(counter)
	if err := broker.Start(c); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { broker.Close() })
	return c
}

// BenchmarkPublish measures messages from one goroutine of a node to another
// node.
func BenchmarkPublish(b *testing.B) {
	r := startRedis(b)
	for _, size := range []int{128, 4096} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			from, to := newBroker(r.addr), newBroker(r.addr)
			newCounter(b, from)
			got := newCounter(b, to)
			if err := to.Subscribe(b.Context(), "x"); err != nil {
				b.Fatal(err)
			}
			msg := make([]byte, size)
			b.ReportAllocs()
			start, sent := time.Now(), int64(0)
			for b.Loop() {
				if err := from.Publish(b.Context(), "x", msg); err != nil {
					b.Fatal(err)
				}
				sent++
			}
			eventually(b, "all the messages", func() bool { return got.messages.Load() == sent || got.gaps.Load() > 0 })
			b.ReportMetric(float64(sent)/time.Since(start).Seconds(), "deliveries/s")
			b.ReportMetric(float64(got.gaps.Load()), "gaps")
		})
	}
}

// BenchmarkTopics measures how long it takes to subscribe to topics, 64 at a time
// as a hub does, and to subscribe to all of them again after the connection was
// lost.
func BenchmarkTopics(b *testing.B) {
	for _, topics := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("topics=%d", topics), func(b *testing.B) {
			r := startRedis(b)
			var first, again time.Duration
			for b.Loop() {
				broker := newBroker(r.addr)
				got := newCounter(b, broker)
				start := time.Now()
				var joining sync.WaitGroup
				var next atomic.Int64
				for range 64 {
					joining.Go(func() {
						for i := next.Add(1); i <= int64(topics); i = next.Add(1) {
							if err := broker.Subscribe(b.Context(), fmt.Sprint("topic ", i)); err != nil {
								b.Error(err)
							}
						}
					})
				}
				joining.Wait()
				first += time.Since(start)
				b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
				start = time.Now()
				r.do("CLIENT", "KILL", "TYPE", "pubsub")
				for got.gaps.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
				again += time.Since(start)
				broker.Close()
			}
			b.ReportMetric(first.Seconds()/float64(b.N), "s/subscribe")
			b.ReportMetric(again.Seconds()/float64(b.N), "s/again")
		})
	}
}
