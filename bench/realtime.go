//go:build linux

package main

import (
	"net/http"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// ours are this package's contenders. Its event stream gets its line here, as
// {"realtime-sse", ourModule, eventStream, …}, once a Hub has ServeSSE.
var ours = []contender{
	{"realtime", ourModule, plain, serveRealtime},
}

const ourModule = "github.com/shashiranjanraj/kashvi/pkg/realtime"

// serveRealtime is the package's README.
func serveRealtime() (http.Handler, func(int, func() []byte)) {
	hub := realtime.NewHub()
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
	go hub.Run()
	return hub, func(n int, next func() []byte) {
		for range n {
			hub.Broadcast <- next()
		}
	}
}
