//go:build linux

package main

import (
	"net/http"

	"github.com/lxzan/gws"
)

// serveGWS follows gws's push example, with the echo of its README. It handles
// messages on the goroutine that reads them, as the example does. ParallelEnabled
// would start a goroutine for each message.
func serveGWS() (http.Handler, func(int, func() []byte)) {
	h := &gwsHandler{conns: gws.NewConcurrentMap[string, *gws.Conn]()}
	upgrader := gws.NewUpgrader(h, nil)
	join := func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r)
		if err != nil {
			return
		}
		key := r.Header.Get("Sec-WebSocket-Key")
		conn.Session().Store("websocketKey", key)
		h.conns.Store(key, conn)
		go conn.ReadLoop()
	}
	return http.HandlerFunc(join), func(n int, next func() []byte) {
		for range n {
			h.broadcast(next())
		}
	}
}

type gwsHandler struct {
	gws.BuiltinEventHandler
	conns *gws.ConcurrentMap[string, *gws.Conn]
}

func (h *gwsHandler) broadcast(msg []byte) {
	b := gws.NewBroadcaster(gws.OpcodeText, msg)
	defer b.Close()
	h.conns.Range(func(_ string, conn *gws.Conn) bool {
		b.Broadcast(conn)
		return true
	})
}

func (h *gwsHandler) OnMessage(conn *gws.Conn, msg *gws.Message) {
	defer msg.Close()
	conn.WriteMessage(msg.Opcode, msg.Bytes())
}

func (h *gwsHandler) OnClose(conn *gws.Conn, _ error) {
	if key, ok := conn.Session().Load("websocketKey"); ok {
		h.conns.Delete(key.(string))
	}
}
