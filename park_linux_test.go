package realtime_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}

// parked waits until no goroutine reads.
func parked(t *testing.T) {
	t.Helper()
	eventually(t, "all clients are parked", func() bool { return running("(*Client).serve") == 0 })
}

// parkNow parks all clients. A kick that comes within a message is lost.
func parkNow(t *testing.T, hub *realtime.Hub) {
	t.Helper()
	eventually(t, "all clients are parked", func() bool {
		realtime.Kick(hub)
		return running("(*Client).serve") == 0
	})
}

// newUnixSite serves the hub on a Unix socket.
func newUnixSite(t testing.TB, hub *realtime.Hub) *site {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}
	return serveSite(t, hub, l, "ws://unix/ws", dial)
}

func init() { sockets["unix"] = newUnixSite }

var parkable = map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "unix": newUnixSite, "tls": newTLSSite}

func TestIdleClientHoldsNoGoroutine(t *testing.T) {
	for name, serve := range parkable {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
			s := serve(t, hub)
			var conns []*websocket.Conn
			soon(t, 3*time.Second, func() error { // after which the sweeper parks them
				for range 20 {
					conns = append(conns, s.connect())
				}
				parked(t)
				return nil
			})
			for range 3 {
				hub.Broadcast <- []byte("hello")
				for _, c := range conns {
					if got := read(t, c); got != "hello" {
						t.Errorf("got %q", got)
					}
					write(t, c, "echo")
					if got := read(t, c); got != "echo" {
						t.Errorf("got %q", got)
					}
				}
				parkNow(t, hub)
			}
			for _, c := range conns {
				go closeStatus(c)
			}
		})
	}
}

// A parked client expires, on both transports, and needs no goroutine until then.
func TestParkedClientExpires(t *testing.T) {
	hub := realtime.NewHub()
	s := newTCPSite(t, hub)
	conn := s.connect()
	stream := s.listen("")
	parkNow(t, hub)
	for c := range hub.Clients() {
		c.ExpireAt(time.Now())
	}
	if got := closeStatus(conn); got.Code != 3000 {
		t.Errorf("closed with %v, want 3000", got)
	}
	if ev, err := stream.event(); err != io.EOF {
		t.Errorf("got %v, %v, want the end", ev, err)
	}
	stream.cut()
	eventually(t, "both are gone", func() bool { return realtime.Joined(hub) == 0 })
}

// The sweeper parks a client that has been idle for 3 s, and not before.
func TestSweeperParks(t *testing.T) {
	hub := realtime.NewHub()
	s := newTCPSite(t, hub)
	c := s.connect()
	start := time.Now()
	write(t, c, "hello")
	eventually(t, "the message is read", func() bool { return hub.Stats().Received == 1 })
	parked(t)
	if d := time.Since(start); d < 3*time.Second {
		t.Errorf("parked after %v, want 3 s", d)
	}
	go closeStatus(c)
}

// A client that says something after a long silence parks right behind it. One that
// says something again soon stays.
func TestSeldomClientParksAtOnce(t *testing.T) {
	says := map[string][]byte{
		"message":   frame(0x81, []byte("hello")),
		"ping":      frame(0x89, []byte("hello")),
		"pong":      slices.Concat(frame(0x8A, nil), frame(0x81, []byte("hello"))),
		"fragments": slices.Concat(frame(0x01, []byte("hel")), frame(0x80, []byte("lo"))),
		"large":     frame(0x82, make([]byte, 500)), // in several Reads
	}
	for name, serve := range parkable {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
			s := serve(t, hub)
			for what, sent := range says {
				c := s.raw()
				soon(t, 3*time.Second, func() error { // after which the sweeper parks it
					for range 2 {
						parkNow(t, hub)
						realtime.Silent(hub, 3*time.Second)
						c.send(sent)
						if _, _, err := c.readFrame(); err != nil {
							return fmt.Errorf("%s: %w", what, err)
						}
						parked(t)
					}
					c.send(sent)
					if _, _, err := c.readFrame(); err != nil {
						return fmt.Errorf("%s: %w", what, err)
					}
					time.Sleep(5 * time.Millisecond) // in which it could park
					if running("(*Client).serve") != 1 {
						return fmt.Errorf("%s: it was parked although it says much", what)
					}
					return nil
				})
				c.conn.Close()
				eventually(t, "it is gone", func() bool { return realtime.Joined(hub) == 0 })
			}
		})
	}
}

// Connections are parked between messages only. Kicks within one do nothing.
func TestKickWithinAMessage(t *testing.T) {
	whole := slices.Concat(
		frame(0x01, []byte("in ")), frame(0x89, []byte("ping")), frame(0x00, []byte("five ")), frame(0x8A, nil), frame(0x80, []byte("pieces")),
		frame(0x82, []byte("and another")),
	)
	for name, serve := range parkable {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
			s := serve(t, hub)
			c := s.raw()
			for i := range whole {
				realtime.Kick(hub)
				if err := c.send(whole[i : i+1]); err != nil {
					t.Fatal(err)
				}
				if i%3 == 0 {
					runtime.Gosched()
				}
				realtime.Kick(hub)
				for range i % 5 {
					time.Sleep(200 * time.Microsecond)
					realtime.Kick(hub)
				}
			}
			for _, want := range []string{"ping", "in five pieces", "and another"} {
				if _, payload, err := c.readFrame(); err != nil || string(payload) != want {
					t.Fatalf("got %q, %v; want %q", payload, err, want)
				}
			}
			parkNow(t, hub)
			c.send(frame(0x88, nil))
			c.readFrame()
		})
	}
}

