package realtime_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// hidden keeps a connection from being taken over.
func hidden(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { next.ServeHTTP(sseFlush{w}, r) })
}

// streamSites are the ways that an event stream of a hub goes: on the
// connection itself, and through the handler.
var streamSites = map[string]func(t testing.TB, hub *realtime.Hub) *site{
	"taken over": newPipeSite,
	"in handler": func(t testing.TB, hub *realtime.Hub) *site {
		s := newPipeSite(t, hub)
		s.srv.Handler = hidden(s.srv.Handler)
		return s
	},
	"in handler with deadlines": func(t testing.TB, hub *realtime.Hub) *site {
		s := newPipeSite(t, hub)
		next := s.srv.Handler
		s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Encoding", "identity") // a middleware's: not to be taken over
			next.ServeHTTP(w, r)
		})
		return s
	},
}

func eachStreamSite(t *testing.T, test func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site)) {
	for name, serve := range streamSites {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, serve) })
		})
	}
}

func TestServeSSE(t *testing.T) {
	eachStreamSite(t, func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
		hub := realtime.NewHub()
		var client *realtime.Client
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			client = c
			c.Send([]byte("first"))
			return nil
		}
		left := recordLeft(hub)
		s := serve(t, hub)
		l := s.listen("")
		for header, want := range map[string]string{
			"Content-Type": "text/event-stream", "Cache-Control": "private, no-store, no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Origin",
		} {
			if got := l.resp.Header.Get(header); got != want {
				t.Errorf("%s: %q, want %q", header, got, want)
			}
		}
		if _, err := http.ParseTime(l.resp.Header.Get("Date")); err != nil {
			t.Errorf("Date: %v", err)
		}
		if n := hub.ClientCount(); n != 1 {
			t.Errorf("ClientCount() = %d, want 1", n)
		}
		hub.Broadcast <- []byte("to all\r\ndata: x")
		hub.PublishAll(t.Context(), realtime.Event{Name: "update", Data: []byte(`{"id":1}`)})
		hub.PublishAll(t.Context(), realtime.Event{Binary: true, Data: []byte{0xff, 0, '\n'}})
		hub.PublishAll(t.Context(), realtime.Event{Except: client.ID(), Data: []byte("not for it")})
		synctest.Wait()
		if err := client.SendEvent(realtime.Event{Name: "own", Data: []byte("for it alone")}); err != nil {
			t.Error(err)
		}
		for _, want := range []heard{
			{"", "", "first"}, {"", "", "to all\ndata: x"}, {"", "update", `{"id":1}`}, {"", "", "/wAK"}, {"", "own", "for it alone"},
		} {
			if got, err := l.event(); err != nil || got != want {
				t.Errorf("got %q, %v; want %q", got, err, want)
			}
		}
		if ms, _ := strconv.Atoi(l.retry); ms < 1000 || ms >= 5000 {
			t.Errorf("retry: %q, want 1000 to 4999", l.retry)
		}
		l.cut()
		synctest.Wait()
		if left.n != 1 || left.err != io.EOF || hub.ClientCount() != 0 {
			t.Errorf("OnDisconnect %d times with %v, %d clients; want once with io.EOF, and none", left.n, left.err, hub.ClientCount())
		}
		if err := client.Send(nil); !errors.Is(err, realtime.ErrClientClosed) {
			t.Errorf("Send after the end: %v", err)
		}
		if st := hub.Stats(); st.Queued != 0 || st.Dropped != 0 || st.Delivered != 5 {
			t.Errorf("Stats() = %+v, want 5 delivered", st)
		}
	})
}

