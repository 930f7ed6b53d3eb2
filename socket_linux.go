package realtime

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// limitSilence makes the kernel end a connection whose peer acknowledges no
// data for d (TCP_USER_TIMEOUT, RFC 5482). Use it if peers answer no pings.
func limitSilence(conn net.Conn, d time.Duration) {
	const userTimeout = 0x12
	controlTCP(conn, func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, userTimeout, int(min(d.Milliseconds(), math.MaxInt32)))
	})
}

// unsent returns how many bytes the peer has not acknowledged (SIOCOUTQ), and
// reports whether it can tell. It can for TCP, and for TLS over TCP.
func unsent(conn io.Writer) (n int, ok bool) {
	controlTCP(conn, func(fd uintptr) { n, ok = unsentOn(fd) })
	return n, ok
}

func unsentOn(fd uintptr) (n int, ok bool) {
	var queued int32
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
	return int(queued), errno == 0
}

// maxTLSTry is the most bytes that crypto/tls surely writes as one record.
const maxTLSTry = 1 << 10

// tlsTryWriter returns a function that writes b at once, or nothing of it if the
// write could block. It returns nil unless the client has TLS on TCP.
//
// crypto/tls can't try: a Write that ends at a deadline spoils the connection.
// But the kernel accepts a short record on a connection whose peer has
// acknowledged all before. It does so even if it has little memory for TCP
// (sk_stream_alloc_skb, __sk_mem_raise_allocated). Only a reading goroutine could
// write in the meantime: crypto/tls answers new keys. So it is done for parked
// clients, which stay parked during the write.
func tlsTryWriter(c *Client) func(b []byte) (n int, err error) {
	w := &c.wire
	conn, ok := w.Conn.(*tls.Conn)
	if !ok {
		return nil
	}
	tcp, ok := conn.NetConn().(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	return func(b []byte) (n int, err error) {
		if len(b) > maxTLSTry || !w.hold() {
			return 0, nil
		}
		if isAcknowledged(raw) {
			n, err = conn.Write(b)
		}
		if w.letGo() {
			go c.serve()
		}
		return n, err
	}
}

// isAcknowledged reports whether the peer has acknowledged all that was written.
func isAcknowledged(raw syscall.RawConn) bool {
	l := looks.Get().(*look)
	defer looks.Put(l)
	l.empty = false
	raw.Control(l.do)
	return l.empty
}

// A look asks the kernel whether a connection is empty. They are pooled as
// attempts are.
type look struct {
	do    func(fd uintptr)
	empty bool
}

var looks = sync.Pool{New: func() any {
	l := new(look)
	l.do = func(fd uintptr) {
		n, ok := unsentOn(fd)
		l.empty = ok && n == 0
	}
	return l
}}

// controlTCP calls f with the descriptor if conn is an open TCP connection, or
// TLS on one.
func controlTCP(conn io.Writer, f func(fd uintptr)) {
	if c, isTLS := conn.(*tls.Conn); isTLS {
		conn = c.NetConn()
	}
	if c, ok := conn.(*net.TCPConn); ok {
		if raw, err := c.SyscallConn(); err == nil {
			raw.Control(f)
		}
	}
}

const canPark = true // sockets can wait for input without a goroutine

// A parker holds sockets that wait for input without a goroutine. Their
// descriptors are in an epoll set, one-shot and level-triggered, so bytes that
// came before parking wake them too. The set waits in Go's netpoller: it holds
// no thread, and closing it ends the loop.
type parker struct {
	clients *registry
	set     *os.File
	wait    syscall.RawConn // of set
}

// newParker returns a parker. Its caller starts the loop.
func newParker(clients *registry) (*parker, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, unparked(os.NewSyscallError("epoll_create1", err))
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	p := &parker{clients: clients, set: os.NewFile(uintptr(fd), "epoll")}
	if p.wait, err = p.set.SyscallConn(); err == nil {
		err = p.set.SetDeadline(time.Time{}) // fails if the netpoller had no room for the set (ENOSPC)
	}
	if err != nil {
		p.set.Close()
		return nil, unparked(err)
	}
	return p, nil
}

// unparked says what err means, and its cure where that is a limit.
func unparked(err error) error {
	cure := ""
	switch {
	case errors.Is(err, syscall.EMFILE):
		cure = ": raise the process's limit of open files (ulimit -n)"
	case errors.Is(err, syscall.ENFILE):
		cure = ": raise the system's limit of open files (sysctl fs.file-max)"
	case errors.Is(err, os.ErrNoDeadline):
		cure = ": raise the user's limit of epoll (sysctl fs.epoll.max_user_watches)"
	}
	return fmt.Errorf("each idle client keeps a goroutine: %w%s", err, cure)
}

// arm starts c's reading goroutine at the next input or the connection's end,
// and reports whether it could. If so, that goroutine may already run: leave
// the client alone then. Closing the descriptor removes it from the set.
func (p *parker) arm(c *Client) bool {
	raw, err := socketOf(c.wire.Conn).SyscallConn()
	if err != nil {
		return false
	}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLONESHOT, Fd: c.slot}
	op := syscall.EPOLL_CTL_ADD
	if c.wasParked {
		op = syscall.EPOLL_CTL_MOD
	}
	c.wasParked = true // now: another goroutine may own it in a moment
	// Within Control, fd is surely conn's. A stored number could be reused.
	armed := false
	p.wait.Control(func(set uintptr) {
		raw.Control(func(fd uintptr) {
			armed = syscall.EpollCtl(int(set), op, int(fd), &event) == nil
		})
	})
	return armed
}

// loop starts the reading goroutines of connections with input, until close. All
// of it happens in one Read of the set. So no input is missed between a look at the
// set and the wait for more.
func (p *parker) loop() {
	var events [128]syscall.EpollEvent
	p.wait.Read(func(set uintptr) (done bool) {
		for {
			n, err := syscall.EpollWait(int(set), events[:], 0)
			if err != nil && err != syscall.EINTR {
				return true
			}
			for _, e := range events[:max(n, 0)] {
				if c := p.clients.at(uint32(e.Fd)); c != nil && c.wire.unpark() {
					go c.serve()
				}
			}
			if err == nil && n < len(events) {
				return false // Read waits for more
			}
		}
	})
}

func (p *parker) close() { p.set.Close() }