// Bytes that come at the moment of parking are read.
func TestMessagesAtTheMomentOfParking(t *testing.T) {
	hub := realtime.NewHub()
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
	s := newTCPSite(t, hub)
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				realtime.Kick(hub)
				runtime.Gosched()
			}
		}
	})
	var clients sync.WaitGroup
	for range 4 {
		c := s.connect()
		clients.Go(func() {
			for i := range 1000 {
				want := fmt.Sprint(i)
				if i%50 == 0 {
					go c.Ping(t.Context()) // answered while we read
				}
				write(t, c, want)
				if got := read(t, c); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			}
			go closeStatus(c)
		})
	}
	clients.Wait()
	close(stop)
	all.Wait()
}

func TestParkedClientEnds(t *testing.T) {
	ends := map[string]struct {
		end  func(hub *realtime.Hub, c *realtime.Client, peer *rawClient)
		want func(err error) bool
	}{
		"by the client's close frame": {
			func(_ *realtime.Hub, _ *realtime.Client, peer *rawClient) { peer.send(frame(0x88, []byte{3, 0xE8})) },
			func(err error) bool { return websocket.CloseStatus(err) == 1000 },
		},
		"by the client's FIN": {
			func(_ *realtime.Hub, _ *realtime.Client, peer *rawClient) { peer.conn.Close() },
			func(err error) bool { return errors.Is(err, io.EOF) },
		},
		"by the client's reset": {
			func(_ *realtime.Hub, _ *realtime.Client, peer *rawClient) {
				conn := peer.conn
				if c, ok := conn.(*tls.Conn); ok {
					conn = c.NetConn()
				}
				if c, ok := conn.(*net.TCPConn); ok {
					c.SetLinger(0)
				}
				conn.Close()
			},
			func(err error) bool { return err != nil },
		},
		"by Close": {
			func(_ *realtime.Hub, c *realtime.Client, peer *rawClient) {
				c.Close(4000, "")
				peer.send(frame(0x88, []byte{0x0F, 0xA0}))
			},
			func(err error) bool {
				return websocket.CloseStatus(err) == 4000 && errors.Is(err, realtime.ErrClientClosed)
			},
		},
		"by Disconnect": {
			func(hub *realtime.Hub, c *realtime.Client, peer *rawClient) {
				c.Subscribe("a")
				disconnect(t, hub, "a")
				peer.expectClose(codeOut)
				peer.send(frame(0x88, []byte{codeOut >> 8, codeOut & 0xFF}))
			},
			func(err error) bool {
				return websocket.CloseStatus(err) == codeOut && errors.Is(err, realtime.ErrClientClosed)
			},
		},
		"by its slowness": {
			func(_ *realtime.Hub, c *realtime.Client, peer *rawClient) {
				for c.SendEvent(realtime.Event{Data: make([]byte, 1<<20)}) == nil {
				}
			},
			func(err error) bool { return errors.Is(err, realtime.ErrSlowClient) },
		},
		"by Shutdown's ctx": {
			func(_ *realtime.Hub, c *realtime.Client, peer *rawClient) {},
			func(err error) bool { return errors.Is(err, realtime.ErrHubClosed) },
		},
	}
	for network, serve := range parkable {
		for name, tt := range ends {
			t.Run(network+"/"+name, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.SendBuffer, hub.SlowAfter = 4, -1
				clients := make(chan *realtime.Client, 1)
				hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
					clients <- c
					return nil
				}
				gone := make(chan error, 2)
				hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
				before := descriptors(t)
				s := serve(t, hub)
				peer := s.raw()
				parked(t)
				tt.end(hub, <-clients, peer)
				if name == "by Shutdown's ctx" {
					ctx, cancel := context.WithCancel(context.Background())
					cancel()
					hub.Shutdown(ctx)
				}
				if err := <-gone; !tt.want(err) {
					t.Errorf("OnDisconnect got %v", err)
				}
				peer.conn.Close()
				hub.Shutdown(context.Background())
				s.srv.Close()
				eventually(t, "all descriptors are closed", func() bool { return descriptors(t) <= before })
			})
		}
	}
}

// A client is parked again and again, and so is the next one in its slot.
func TestParkingAgain(t *testing.T) {
	hub := realtime.NewHub()
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
	s := newTCPSite(t, hub)
	s.raw() // it stays, so the slots do
	parked(t)
	for range 3 {
		c := s.raw()
		parked(t)
		for range 5 {
			c.send(frame(0x81, []byte("x")))
			if _, _, err := c.readFrame(); err != nil {
				t.Fatal(err)
			}
			parkNow(t, hub)
		}
		parked(t)
		c.conn.Close()
		eventually(t, "the client is gone", func() bool { return realtime.Joined(hub) == 1 })
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Pings of both sides are answered while a client is parked.
func TestPingsWhileParked(t *testing.T) {
	hub := realtime.NewHub()
	hub.PingInterval = 100 * time.Millisecond // and at most a second more
	s := newTCPSite(t, hub)
	pinged := make(chan struct{}, 100)
	c, _, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{
		OnPingReceived: func(context.Context, []byte) bool {
			pinged <- struct{}{}
			return true
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	ctx := c.CloseRead(context.Background()) // answers pings
	for range 2 {
		parkNow(t, hub)
		select {
		case <-pinged: // the second time only where the first one's answer has come
		case <-time.After(time.Minute):
			t.Fatal("it was not pinged")
		}
	}
	for range 3 {
		parkNow(t, hub)
		if err := c.Ping(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if hub.ClientCount() != 1 {
		t.Error("the client is gone")
	}
}