// A silent stream is kept awake, and knows where it is.
func TestHeartbeat(t *testing.T) {
	eachStreamSite(t, func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := serve(t, hub)
		l := s.listen("topic=a")
		go l.event()
		time.Sleep(10 * 54 * time.Second)
		synctest.Wait()
		if l.comments < 8 || l.comments > 10 {
			t.Errorf("%d comments in 10 times PingInterval", l.comments)
		}
		publish(t, hub, "other", "x")
		time.Sleep(56 * time.Second)
		synctest.Wait()
		if !strings.HasSuffix(l.lastID, "-1") {
			t.Errorf("the last id is %q, want that of the other topic's event", l.lastID)
		}
	})
}

// No empty line is behind a retry or a heartbeat: readers that hand on every
// block, such as @microsoft/fetch-event-source, would make an empty event of it.
func TestNoEmptyEvents(t *testing.T) {
	eachStreamSite(t, func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
		hub := realtime.NewHub()
		hub.PingInterval = 10 * time.Second
		s := serve(t, hub)
		body := func(l *listener) <-chan string {
			all := make(chan string)
			go func() {
				b, _ := io.ReadAll(l.br)
				l.cut()
				all <- string(b)
			}()
			return all
		}
		got := body(s.listen(""))
		time.Sleep(35 * time.Second)
		hub.Broadcast <- []byte("x")
		synctest.Wait()
		hub.Shutdown(t.Context())
		if got, want := <-got, regexp.MustCompile(`^retry: \d{4}\n(:\n){2,3}data: x\n\nretry: \d{4}\n$`); !want.MatchString(got) {
			t.Errorf("got %q, want %s", got, want)
		}
		if got, want := <-body(s.listen("")), regexp.MustCompile(`^retry: \d{4}\n$`); !want.MatchString(got) {
			t.Errorf("a newcomer got %q, want %s", got, want)
		}
	})
}

// Close ends a stream cleanly, behind what was sent.
func TestCloseStream(t *testing.T) {
	eachStreamSite(t, func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
		hub := realtime.NewHub()
		left := recordLeft(hub)
		var client *realtime.Client
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { client = c; return nil }
		s := serve(t, hub)
		l := s.listen("")
		client.Send([]byte("last"))
		if err := client.Close(1000, "bye"); err != nil {
			t.Error(err)
		}
		if got := l.next(); got != "last" {
			t.Errorf("got %q", got)
		}
		if ev, err := l.event(); err != io.EOF {
			t.Errorf("got %v, %v; want the end", ev, err)
		}
		l.cut()
		synctest.Wait()
		if left.n != 1 || !errors.Is(left.err, realtime.ErrClientClosed) {
			t.Errorf("OnDisconnect %d times with %v, want once with ErrClientClosed", left.n, left.err)
		}
	})
}

// OnConnect may end the stream that it lets in.
func TestCloseStreamInOnConnect(t *testing.T) {
	eachStreamSite(t, func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			c.Send([]byte("no more"))
			return c.Close(1000, "")
		}
		l := serve(t, hub).listen("")
		if got := l.next(); got != "no more" {
			t.Errorf("got %q", got)
		}
		if ev, err := l.event(); err != io.EOF {
			t.Errorf("got %v, %v; want the end", ev, err)
		}
	})
}

func TestShutdownEndsStreams(t *testing.T) {
	eachStreamSite(t, func(t *testing.T, serve func(testing.TB, *realtime.Hub) *site) {
		hub := realtime.NewHub()
		left := recordLeft(hub)
		s := serve(t, hub)
		l := s.listen("")
		for i := range 100 {
			hub.Broadcast <- fmt.Append(nil, i)
		}
		down := make(chan error)
		go func() { down <- hub.Shutdown(t.Context()) }()
		for i := range 100 {
			if got := l.next(); got != fmt.Sprint(i) {
				t.Errorf("got %q, want %d", got, i)
			}
		}
		l.retry = ""
		if ev, err := l.event(); err != io.EOF || l.retry == "" {
			t.Errorf("got %v, %v with retry %q; want a retry and the end", ev, err, l.retry)
		}
		l.cut()
		if err := <-down; err != nil {
			t.Error(err)
		}
		if left.n != 1 || !errors.Is(left.err, realtime.ErrHubClosed) {
			t.Errorf("OnDisconnect %d times with %v, want once with ErrHubClosed", left.n, left.err)
		}
		// An error would stop a browser's EventSource for good.
		l = s.listen("")
		if ev, err := l.event(); err != io.EOF || l.retry == "" {
			t.Errorf("a newcomer got %v, %v with retry %q; want a retry and the end", ev, err, l.retry)
		}
	})
}

