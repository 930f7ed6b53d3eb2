package realtime_test

import (
	"bufio"
	"bytes"
	"compress/flate"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// final is "Hello" in a block with BFINAL, as RFC 7692 §7.2.3.4 has it.
var final, _ = hex.DecodeString("f348cdc9c9070000")

// A deflate stream may end within a message (RFC 7692 §7.2.1). websocket-sharp
// ends each message so. What follows in the message is a stream again, and the
// next message begins with itself.
func TestDeflateStreamEnds(t *testing.T) {
	long := make([]byte, 300<<10)
	for i := range long {
		long[i] = 'a' + byte(i*i>>5%23)
	}
	var b bytes.Buffer
	w, _ := flate.NewWriter(&b, flate.BestSpeed)
	w.Write(long)
	w.Close() // with BFINAL
	ended := append(b.Bytes(), 0)
	tests := map[string]struct {
		payload []byte
		want    string
	}{
		"RFC 7692 §7.2.3.4":     {final, "Hello"},
		"without the last byte": {final[:7], "Hello"},
		"two streams":           {slices.Concat(final[:7], final), "HelloHello"},
		"another block behind":  {slices.Concat(final[:7], deflated(" you")), "Hello you"},
		"nothing":               {[]byte{3, 0, 0}, ""},
		"a long one":            {ended, string(long)},
		"no end":                {deflated("Hello"), "Hello"},
		"no bytes":              {nil, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.Compression = true
				var got []string
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = append(got, string(msg.Data)) }
				s := newPipeSite(t, hub)
				c, _ := rawDeflate(s, "permessage-deflate")
				var want []string
				p := tt.payload
				for cut := range min(len(p)+1, 20) { // the end of it may be in a frame of its own
					cut = len(p) - cut
					c.send(slices.Concat(
						frame(0xC1, p), frame(0x81, []byte("plain")),
						frame(0x41, p[:cut]), frame(0x89, nil), frame(0x80, p[cut:]), frame(0xC2, p),
					))
					c.readFrame() // the pong
					want = append(want, tt.want, "plain", tt.want, tt.want)
				}
				synctest.Wait()
				if !slices.Equal(got, want) {
					t.Errorf("OnMessage got %d messages, %.200q; want %d, %.200q", len(got), got, len(want), want)
				}
			})
		})
	}
}

// The bit that says that a message is compressed belongs to its first frame, in
// whatever pieces that comes.
func TestDeflateMarks(t *testing.T) {
	var all []byte
	var want []string
	for i := range 300 {
		text := strings.Repeat("x", i*i%701)
		p := []byte(text)
		first := byte(0x80)
		if i%3 != 0 {
			p, first = deflated(text), 0xC0
		}
		cut := len(p) / (1 + i%4)
		all = slices.Concat(all, frame(first&^0x80|0x02, p[:cut]), frame(0x8A, []byte("unasked")), frame(0x80, p[cut:]), frame(0x81, nil))
		want = append(want, text, "")
	}
	for _, step := range []int{1, 2, 3, 7, 100, 255, 256, 257, 5000} {
		t.Run(fmt.Sprint(step), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.Compression = true
				var got []string
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = append(got, string(msg.Data)) }
				s := newPipeSite(t, hub)
				c, _ := rawDeflate(s, "permessage-deflate")
				for part := range slices.Chunk(all, step) {
					c.send(part)
				}
				synctest.Wait()
				if !slices.Equal(got, want) {
					t.Errorf("OnMessage got %d messages, want %d others", len(got), len(want))
				}
			})
		})
	}
}

// A cutConn ends as TLS does within a record.
type cutConn struct{ net.Conn }

func (c cutConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// Half of a compressed message is none, whatever error ends the connection.
func TestDeflatedMessageIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Logger, hub.Compression = quiet, true
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { t.Errorf("OnMessage got %q", msg.Data) }
		l := recordLeft(hub)
		server, client := net.Pipe()
		r := handshakeRequest(t)
		r.Header.Set("Sec-WebSocket-Extensions", "permessage-deflate")
		go realtime.Upgrade(hijackable{httptest.NewRecorder(), cutConn{server}}, r, hub)
		c := &rawClient{t: t, conn: client}
		c.readHandshake()
		c.send(frame(0xC1, deflated("half of it"))[:12])
		client.Close()
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, io.ErrUnexpectedEOF) {
			t.Errorf("OnDisconnect: %d times, last with %v; want once, with the connection's error", l.n, l.err)
		}
		hub.Shutdown(t.Context())
	})
}

// What a compressed message contains depends on nothing that came before it: it
// is what an independent reader finds in it, also after any other message.
func FuzzDeflate(f *testing.F) {
	f.Add(final, deflated("Hello"), uint16(3))
	f.Add(slices.Concat(final[:7], deflated("more"), final), final[:7], uint16(8))
	f.Add([]byte{}, []byte{0}, uint16(0))
	f.Add(deflated(strings.Repeat("half of it ", 100))[:20], deflated("Hello"), uint16(1))
	f.Add([]byte{3, 0, 3, 0, 0xFF}, []byte{1, 1, 0, 0xFE, 0xFF, 'x', 0}, uint16(2))
	f.Add(deflated(strings.Repeat("\x00", 5000)), []byte("garbage"), uint16(5))
	f.Fuzz(func(t *testing.T, one, two []byte, cut uint16) {
		const limit = 1000
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.Compression = true
			hub.MaxMessageBytes = limit
			var got []string
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = append(got, string(msg.Data)) }
			s := newPipeSite(t, hub)
			send := func(messages ...[]byte) (received []string) {
				got = nil
				c, _ := rawDeflate(s, "permessage-deflate")
				go io.Copy(io.Discard, c.br)
				for _, m := range messages {
					k := int(cut) % (len(m) + 1)
					c.send(slices.Concat(frame(0x42, m[:k]), frame(0x80, m[k:])))
				}
				synctest.Wait()
				c.conn.Close()
				synctest.Wait()
				return got
			}
			var want []string
			for _, m := range [][]byte{one, two} {
				text, ok := inflateAll(m, limit)
				if alone := send(m); ok != slices.Equal(alone, []string{text}) || !ok && alone != nil {
					t.Errorf("%x alone gives %q, want %q, %v", m, alone, text, ok)
				}
				if !ok {
					break // which ends the connection
				}
				want = append(want, text)
			}
			if both := send(one, two); !slices.Equal(both, want) {
				t.Errorf("%x and %x give %q, want %q", one, two, both, want)
			}
		})
	})
}

// inflateAll returns what a compressed message contains, and whether it is well
// formed and within limit.
func inflateAll(b []byte, limit int) (text string, ok bool) {
	in := bufio.NewReader(bytes.NewReader(append(slices.Clip(b), 0, 0, 0xFF, 0xFF)))
	for {
		more, err := io.ReadAll(io.LimitReader(flate.NewReader(in), int64(limit-len(text)+1)))
		if text += string(more); len(text) > limit {
			return "", false
		}
		if err == io.ErrUnexpectedEOF {
			return text, true
		}
		if err != nil {
			return "", false
		}
		if _, err := in.Peek(1); err != nil {
			return text, true
		}
	}
}
