package realtime_test

import (
	"context"
	"io"
	"net/http"
	"reflect"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// leftInAll returns how many clients have left, for whatever reason.
func leftInAll(hub *realtime.Hub) (n int64) {
	by := reflect.ValueOf(hub.Stats().Left)
	for _, field := range by.Fields() {
		n += field.Int()
	}
	return n
}

// Stats tells why clients left, on both transports. Clients that were refused have
// not left.
func TestLeft(t *testing.T) {
	type how struct {
		set    func(hub *realtime.Hub)
		server func(hub *realtime.Hub, c *realtime.Client)
		socket func(c *rawClient)
		stream func(l *listener)
	}
	reads := func(c *rawClient) { go io.Copy(io.Discard, c.br) }
	listens := func(l *listener) { go l.event() }
	sends := func(b []byte) func(*rawClient) {
		return func(c *rawClient) { c.send(b); reads(c) }
	}
	tests := map[string]struct {
		how
		want realtime.Left
	}{
		"close frame":                {how{socket: sends(frame(0x88, []byte{3, 0xE9}))}, realtime.Left{Closed: 1}},
		"close frame without a code": {how{socket: sends(frame(0x88, nil))}, realtime.Left{Closed: 1}},
		"end of stream":              {how{stream: (*listener).cut}, realtime.Left{Closed: 1}},
		"connection lost":            {how{socket: func(c *rawClient) { c.conn.Close() }}, realtime.Left{Lost: 1}},
		"no answer to a ping":        {how{socket: reads}, realtime.Left{Silent: 1}},
		"half a message":             {how{socket: sends([]byte{0x81, 0x85})}, realtime.Left{Silent: 1}},
		"half a control frame":       {how{socket: sends([]byte{0x89, 0x85})}, realtime.Left{Silent: 1}},
		"reads nothing": {how{
			server: func(hub *realtime.Hub, _ *realtime.Client) { hub.Broadcast <- nil },
			socket: func(*rawClient) {}, stream: func(*listener) {},
		}, realtime.Left{Silent: 1}},
		"reads too slowly": {how{
			set: func(hub *realtime.Hub) { hub.SendBuffer, hub.SlowAfter = 1, -1 },
			server: func(_ *realtime.Hub, c *realtime.Client) {
				for c.Send(nil) == nil {
				}
			},
			socket: func(*rawClient) {}, stream: func(*listener) {},
		}, realtime.Left{Slow: 1}},
		"reserved bits":          {how{socket: sends(frame(0xF1, nil))}, realtime.Left{Protocol: 1}},
		"text that is not UTF-8": {how{socket: sends(frame(0x81, []byte{0xFF}))}, realtime.Left{Protocol: 1}},
		"too large a message": {how{
			set:    func(hub *realtime.Hub) { hub.MaxMessageBytes = 1 },
			socket: sends(frame(0x81, []byte("ab"))),
		}, realtime.Left{TooLarge: 1}},
		"Close": {how{
			server: func(_ *realtime.Hub, c *realtime.Client) { c.Close(1000, "") },
			socket: reads, stream: listens,
		}, realtime.Left{Disconnected: 1}},
		"ExpireAt": {how{
			server: func(_ *realtime.Hub, c *realtime.Client) { c.ExpireAt(time.Now()) },
			socket: reads, stream: listens,
		}, realtime.Left{Expired: 1}},
		"Shutdown": {how{
			server: func(hub *realtime.Hub, _ *realtime.Client) { go hub.Shutdown(context.Background()) },
			socket: reads, stream: listens,
		}, realtime.Left{Shutdown: 1}},
		"panic": {how{
			set:    func(hub *realtime.Hub) { hub.OnMessage = func(*realtime.Hub, realtime.Message) { panic(io.EOF) } },
			socket: sends(frame(0x81, nil)),
		}, realtime.Left{Panicked: 1}},
		"Goexit": {how{
			set:    func(hub *realtime.Hub) { hub.OnMessage = func(*realtime.Hub, realtime.Message) { runtime.Goexit() } },
			socket: sends(frame(0x81, nil)),
		}, realtime.Left{Panicked: 1}},
		"refused": {how{
			set: func(hub *realtime.Hub) {
				hub.OnConnect = func(*realtime.Client, *http.Request) error { return realtime.Refuse(403, "") }
			},
		}, realtime.Left{}},
	}
	for name, tt := range tests {
		try := func(transport string, join func(s *site)) {
			t.Run(name+"/"+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					if tt.set != nil {
						tt.set(hub)
					}
					s := newPipeSite(t, hub)
					join(s)
					if tt.server != nil {
						for c := range hub.Clients() {
							tt.server(hub, c)
						}
					}
					time.Sleep(3 * time.Minute)
					if got := hub.Stats().Left; got != tt.want {
						t.Errorf("got %+v, want %+v", got, tt.want)
					}
				})
			})
		}
		if tt.socket != nil {
			try("WebSocket", func(s *site) { tt.socket(s.raw()) })
		}
		if tt.stream != nil {
			try("event stream", func(s *site) { tt.stream(s.listen("")) })
		}
		if tt.socket == nil && tt.stream == nil {
			try("none", func(s *site) { s.refused() })
		}
	}
}