// A reader that is stuck costs itself the connection, and nobody else
// anything.
func TestStuckStream(t *testing.T) {
	for name, tt := range map[string]struct {
		events int
		cause  string
		after  time.Duration
	}{
		"with little": {1, "WriteTimeout", 10 * time.Second},
		"with much":   {400, "too slowly", time.Second},
	} {
		for where, serve := range streamSites {
			if where == "in handler" {
				continue // there is no way to end a write without a deadline
			}
			t.Run(name+" "+where, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					left := recordLeft(hub)
					s := serve(t, hub)
					s.listen("") // and reads no more
					start := time.Now()
					for i := range tt.events {
						hub.Broadcast <- fmt.Append(nil, i)
					}
					synctest.Wait()
					l := s.listen("")
					hub.Broadcast <- []byte("to who reads")
					if got := l.next(); got != "to who reads" || time.Since(start) != 0 {
						t.Errorf("another one got %q after %v", got, time.Since(start))
					}
					time.Sleep(20 * time.Second)
					synctest.Wait()
					if left.n != 1 || !within(left.at, tt.after) || !strings.Contains(fmt.Sprint(left.err), tt.cause) {
						t.Errorf("%d have left, after %v, for %v; want one after %v for %s", left.n, left.at, left.err, tt.after, tt.cause)
					}
					if st := hub.Stats(); st.Queued != 0 || st.Clients != 1 {
						t.Errorf("Stats() = %+v", st)
					}
				})
			})
		}
	}
}

// Whoever talks on an event stream is sent away.
func TestJunkOnStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		left := recordLeft(hub)
		s := newPipeSite(t, hub)
		l := s.listen("")
		io.WriteString(l.conn, "\r\n") // as some do behind a request
		synctest.Wait()
		if left.n != 0 {
			t.Fatalf("it left for a line break: %v", left.err)
		}
		go l.event()
		n := 0
		for range 200 {
			if _, err := l.conn.Write(make([]byte, 1024)); err != nil {
				break
			}
			n++
		}
		synctest.Wait()
		if left.n != 1 || n > 65 || !strings.Contains(fmt.Sprint(left.err), "bytes") {
			t.Errorf("%d left, for %v, after %d KB; want one after 64", left.n, left.err, n)
		}
	})
}

