//go:build linux

package main

import (
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"syscall"
)

// serveFloor does the least that a server can do: one thread calls write(2) with
// ready-made bytes.
func serveFloor() (http.Handler, func(int, func() []byte)) {
	runtime.LockOSThread()
	var (
		mu    sync.Mutex // guards the fields below
		conns []net.Conn // keeps the descriptors open
		fds   []int
	)
	join := func(w http.ResponseWriter, r *http.Request) {
		conn, err := joinFloor(w, r)
		if err != nil {
			return
		}
		raw, err := conn.(*net.TCPConn).SyscallConn()
		if err != nil {
			conn.Close()
			return
		}
		mu.Lock()
		conns = append(conns, conn)
		raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) })
		mu.Unlock()
	}
	var frames []byte
	publish := func(n int, next func() []byte) {
		frames = appendFloor(frames[:0], n, next)
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < len(fds); i++ {
			if n, _ := syscall.Write(fds[i], frames); n != len(frames) {
				conns[i].Close() // the client is gone, or so slow that it has lost a part of its messages
				last := len(fds) - 1
				fds[i], conns[i] = fds[last], conns[last]
				fds, conns = fds[:last], conns[:last]
				i--
			}
		}
	}
	return http.HandlerFunc(join), publish
}

// joinFloor takes the connection over and accepts a WebSocket on it. It has
// answered a request whose connection it can't take.
func joinFloor(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return nil, err
	}
	sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
		base64.StdEncoding.EncodeToString(sum[:]))
	return conn, nil
}

// appendFloor appends n messages to b, a frame each.
func appendFloor(b []byte, n int, next func() []byte) []byte {
	for range n {
		data := next()
		b = append(b, 0x81, 126, byte(len(data)>>8), byte(len(data)))
		b = append(b, data...)
	}
	return b
}
