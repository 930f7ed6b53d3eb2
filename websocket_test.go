package realtime_test

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// Whatever a client sends that breaks the rules closes it, with the code that
// RFC 6455 §7.4.1 has for it, and nobody else.
func TestBadInput(t *testing.T) {
	closePayload := func(code int, reason string) []byte {
		return append([]byte{byte(code >> 8), byte(code)}, reason...)
	}
	tests := map[string]struct {
		send []byte
		code int
	}{
		"text that is not UTF-8":        {frame(0x81, []byte("\xc3\x28")), 1007},
		"fragments that are not UTF-8":  {append(frame(0x01, []byte("\xc3")), frame(0x80, []byte("\x28"))...), 1007},
		"a surrogate":                   {frame(0x81, []byte("\xed\xa0\x80")), 1007},
		"a close reason not UTF-8":      {frame(0x88, closePayload(1000, "\xff\xfe")), 1007},
		"a reserved bit":                {frame(0xC1, []byte("x")), 1002},
		"another reserved bit":          {frame(0x91, []byte("x")), 1002},
		"an unknown data opcode":        {frame(0x83, []byte("x")), 1002},
		"an unknown control opcode":     {frame(0x8B, []byte("x")), 1002},
		"a fragmented ping":             {frame(0x09, []byte("x")), 1002},
		"a long ping":                   {frame(0x89, make([]byte, 126)), 1002},
		"a long close frame":            {frame(0x88, closePayload(1000, strings.Repeat("x", 124))), 1002},
		"a close frame of one byte":     {frame(0x88, []byte{3}), 1002},
		"close code 999":                {frame(0x88, closePayload(999, "")), 1002},
		"close code 1005":               {frame(0x88, closePayload(1005, "")), 1002},
		"close code 1006":               {frame(0x88, closePayload(1006, "")), 1002},
		"close code 1015":               {frame(0x88, closePayload(1015, "")), 1002},
		"close code 2000":               {frame(0x88, closePayload(2000, "")), 1002},
		"close code 5000":               {frame(0x88, closePayload(5000, "")), 1002},
		"a continuation of nothing":     {frame(0x80, []byte("x")), 1002},
		"a message within a message":    {append(frame(0x01, []byte("x")), frame(0x81, []byte("y"))...), 1002},
		"a frame that isn't masked":     {[]byte{0x81, 1, 'x'}, 1002},
		"a length with the top bit set": {[]byte{0x82, 0xFF, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}, 1002},
		"garbage":                       {[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), 1002},
		"compression nobody agreed on":  {frame(0xC1, deflated("hello")), 1002},
		"an oversized frame":            {frame(0x82, make([]byte, 1<<20)), 1009},
		"oversized fragments":           {slices.Concat(frame(0x02, make([]byte, 300<<10)), frame(0x80, make([]byte, 300<<10))), 1009},
		"a normal close":                {frame(0x88, closePayload(1000, "bye")), 1000},
		"a private close code":          {frame(0x88, closePayload(4999, "bye")), 4999},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) { t.Errorf("OnMessage got %q", msg.Data) }
				s := newPipeSite(t, hub)
				healthy := s.connect()
				c := s.raw()
				go c.send(tt.send)
				reason := c.expectClose(tt.code)
				if len(reason) > 123 || strings.Contains(reason, "\xff") {
					t.Errorf("close reason %q", reason)
				}
				c.expectEnd()
				synctest.Wait()
				if l.n != 1 || l.err == nil {
					t.Errorf("OnDisconnect: %d times, last with %v; want once, and why", l.n, l.err)
				}
				hub.Broadcast <- []byte("still here")
				if got := read(t, healthy); got != "still here" {
					t.Errorf("another client got %q", got)
				}
				go closeStatus(healthy)
			})
		})
	}
}

func deflated(text string) []byte {
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed)
	io.WriteString(w, text)
	w.Flush()
	return bytes.TrimSuffix(b.Bytes(), []byte("\x00\x00\xff\xff"))
}

// An empty close frame is answered by an empty one.
func TestCloseWithoutAStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x88, nil))
		if first, payload, err := c.readFrame(); first != 0x88 || len(payload) != 0 || err != nil {
			t.Errorf("got frame %#x %q, %v; want an empty close frame", first, payload, err)
		}
		c.expectEnd()
		synctest.Wait()
		if websocket.CloseStatus(l.err) != websocket.StatusNoStatusRcvd {
			t.Errorf("OnDisconnect got %v, want 1005", l.err)
		}
	})
}