func TestStreamRequests(t *testing.T) {
	check := func(r *http.Request) bool { return r.Header.Get("Origin") == "https://friend.test" }
	const accept = "Accept: text/event-stream"
	for name, tt := range map[string]struct {
		check   func(*http.Request) bool
		method  string
		headers []string
		status  int
		want    map[string]string // of the answer; "-": not there
	}{
		"GET":                        {check, "GET", []string{accept}, 200, map[string]string{"Access-Control-Allow-Origin": "-", "Vary": "Origin"}},
		"GET that accepts more":      {nil, "GET", []string{"Accept: text/html, Text/Event-Stream;q=0.5"}, 200, nil},
		"HEAD":                       {nil, "HEAD", []string{accept}, 200, map[string]string{"Content-Type": "text/event-stream", "Cache-Control": "private, no-store, no-cache, no-transform"}},
		"POST":                       {nil, "POST", []string{accept, "Content-Length: 0"}, 405, map[string]string{"Allow": "GET, HEAD, OPTIONS"}},
		"GET that accepts no stream": {nil, "GET", []string{"Accept: */*"}, 426, map[string]string{"Upgrade": "websocket"}},
		"a friend's": {check, "GET", []string{accept, "Origin: https://friend.test"}, 200, map[string]string{
			"Access-Control-Allow-Origin": "https://friend.test", "Access-Control-Allow-Credentials": "true", "Vary": "Origin"}},
		"a stranger's": {check, "GET", []string{accept, "Origin: https://evil.test"}, 403, map[string]string{
			"Access-Control-Allow-Origin": "-", "Access-Control-Allow-Credentials": "-", "Vary": "Origin"}},
		"anybody's where no check is set": {nil, "GET", []string{accept, "Origin: https://evil.test"}, 200, map[string]string{
			"Access-Control-Allow-Origin": "*", "Access-Control-Allow-Credentials": "-", "Vary": "Origin"}},
		"a friend's preflight": {check, "OPTIONS", []string{"Origin: https://friend.test", "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: last-event-id, x-forwarded-host"}, 204, map[string]string{
			"Access-Control-Allow-Origin": "https://friend.test", "Access-Control-Allow-Methods": "GET", "Access-Control-Allow-Headers": "Last-Event-ID, Cache-Control", "Vary": "Origin"}},
		"a stranger's preflight": {check, "OPTIONS", []string{"Origin: https://evil.test", "Access-Control-Request-Method: GET"}, 403, map[string]string{
			"Access-Control-Allow-Origin": "-", "Access-Control-Allow-Headers": "-"}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.CheckOrigin = tt.check
				l := newPipeSite(t, hub).request(tt.method, "", tt.headers...)
				if l.resp.StatusCode != tt.status {
					t.Errorf("answered %s, want %d", l.resp.Status, tt.status)
				}
				for header, want := range tt.want {
					if got := strings.Join(l.resp.Header.Values(header), "; "); got != want && !(want == "-" && got == "") {
						t.Errorf("%s: %q, want %q", header, got, want)
					}
				}
				if n := hub.ClientCount(); (n == 1) != (tt.method == "GET" && tt.status == 200) {
					t.Errorf("%d clients", n)
				}
				l.cut()
			})
		})
	}
}

// A hub without a check gives no page credentials that middleware means for
// another page.
func TestStreamBesideCORS(t *testing.T) {
	const friend = "https://friend.test"
	for name, tt := range map[string]struct{ set, want string }{
		"for one page":     {friend, friend},
		"for none of them": {"", "*"}, // with which browsers send no cookies
	} {
		synctest.Test(t, func(t *testing.T) {
			s := newPipeSite(t, realtime.NewHub())
			next := s.srv.Handler
			s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Access-Control-Allow-Credentials", "true")
				if tt.set != "" {
					w.Header().Set("Access-Control-Allow-Origin", tt.set)
				}
				next.ServeHTTP(w, r)
			})
			l := s.request("GET", "", "Accept: text/event-stream", "Origin: https://evil.test")
			if got := l.resp.Header.Values("Access-Control-Allow-Origin"); !slices.Equal(got, []string{tt.want}) {
				t.Errorf("credentials %s: a stranger's page is told %q, want %q", name, got, tt.want)
			}
			l.cut()
		})
	}
}

