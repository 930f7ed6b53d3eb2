package realtime

import (
	"crypto/tls"
	"io"
	"math"
	"net"
	"syscall"
	"time"
	"unsafe"
)

// limitSilence makes the kernel end a connection whose peer acknowledges no
// data for d (TCP_USER_TIMEOUT, RFC 5482). Use it if peers answer no pings.
func limitSilence(conn net.Conn, d time.Duration) {
	const userTimeout = 0x12
	if c, ok := conn.(*net.TCPConn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeout, int(min(d.Milliseconds(), math.MaxInt32)))
			})
		}
	}
}

// unsent returns how many bytes the peer has not acknowledged (SIOCOUTQ), and
// reports whether it can tell. It can for TCP, and for TLS over TCP.
func unsent(conn io.Writer) (n int, ok bool) {
	if c, ok := conn.(*tls.Conn); ok {
		conn = c.NetConn()
	}
	c, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, false
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	raw.Control(func(fd uintptr) {
		var queued int32
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
		n, ok = int(queued), errno == 0
	})
	return n, ok
}