// What queued before a client's close frame came still precedes the answer.
func TestQueuedMessagesPrecedeTheClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		for i := range 100 {
			hub.Broadcast <- fmt.Append(nil, i)
		}
		synctest.Wait()
		c.send(frame(0x88, nil))
		for i := range 100 {
			if _, payload, err := c.readFrame(); err != nil || string(payload) != fmt.Sprint(i) {
				t.Fatalf("message %d is %q, %v", i, payload, err)
			}
		}
		if first, _, err := c.readFrame(); first != 0x88 {
			t.Errorf("got frame %#x, %v; want the close frame", first, err)
		}
		c.expectEnd()
	})
}

// A connection that ends within a message leaves no half of it, wherever the
// cut is: coder/websocket takes the connection's EOF for the message's.
func TestMessageCutByTheConnection(t *testing.T) {
	whole := slices.Concat(frame(0x01, []byte("half")), frame(0x80, []byte(" and half")))
	for cut := range len(whole) {
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			l := recordLeft(hub)
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { t.Errorf("cut at %d: got %q", cut, msg.Data) }
			s := newPipeSite(t, hub)
			c := s.raw()
			c.send(whole[:cut])
			c.conn.Close()
			synctest.Wait()
			if !errors.Is(l.err, io.EOF) {
				t.Errorf("cut at %d: OnDisconnect got %v, want EOF", cut, l.err)
			}
		})
	}
}

// A ping is answered at once where nothing else is to be sent.
func TestPongAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newPipeSite(t, realtime.NewHub())
		c := s.raw()
		start := time.Now()
		c.send(frame(0x89, []byte("hello")))
		if first, payload, err := c.readFrame(); first != 0x8A || string(payload) != "hello" || time.Since(start) != 0 {
			t.Errorf("got frame %#x %q, %v after %v; want the pong at once", first, payload, err, time.Since(start))
		}
	})
}

// A flood of pings from a client that reads nothing costs sixteen waiting pongs,
// the newest (RFC 6455 §5.5.3), and those that are being written.
func TestPingFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		healthy := s.connect()
		c := s.raw()
		for i := range 10_000 {
			if err := c.send(frame(0x89, fmt.Append(nil, i))); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		hub.Broadcast <- []byte("hello")
		if got := read(t, healthy); got != "hello" {
			t.Errorf("another client got %q", got)
		}
		pongs, last := 0, ""
		for {
			first, payload, err := c.readFrame()
			if err != nil {
				t.Fatal(err)
			}
			if first == 0x81 {
				break
			}
			if first != 0x8A {
				t.Fatalf("frame %#x", first)
			}
			pongs, last = pongs+1, string(payload)
		}
		if pongs > 2*16 || last != "9999" {
			t.Errorf("%d pongs, the last one for %q; want the first and the newest ones", pongs, last)
		}
		go closeStatus(healthy)
	})
}

// Text that is not UTF-8 is refused when that has come, and not only when the
// message is whole (Autobahn 6.4).
func TestTextIsRefusedAtOnce(t *testing.T) {
	const good = "κόσμε"
	tests := map[string][][]byte{ // in pieces; the message never ends
		"a fragment":                    {frame(0x01, []byte(good)), frame(0x00, []byte("\xf4\x90\x80\x80"))},
		"the first fragment":            {frame(0x01, []byte("\xed\xa0\x80"))},
		"a character that can't go on":  {frame(0x01, []byte(good+"\xf4\x90"))},
		"a character cut by a fragment": {frame(0x01, []byte(good+"\xce")), frame(0x00, []byte("x"))},
		"within a frame":                {frame(0x81, []byte(good+"\xf4\x90\x80\x80"+good))[:6+len(good)+4]},
		"within a frame, later":         {frame(0x81, []byte(good+"\xf4\x90\x80\x80"+good))[:6+len(good)], frame(0x81, []byte(good+"\xf4\x90\x80\x80"+good))[6+len(good):][:2]},
		"a compressed fragment":         {frame(0x41, deflated("\xff"+good)), frame(0x00, deflated(strings.Repeat(good, 1000)))},
	}
	for name, pieces := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.Compression = true
				l := recordLeft(hub)
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { t.Errorf("OnMessage got %q", msg.Data) }
				s := newPipeSite(t, hub)
				c, _ := rawDeflate(s, "permessage-deflate")
				go func() {
					for _, p := range pieces {
						c.send(p)
						time.Sleep(time.Second)
					}
				}()
				start := time.Now()
				c.expectClose(1007)
				if d, want := time.Since(start), time.Duration(len(pieces)-1)*time.Second; d != want {
					t.Errorf("refused after %v, want %v", d, want)
				}
				c.expectEnd()
				synctest.Wait()
				if l.n != 1 || l.err == nil {
					t.Errorf("OnDisconnect: %d times, last with %v; want once, and why", l.n, l.err)
				}
				time.Sleep(time.Minute) // for the goroutine
			})
		})
	}
}

