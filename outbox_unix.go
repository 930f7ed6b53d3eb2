//go:build unix

package realtime

import (
	"net"
	"sync"
	"syscall"
)

// tryWriter returns a function that writes as much of b as the kernel accepts,
// without blocking. It returns nil unless conn is a socket.
//
// Don't call the function while conn.Write runs: it would wait for that.
func tryWriter(conn net.Conn) func(b []byte) (n int, err error) {
	s := asSocket(conn)
	if s == nil {
		return nil
	}
	raw, err := s.SyscallConn()
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

// An attempt is one non-blocking write. Attempts are pooled: a closure for each
// write would be an allocation for each delivery, and one for each client would
// be idle memory.
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

// write always reports that it is done, so RawConn.Write never waits.
func (a *attempt) write(fd uintptr) bool {
	a.err = syscall.EINTR
	for a.err == syscall.EINTR {
		a.n, a.err = syscall.Write(int(fd), a.b)
	}
	if a.err != nil {
		a.n = 0
	}
	if a.err == syscall.EAGAIN {
		a.err = nil
	}
	return true
}