// Somebody who tries a hub's URL by hand is told which header to add. A handshake
// whose Upgrade was dropped on the way is another matter: that is a proxy's fault.
func TestAskedByHand(t *testing.T) {
	both := func(w http.ResponseWriter, r *http.Request, hub *realtime.Hub) { hub.ServeHTTP(w, r) }
	webSockets := func(w http.ResponseWriter, r *http.Request, hub *realtime.Hub) { realtime.Upgrade(w, r, hub) }
	const hint = `curl -N -H "Accept: text/event-stream"`
	for name, tt := range map[string]struct {
		serve   func(w http.ResponseWriter, r *http.Request, hub *realtime.Hub)
		proto   int
		headers http.Header
		hinted  bool
	}{
		"curl":                     {both, 1, http.Header{"Accept": {"*/*"}}, true},
		"curl over HTTP/2":         {both, 2, http.Header{"Accept": {"*/*"}}, true},
		"an address bar":           {both, 1, http.Header{"Accept": {"text/html,*/*;q=0.8"}}, true},
		"a proxy dropped Upgrade":  {both, 1, http.Header{"Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="}}, false},
		"a URL of WebSockets only": {webSockets, 1, http.Header{"Accept": {"*/*"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			defer hub.Shutdown(t.Context())
			r := httptest.NewRequest("GET", "/live", nil)
			r.ProtoMajor, r.Header = tt.proto, tt.headers
			rec := httptest.NewRecorder()
			tt.serve(rec, r, hub)
			if body := rec.Body.String(); rec.Code != http.StatusUpgradeRequired || strings.Contains(body, hint) != tt.hinted {
				t.Errorf("answered %d %q, want 426, and %q in it: %v", rec.Code, body, hint, tt.hinted)
			}
		})
	}
}

// OnConnect refuses a stream as it refuses a WebSocket.
func TestRefusedStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var err error
		hub.OnConnect = func(*realtime.Client, *http.Request) error {
			if err == nil {
				panic("oops")
			}
			return err
		}
		s := newPipeSite(t, hub)
		for _, tt := range []struct {
			err    error
			status int
			body   string
		}{
			{realtime.Refuse(204, "stay away"), 204, ""},
			{realtime.Refuse(401, "who are you?"), 401, "who are you?\n"},
			{errors.New("secret"), 403, "Forbidden\n"},
			{nil, 500, "Internal Server Error\n"},
		} {
			err = tt.err
			l := s.request("GET", "", "Accept: text/event-stream", "Connection: close")
			body, _ := io.ReadAll(l.br)
			if l.resp.StatusCode != tt.status || string(body) != tt.body {
				t.Errorf("%v answered %s %q, want %d %q", tt.err, l.resp.Status, body, tt.status, tt.body)
			}
			if got := l.resp.Header.Get("Content-Type"); got == "text/event-stream" {
				t.Errorf("%v is answered as %s", tt.err, got)
			}
		}
		synctest.Wait()
		if st := hub.Stats(); st.Refused != 4 || st.Clients != 0 {
			t.Errorf("Stats() = %+v, want 4 refused", st)
		}
	})
}

func TestServeSSEMisused(t *testing.T) {
	rec := httptest.NewRecorder()
	(&realtime.Hub{}).ServeSSE(rec, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 500 {
		t.Errorf("a hub that wasn't made by NewHub answered %d, want 500", rec.Code)
	}
	hub := realtime.NewHub()
	defer hub.Shutdown(context.Background())
	var log safeBuffer
	hub.Logger = textLogger(&log)
	rec = httptest.NewRecorder()
	hub.ServeSSE(sseHide{rec}, httptest.NewRequest("GET", "/", nil))
	if rec.Code != 501 {
		t.Errorf("a ResponseWriter without Flush: answered %d, want 501", rec.Code)
	}
	hub.Shutdown(t.Context())
	if got := log.String(); !strings.Contains(got, "sseHide") || !strings.Contains(got, "Unwrap") {
		t.Errorf("the log %q should name the culprit and the cure", got)
	}
}

// Streams that can't be taken over outlive Server.WriteTimeout, end with their
// client, and touch nothing once their handler has returned.
func TestServeSSEInHandler(t *testing.T) {
	sseProtocols(t, func(t *testing.T, srv *sseServer) {
		hub := realtime.NewHub()
		hub.Logger = quiet
		hub.History.Events = 10
		left := recordLeft(hub)
		var fences []*sseFence
		srv.http.WriteTimeout = time.Second
		returned := make(chan struct{}, 10)
		srv.start(func(w http.ResponseWriter, r *http.Request) {
			f := &sseFence{ResponseWriter: w, touched: new(atomic.Int64)}
			fences = append(fences, f)
			hub.ServeSSE(f, r)
			f.returned.Store(true)
			returned <- struct{}{}
		})
		resp := srv.get()
		late := make(chan error)
		go func() {
			br := bufio.NewReader(resp.Body)
			line, err := "", error(nil)
			for err == nil && line != "data: late\n" {
				line, err = br.ReadString('\n')
			}
			late <- err
		}()
		time.Sleep(time.Minute)
		if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("late")}); err != nil {
			t.Error(err)
		}
		if err := <-late; err != nil {
			t.Error(err)
		}
		resp.Body.Close()
		<-returned
		synctest.Wait()
		if left.n != 1 || left.err != io.EOF {
			t.Errorf("OnDisconnect %d times with %v, want once with io.EOF", left.n, left.err)
		}

		// One that is stuck, at the hub's end.
		resp = srv.get()
		hub.PublishAll(t.Context(), realtime.Event{Data: []byte(srv.stuck)})
		synctest.Wait()
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if err := hub.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v, want DeadlineExceeded", err)
		}
		<-returned
		if d := time.Since(start); d > 4*time.Second {
			t.Errorf("the handler returned after %v", d)
		}
		<-hub.Done()
		time.Sleep(time.Minute)
		for _, f := range fences {
			if n := f.touched.Load(); n != 0 {
				t.Errorf("%d calls after the handler had returned", n)
			}
		}
		resp.Body.Close()
	})
}

