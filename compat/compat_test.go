package compat_test

import (
	"bytes"
	"context"
	"io"
	"log"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/alexedwards/scs/v2"
	gingzip "github.com/gin-contrib/gzip"
	"github.com/gin-gonic/gin"
	"github.com/go-chi/chi/v5"
	chimiddleware "github.com/go-chi/chi/v5/middleware"
	"github.com/labstack/echo/v4"
	echomiddleware "github.com/labstack/echo/v4/middleware"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// patience bounds what should take no time at all.
const patience = 10 * time.Second

// A stack is a router with middleware; handler serves handle with it.
type stack struct {
	name    string
	handler func(handle http.HandlerFunc) http.Handler
}

var stacks = []stack{
	{name: "net/http", handler: func(handle http.HandlerFunc) http.Handler { return handle }},
	{name: "net/http/scs", handler: func(handle http.HandlerFunc) http.Handler { return scs.New().LoadAndSave(handle) }},

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
	{name: "gin/gzip", handler: ginStack(gingzip.Gzip(gingzip.DefaultCompression))},
	{name: "gin/all", handler: ginStack(gin.LoggerWithWriter(io.Discard), gin.RecoveryWithWriter(io.Discard), gingzip.Gzip(gingzip.DefaultCompression))},

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
		r.Get("/*", handle)
		return r
	}
}

func ginStack(middleware ...gin.HandlerFunc) func(http.HandlerFunc) http.Handler {
	return func(handle http.HandlerFunc) http.Handler {
		r := gin.New()
		r.Use(middleware...)
		r.GET("/*path", func(c *gin.Context) { handle(c.Writer, c.Request) })
		return r
	}
}

func echoStack(middleware ...echo.MiddlewareFunc) func(http.HandlerFunc) http.Handler {
	return func(handle http.HandlerFunc) http.Handler {
		e := echo.New()
		e.Use(middleware...)
		e.GET("/*", func(c echo.Context) error {
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

// serve serves the handler on loopback. When the test ends, it fails if
// net/http has complained, unless the middleware is known to be noisy.
func serve(t *testing.T, handler http.Handler, noisy bool) *httptest.Server {
	t.Helper()
	var complaints syncBuffer
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(&complaints, "", 0)
	server.Start()
	t.Cleanup(func() {
		server.Close()
		if s := complaints.String(); s != "" && !noisy {
			t.Errorf("net/http complains: %s", s)
		}
	})
	return server
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

// newHub returns a hub that tells everybody what it is told.
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
