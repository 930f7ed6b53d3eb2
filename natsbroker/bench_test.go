package natsbroker_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A counter counts the messages that are delivered.
type counter struct{ n atomic.Int64 }

func (c *counter) Deliver(string, []byte) { c.n.Add(1) }
func (c *counter) Gap(error)              {}

// BenchmarkMessage measures messages from one node to another: through a server
// over TCP, or through two embedded servers that are joined by a route. With
// unwanted=true the second node has subscribed to one message in 1000.
func BenchmarkMessage(b *testing.B) {
	for _, engine := range []string{"server", "embedded"} {
		for _, unwanted := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/unwanted=%v/bytes=256", engine, unwanted), func(b *testing.B) {
				var from, to *natsbroker.Broker
				if engine == "server" {
					s := newServers(b, 1)
					from, to = natsbroker.New("realtime", connect(b, s.url(0))), natsbroker.New("realtime", connect(b, s.url(0)))
				} else {
					e := &embedded{t: b}
					from, to = e.Broker().(*natsbroker.Broker), e.Broker().(*natsbroker.Broker)
				}
				start(b, from, new(counter))
				got := new(counter)
				start(b, to, got)
				msg := make([]byte, 256)
				b.ReportAllocs()
				want := int64(0)
				for i := 0; b.Loop(); i++ {
					topic := "x"
					if unwanted && i%1000 > 0 {
						topic = "y"
					} else {
						want++
					}
					if err := from.Publish(b.Context(), topic, msg); err != nil {
						b.Fatal(err)
					}
					if i%50_000 == 0 { // so that no message is dropped
						eventually(b, "messages", func() bool { return got.n.Load() == want })
					}
				}
				eventually(b, "messages", func() bool { return got.n.Load() == want })
			})
		}
	}
}