// HTTP/2 and HTTP/1.0 stay in the handler as well.
func TestServeSSEHTTP2(t *testing.T) {
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	conf := &tls.Config{Certificates: cert.TLS.Certificates}
	cert.Close()
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Logger = quiet
		l := listenPipe()
		srv := &http.Server{Handler: http.HandlerFunc(hub.ServeSSE), TLSConfig: conf.Clone(), WriteTimeout: time.Second}
		go srv.ServeTLS(l, "", "")
		tr := &http.Transport{DialContext: l.dial, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
		defer func() {
			tr.CloseIdleConnections()
			srv.Close()
			synctest.Wait()
		}()
		defer hub.Shutdown(context.Background())
		resp, err := (&http.Client{Transport: tr}).Get("https://pipe/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.ProtoMajor != 2 {
			t.Errorf("%s, want HTTP/2", resp.Proto)
		}
		time.Sleep(15 * time.Second) // longer than the server's and the hub's WriteTimeout
		hub.Broadcast <- []byte("hello")
		br := bufio.NewReader(resp.Body)
		var lines []string
		for !slices.Contains(lines, "data: hello\n") {
			line, err := br.ReadString('\n')
			if err != nil {
				t.Fatalf("%q: %v", lines, err)
			}
			lines = append(lines, line)
		}
	})
}

func TestServeSSEHTTP10(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		conn, err := s.dial(t.Context(), "tcp", "")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		go io.WriteString(conn, "GET /ws HTTP/1.0\r\nHost: pipe\r\nAccept: text/event-stream\r\n\r\n")
		br := bufio.NewReader(conn)
		resp, err := http.ReadResponse(br, nil)
		if err != nil || resp.StatusCode != 200 || len(resp.TransferEncoding) != 0 {
			t.Fatalf("%v, %v", resp, err)
		}
		hub.Broadcast <- []byte("hello")
		l := &listener{t: t, conn: conn, resp: resp, br: bufio.NewReader(resp.Body)}
		if got := l.next(); got != "hello" {
			t.Errorf("got %q", got)
		}
	})
}

