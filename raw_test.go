package realtime_test

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
)

var quiet = slog.New(slog.DiscardHandler)

// A rawClient speaks RFC 6455 by hand, so that it can break its rules.
type rawClient struct {
	t    testing.TB
	conn net.Conn
	br   *bufio.Reader
}

const handshake = "GET /ws HTTP/1.1\r\nHost: pipe\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

// newRawClient makes the handshake on conn, with early in the same packet.
func newRawClient(t testing.TB, conn net.Conn, early []byte) *rawClient {
	t.Helper()
	go conn.Write(append([]byte(handshake), early...))
	c := &rawClient{t: t, conn: conn}
	c.readHandshake()
	return c
}

// readHandshake reads the server's answer, or fails the test, and returns its
// headers.
func (c *rawClient) readHandshake() http.Header {
	c.t.Helper()
	c.br = bufio.NewReader(c.conn)
	resp, err := http.ReadResponse(c.br, nil)
	if err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		c.t.Fatalf("handshake: %s", resp.Status)
	}
	if got, want := resp.Header.Get("Sec-WebSocket-Accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; got != want {
		c.t.Fatalf("Sec-WebSocket-Accept = %q, want %q (RFC 6455 §1.3)", got, want)
	}
	return resp.Header
}

// send writes bytes as they are.
func (c *rawClient) send(b []byte) error {
	_, err := c.conn.Write(b)
	return err
}

// frame returns a masked frame with the given first byte.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n <= 0xFFFF:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{0xA5, 0x5A, 0xFF, 0x01}
	b = append(b, mask[:]...)
	for i, p := range payload {
		b = append(b, p^mask[i%4])
	}
	return b
}

// readFrame returns the next frame, checking what RFC 6455 asks of a server.
func (c *rawClient) readFrame() (first byte, payload []byte, err error) {
	var head [2]byte
	if _, err := io.ReadFull(c.br, head[:]); err != nil {
		return 0, nil, err
	}
	if head[1]&0x80 != 0 {
		return 0, nil, fmt.Errorf("the server masked a frame")
	}
	n := uint64(head[1])
	switch n {
	case 126:
		var ext [2]byte
		if _, err := io.ReadFull(c.br, ext[:]); err != nil {
			return 0, nil, err
		}
		if n = uint64(binary.BigEndian.Uint16(ext[:])); n < 126 {
			return 0, nil, fmt.Errorf("length %d in 16 bits", n)
		}
	case 127:
		var ext [8]byte
		if _, err := io.ReadFull(c.br, ext[:]); err != nil {
			return 0, nil, err
		}
		if n = binary.BigEndian.Uint64(ext[:]); n <= 0xFFFF {
			return 0, nil, fmt.Errorf("length %d in 64 bits", n)
		}
	}
	if head[0]&0x08 != 0 && (n > 125 || head[0]&0x80 == 0) {
		return 0, nil, fmt.Errorf("control frame %#x of %d bytes", head[0], n)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c.br, payload)
	return head[0], payload, err
}

// expectClose reads frames until the close frame, wants its code, and returns
// its reason.
func (c *rawClient) expectClose(code int) string {
	c.t.Helper()
	for {
		first, payload, err := c.readFrame()
		if err != nil {
			c.t.Fatalf("waiting for close frame %d: %v", code, err)
		}
		if first != 0x88 {
			continue
		}
		if len(payload) < 2 {
			c.t.Fatalf("close frame without a code, want %d", code)
		}
		if got := int(binary.BigEndian.Uint16(payload)); got != code {
			c.t.Fatalf("close code %d %q, want %d", got, payload[2:], code)
		}
		return string(payload[2:])
	}
}

// expectEOF wants an orderly end with nothing more before it.
func (c *rawClient) expectEOF() {
	c.t.Helper()
	if b, err := c.br.ReadByte(); err != io.EOF {
		c.t.Errorf("read %#x, %v; want EOF", b, err)
	}
}

// expectEnd wants the connection to end, in whatever way, with nothing more on
// it.
func (c *rawClient) expectEnd() {
	c.t.Helper()
	if n, err := io.Copy(io.Discard, c.br); n != 0 {
		c.t.Fatalf("%d more bytes, then %v; want the end", n, err)
	}
}

func textLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }
