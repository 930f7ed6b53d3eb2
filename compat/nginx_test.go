package compat_test

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// passUpgrade makes nginx pass an upgrade on. It is from nginx's documentation
// (https://nginx.org/en/docs/http/websocket.html).
const passUpgrade = `
	proxy_http_version 1.1;
	proxy_set_header Upgrade $http_upgrade;
	proxy_set_header Connection $connection_upgrade;`

// setups are common settings beside proxy_pass. None of them sets buffering: the
// hub's X-Accel-Buffering header does.
var setups = []struct {
	name, location string
	upstream       string // the protocol from nginx to the hub
	http2          bool   // from the client to nginx
}{
	{name: "defaults", upstream: "HTTP/1.0"},
	{name: "HTTP 1.1", location: "proxy_http_version 1.1;", upstream: "HTTP/1.1"},
	{name: "keepalive", location: `proxy_http_version 1.1; proxy_set_header Connection "";`, upstream: "HTTP/1.1"},
	{name: "upgrade", location: passUpgrade, upstream: "HTTP/1.1"},
	{name: "gzip", location: "gzip on; gzip_types *; gzip_proxied any;", upstream: "HTTP/1.0"},
	{name: "gzip and HTTP 1.1", location: "gzip on; gzip_types *; gzip_proxied any; proxy_http_version 1.1;", upstream: "HTTP/1.1"},
	{name: "HTTP 2 to the client", http2: true, upstream: "HTTP/1.0"},
	{name: "HTTP 2 to the client and HTTP 1.1", http2: true, location: passUpgrade, upstream: "HTTP/1.1"},
}

// An nginx is a reverse proxy on loopback. It runs as the test's user.
type nginx struct {
	t      *testing.T
	path   string // of the program
	dir    string // for its files
	config string // with PORT in the place of the port
	scheme string
	url    string // for clients; empty while it has no port
	client *http.Client
	log    syncBuffer
	noisy  bool // its complaints are expected

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has ended
}

// findProgram returns the path of a Debian package's program. Without it the test
// fails if $CI is set and is skipped otherwise.
func findProgram(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/usr/local/sbin/"} { // sbin is not in everybody's PATH
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	missing := name + " is not installed: apt-get install -y --no-install-recommends " + name
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

// nginxMain is the configuration of an nginx that is a single process, so that
// killing it leaves nothing behind. CONFIG stands for what is in its http block.
const nginxMain = `
daemon off;
master_process off;
pid nginx.pid;
error_log stderr warn;
events {}
http {
	access_log off;
	client_body_temp_path body;
	proxy_temp_path proxy;
	fastcgi_temp_path fastcgi;
	uwsgi_temp_path uwsgi;
	scgi_temp_path scgi;
	CONFIG
}
`

// startNginx starts an nginx in front of a server, with the given settings of its
// location. If nginx logs an error, the test fails when it ends.
func startNginx(t *testing.T, upstream *httptest.Server, location string, http2 bool) *nginx {
	t.Helper()
	n := &nginx{t: t, path: findProgram(t, "nginx"), dir: t.TempDir(), scheme: "http", client: &http.Client{Transport: &http.Transport{DisableCompression: true}}}
	tls := ""
	if http2 {
		// The certificate is httptest's.
		server := httptest.NewUnstartedServer(nil)
		server.EnableHTTP2 = true
		server.StartTLS()
		defer server.Close()
		n.scheme, n.client = "https", plainClient(server)
		cert := server.TLS.Certificates[0]
		key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
		if err != nil {
			t.Fatal(err)
		}
		n.write("cert.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}))
		n.write("key.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
		tls = "ssl http2; ssl_certificate cert.pem; ssl_certificate_key key.pem"
	}
	n.config = strings.Replace(nginxMain, "CONFIG", fmt.Sprintf(`
	map $http_upgrade $connection_upgrade {
		default upgrade;
		""      close;
	}
	upstream hub {
		server %s;
		keepalive 4;
	}
	server {
		listen 127.0.0.1:PORT %s;
		location = /who {
			return 200 %s;
		}
		location / {
			proxy_pass http://hub;
			%s
		}
		location /plain/ {
			proxy_pass http://hub;
		}
	}
`, upstream.Listener.Addr(), tls, n.dir, location), 1)
	n.run()
	t.Cleanup(func() {
		n.kill(syscall.SIGKILL)
		for line := range strings.Lines(n.log.String()) {
			if t.Failed() {
				t.Logf("nginx says: %s", line)
			} else if !n.noisy && !strings.Contains(line, "[warn]") && !strings.Contains(line, "bind()") { // after which run tries again
				t.Errorf("nginx complains: %s", line)
			}
		}
	})
	return n
}

func (n *nginx) write(name string, data []byte) {
	n.t.Helper()
	if err := os.WriteFile(filepath.Join(n.dir, name), data, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// run starts nginx and waits until it serves. It uses its port, or a free one if
// it has none yet.
func (n *nginx) run() {
	n.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		url := cmp.Or(n.url, n.free())
		n.write("nginx.conf", []byte(strings.ReplaceAll(n.config, "PORT", url[strings.LastIndex(url, ":")+1:])))
		n.cmd = exec.Command(n.path, "-p", n.dir, "-c", "nginx.conf")
		n.cmd.Stderr = &n.log
		if err := n.cmd.Start(); err != nil {
			n.t.Fatal(err)
		}
		n.exited = make(chan struct{})
		go func(cmd *exec.Cmd, exited chan struct{}) {
			cmd.Wait()
			close(exited)
		}(n.cmd, n.exited)
		for running := true; running && time.Now().Before(deadline); {
			if n.serves(url) {
				if n.url == "" {
					n.url = url
				}
				return
			}
			select {
			case <-n.exited:
				running = false
			case <-time.After(time.Millisecond):
			}
		}
		n.kill(syscall.SIGKILL)
	}
	n.t.Fatalf("nginx does not start: %s", n.log.String())
}

// free returns a URL with a free port. Another process may take the port before
// nginx does.
func (n *nginx) free() string {
	n.t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	defer listener.Close()
	return n.scheme + "://" + listener.Addr().String()
}

// serves reports whether n serves at url, and not another process.
func (n *nginx) serves(url string) bool {
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", url+"/who", nil)
	if err != nil {
		n.t.Fatal(err)
	}
	resp, err := n.client.Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return err == nil && string(body) == n.dir
}

// kill ends nginx with a signal.
func (n *nginx) kill(signal syscall.Signal) {
	n.cmd.Process.Signal(signal)
	<-n.exited
}

// serveHub serves the hub at / and /plain/. inside counts the handlers that run,
// and protos has the protocols of the requests.
func serveHub(t *testing.T, hub *realtime.Hub) (server *httptest.Server, inside *atomic.Int64, protos *sync.Map) {
	t.Helper()
	inside, protos = new(atomic.Int64), new(sync.Map)
	server = serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside.Add(1)
		defer inside.Add(-1)
		protos.Store(r.Proto, true)
		hub.ServeHTTP(w, r)
	}), false)
	t.Cleanup(func() { shutdown(t, hub) }) // before the server waits for its handlers
	return server, inside, protos
}

func TestNginxStreams(t *testing.T) {
	for _, setup := range setups {
		t.Run(setup.name, func(t *testing.T) {
			hub, left := newWatchedHub(t)
			server, inside, protos := serveHub(t, hub)
			n := startNginx(t, server, setup.location, setup.http2)

			l := listen(t, n.client, n.url)
			if got := l.resp.ProtoMajor == 2; got != setup.http2 {
				t.Errorf("nginx speaks %s", l.resp.Proto)
			}
			if encoding := l.resp.Header.Get("Content-Encoding"); strings.Contains(setup.location, "gzip") != (encoding == "gzip") {
				t.Errorf("Content-Encoding: %q", encoding)
			}
			l.opened()
			for i := range 3 {
				want := fmt.Sprint(i, strings.Repeat(".", i*10000)) // nginx's buffers have 4 or 8 KB
				hub.Broadcast <- []byte(want)
				if got := l.next(); got != want {
					t.Fatalf("got %.20q, want %.20q", got, want)
				}
			}
			other := listen(t, n.client, n.url)
			other.opened()
			l.end()
			if err := left.one(t); err != io.EOF {
				t.Errorf("the stream left with %v, want EOF", err)
			}
			hub.Broadcast <- []byte("to the other stream")
			if got := other.next(); got != "to the other stream" {
				t.Errorf("got %q", got)
			}

			head := ask(t, n.client, "HEAD", n.url)
			head.check()
			if body, err := io.ReadAll(head.resp.Body); err != nil || len(body) > 0 {
				t.Errorf("HEAD got %q, %v, want no body", body, err)
			}
			post := ask(t, n.client, "POST", n.url)
			if post.resp.StatusCode != http.StatusMethodNotAllowed || post.resp.Header.Get("Allow") != "GET, HEAD, OPTIONS" {
				t.Errorf("POST got %s with %v, want 405", post.resp.Status, post.resp.Header)
			}

			var stopping sync.WaitGroup
			stopping.Go(func() { shutdown(t, hub) })
			other.ended()
			if err := left.one(t); !errors.Is(err, realtime.ErrHubClosed) {
				t.Errorf("the stream left with %v, want ErrHubClosed", err)
			}
			stopping.Wait()
			listen(t, n.client, n.url).ended()
			wait(t, "all handlers have returned", func() bool { return inside.Load() == 0 })
			protos.Range(func(proto, _ any) bool {
				if proto != setup.upstream {
					t.Errorf("nginx speaks %v to the hub, want %s", proto, setup.upstream)
				}
				return true
			})
		})
	}
}

func TestNginxWebSocket(t *testing.T) {
	hub, left := newWatchedHub(t)
	server, _, _ := serveHub(t, hub)
	n := startNginx(t, server, passUpgrade, false)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	a, b, c := dial(t, ctx, n.url), dial(t, ctx, n.url), dial(t, ctx, n.url)
	l := listen(t, n.client, n.url)
	if err := a.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	for _, conn := range []*websocket.Conn{a, b, c} {
		if _, data, err := conn.Read(ctx); err != nil || string(data) != "hello" {
			t.Errorf("got %q, %v, want hello", data, err)
		}
	}
	if got := l.next(); got != "hello" {
		t.Errorf("the event stream got %q, want hello", got)
	}

	if err := a.Close(4321, "bye"); err != nil {
		t.Errorf("Close: %v", err)
	}
	if err := left.one(t); websocket.CloseStatus(err) != 4321 {
		t.Errorf("a client that closes left with %v, want 4321", err)
	}
	b.CloseNow()
	left.one(t)
	if got := hub.ClientCount(); got != 2 {
		t.Errorf("ClientCount() = %d, want 2", got)
	}

	var stopping sync.WaitGroup
	stopping.Go(func() { shutdown(t, hub) })
	if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("after Shutdown Read: %v, want status %v", err, websocket.StatusGoingAway)
	}
	l.ended()
	stopping.Wait()
	if _, resp, err := websocket.Dial(ctx, n.url, nil); err == nil || resp == nil || resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("after Shutdown a new client got %v, %v, want 503 with Retry-After", resp, err)
	}
}

