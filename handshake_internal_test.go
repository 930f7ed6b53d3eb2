package realtime

import (
	"net/http"
	"strings"
	"testing"
)

// A connect leaves nothing of the handshake to the collector, and its answer is
// one write.
func TestHandshakeAllocatesNothing(t *testing.T) {
	r, _ := http.NewRequest(http.MethodGet, "/", nil)
	for name, value := range map[string]string{
		"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
	} {
		r.Header.Set(name, value)
	}
	conn := new(answered)
	c := newClient(newSeatHub(), webSocket{})
	c.wire.attach(conn, nil)
	header := make(http.Header)
	if n := testing.AllocsPerRun(100, func() {
		conn.answers = 0
		checkHandshake(header, r)
		c.shakeHands(header, r)
	}); n > 2 { // with the race detector, pools forget some of what they get
		t.Errorf("a handshake costs %.2f allocations, want none", n)
	}
	if conn.answers != 1 || !strings.HasSuffix(string(conn.last), "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n") { // RFC 6455 §1.3
		t.Errorf("%d writes, the last of %q", conn.answers, conn.last)
	}
}

// An answered is a connection that keeps what was written last.
type answered struct {
	scripted
	last    []byte
	answers int
}

func (c *answered) Write(b []byte) (int, error) {
	c.last, c.answers = append(c.last[:0], b...), c.answers+1
	return len(b), nil
}
