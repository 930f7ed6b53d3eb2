//go:build unix

package realtime

import (
	"net"
	"sync"
	"syscall"
)

// tryWriter returns a function that writes what the kernel takes of b at once,
// without ever waiting, or nil where conn has no such way. Only the connection
// itself has: a wrapper that embeds one has its SyscallConn as well, but may
// have a Write of its own.
//
// The function must not be called while conn.Write runs, for which it would
// wait.
func tryWriter(conn net.Conn) func(b []byte) (n int, err error) {
	var raw syscall.RawConn
	var err error
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	return func(b []byte) (int, error) {
		a := attempts.Get().(*attempt)
		defer attempts.Put(a)
		a.b, a.n = b, 0
		err := raw.Write(a.do)
		if err == nil {
			err = a.err
		}
		a.b = nil
		return a.n, err
	}
}

// An attempt is one non-blocking write. They are pooled because a closure for
// each write would be an allocation for each delivery, and one for each client
// memory that idles.
type attempt struct {
	do  func(fd uintptr) bool // the method write
	b   []byte
	n   int
	err error
}

var attempts = sync.Pool{New: func() any {
	a := new(attempt)
	a.do = a.write
	return a
}}

// write reports that it is done, in any case: for RawConn.Write not to wait.
func (a *attempt) write(fd uintptr) bool {
	for {
		a.n, a.err = syscall.Write(int(fd), a.b)
		if a.err != syscall.EINTR {
			break
		}
	}
	if a.err != nil {
		a.n = 0
	}
	if a.err == syscall.EAGAIN {
		a.err = nil
	}
	return true
}
