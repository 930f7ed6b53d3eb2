package compat_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/NYTimes/gziphandler"
	"github.com/alexedwards/scs/v2"
	gingzip "github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/klauspost/compress/gzhttp"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// patience bounds every wait. Nothing should take nearly as long.
const patience = 30 * time.Second

// A stack is a router with middleware. The handler that it makes passes requests
// of every method to handle.
type stack struct {
	name    string
	handler func(handle http.HandlerFunc) http.Handler

	// encodes: the middleware sets a Content-Encoding before the handler runs.
	// Then an event stream's connection is not taken over.
	encodes bool

	// noDeadline: the ResponseWriter has neither SetWriteDeadline nor Unwrap.
	// Server.WriteTimeout then ends an event stream that goes through it.
	noDeadline bool

	// noFlush: Flush does nothing until there are enough bytes to be worth
	// compressing.
	noFlush bool
}

var stacks = []stack{
	{name: "net/http", handler: func(handle http.HandlerFunc) http.Handler { return handle }},
	{name: "net/http/scs", handler: func(handle http.HandlerFunc) http.Handler { return scs.New().LoadAndSave(handle) }},
	{name: "net/http/gzhttp", handler: func(handle http.HandlerFunc) http.Handler { return gzhttp.GzipHandler(handle) }},
	{name: "net/http/gziphandler", noFlush: true, noDeadline: true, handler: func(handle http.HandlerFunc) http.Handler { return gziphandler.GzipHandler(handle) }},

	{name: "chi", handler: chiStack()},
	{name: "chi/Logger", handler: chiStack(chimiddleware.Logger)},
	{name: "chi/Recoverer", handler: chiStack(chimiddleware.Recoverer)},
	{name: "chi/Compress", handler: chiStack(chimiddleware.Compress(5))},
	{name: "chi/Compress event streams", handler: chiStack(chimiddleware.Compress(5, "text/event-stream"))},
	{name: "chi/WrapResponseWriter", handler: chiStack(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			ww := chimiddleware.NewWrapResponseWriter(w, r.ProtoMajor)
			ww.Tee(io.Discard)
			next.ServeHTTP(ww, r)
		})
	})},
	{name: "chi/Timeout", handler: chiStack(chimiddleware.Timeout(time.Minute))},
	{name: "chi/all", handler: chiStack(chimiddleware.RequestID, chimiddleware.Logger, chimiddleware.Recoverer,
		chimiddleware.Compress(5, "text/event-stream"), chimiddleware.Timeout(time.Minute), scs.New().LoadAndSave)},

	{name: "gin", handler: ginStack()},
	{name: "gin/Logger and Recovery", handler: ginStack(gin.LoggerWithWriter(io.Discard), gin.RecoveryWithWriter(io.Discard))},
	{name: "gin/gzip", encodes: true, noDeadline: true, handler: ginStack(gingzip.Gzip(gingzip.DefaultCompression))},
	{name: "gin/all", encodes: true, noDeadline: true, handler: ginStack(gin.LoggerWithWriter(io.Discard), gin.RecoveryWithWriter(io.Discard), gingzip.Gzip(gingzip.DefaultCompression))},

	{name: "echo", handler: echoStack()},
	{name: "echo/Logger", handler: echoStack(echoLogger)},
	{name: "echo/Recover", handler: echoStack(echomiddleware.Recover())},
	{name: "echo/Gzip", handler: echoStack(echomiddleware.Gzip())},
	{name: "echo/all", handler: echoStack(echoLogger,
		echomiddleware.Recover(), echomiddleware.Gzip(), echo.WrapMiddleware(scs.New().LoadAndSave))},
}

var echoLogger = echomiddleware.RequestLoggerWithConfig(echomiddleware.RequestLoggerConfig{
	LogStatus:     true,
	LogValuesFunc: func(echo.Context, echomiddleware.RequestLoggerValues) error { return nil },
})

func chiStack(middleware ...func(http.Handler) http.Handler) func(http.HandlerFunc) http.Handler {
	return func(handle http.HandlerFunc) http.Handler {
		r := chi.NewRouter()
		r.Use(middleware...)
		r.HandleFunc("/*", handle)
		return r
	}
}