// Text arrives whole, however it is cut.
func TestTextInPieces(t *testing.T) {
	for _, text := range []string{"aκό\U0001F600", strings.Repeat("κόσμε\U0001F600", 30), strings.Repeat("\U0001F600", 3000)} {
		for _, step := range []int{1, 2, 3, 5, 100, 250, 256, 300, 4096, 5000} {
			if len(text)/step > 500 {
				continue
			}
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				var got []string
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = append(got, string(msg.Data)) }
				s := newPipeSite(t, hub)
				c := s.raw()
				for part := range slices.Chunk(frame(0x81, []byte(text)), step) {
					c.send(part)
				}
				first := byte(0x01)
				for part := range slices.Chunk([]byte(text), step) {
					c.send(frame(first, part))
					first = 0
				}
				c.send(slices.Concat(frame(0x80, nil), frame(0x81, []byte(text))))
				synctest.Wait()
				if !slices.Equal(got, []string{text, text, text}) {
					t.Errorf("%d bytes in steps of %d: OnMessage got %.300q", len(text), step, got)
				}
			})
		}
	}
}

// A message may come in any number of pieces, with pings in between.
func TestFragmentedMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
			msg.Client.SendEvent(realtime.Event{Data: msg.Data, Binary: msg.Binary})
		}
		s := newPipeSite(t, hub)
		c := s.raw()
		var all []byte
		for _, f := range [][]byte{
			frame(0x02, []byte("a")), frame(0x00, nil), frame(0x89, []byte("ping")), frame(0x00, []byte("b")), frame(0x80, []byte("c")),
			frame(0x81, nil), // an empty message is one, too
		} {
			all = append(all, f...)
		}
		go func() {
			for i := range all {
				c.send(all[i : i+1])
				time.Sleep(time.Second)
			}
		}()
		want := []struct {
			first   byte
			payload string
		}{{0x8A, "ping"}, {0x82, "abc"}, {0x81, ""}}
		for _, w := range want {
			if first, payload, err := c.readFrame(); first != w.first || string(payload) != w.payload {
				t.Errorf("got frame %#x %q, %v; want %#x %q", first, payload, err, w.first, w.payload)
			}
		}
		time.Sleep(2 * time.Second)
	})
}

// Bytes that net/http has read together with the handshake are not lost, nor do
// they wait for more.
func TestMessageInThePacketOfTheHandshake(t *testing.T) {
	long := strings.Repeat("x", 3000)
	torn := frame(0x81, []byte("torn"))
	tests := []struct {
		name        string
		early, late []byte
		want        []string
	}{
		{"alone", frame(0x81, []byte("early")), nil, []string{"early"}},
		{"with others", slices.Concat(frame(0x81, []byte("early")), frame(0x82, []byte(long)), torn[:3]), torn[3:], []string{"early", long, "torn"}},
	}
	for network, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"tcp": newTCPSite, "tls": newTLSSite, "pipe": newPipeSite} {
		for _, tt := range tests {
			t.Run(network+"/"+tt.name, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
				s := serve(t, hub)
				c := s.raw(tt.early...)
				c.conn.SetReadDeadline(time.Now().Add(time.Minute))
				if tt.late != nil {
					c.send(tt.late)
				}
				for _, want := range tt.want {
					if _, payload, err := c.readFrame(); err != nil || string(payload) != want {
						t.Errorf("got %.20q, %v; want %.20q", payload, err, want)
					}
				}
				c.conn.Close()
			})
		}
	}
}

// A peer that stalls inside a frame hangs nothing: not Close, not Shutdown.
func TestStallInsideAFrameDuringShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send([]byte{0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 1, 2, 3, 4, 5})
		go io.Copy(io.Discard, c.br)
		start := time.Now()
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if d := time.Since(start); !within(d, 5*time.Second) {
			t.Errorf("Shutdown took %v, want 5 s and at most one more", d)
		}
	})
}

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
