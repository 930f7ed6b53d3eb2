package realtime_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// The check of the package guards every hub that has none of its own.
func ExampleSetCheckOrigin() {
	realtime.SetCheckOrigin(func(r *http.Request) bool {
		return r.Header.Get("Origin") == "https://myapp.com"
	})
	defer realtime.SetCheckOrigin(nil)

	hub := realtime.NewHub()
	go hub.Run()
	defer hub.Shutdown(context.Background())
	server := httptest.NewServer(hub)
	defer server.Close()

	for _, page := range []string{"https://myapp.com", "https://evil.example"} {
		conn, resp, err := websocket.Dial(context.Background(), server.URL, &websocket.DialOptions{
			HTTPHeader: http.Header{"Origin": {page}},
		})
		fmt.Println(page, resp.Status)
		if err == nil {
			conn.CloseNow()
		}
	}
	// Output:
	// https://myapp.com 101 Switching Protocols
	// https://evil.example 403 Forbidden
}

// A hub that serves pages of several sites.
func ExampleAllowOrigins() {
	hub := realtime.NewHub()
	hub.CheckOrigin = realtime.AllowOrigins(
		"https://example.com",
		"https://*.example.com", // any subdomain
		"http://localhost:*",    // any port: a developer's own server
	)

	for _, page := range []string{
		"https://example.com", "https://app.eu.example.com", "http://localhost:3000",
		"http://example.com", "https://evil-example.com",
	} {
		r := httptest.NewRequest("GET", "/ws", nil)
		r.Header.Set("Origin", page)
		fmt.Println(page, hub.CheckOrigin(r))
	}
	// Output:
	// https://example.com true
	// https://app.eu.example.com true
	// http://localhost:3000 true
	// http://example.com false
	// https://evil-example.com false
}

// The server's own pages, and those of a list besides.
func ExampleSameOrigin() {
	partners := realtime.AllowOrigins("https://partner.example")
	hub := realtime.NewHub()
	hub.CheckOrigin = func(r *http.Request) bool {
		return realtime.SameOrigin(r) || partners(r)
	}

	// A proxy has put its own name into Host, and the site's where it belongs.
	r := httptest.NewRequest("GET", "http://10.0.0.7:8080/ws", nil)
	r.Header.Set("X-Forwarded-Host", "app.example.com")
	for _, page := range []string{"https://app.example.com", "https://partner.example", "https://evil.example"} {
		r.Header.Set("Origin", page)
		fmt.Println(page, hub.CheckOrigin(r))
	}
	// Output:
	// https://app.example.com true
	// https://partner.example true
	// https://evil.example false
}
