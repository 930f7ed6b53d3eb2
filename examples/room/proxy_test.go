package room

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestProxy(t *testing.T) {
	engine, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	go func() {
		for {
			conn, err := engine.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	proxy, err := NewProxy(engine.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	addr := proxy.Addr
	echo := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(30 * time.Second))
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	for range 3 {
		conn := echo()
		if err := proxy.Cut(true); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes and %v from a connection that was to be cut", n, err)
		}
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			t.Error("a new connection was accepted")
		}
		for range 2 {
			if err := proxy.Cut(false); err != nil {
				t.Fatal(err)
			}
		}
	}
	echo()
	proxy.Cut(true)
}
