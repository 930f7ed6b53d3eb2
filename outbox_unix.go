//go:build unix

package realtime

import (
	"io"
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
	return func(b []byte) (int, error) { return attemptWrite(raw, b, nil) }
}

// patientWriter returns a function that writes some of b. If conn is a socket
// that accepts nothing now, the function calls release, because it needs b no
// longer. Then it waits until the socket accepts something, and returns zero.
func patientWriter(conn io.Writer) func(b []byte, release func()) (n int, err error) {
	if s := asSocket(conn); s != nil {
		if raw, err := s.SyscallConn(); err == nil {
			return func(b []byte, release func()) (int, error) { return attemptWrite(raw, b, release) }
		}
	}
	return func(b []byte, _ func()) (int, error) { return conn.Write(b) }
}

func attemptWrite(raw syscall.RawConn, b []byte, release func()) (int, error) {
	a := attempts.Get().(*attempt)
	defer attempts.Put(a)
	a.b, a.n, a.release = b, 0, release
	err := raw.Write(a.do)
	if err == nil {
		err = a.err
	}
	a.b, a.release = nil, nil
	return a.n, err
}

// An attempt is one non-blocking write, and the wait after it. Attempts are
// pooled: a closure for each write would be an allocation for each delivery, and
// one for each client would be idle memory.
type attempt struct {
	do      func(fd uintptr) bool // the method write
	b       []byte                // nil: it has waited
	release func()                // nil: it doesn't wait
	n       int
	err     error
}

var attempts = sync.Pool{New: func() any {
	a := new(attempt)
	a.do = a.write
	return a
}}

// write reports whether RawConn.Write shall return.
func (a *attempt) write(fd uintptr) bool {
	if a.b == nil {
		return true
	}
	a.err = syscall.EINTR
	for a.err == syscall.EINTR {
		a.n, a.err = syscall.Write(int(fd), a.b)
	}
	a.n = max(a.n, 0) // an error makes it -1
	if a.err != syscall.EAGAIN {
		return true
	}
	a.err = nil
	if a.release == nil {
		return true
	}
	a.b = nil
	a.release()
	return false
}
