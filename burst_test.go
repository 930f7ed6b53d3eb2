package realtime_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// listenSegments listens on loopback with the segment size of an Ethernet
// link: with loopback's own 64 KB the kernel takes far more at once than it
// does in the field.
func listenSegments(t testing.TB) net.Listener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = setMaxSegment(fd, 1448) }); cerr != nil {
			return cerr
		}
		return err
	}}
	l, err := lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// newTLSSite serves the hub on loopback over TLS.
func newTLSSite(t testing.TB, hub *realtime.Hub) *site {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		return d.DialContext(ctx, network, addr)
	}
	return serveSite(t, hub, tls.NewListener(l, serverTLS()), "ws://"+l.Addr().String()+"/ws", dial)
}

// serverTLS returns the settings of a server with some certificate.
func serverTLS() *tls.Config {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	defer cert.Close()
	return &tls.Config{Certificates: cert.TLS.Certificates}
}

// A burst of events that is published at once must reach clients that read,
// however far they are behind for a moment.
func TestBurstDisconnectsNoReader(t *testing.T) {
	const clients, events = 8, 10_000
	transports := map[string]func(testing.TB, *realtime.Hub) *site{
		"tcp": func(t testing.TB, hub *realtime.Hub) *site {
			l := listenSegments(t)
			return serveSite(t, hub, l, "ws://"+l.Addr().String()+"/ws", new(net.Dialer).DialContext)
		},
		"tls":  newTLSSite,
		"pipe": newPipeSite,
	}
	for name, serve := range transports {
		for _, procs := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/procs=%d", name, procs), func(t *testing.T) {
				defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(procs))
				hub := realtime.NewHub()
				hub.SlowAfter = time.Minute // on a busy machine readers are behind for longer than a moment
				s := serve(t, hub)
				done := make(chan error, clients)
				for range clients {
					conn := s.connect()
					go func() { done <- readCount(conn, events) }()
				}
				payload := make([]byte, 0, 128)
				for i := range events {
					payload = append(strconv.AppendInt(payload[:0], int64(i), 10), make([]byte, 100)...)
					hub.Broadcast <- append([]byte(nil), payload...)
				}
				for range clients {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
				if err := hub.Shutdown(t.Context()); err != nil {
					t.Error(err)
				}
				if got := hub.Stats(); got.SlowClients != 0 || got.Delivered != clients*events || got.Dropped != 0 {
					t.Errorf("Stats() = %+v, want %d delivered, none dropped, no slow clients", got, clients*events)
				}
			})
		}
	}
}

// readCount reads n messages that begin with their number.
func readCount(conn *websocket.Conn, n int) error {
	defer func() { go closeStatus(conn) }() // answers the close frame
	for i := range n {
		_, data, err := conn.Read(context.Background())
		if err != nil {
			return fmt.Errorf("message %d of %d: %w", i, n, err)
		}
		if want := strconv.Itoa(i); string(data[:len(want)]) != want || data[len(want)] != 0 {
			return fmt.Errorf("message %d begins with %q", i, data[:8])
		}
	}
	return nil
}

// Nor does it on a slow link, where it takes some time.
func TestBurstOnASlowLink(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		data := []byte(strings.Repeat("x", 1000))
		for range 10_000 {
			hub.Broadcast <- data
		}
		buf := make([]byte, 4096)
		for total := 0; total < 10_000*1004; {
			time.Sleep(4 * time.Millisecond) // 1 MB/s
			n, err := c.br.Read(buf)
			if err != nil {
				synctest.Wait()
				t.Fatalf("after %d bytes: %v (%v)", total, err, l.err)
			}
			total += n
		}
	})
}

// A stranger who has large messages echoed and reads none is cut off long
// before SendBuffer of them wait.
func TestLargeMessagesToOneClientAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
			msg.Client.SendEvent(realtime.Event{Data: msg.Data, Binary: true})
		}
		s := newPipeSite(t, hub)
		c := s.raw()
		message := frame(0x82, make([]byte, 512<<10))
		sent := 0
		for c.send(message) == nil {
			sent++
		}
		synctest.Wait()
		if sent > 70 || !errors.Is(l.err, realtime.ErrSlowClient) {
			t.Errorf("cut off after %d MB, for %v; want ErrSlowClient after 32", sent/2, l.err)
		}

		// Less of it may not wait for ever.
		c = s.raw()
		for range 20 { // 10 MB
			c.send(message)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if l.n != 2 || !errors.Is(l.err, realtime.ErrSlowClient) {
			t.Errorf("%d have left, for %v; want the second one for ErrSlowClient", l.n, l.err)
		}

		// One message may be as large as it likes.
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		c = s.raw()
		if err := client.SendEvent(realtime.Event{Data: make([]byte, 40<<20), Binary: true}); err != nil {
			t.Error(err)
		}
		if _, payload, err := c.readFrame(); len(payload) != 40<<20 || err != nil {
			t.Errorf("got %d bytes, %v", len(payload), err)
		}
	})
}

// Large messages to one client take their time on a slow link.
func TestLargeMessagesToOneClientOnASlowLink(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ early, late []int }{
		"one":                 {late: []int{20 << 20}},
		"several":             {late: []int{10 << 20, 10 << 20, 5 << 20}},
		"from OnConnect":      {early: []int{10 << 20, 10 << 20, 5 << 20}},
		"also from OnConnect": {early: []int{10 << 20}, late: []int{10 << 20, 5 << 20}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				left := 0
				send := func(client *realtime.Client, sizes []int) {
					t.Helper()
					for _, size := range sizes {
						if err := client.SendEvent(realtime.Event{Data: make([]byte, size), Binary: true}); err != nil {
							t.Fatal(err)
						}
						left += size
					}
				}
				var client *realtime.Client
				hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
					client = c
					send(c, tt.early)
					return nil
				}
				s := newPipeSite(t, hub)
				c := s.raw()
				synctest.Wait()
				send(client, tt.late)
				buf := make([]byte, 16<<10)
				for left > 0 {
					time.Sleep(8 * time.Millisecond) // 2 MB/s
					n, err := c.br.Read(buf)
					if err != nil {
						synctest.Wait()
						t.Fatalf("with %d bytes left: %v (%v)", left, err, l.err)
					}
					left -= n
				}
			})
		})
	}
}
