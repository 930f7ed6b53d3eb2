package realtime

import (
	"net"
	"os"
	"sync"
	"syscall"
)

// canPark reports whether conn can wait for input without a goroutine. Its
// type must be exactly one of these: a wrapper may have read ahead.
func canPark(conn net.Conn) bool {
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// A parker holds connections that wait for input and have no goroutine. Their
// descriptors are in an epoll set, one-shot and level-triggered: bytes that
// came before a connection was parked wake it as well. The set's own
// descriptor waits in Go's netpoller, so that it holds no thread, and Close
// ends the loop.
type parker struct {
	set  *os.File
	wait syscall.RawConn // of set

	mu    sync.Mutex // guards the fields below
	slots []parkedClient
	free  []int32
}

// A parkedClient is one that has a slot.
type parkedClient struct {
	client     *Client // nil: the slot is free
	generation int32   // of the slot's tenants: an event for a former one is dropped
}

// newParker returns a parker whose loop is to be started.
func newParker() (*parker, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, os.NewSyscallError("setnonblock", err)
	}
	p := &parker{set: os.NewFile(uintptr(fd), "epoll")}
	if p.wait, err = p.set.SyscallConn(); err != nil {
		p.set.Close()
		return nil, err
	}
	return p, nil
}

// enter gives c a slot. It is for the goroutine that reads c's connection, as
// are arm and leave.
func (p *parker) enter(c *Client) (slot int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		slot = p.free[n-1]
		p.free = p.free[:n-1]
	} else {
		slot = int32(len(p.slots))
		p.slots = append(p.slots, parkedClient{})
	}
	p.slots[slot].client = c
	return slot
}

// arm lets input, or the connection's end, start c's reading goroutine, and
// reports whether it could. If so, that goroutine may be running already: the
// caller has nothing more to do with c. known tells that the connection has
// been in the set before.
func (p *parker) arm(slot int32, conn net.Conn, known bool) bool {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	p.mu.Lock() // also what tells the race detector that c's next goroutine comes after this one
	event := syscall.EpollEvent{
		Events: syscall.EPOLLIN | syscall.EPOLLONESHOT,
		Fd:     slot,
		Pad:    p.slots[slot].generation,
	}
	p.mu.Unlock()
	op := syscall.EPOLL_CTL_ADD
	if known {
		op = syscall.EPOLL_CTL_MOD
	}
	// Within Control a descriptor is its owner's: a number that was kept could
	// be another one's by now.
	armed := false
	p.wait.Control(func(set uintptr) {
		raw.Control(func(fd uintptr) { armed = syscall.EpollCtl(int(set), op, int(fd), &event) == nil })
	})
	return armed
}

// leave gives the slot back. Closing the descriptor takes it out of the set.
func (p *parker) leave(slot int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots[slot].client = nil
	p.slots[slot].generation++
	p.free = append(p.free, slot)
}

// loop starts the reading goroutines of connections for which there is input.
// It is the body of a goroutine that ends when the set is closed.
func (p *parker) loop() {
	var events [128]syscall.EpollEvent
	var woken []*Client
	for {
		n := 0
		err := p.wait.Read(func(fd uintptr) bool {
			var err error
			n, err = syscall.EpollWait(int(fd), events[:], 0)
			return n > 0 || err != nil && err != syscall.EINTR
		})
		if err != nil {
			return
		}
		p.mu.Lock()
		for _, e := range events[:max(n, 0)] {
			if s := p.slots[e.Fd]; s.client != nil && s.generation == e.Pad {
				woken = append(woken, s.client)
			}
		}
		p.mu.Unlock()
		for _, c := range woken {
			go c.serve()
		}
		clear(woken)
		woken = woken[:0]
	}
}

// close ends the loop.
func (p *parker) close() { p.set.Close() }