// Streams and WebSockets share a hub, on TCP too, where events are written
// directly and idle streams are parked.
func TestBothTransports(t *testing.T) {
	hub := realtime.NewHub()
	hub.SlowAfter = time.Minute // nobody is, but on a busy machine
	left := make(chan error, 100)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { left <- err }
	s := newTCPSite(t, hub)
	const clients, events = 10, 2000
	var readers sync.WaitGroup
	var streams []*listener
	for range clients {
		conn, l := s.connect(), s.listen("")
		streams = append(streams, l)
		readers.Go(func() {
			for i := range events {
				if _, data, err := conn.Read(context.Background()); err != nil || string(data) != fmt.Sprint(i) {
					t.Errorf("WebSocket: %q, %v; want %d", data, err, i)
					return
				}
			}
		})
		readers.Go(func() {
			for i := range events {
				if ev, err := l.event(); err != nil || ev.data != fmt.Sprint(i) {
					t.Errorf("event stream: %v, %v; want %d", ev, err, i)
					return
				}
			}
		})
	}
	for i := range events {
		hub.Broadcast <- fmt.Append(nil, i)
	}
	readers.Wait()
	for _, l := range streams {
		l.cut()
	}
	for range streams {
		select {
		case err := <-left:
			if err != io.EOF {
				t.Errorf("a stream left with %v, want io.EOF", err)
			}
		case <-time.After(time.Minute):
			t.Fatal("a stream's leaving was not noticed")
		}
	}
	if n := hub.ClientCount(); n != clients {
		t.Errorf("%d clients are left, want %d", n, clients)
	}
}

// A middleware's writer that panics costs its client the connection, and not
// the process, though it isn't called on the handler's goroutine.
func TestServeSSEWritePanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		left := recordLeft(hub)
		s := newPipeSite(t, hub)
		next := s.srv.Handler
		s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			next.ServeHTTP(&ssePanics{sseFlush{w}, 1}, r)
		})
		l := s.listen("")
		go l.event()
		hub.Broadcast <- []byte("x")
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if left.n != 1 || !strings.Contains(fmt.Sprint(left.err), "ssePanics panicked: oops") || hub.ClientCount() != 0 {
			t.Errorf("%d left, for %v, %d clients; want one for the panic, and none", left.n, left.err, hub.ClientCount())
		}
	})
}

// An ssePanics panics once its writes are used up.
type ssePanics struct {
	sseFlush
	writes int
}

func (w *ssePanics) Write(b []byte) (int, error) {
	if w.writes--; w.writes < 0 {
		panic("oops")
	}
	return w.sseFlush.Write(b)
}

// Nothing that is published forges a field, an event or an envelope.
func TestInjection(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := newPipeSite(t, hub)
		const evil = "a\nid: forged\r\nevent: evil\rdata: x\n\n\"},{\"event\":\"evil\",\"reset\":true}\x00</script>\u2028"
		c := join(s, "topic="+url.QueryEscape(evil)+"&lastEventId="+url.QueryEscape(evil))
		for i, e := range []realtime.Event{
			{Data: []byte(evil)}, {Data: []byte("x"), Key: evil}, {Data: []byte("x"), Except: evil}, {Data: []byte("x"), Name: "\"},{\"event\":\"evil"},
		} {
			if err := hub.Publish(t.Context(), evil, e); err != nil {
				t.Errorf("%d: %v", i, err)
			}
		}
		for _, e := range []realtime.Event{{Name: evil}, {ID: evil}, {Data: []byte(evil + "\xff")}} {
			if err := hub.Publish(t.Context(), evil, e); err == nil {
				t.Errorf("Publish took %+v", e)
			}
		}
		if _, isStream := c.(*listener); isStream {
			// Line breaks of each kind arrive as LF (WHATWG HTML §9.2.5).
			expect(t, c, "reset", strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(evil))
		} else {
			expect(t, c, "reset", evil)
		}
		expect(t, c, "x", "x")
		if ev, err := c.event(); err != nil || ev.name != "\"},{\"event\":\"evil" || ev.data != "x" {
			t.Errorf("got %q, %v", ev, err)
		}
		hub.Broadcast <- []byte("end")
		expect(t, c, "end")
		if !strings.HasSuffix(c.last(), "-5~") {
			t.Errorf("the last id is %q", c.last())
		}
	})
}
