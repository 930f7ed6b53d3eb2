package realtime

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// A wrapper has no non-blocking write: it may have a Write of its own.
func TestTryWriter(t *testing.T) {
	pair := func(network, addr string) (a, b net.Conn) {
		t.Helper()
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		a, err = net.Dial(network, l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		b, err = l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { a.Close(); b.Close() })
		return a, b
	}
	tcp, tcpPeer := pair("tcp", "127.0.0.1:0")
	unix, unixPeer := pair("unix", filepath.Join(t.TempDir(), "s"))
	pipe, _ := net.Pipe()
	for name, conn := range map[string]net.Conn{
		"pipe": pipe, "TLS": tls.Server(tcp, &tls.Config{}), "wrapper": struct{ net.Conn }{tcp}, "embedded": struct{ *net.TCPConn }{tcp.(*net.TCPConn)},
	} {
		if tryWriter(conn) != nil || asSocket(conn) != nil {
			t.Errorf("%s is written to or read from behind its back", name)
		}
	}
	for name, ends := range map[string][2]net.Conn{"tcp": {tcp, tcpPeer}, "unix": {unix, unixPeer}} {
		try := tryWriter(ends[0])
		if try == nil || asSocket(ends[0]) == nil {
			t.Fatalf("%s has no way to write without blocking, or can't park", name)
		}
		var sent []byte
		for chunk, full := byte(0), false; !full; chunk++ {
			b := bytes.Repeat([]byte{chunk}, 64<<10)
			done := make(chan struct{})
			stuck := time.AfterFunc(time.Minute, func() {
				select {
				case <-done:
				default:
					panic("try blocks")
				}
			})
			n, err := try(b)
			close(done)
			stuck.Stop()
			if err != nil || n < 0 {
				t.Fatalf("%s: try = %d, %v", name, n, err)
			}
			sent = append(sent, b[:n]...)
			full = n == 0
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(ends[1], got); err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%s: the peer got something else: %v", name, err)
		}
		ends[0].Close()
		if _, err := try([]byte("x")); err == nil {
			t.Errorf("%s: try on a closed connection is no error", name)
		}
	}
	// Errors of the kernel are returned, too.
	a, b := pair("tcp", "127.0.0.1:0")
	a.(*net.TCPConn).CloseWrite()
	if _, err := tryWriter(a)([]byte("x")); err == nil {
		t.Error("try behind a FIN is no error")
	}
	b.Close()
}