// If nginx doesn't pass the upgrade on, a client gets 426 at once. It can then
// use the event stream.
func TestNginxWithoutUpgrade(t *testing.T) {
	for _, location := range []string{"", "proxy_http_version 1.1;"} {
		hub := newHub(t)
		server, _, _ := serveHub(t, hub)
		n := startNginx(t, server, location, false)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		_, resp, err := websocket.Dial(ctx, n.url, nil)
		if err == nil || resp == nil || resp.StatusCode != http.StatusUpgradeRequired {
			t.Errorf("%q: answered %v, %v, want 426", location, resp, err)
		}
		listen(t, n.client, n.url).opened()
	}
}

// SameOrigin works if nginx passes on the host that the client asked for.
func TestNginxOrigins(t *testing.T) {
	for _, location := range []string{"proxy_set_header Host $http_host;", "proxy_set_header X-Forwarded-Host $http_host;"} {
		hub := newHub(t)
		hub.CheckOrigin = realtime.SameOrigin
		server, _, _ := serveHub(t, hub)
		n := startNginx(t, server, location+passUpgrade, false)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		for origin, want := range map[string]int{n.url: http.StatusSwitchingProtocols, "http://evil.test": http.StatusForbidden} {
			conn, resp, err := websocket.Dial(ctx, n.url, &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {origin}}})
			if resp == nil || resp.StatusCode != want {
				t.Errorf("%q: a WebSocket from %s is answered %v, %v, want %d", location, origin, resp, err, want)
			}
			if err == nil {
				conn.CloseNow()
			}
			if want == http.StatusSwitchingProtocols {
				want = http.StatusOK
			}
			if s := ask(t, n.client, "GET", n.url, "Origin", origin); s.resp.StatusCode != want {
				t.Errorf("%q: a stream to %s is answered %s, want %d", location, origin, s.resp.Status, want)
			}
		}
	}
}

