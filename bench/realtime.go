//go:build linux

package main

import (
	"net/http"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// ours are this package's contenders.
var ours = []contender{
	{"realtime", ourModule, plain, serveRealtime},
	{"realtime-sse", ourModule, eventStream, serveRealtimeSSE},
}

const ourModule = "github.com/shashiranjanraj/kashvi/pkg/realtime"

// serveRealtime follows the package's README, except for echoes: a message goes
// back to its sender alone.
func serveRealtime() (http.Handler, func(int, func() []byte)) {
	hub := realtime.NewHub()
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
	go hub.Run()
	return hub, publishTo(hub)
}

// serveRealtimeSSE serves the hub's event streams.
func serveRealtimeSSE() (http.Handler, func(int, func() []byte)) {
	hub := realtime.NewHub()
	go hub.Run()
	return http.HandlerFunc(hub.ServeSSE), publishTo(hub)
}

func publishTo(hub *realtime.Hub) func(n int, next func() []byte) {
	return func(n int, next func() []byte) {
		for range n {
			hub.Broadcast <- next()
		}
	}
}
