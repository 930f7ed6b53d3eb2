package realtime_test

import (
	"bytes"
	"compress/flate"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// rawDeflate joins a client that speaks bytes and offers an extension.
func rawDeflate(s *site, offer string) (c *rawClient, extensions string) {
	s.t.Helper()
	conn := s.connection()
	go io.WriteString(conn, strings.TrimSuffix(handshake, "\r\n")+"Sec-WebSocket-Extensions: "+offer+"\r\n\r\n")
	c = &rawClient{t: s.t, conn: conn}
	extensions = c.readHandshake().Get("Sec-WebSocket-Extensions")
	return c, extensions
}

func inflate(t *testing.T, b []byte) string {
	t.Helper()
	text, err := io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(b), strings.NewReader("\x00\x00\xff\xff\x01\x00\x00\xff\xff"))))
	if err != nil {
		t.Fatalf("inflate: %v", err)
	}
	return string(text)
}

// Clients with and without compression share a hub: those that negotiated it
// get what shrinks in a compressed frame, each by itself.
func TestCompression(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Compression = true
		s := newPipeSite(t, hub)
		plain := s.raw()
		packed, extensions := rawDeflate(s, "permessage-deflate; client_max_window_bits")
		if extensions != "permessage-deflate; client_no_context_takeover; server_no_context_takeover" {
			t.Errorf("negotiated %q", extensions)
		}
		declined, extensions := rawDeflate(s, "permessage-deflate; server_max_window_bits=10, x-other")
		if extensions != "" {
			t.Errorf("negotiated %q, which can't be kept", extensions)
		}
		random := make([]byte, 1000)
		for i := range random {
			random[i] = byte(rand.Uint32())
		}
		long := strings.Repeat("the same again ", 100)
		tests := []struct {
			event  realtime.Event
			packed bool
		}{
			{realtime.Event{Data: []byte(long)}, true},
			{realtime.Event{Data: []byte(long), Binary: true}, true},
			{realtime.Event{Data: []byte(long)}, true}, // needs nothing of what came before
			{realtime.Event{Data: []byte(strings.Repeat("x", 256))}, true},
			{realtime.Event{Data: []byte(strings.Repeat("x", 255))}, false},
			{realtime.Event{Data: random, Binary: true}, false},
			{realtime.Event{}, false},
		}
		for _, tt := range tests { // as a burst: joined
			hub.PublishAll(t.Context(), tt.event)
		}
		for i, tt := range tests {
			want := byte(0x81)
			if tt.event.Binary {
				want = 0x82
			}
			for _, c := range []*rawClient{plain, declined} {
				if first, payload, err := c.readFrame(); err != nil || first != want || string(payload) != string(tt.event.Data) {
					t.Errorf("event %d: got frame %#x of %d bytes, %v; want it plain", i, first, len(payload), err)
				}
			}
			first, payload, err := packed.readFrame()
			if err != nil {
				t.Fatal(err)
			}
			if !tt.packed {
				if first != want || string(payload) != string(tt.event.Data) {
					t.Errorf("event %d: got frame %#x of %d bytes; want it plain", i, first, len(payload))
				}
				continue
			}
			if first != want|0x40 || len(payload) >= len(tt.event.Data) || inflate(t, payload) != string(tt.event.Data) {
				t.Errorf("event %d: got frame %#x of %d bytes; want it compressed", i, first, len(payload))
			}
		}
	})
}

// What is sent to one client is compressed as what is published.
func TestSendCompresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Compression = true
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		c, _ := rawDeflate(s, "permessage-deflate")
		synctest.Wait()
		for n, want := range map[int]byte{255: 0x81, 256: 0xC1} {
			text := strings.Repeat("x", n)
			client.Send([]byte(text))
			first, payload, err := c.readFrame()
			if err != nil {
				t.Fatal(err)
			}
			if want == 0xC1 {
				payload = []byte(inflate(t, payload))
			}
			if first != want || string(payload) != text {
				t.Errorf("%d bytes came as frame %#x of %d, want %#x", n, first, len(payload), want)
			}
		}
	})
}

// Without the setting nothing is negotiated.
func TestCompressionIsOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPipeSite(t, realtime.NewHub())
		if _, extensions := rawDeflate(s, "permessage-deflate"); extensions != "" {
			t.Errorf("negotiated %q", extensions)
		}
	})
}

// Browsers and this client compress what they send, too.
func TestCompressedMessages(t *testing.T) {
	for name, mode := range map[string]websocket.CompressionMode{
		"context takeover offered": websocket.CompressionContextTakeover, "none": websocket.CompressionNoContextTakeover,
	} {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.Compression = true
			hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) { hub.Broadcast <- msg.Data }
			s := newTCPSite(t, hub)
			conn, _, err := websocket.Dial(t.Context(), s.url, &websocket.DialOptions{CompressionMode: mode, CompressionThreshold: 1})
			if err != nil {
				t.Fatal(err)
			}
			conn.SetReadLimit(-1)
			for i := range 20 {
				want := strings.Repeat("to and fro ", 1+i*50)
				write(t, conn, want)
				if got := read(t, conn); got != want {
					t.Fatalf("message %d: got %d bytes, want %d", i, len(got), len(want))
				}
				if i%5 == 0 {
					realtime.Kick(hub)
				}
			}
			go closeStatus(conn)
		})
	}
}

// A bomb is as large as what it unpacks to; garbage is told from it.
func TestCompressedBadInput(t *testing.T) {
	bomb := deflated(strings.Repeat("\x00", 20<<20))
	tests := map[string]struct {
		send []byte
		code int
	}{
		"a bomb":              {frame(0xC2, bomb), 1009},
		"garbage":             {frame(0xC1, []byte("\xff\xff\xff\xff")), 1007},
		"text not UTF-8":      {frame(0xC1, deflated("\xc3\x28")), 1007},
		"a compressed ping":   {frame(0xC9, deflated("hi")), 1002},
		"a bit too late":      {append(frame(0x01, []byte("a")), frame(0xC0, deflated("b"))...), 1002},
		"half of a message":   {frame(0x41, deflated(strings.Repeat("half", 100))), 0},
		"another half of one": {frame(0xC1, deflated("another half"))[:10], 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.Compression = true
				l := recordLeft(hub)
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { t.Errorf("OnMessage got %d bytes", len(msg.Data)) }
				s := newPipeSite(t, hub)
				c, _ := rawDeflate(s, "permessage-deflate")
				go c.send(tt.send)
				if tt.code != 0 {
					c.expectClose(tt.code)
					c.expectEnd()
				} else {
					synctest.Wait()
					c.conn.Close()
				}
				synctest.Wait()
				if l.n != 1 || l.err == nil {
					t.Errorf("OnDisconnect: %d times, last with %v", l.n, l.err)
				}
			})
		})
	}
}

// The setting is read with the others, by the first client.
func TestCompressionIsReadOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		go hub.Run()
		s := newPipeSite(t, hub)
		hub.OnConnect = func(*realtime.Client, *http.Request) error { return errors.New("no") }
		websocket.Dial(t.Context(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
		hub.OnConnect = nil
		hub.Compression = true
		if _, extensions := rawDeflate(s, "permessage-deflate"); extensions != "" {
			t.Errorf("negotiated %q", extensions)
		}
	})
}
