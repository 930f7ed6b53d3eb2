package realtime_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http/httptest"
	"runtime"
	"strconv"
	"syscall"
	"testing"

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
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	conf := &tls.Config{Certificates: cert.TLS.Certificates}
	cert.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}
		return d.DialContext(ctx, network, addr)
	}
	return serveSite(t, hub, tls.NewListener(l, conf), "ws://"+l.Addr().String()+"/ws", dial)
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