func ginStack(middleware ...gin.HandlerFunc) func(http.HandlerFunc) http.Handler {
	return func(handle http.HandlerFunc) http.Handler {
		r := gin.New()
		r.Use(middleware...)
		r.Any("/*path", func(c *gin.Context) { handle(c.Writer, c.Request) })
		return r
	}
}

func echoStack(middleware ...echo.MiddlewareFunc) func(http.HandlerFunc) http.Handler {
	return func(handle http.HandlerFunc) http.Handler {
		e := echo.New()
		e.Use(middleware...)
		e.Any("/*", func(c echo.Context) error {
			handle(c.Response(), c.Request())
			return nil
		})
		return e
	}
}

func TestMain(m *testing.M) {
	gin.SetMode(gin.ReleaseMode)
	chimiddleware.DefaultLogger = chimiddleware.RequestLogger(&chimiddleware.DefaultLogFormatter{Logger: log.New(io.Discard, "", 0)})
	m.Run()
}

// A protocol is a version of HTTP, with or without TLS.
type protocol struct {
	name   string
	takes  bool // an event stream's connection can be taken over
	tls    bool
	client func(server *httptest.Server) *http.Client // makes a client that decodes nothing by itself
}

var (
	http1 = protocol{name: "HTTP/1.1", takes: true, client: plainClient}
	http2 = protocol{name: "HTTP/2", tls: true, client: plainClient}
)

var protocols = []protocol{
	http1,
	http2,
	{name: "HTTP/1.0", client: func(*httptest.Server) *http.Client { return &http.Client{Transport: http10{}} }},
	{name: "HTTP/1.1 over TLS", takes: true, tls: true, client: func(server *httptest.Server) *http.Client {
		client := plainClient(server)
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = false
		return client
	}},
}

func plainClient(server *httptest.Server) *http.Client {
	client := server.Client()
	client.Transport.(*http.Transport).DisableCompression = true
	return client
}

// http10 speaks HTTP/1.0, as nginx does to its upstream by default.
type http10 struct{}

func (http10) RoundTrip(r *http.Request) (*http.Response, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(r.Context(), "tcp", r.URL.Host)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(r.Context(), func() { conn.Close() })
	fmt.Fprintf(conn, "%s %s HTTP/1.0\r\nHost: %s\r\n", r.Method, r.URL.RequestURI(), r.URL.Host)
	r.Header.Write(conn)
	io.WriteString(conn, "\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), r)
	if err != nil {
		stop()
		conn.Close()
		return nil, err
	}
	resp.Body = &connBody{resp.Body, conn}
	return resp, nil
}

// A connBody is a response's body that closes its connection.
type connBody struct {
	io.Reader
	conn net.Conn
}

func (b *connBody) Close() error { return b.conn.Close() }

// serve serves the handler on loopback. If net/http logs an error, the test
// fails when it ends. noisy is for middleware that is known to cause some.
func serve(t *testing.T, handler http.Handler, noisy bool) *httptest.Server {
	t.Helper()
	server := prepare(t, handler, noisy)
	server.Start()
	return server
}

// prepare does what serve does, but doesn't start the server.
func prepare(t *testing.T, handler http.Handler, noisy bool) *httptest.Server {
	t.Helper()
	var complaints syncBuffer
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(&complaints, "", 0)
	t.Cleanup(func() {
		server.Close()
		if s := complaints.String(); s != "" && !noisy {
			t.Errorf("net/http complains: %s", s)
		}
	})
	return server
}

// start starts a prepared server and returns a client for it.
func (p protocol) start(server *httptest.Server) *http.Client {
	if p.tls {
		server.EnableHTTP2 = true
		server.StartTLS()
	} else {
		server.Start()
	}
	return p.client(server)
}

type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newHub returns a hub that sends each message it gets to all clients.
func newHub(t *testing.T) *realtime.Hub {
	t.Helper()
	hub := realtime.NewHub()
	hub.Logger = slog.New(slog.DiscardHandler)
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		hub.Broadcast <- msg.Data
	}
	go hub.Run()
	t.Cleanup(func() { shutdown(t, hub) })
	return hub
}

func shutdown(t *testing.T, hub *realtime.Hub) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := hub.Shutdown(ctx); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}
