package compat_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A program is a proxy of which ../docs/proxies.md has the configuration.
type program struct {
	name string // also the language of its block on the page
	args []string

	// main is the whole of the configuration, with CONFIG in the place of the
	// block. PORT, HUB and DIR stand for the proxy's port, the hub's address and
	// a directory with pem files.
	main string

	// edits adapt the block: each replaces one text by another. What is not here
	// runs as it stands on the page.
	edits []string
}

var programs = []program{
	{
		name:  "nginx",
		args:  []string{"-p", "DIR", "-c", "config"},
		main:  nginxMain,
		edits: []string{"listen 443", "listen 127.0.0.1:PORT", "/etc/ssl/example.com.pem", "DIR/cert.pem", "/etc/ssl/example.com.key", "DIR/key.pem"},
	},
	{
		name: "caddy",
		args: []string{"run", "--adapter", "caddyfile", "--config", "DIR/config"},
		main: `
{
	admin off
	auto_https disable_redirects
	storage file_system DIR/storage
}
CONFIG
`,
		edits: []string{"example.com {", "example.com:PORT {\n\tbind 127.0.0.1\n\ttls DIR/cert.pem DIR/key.pem\n"},
	},
	{
		name:  "haproxy",
		args:  []string{"-db", "-f", "DIR/config"},
		main:  "CONFIG",
		edits: []string{"bind :443", "bind 127.0.0.1:PORT", "/etc/ssl/example.com.pem", "DIR/both.pem"},
	},
}

// onPage returns the block of a language on the page.
func onPage(t *testing.T, lang string) string {
	t.Helper()
	// go test notices changes of files whose path begins with the module's.
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(dir + "/../docs/proxies.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := regexp.MustCompile("(?ms)^```"+lang+"\n(.*?)^```$").FindAllSubmatch(page, -1)
	if len(blocks) != 1 {
		t.Fatalf("the page has %d blocks of %s, want 1", len(blocks), lang)
	}
	return string(blocks[0][1])
}

// A front is a running proxy. Clients reach it as https://example.com.
type front struct {
	http2, http1 *http.Client
}

// start runs a proxy with its block of the page, in front of a server. The server
// answers /who with who. Pairs in edits replace further texts of the block.
func (p program) start(t *testing.T, upstream, who string, edits ...string) *front {
	t.Helper()
	path := findProgram(t, p.name)
	block := onPage(t, p.name)
	for edit := range slices.Chunk(slices.Concat(p.edits, []string{"127.0.0.1:8080", upstream}, edits), 2) {
		if strings.Count(block, edit[0]) != 1 {
			t.Fatalf("the page has %q %d times, want once, in\n%s", edit[0], strings.Count(block, edit[0]), block)
		}
		block = strings.Replace(block, edit[0], edit[1], 1)
	}
	dir := t.TempDir()
	roots := writeCertificate(t, dir)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		addr := freeAddr(t)
		_, port, _ := net.SplitHostPort(addr)
		fill := strings.NewReplacer("PORT", port, "DIR", dir)
		write(t, filepath.Join(dir, "config"), fill.Replace(strings.Replace(p.main, "CONFIG", block, 1)))
		var args []string
		for _, arg := range p.args {
			args = append(args, fill.Replace(arg))
		}
		var log syncBuffer
		cmd := exec.Command(path, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &log, &log
		cmd.Env = append(os.Environ(), "HOME="+dir) // Caddy writes there
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		exited := make(chan struct{})
		go func() { cmd.Wait(); close(exited) }()
		stop := func() { cmd.Process.Kill(); <-exited }
		client := func(protocols ...string) *http.Client {
			transport := &http.Transport{
				DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, network, addr)
				},
				TLSClientConfig:    &tls.Config{RootCAs: roots, NextProtos: protocols},
				ForceAttemptHTTP2:  slices.Contains(protocols, "h2"),
				DisableCompression: true,
			}
			t.Cleanup(transport.CloseIdleConnections)
			return &http.Client{Transport: transport}
		}
		f := &front{http2: client("h2"), http1: client("http/1.1")}
		for running := true; running && time.Now().Before(deadline); {
			if f.is(t, who) {
				t.Cleanup(func() {
					stop()
					if t.Failed() {
						t.Logf("%s says\n%s", p.name, log.String())
					}
				})
				return f
			}
			select {
			case <-exited:
				running = false
			case <-time.After(10 * time.Millisecond):
			}
		}
		stop()
		t.Logf("%s ended, perhaps because its port was taken:\n%s", p.name, log.String())
		if !strings.Contains(strings.ToLower(log.String()), "bind") {
			break
		}
	}
	t.Fatalf("%s does not start", p.name)
	return nil
}

// is reports whether the server that says who answers through f.
func (f *front) is(t *testing.T, who string) bool {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", "https://example.com/who", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := f.http2.Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return err == nil && string(body) == who && resp.ProtoMajor == 2
}

// dial connects a WebSocket, whose page has an origin.
func (f *front) dial(ctx context.Context, origin string) (*websocket.Conn, *http.Response, error) {
	return websocket.Dial(ctx, "https://example.com/live", &websocket.DialOptions{HTTPClient: f.http1, HTTPHeader: http.Header{"Origin": {origin}}})
}