// Heartbeats keep nginx from closing the connection of a silent client. By
// default nginx does so after 60 s, and PingInterval is 54 s.
func TestNginxKeepsSilentClients(t *testing.T) {
	t.Parallel() // it sleeps
	hub, left := newWatchedHub(t)
	hub.PingInterval = time.Second
	server, _, _ := serveHub(t, hub)
	n := startNginx(t, server, passUpgrade+"proxy_read_timeout 5s; proxy_send_timeout 5s;", false)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l := listen(t, n.client, n.url)
	l.opened()
	conn := dial(t, ctx, n.url)
	got := make(chan error, 1)
	go func() { // reads, and so answers pings
		_, data, err := conn.Read(ctx)
		if err == nil && string(data) != "late" {
			err = fmt.Errorf("got %q", data)
		}
		got <- err
	}()
	select {
	case err := <-left:
		t.Fatalf("a silent client left with %v", err)
	case <-time.After(7 * time.Second):
	}
	hub.Broadcast <- []byte("late")
	if err := <-got; err != nil {
		t.Errorf("WebSocket: %v, want late", err)
	}
	if got := l.next(); got != "late" {
		t.Errorf("event stream: got %q, want late", got)
	}
}

// A client that doesn't read is disconnected behind nginx too, and doesn't delay
// other clients.
func TestNginxSlowReader(t *testing.T) {
	for _, location := range []string{"", passUpgrade} {
		hub, left := newWatchedHub(t)
		hub.SendBuffer = 4
		server, inside, _ := serveHub(t, hub)
		n := startNginx(t, server, location, false)
		n.noisy = true // it logs the reset that ends the connection
		listen(t, n.client, n.url)
		reader := listen(t, n.client, n.url)
		data := []byte(strings.Repeat("x", 256<<10))
		var err error
		for deadline := time.Now().Add(patience); err == nil; {
			if time.Now().After(deadline) {
				t.Fatalf("%q: the client is still connected: %+v", location, hub.Stats())
			}
			hub.Broadcast <- data
			if got := reader.next(); len(got) != len(data) {
				t.Fatalf("%q: got %d bytes, want %d", location, len(got), len(data))
			}
			select {
			case err = <-left:
			default:
			}
		}
		if !errors.Is(err, realtime.ErrSlowClient) || hub.ClientCount() != 1 {
			t.Errorf("%q: got %v and %d other clients, want ErrSlowClient and 1", location, err, hub.ClientCount())
		}
		wait(t, "its handler has returned", func() bool { return inside.Load() <= 1 })
	}
}

