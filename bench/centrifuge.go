//go:build linux

package main

import (
	"log"
	"net/http"

	"github.com/centrifugal/centrifuge"
)

// serveCentrifuge follows the tutorial in centrifuge's README: JSON over
// WebSocket, clients that subscribe to a channel, and node.Publish. An echo is a
// remote procedure call.
func serveCentrifuge() (http.Handler, func(int, func() []byte)) {
	node, err := centrifuge.New(centrifuge.Config{})
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnect(func(client *centrifuge.Client) {
		client.OnSubscribe(func(_ centrifuge.SubscribeEvent, cb centrifuge.SubscribeCallback) {
			cb(centrifuge.SubscribeReply{}, nil)
		})
		client.OnRPC(func(e centrifuge.RPCEvent, cb centrifuge.RPCCallback) {
			cb(centrifuge.RPCReply{Data: e.Data}, nil)
		})
	})
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}
	clients := centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{})
	join := func(w http.ResponseWriter, r *http.Request) {
		ctx := centrifuge.SetCredentials(r.Context(), &centrifuge.Credentials{UserID: ""})
		clients.ServeHTTP(w, r.WithContext(ctx))
	}
	return http.HandlerFunc(join), func(n int, next func() []byte) {
		for range n {
			node.Publish("chat", next())
		}
	}
}
