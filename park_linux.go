package realtime

import (
	"net"
	"os"
	"sync"
	"syscall"
)

// canPark reports whether conn can wait for input without a goroutine. Only
// these very types can: a wrapper may have read ahead.
func canPark(conn net.Conn) bool {
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// A parker holds connections that wait for input without a goroutine. Their
// descriptors are in an epoll set, one-shot and level-triggered, so bytes that
// came before parking wake them too. The set waits in Go's netpoller: it holds
// no thread, and closing it ends the loop.
type parker struct {
	set  *os.File
	wait syscall.RawConn // of set

	mu    sync.Mutex // guards the fields below
	slots []parkedClient
	free  []int32
}

// A parkedClient is one slot.
type parkedClient struct {
	client     *Client // nil: the slot is free
	generation int32   // counts the slot's clients; input for an earlier one is dropped
}

// newParker returns a parker. Its caller starts the loop.
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

// enter gives c a slot. The goroutine that reads c's connection calls it, as
// well as arm and leave.
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

// arm starts the reading goroutine at the next input or the connection's end,
// and reports whether it could. If so, that goroutine may already run: leave
// the client alone then. known: the set has had conn before.
func (p *parker) arm(slot int32, conn net.Conn, known bool) bool {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return false
	}
	p.mu.Lock() // this also shows the race detector that the next reading goroutine comes after this one
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
	// Within Control, fd is surely conn's. A stored number could be reused.
	armed := false
	p.wait.Control(func(set uintptr) {
		raw.Control(func(fd uintptr) { armed = syscall.EpollCtl(int(set), op, int(fd), &event) == nil })
	})
	return armed
}

// leave frees the slot. Closing the descriptor removes it from the set.
func (p *parker) leave(slot int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots[slot].client = nil
	p.slots[slot].generation++
	p.free = append(p.free, slot)
}

// loop starts the reading goroutines of connections with input, until close.
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
