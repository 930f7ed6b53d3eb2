package compat_test

import (
	"context"
	"io"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	"github.com/coder/websocket"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// dial connects as a browser does. It says that it accepts compressed answers.
func dial(t *testing.T, ctx context.Context, url string) *websocket.Conn {
	t.Helper()
	conn, _, err := websocket.Dial(ctx, url, &websocket.DialOptions{
		HTTPHeader: http.Header{"Accept-Encoding": {"gzip, deflate, br"}},
	})
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	return conn
}

func TestUpgrade(t *testing.T) {
	for _, s := range stacks {
		t.Run(s.name, func(t *testing.T) {
			hub := newHub(t)
			errs := make(chan error, 2)
			server := serve(t, s.handler(func(w http.ResponseWriter, r *http.Request) {
				errs <- realtime.Upgrade(w, r, hub)
			}), false)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()

			a := dial(t, ctx, server.URL)
			b := dial(t, ctx, server.URL)
			for range 2 {
				if err := <-errs; err != nil {
					t.Errorf("Upgrade: %v", err)
				}
			}
			if err := a.Write(ctx, websocket.MessageText, []byte("hello")); err != nil {
				t.Fatal(err)
			}
			for _, conn := range []*websocket.Conn{a, b} {
				if _, data, err := conn.Read(ctx); err != nil || string(data) != "hello" {
					t.Errorf("Read() = %q, %v, want hello", data, err)
				}
			}
			var wg sync.WaitGroup
			wg.Go(func() { shutdown(t, hub) })
			for _, conn := range []*websocket.Conn{a, b} {
				if _, _, err := conn.Read(ctx); websocket.CloseStatus(err) != websocket.StatusGoingAway {
					t.Errorf("after Shutdown Read: %v, want status %v", err, websocket.StatusGoingAway)
				}
			}
			wg.Wait()
		})
	}
}

// Headers that middleware sets before the handler are sent with the handshake's
// answer. Headers that it would set when the answer is written are lost, because
// Upgrade has taken the connection over by then. So a session that is changed in
// OnConnect is saved, but one that begins there gets no cookie.
func TestUpgradeWithSession(t *testing.T) {
	sessions := scs.New()
	hub := newHub(t)
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		sessions.Put(r.Context(), "user", sessions.GetString(r.Context(), "user")+" is here")
		return nil
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		sessions.Put(r.Context(), "user", "Ada")
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		if err := realtime.Upgrade(w, r, hub); err != nil {
			t.Errorf("Upgrade: %v", err)
		}
	})
	mux.HandleFunc("/user", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, sessions.GetString(r.Context(), "user"))
	})
	saved := make(chan struct{}, 3)
	withSession := sessions.LoadAndSave(mux)
	server := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		withSession.ServeHTTP(w, r)
		saved <- struct{}{}
	}), false)
	client := server.Client()
	client.Jar, _ = cookiejar.New(nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()

	resp, err := client.Get(server.URL + "/login")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	<-saved
	conn, resp, err := websocket.Dial(ctx, server.URL+"/ws", &websocket.DialOptions{HTTPClient: client})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	if got := resp.Header.Get("Vary"); got != "Cookie" { // LoadAndSave's
		t.Errorf("the handshake's answer has Vary %q, want Cookie", got)
	}
	<-saved
	resp, err = client.Get(server.URL + "/user")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if user, err := io.ReadAll(resp.Body); err != nil || string(user) != "Ada is here" {
		t.Errorf("the session has %q, %v, want Ada is here", user, err)
	}
}

// A client does not end with the context of its request.
func TestClientOutlivesTimeout(t *testing.T) {
	hub := newHub(t)
	returned := make(chan struct{})
	// The middleware answers 504 after the connection was taken over. net/http
	// logs an error about it.
	server := serve(t, chiStack(chimiddleware.Timeout(time.Millisecond))(func(w http.ResponseWriter, r *http.Request) {
		defer close(returned)
		if err := realtime.Upgrade(w, r, hub); err != nil {
			t.Errorf("Upgrade: %v", err)
		}
		<-r.Context().Done()
	}), true)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn := dial(t, ctx, server.URL)
	<-returned
	if err := conn.Write(ctx, websocket.MessageText, []byte("still here")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := conn.Read(ctx); err != nil || string(data) != "still here" {
		t.Errorf("Read() = %q, %v, want still here", data, err)
	}
}

// opaque hides everything but the three methods of a ResponseWriter.
type opaque struct{ http.ResponseWriter }

// hiders are middleware that hides Hijack and Flush from the handler.
var hiders = []struct {
	name    string
	culprit string // its ResponseWriter's type
	handler func(handle http.HandlerFunc) http.Handler
}{
	{"http.TimeoutHandler", "*http.timeoutWriter", func(handle http.HandlerFunc) http.Handler {
		return http.TimeoutHandler(handle, time.Minute, "too late")
	}},
	{"wrapper without Unwrap", "*compat_test.opaque", func(handle http.HandlerFunc) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { handle(&opaque{w}, r) })
	}},
	// The inner wrapper has Hijack and Flush, but they can only fail.
	{"the same around scs", "*compat_test.opaque", func(handle http.HandlerFunc) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			scs.New().LoadAndSave(handle).ServeHTTP(&opaque{w}, r)
		})
	}},
	{"http.TimeoutHandler around chi", "*http.timeoutWriter", func(handle http.HandlerFunc) http.Handler {
		return http.TimeoutHandler(chiStack(chimiddleware.Logger, chimiddleware.Compress(5))(handle), time.Minute, "too late")
	}},
	{"http.TimeoutHandler around gin", "*http.timeoutWriter", func(handle http.HandlerFunc) http.Handler {
		return http.TimeoutHandler(ginStack()(handle), time.Minute, "too late")
	}},
	{"http.TimeoutHandler around echo", "*http.timeoutWriter", func(handle http.HandlerFunc) http.Handler {
		return http.TimeoutHandler(echoStack()(handle), time.Minute, "too late")
	}},
}

func TestUpgradeNamesWhatHidesTheConnection(t *testing.T) {
	for _, h := range hiders {
		t.Run(h.name, func(t *testing.T) {
			hub := newHub(t)
			errs := make(chan error, 1)
			server := serve(t, h.handler(func(w http.ResponseWriter, r *http.Request) {
				errs <- realtime.Upgrade(w, r, hub)
			}), false)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			conn, resp, err := websocket.Dial(ctx, server.URL, nil)
			if err == nil {
				conn.CloseNow()
				t.Fatal("the handshake succeeded")
			}
			if resp == nil || resp.StatusCode != http.StatusNotImplemented {
				t.Errorf("answered %v, want 501", resp)
			}
			select {
			case err = <-errs:
			case <-ctx.Done():
				t.Fatal("Upgrade has not returned")
			}
			if err == nil || !strings.Contains(err.Error(), h.culprit) || !strings.Contains(err.Error(), "Unwrap") {
				t.Errorf("Upgrade: %v, want an error that names %s and Unwrap", err, h.culprit)
			}
		})
	}
}