// writeCertificate writes httptest's certificate, which is for example.com, and
// returns a pool with it.
func writeCertificate(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	key, err := x509.MarshalPKCS8PrivateKey(server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
	write(t, filepath.Join(dir, "cert.pem"), string(certPEM))
	write(t, filepath.Join(dir, "key.pem"), string(keyPEM))
	write(t, filepath.Join(dir, "both.pem"), string(certPEM)+string(keyPEM))
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	return pool
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// freeAddr returns an address with a free port. Another process may take it.
func freeAddr(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// serveLive serves the hub at /live and its own name at /who. addresses has the
// last entry of each client's X-Forwarded-For.
func serveLive(t *testing.T, hub *realtime.Hub) (server *httptest.Server, who string, addresses *sync.Map) {
	t.Helper()
	addresses, who = new(sync.Map), t.TempDir()
	mux := http.NewServeMux()
	mux.HandleFunc("/live", func(w http.ResponseWriter, r *http.Request) {
		all := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		addresses.Store(strings.TrimSpace(all[len(all)-1]), true)
		hub.ServeHTTP(w, r)
	})
	mux.HandleFunc("/who", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, who) })
	server = serve(t, mux, false)
	t.Cleanup(func() { shutdown(t, hub) }) // before the server waits for its handlers
	return server, who, addresses
}

// The configurations of the page pass WebSockets and event streams on, hold no
// event back, and tell the hub the origin and the address of a client.
func TestProxyPages(t *testing.T) {
	for _, p := range programs {
		t.Run(p.name, func(t *testing.T) {
			hub := newHub(t)
			hub.CheckOrigin = realtime.SameOrigin
			server, who, addresses := serveLive(t, hub)
			f := p.start(t, server.Listener.Addr().String(), who)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()

			forged := []string{"X-Forwarded-For", "6.6.6.6", "Origin", "https://example.com"}
			streams := []*stream{
				listen(t, f.http2, "https://example.com/live", forged...),
				listen(t, f.http1, "https://example.com/live", forged...),
			}
			for _, s := range streams {
				s.opened()
			}
			conn, _, err := f.dial(ctx, "https://example.com")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.CloseNow()
			for i := range 3 {
				want := fmt.Sprint(i, strings.Repeat(".", i*10000))
				if err := conn.Write(ctx, websocket.MessageText, []byte(want)); err != nil {
					t.Fatal(err)
				}
				for _, s := range streams {
					if got := s.next(); got != want {
						t.Fatalf("got %.20q over HTTP/%d, want %.20q", got, s.resp.ProtoMajor, want)
					}
				}
				if _, got, err := conn.Read(ctx); err != nil || string(got) != want {
					t.Fatalf("got %.20q, %v, want %.20q", got, err, want)
				}
			}

			for _, origin := range []string{"https://evil.test", "http://example.com"} {
				if _, resp, err := f.dial(ctx, origin); err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
					t.Errorf("a WebSocket of %s got %v, %v, want 403", origin, resp, err)
				}
				if s := ask(t, f.http2, "GET", "https://example.com/live", "Origin", origin); s.resp.StatusCode != http.StatusForbidden {
					t.Errorf("a stream to %s got %s, want 403", origin, s.resp.Status)
				}
			}
			addresses.Range(func(addr, _ any) bool {
				if addr != "127.0.0.1" {
					t.Errorf("X-Forwarded-For ends with %q, want the client's address", addr)
				}
				return true
			})
		})
	}
}

// The time-outs of the page are longer than the hub's PingInterval. Silent clients
// stay while the hub sends pings and comments, and end if it doesn't: here with
// both a fraction as long.
func TestProxyTimeouts(t *testing.T) {
	t.Parallel() // it sleeps
	timeout := regexp.MustCompile(`(?m)^.*(?:timeout|timeout +\w+) +(\d+)s;?$`)
	for _, p := range programs {
		var edits []string
		block := onPage(t, p.name)
		for _, m := range timeout.FindAllStringSubmatch(block, -1) {
			if strings.Contains(m[0], "connect") {
				continue
			}
			if d, err := time.ParseDuration(m[1] + "s"); err != nil || d < time.Minute {
				t.Errorf("%s: %q is not longer than 54 s", p.name, m[0])
			}
			edits = append(edits, m[0], strings.Replace(m[0], m[1]+"s", "5s", 1))
		}
		for _, pings := range []bool{true, false} {
			if !pings && edits == nil {
				continue // nothing ends its silent clients
			}
			t.Run(fmt.Sprintf("%s/pings=%v", p.name, pings), func(t *testing.T) {
				t.Parallel()
				hub := newHub(t)
				hub.PingInterval = time.Second
				hub.OnMessage = nil
				if !pings {
					hub.PingInterval = -1
				}
				server, who, _ := serveLive(t, hub)
				f := p.start(t, server.Listener.Addr().String(), who, edits...)
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				s := listen(t, f.http2, "https://example.com/live")
				s.opened()
				conn, _, err := f.dial(ctx, "https://example.com")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.CloseNow()
				ended := make(chan error, 3)
				go func() { _, _, err := conn.Read(ctx); ended <- err }() // answers pings
				go func() { _, err := s.event(); ended <- err }()
				if !pings {
					for range 2 {
						if err := <-ended; err == nil || ctx.Err() != nil {
							t.Errorf("a silent client ended with %v, %v, want the proxy's time-out", err, ctx.Err())
						}
					}
					return
				}
				talker, _, err := f.dial(ctx, "https://example.com") // it gets no pings
				if err != nil {
					t.Fatal(err)
				}
				defer talker.CloseNow()
				go func() { _, _, err := talker.Read(ctx); ended <- err }()
				for began := time.Now(); time.Since(began) < 8*time.Second; {
					if err := talker.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
						t.Fatal(err)
					}
					select {
					case err := <-ended:
						t.Fatalf("a silent client, or one to which the hub is silent, ended: %v", err)
					case <-time.After(300 * time.Millisecond):
					}
				}
				hub.Broadcast <- []byte("late")
				for range 3 {
					if err := <-ended; err != nil {
						t.Errorf("after the silence a client got %v", err)
					}
				}
			})
		}
	}
}