// Clients that reconnect after a restart of nginx get every event once, in order.
func TestNginxRestarts(t *testing.T) {
	const events, clients = 2000, 2 // clients of each kind
	hub := newHub(t)
	hub.History.Events = events
	server, _, _ := serveHub(t, hub)
	n := startNginx(t, server, passUpgrade, false)
	var running sync.WaitGroup
	defer running.Wait() // also after a failure
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()

	var seen atomic.Int64 // events, by all clients together
	kinds := []func(lastID string) (follower, error){
		func(lastID string) (follower, error) { return follow(ctx, t, n, "/", lastID) },
		func(lastID string) (follower, error) { return follow(ctx, t, n, "/plain/", lastID) },
		func(lastID string) (follower, error) { return followWebSocket(ctx, n, lastID) },
	}
	for kind, connect := range kinds {
		for range clients {
			running.Go(func() {
				for next, lastID := 0, ""; next < events && ctx.Err() == nil; {
					f, err := connect(lastID)
					if err != nil {
						time.Sleep(5 * time.Millisecond)
						continue
					}
					for next < events {
						ev, err := f.event()
						if err != nil {
							break
						}
						lastID = ev.ID
						switch {
						case ev.Reset:
							t.Errorf("kind %d: a reset before event %d", kind, next)
						case ev.Data == nil: // a position
						case *ev.Data != strconv.Itoa(next):
							t.Errorf("kind %d: got %q, want %d", kind, *ev.Data, next)
							return
						default:
							next++
							seen.Add(1)
						}
					}
					f.end()
				}
			})
		}
	}
	all := len(kinds) * clients
	wait(t, "all clients are connected", func() bool { return hub.ClientCount() == all })
	running.Go(func() {
		for i := range events {
			if err := hub.PublishAll(ctx, realtime.Event{Data: strconv.AppendInt(nil, int64(i), 10)}); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	for i, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		wait(t, "clients have got more events", func() bool { return seen.Load() > int64((i+1)*all*events/5) })
		n.kill(signal)
		time.Sleep(20 * time.Millisecond) // meanwhile events are published without clients
		n.run()
	}
	running.Wait()
	if err := ctx.Err(); err != nil {
		t.Errorf("clients got %d of %d events: %v", seen.Load(), all*events, err)
	}
	wait(t, "all have left", func() bool { return hub.ClientCount() == 0 })
	if st := hub.Stats(); st.Resumed < int64(3*all) || st.Resets != 0 {
		t.Errorf("Stats() = %+v, want %d resumed and no resets", st, 3*all)
	}
}

// A follower is a client's connection. Its events look like those of package
// realtime's Subprotocol, whatever the transport.
type follower struct {
	event func() (followed, error)
	end   func()
}

type followed struct {
	ID    string  `json:"id"`
	Data  *string `json:"data"` // nil: a position
	Reset bool    `json:"reset"`
}

func follow(ctx context.Context, t *testing.T, n *nginx, path, lastID string) (follower, error) {
	var header []string
	if lastID != "" {
		header = []string{"Last-Event-ID", lastID}
	}
	s, err := tryAsk(ctx, t, n.client, "GET", n.url+path, header...)
	if err == nil && s.resp.StatusCode != http.StatusOK {
		s.end()
		err = errors.New(s.resp.Status)
	}
	if err != nil {
		return follower{}, err
	}
	s.lastID = lastID
	return follower{func() (followed, error) {
		ev, err := s.event()
		if ev.retry {
			ev, err = s.event()
		}
		if ev.name == "realtime.position" {
			return followed{ID: s.lastID}, err
		}
		return followed{s.lastID, &ev.data, ev.name == "reset"}, err
	}, s.end}, nil
}

func followWebSocket(ctx context.Context, n *nginx, lastID string) (follower, error) {
	conn, _, err := websocket.Dial(ctx, n.url+"/?lastEventId="+lastID, &websocket.DialOptions{Subprotocols: []string{realtime.Subprotocol}})
	if err != nil {
		return follower{}, err
	}
	return follower{func() (ev followed, err error) {
		_, data, err := conn.Read(ctx)
		if err == nil {
			err = json.Unmarshal(data, &ev)
		}
		return ev, err
	}, func() { conn.CloseNow() }}, nil
}
