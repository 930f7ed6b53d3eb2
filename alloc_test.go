package realtime_test

import (
	"fmt"
	"io"
	"math"
	"net"
	"runtime"
	"strings"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// allocs returns how many allocations one run of f costs the whole process: in
// the best of several rounds, as what else goes on in it only adds to them.
func allocs(f func()) float64 {
	const rounds, runs = 5, 200
	for range 100 { // pools and stacks
		f()
	}
	fewest := uint64(math.MaxUint64)
	for range rounds {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for range runs {
			f()
		}
		runtime.ReadMemStats(&after)
		fewest = min(fewest, after.Mallocs-before.Mallocs)
	}
	return float64(fewest) / runs
}

// A message in costs one allocation, its Data, and a delivery none: what an
// event costs is shared by all who get it. A message to one client alone costs
// none where the kernel takes it.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const clients = 50
	hub := realtime.NewHub()
	got := make(chan struct{}, 1)
	hub.OnMessage = func(*realtime.Hub, realtime.Message) { got <- struct{}{} }
	var client *realtime.Client
	hub.OnConnect = keep(&client)
	s := newTCPSite(t, hub)
	var conns []net.Conn
	for range clients {
		conns = append(conns, s.raw().conn)
	}

	message := frame(0x81, make([]byte, 100))
	if n := allocs(func() {
		conns[0].Write(message)
		<-got
	}); n > 1.1 {
		t.Errorf("a message in costs %.2f allocations, want 1", n)
	}

	data, buf := make([]byte, 100), make([]byte, 102)
	if n := allocs(func() {
		hub.Broadcast <- data
		for _, c := range conns {
			io.ReadFull(c, buf)
		}
	}); n/clients > 0.2 {
		t.Errorf("an event for %d clients costs %.2f allocations, want no more than a few", clients, n)
	}

	last := conns[clients-1]
	if n := allocs(func() {
		client.Send(data)
		io.ReadFull(last, buf)
	}); n > 0.1 {
		t.Errorf("Send costs %.2f allocations, want none", n)
	}
	for _, c := range conns {
		c.Close()
	}
}

// BenchmarkMessage is a message's way in.
func BenchmarkMessage(b *testing.B) {
	hub := realtime.NewHub()
	got := make(chan struct{}, 1)
	hub.OnMessage = func(*realtime.Hub, realtime.Message) { got <- struct{}{} }
	c := newTCPSite(b, hub).raw().conn
	message := frame(0x81, make([]byte, 100))
	b.ReportAllocs()
	for b.Loop() {
		c.Write(message)
		<-got
	}
}

// BenchmarkCompressedMessage is the way in of a message that is compressed.
func BenchmarkCompressedMessage(b *testing.B) {
	for _, n := range []int{300, 4 << 10} {
		b.Run(fmt.Sprintf("bytes=%d", n), func(b *testing.B) {
			hub := realtime.NewHub()
			hub.Compression = true
			got := make(chan struct{}, 1)
			hub.OnMessage = func(*realtime.Hub, realtime.Message) { got <- struct{}{} }
			c, _ := rawDeflate(newTCPSite(b, hub), "permessage-deflate")
			var text strings.Builder
			for i := 0; text.Len() < n; i++ {
				fmt.Fprintf(&text, `{"id":%d,"price":%d},`, i, i*i)
			}
			message := frame(0xC1, deflated(text.String()[:n]))
			b.ReportAllocs()
			for b.Loop() {
				c.conn.Write(message)
				<-got
			}
		})
	}
}

// BenchmarkConnect is a handshake, and the end of its connection.
func BenchmarkConnect(b *testing.B) {
	s := newTCPSite(b, realtime.NewHub())
	b.ReportAllocs()
	for b.Loop() {
		s.raw().conn.Close()
	}
}

// BenchmarkEcho is a round trip over loopback, both ends in one process.
func BenchmarkEcho(b *testing.B) {
	hub := realtime.NewHub()
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
	c := newTCPSite(b, hub).raw().conn
	message, buf := frame(0x81, make([]byte, 100)), make([]byte, 102)
	b.ReportAllocs()
	for b.Loop() {
		c.Write(message)
		io.ReadFull(c, buf)
	}
}
