//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A load is the clients of one server. Threads share the clients. Each thread has
// an epoll set of its own. The stage decides what happens with messages.
type load struct {
	// Set at construction, never changed.
	ctx      context.Context
	protocol protocol
	server   unix.SockaddrInet4
	clients  int
	atOnce   int  // handshakes at a time
	storm    bool // none of them waits for the server to accept the one before
	threads  []*thread
	full     chan struct{} // closed when all clients have joined
	failed   chan struct{} // closed when err is set

	running sync.WaitGroup
	stage   atomic.Pointer[stage]
	begun   atomic.Int64 // clients that have begun to connect
	joined  atomic.Int64 // clients that have joined
	failing sync.Once    // guards err
	err     error

	mu     sync.Mutex // guards the fields below, and the change from one batch to the next
	open   int        // clients that have joined and are still connected
	reason error      // why the first client was disconnected
}

// A stage handles what happens to clients.
type stage interface {
	// got is called for each message that a client reads, on the client's
	// thread. now is the wall clock's time in nanoseconds. An error fails the
	// load.
	got(c *client, m message, now int64) error

	// gone is called when the server has disconnected a client. The load is
	// locked.
	gone(c *client)
}

// quiet is the stage between others. It waits for nothing. A message that comes
// is a greeting, or a late one that already counts as lost.
type quiet struct{}

func (quiet) got(c *client, m message, _ int64) error {
	if m.seq >= firstEcho {
		return nil
	}
	return c.inOrder(m)
}

func (quiet) gone(*client) {}

// errDisconnected is wrapped by each error that means that the server has
// disconnected a client. That is a loss. It fails the load only if the client has
// not joined yet.
var errDisconnected = errors.New("disconnected")

const (
	atOnce     = 64        // handshakes at a time
	readBytes  = 256 << 10 // more than any frame
	eachSource = 16 << 10  // clients from one address; it has some 28,000 ports
)

// newLoad returns a load of clients for a port. They are not connected yet. The
// caller must close the load. When ctx is done, wait fails.
func newLoad(ctx context.Context, p protocol, port, clients, threads int) (*load, error) {
	l := &load{
		ctx:      ctx,
		protocol: p,
		server:   unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}},
		clients:  clients,
		atOnce:   atOnce,
		full:     make(chan struct{}),
		failed:   make(chan struct{}),
	}
	l.enter(quiet{})
	for i := range threads {
		t, err := newThread(l, i)
		if err != nil {
			l.close()
			return nil, err
		}
		l.threads = append(l.threads, t)
		l.running.Go(t.loop)
	}
	return l, nil
}

// enter makes s the stage.
func (l *load) enter(s stage) { l.stage.Store(&s) }

// leave ends the stage. When it returns, no thread is in the stage any more.
func (l *load) leave() {
	l.enter(quiet{})
	l.each(func(*thread) {})
}

// fail makes wait return err. Only the first error counts.
func (l *load) fail(err error) {
	l.failing.Do(func() {
		l.err = err
		close(l.failed)
	})
}

// lose records that the server has disconnected a client.
func (l *load) lose(c *client, reason error) {
	c.close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.reason == nil {
		l.reason = reason
	}
	(*l.stage.Load()).gone(c)
}

// disconnected returns how many clients the server has disconnected, and the
// reason of the first.
func (l *load) disconnected() (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.joined.Load()) - l.open, l.reason
}

// errStalled means that no messages come any more.
var errStalled = errors.New("stalled")

// wait waits until done is closed. It calls progress on every thread and adds up
// what it returns. It returns errStalled when the sum has not changed for stall,
// or the error with which the load failed.
func (l *load) wait(done <-chan struct{}, stall time.Duration, progress func(t *thread) int64) error {
	const looks = 3
	last, same := int64(-1), 0
	for {
		select {
		case <-done:
			return nil
		case <-l.failed:
			return l.err
		case <-l.ctx.Done():
			return context.Cause(l.ctx)
		case <-time.After(stall / looks):
		}
		sum := int64(0)
		l.each(func(t *thread) { sum += progress(t) })
		if same++; sum != last {
			last, same = sum, 0
		}
		if same == looks {
			return errStalled
		}
	}
}

// connect connects the clients.
func (l *load) connect(stall time.Duration) error {
	l.each(func(t *thread) {
		for range max(1, l.atOnce/len(l.threads)) {
			t.connectNext()
		}
	})
	err := l.wait(l.full, stall, func(t *thread) int64 { return int64(t.joined) })
	if err != nil {
		err = fmt.Errorf("%d of %d clients connected: %w", l.joined.Load(), l.clients, err)
	}
	return err
}

// each runs f on every thread, one after the other.
func (l *load) each(f func(t *thread)) {
	for _, t := range l.threads {
		done := make(chan struct{})
		t.post(func() {
			f(t)
			close(done)
		})
		<-done
	}
}

// close ends the threads. It resets the connections, so that none stays in the
// kernel.
func (l *load) close() {
	l.each(func(t *thread) { t.ended = true })
	l.running.Wait()
}

// A thread reads and writes for its clients.
type thread struct {
	load  *load
	index int
	epoll int
	wake  int // an eventfd

	// Owned by the thread's goroutine.
	clients []*client
	joined  int // how many clients have joined
	buf     []byte
	out     []byte
	ended   bool

	mu     sync.Mutex // guards the field below
	posted []func()
}

// wakeEvent marks the eventfd's events. Other events have their client's index.
const wakeEvent = -1

func newThread(l *load, index int) (*thread, error) {
	t := &thread{load: l, index: index, buf: make([]byte, readBytes)}
	var err error
	if t.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	if t.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(t.epoll)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	if err := t.watch(t.wake, wakeEvent, unix.EPOLLIN); err != nil {
		unix.Close(t.wake)
		unix.Close(t.epoll)
		return nil, err
	}
	return t, nil
}

func (t *thread) watch(fd, index int, events uint32) error {
	err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(index)})
	if err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// post lets the thread run f soon.
func (t *thread) post(f func()) {
	t.mu.Lock()
	t.posted = append(t.posted, f)
	t.mu.Unlock()
	unix.Write(t.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}

func (t *thread) takePosted() []func() {
	t.mu.Lock()
	defer t.mu.Unlock()
	posted := t.posted
	t.posted = nil
	return posted
}

// loop is the thread's goroutine. load.close ends it and waits for it.
func (t *thread) loop() {
	runtime.LockOSThread()
	defer t.close()
	events := make([]unix.EpollEvent, 512)
	for !t.ended {
		n, err := unix.EpollWait(t.epoll, events, -1)
		if err != nil && err != unix.EINTR {
			t.load.fail(fmt.Errorf("epoll_wait: %w", err))
			n = 0
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd == wakeEvent {
				unix.Read(t.wake, t.buf[:8])
				for _, f := range t.takePosted() {
					f()
				}
				continue
			}
			switch c := t.clients[e.Fd]; {
			case c.fd < 0:
			case c.request != nil:
				c.check(c.connected(int(e.Fd)))
			default:
				c.check(c.read())
			}
		}
	}
}

func (t *thread) close() {
	for _, c := range t.clients {
		c.close()
	}
	unix.Close(t.wake)
	unix.Close(t.epoll)
}

// connectNext begins to connect another client if one is left.
func (t *thread) connectNext() {
	number := int(t.load.begun.Add(1)) - 1
	if number >= t.load.clients {
		return
	}
	if err := t.connect(number); err != nil {
		t.load.fail(fmt.Errorf("connect: %w", err))
	}
}

func (t *thread) connect(number int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	p := &t.load.protocol
	c := &client{thread: t, fd: fd, decoder: decoder{stream: p.stream, http2: p.http2}}
	index := len(t.clients)
	t.clients = append(t.clients, c) // the thread closes it, also after an error below
	source := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + number/eachSource)}}
	unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) // connect chooses the port
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Bind(fd, source); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if t.load.storm {
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("nonblock: %w", err)
		}
	}
	// On the loopback connect does not wait for the server, unless its queue is
	// full.
	server := t.load.server // Connect writes to it
	switch err := unix.Connect(fd, &server); err {
	case nil:
	case unix.EINPROGRESS:
		c.request = t.load.protocol.request(number)
		return t.watch(fd, index, unix.EPOLLOUT)
	default:
		return fmt.Errorf("connect: %w", err)
	}
	if p.tls {
		if err := c.startTLS(); err != nil {
			return err
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("nonblock: %w", err)
	}
	if err := t.watch(fd, index, unix.EPOLLIN); err != nil {
		return err
	}
	return c.write(p.request(number))
}

// A client is one connection of a load. Its thread owns it.
type client struct {
	decoder
	thread  *thread
	fd      int       // -1: closed
	tls     *tls.Conn // nil: without TLS
	rest    []byte    // bytes that the decoder has not used
	now     int64     // when it read
	joined  bool
	request []byte // to be sent when the connection is there; nil: it was sent
	last    int64  // number of the last published message that it got

	echoes  int64 // messages that it sent to be echoed
	echoing bool  // it sends another message when an echo comes
}

// connected sends the request of a client whose connection is there, or has
// failed.
func (c *client) connected(index int) error {
	err := unix.EpollCtl(c.thread.epoll, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(index)})
	if err == nil {
		err = c.write(c.request)
	}
	c.request = nil
	return err
}

// firstEcho is above the number of any published message.
const firstEcho = 5_000_000_000

// read reads once. If there is more, epoll reports it. With TLS it reads all: what
// is there may not be in the kernel any more.
func (c *client) read() error {
	if c.tls == nil {
		_, err := c.readOnce()
		return err
	}
	for c.fd >= 0 {
		if more, err := c.readOnce(); err != nil || !more {
			return err
		}
	}
	return nil
}

// readOnce reports whether there was something to read.
func (c *client) readOnce() (bool, error) {
	buf := c.thread.buf
	kept := copy(buf, c.rest)
	n, err := c.receive(buf[kept:])
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("%w: read: %w", errDisconnected, err)
	case n == 0:
		return false, fmt.Errorf("%w without a close frame", errDisconnected)
	}
	c.now = time.Now().UnixNano()
	b := buf[:kept+n]
	used, err := c.decode(b, c)
	if err == nil && used == 0 && len(b) == len(buf) {
		err = fmt.Errorf("a frame is larger than %d bytes", len(buf))
	}
	c.rest = append(c.rest[:0], b[used:]...)
	return true, err
}

// check handles the error of read or echo. A client that the server disconnects
// is a loss. Any other error fails the load.
func (c *client) check(err error) {
	switch l := c.thread.load; {
	case err == nil || c.fd < 0:
	case c.joined && errors.Is(err, errDisconnected):
		l.lose(c, err)
	default:
		l.fail(fmt.Errorf("a client: %w", err))
		c.close()
	}
}

// write writes b, which is short. If the kernel accepts only a part, that is an
// error.
func (c *client) write(b []byte) error {
	n, err := c.transmit(b)
	if err != nil {
		return fmt.Errorf("%w: write: %w", errDisconnected, err)
	}
	if n < len(b) {
		return errors.New("write: the server does not read")
	}
	return nil
}

// send sends a frame.
func (c *client) send(op byte, payload []byte) error {
	t := c.thread
	t.out = appendFrame(t.out[:0], op, payload)
	return c.write(t.out)
}

// echo sends another message to be echoed.
func (c *client) echo() error {
	c.echoes++
	p := &c.thread.load.protocol
	text := make([]byte, 0, 256)
	text = append(text, p.before...)
	text = message{firstEcho + c.echoes, time.Now().UnixNano()}.appendTo(text)
	text = append(text, p.after...)
	return c.send(opText, text)
}

func (c *client) open() error {
	if join := c.thread.load.protocol.join; join != "" {
		return c.send(opText, []byte(join))
	}
	c.join()
	return nil
}

func (c *client) join() {
	l := c.thread.load
	c.joined = true
	c.thread.joined++
	l.mu.Lock()
	l.open++
	l.mu.Unlock()
	if l.joined.Add(1) == int64(l.clients) {
		close(l.full)
	}
	c.thread.connectNext()
}

func (c *client) text(b []byte) error {
	l := c.thread.load
	if !c.joined && bytes.Contains(b, []byte(l.protocol.joined)) {
		c.join()
		return nil
	}
	if l.protocol.ping != "" && bytes.Contains(b, []byte(l.protocol.ping)) {
		if err := c.send(opText, []byte(l.protocol.ping)); err != nil {
			return err
		}
	}
	for {
		m, rest, ok := nextMessage(b)
		if !ok {
			if bytes.Contains(b, head) {
				return fmt.Errorf("a message was changed: %q", b)
			}
			return nil
		}
		if err := (*l.stage.Load()).got(c, m, c.now); err != nil {
			return err
		}
		b = rest
	}
}

func (c *client) ping(payload []byte) error { return c.send(opPong, payload) }

func (c *client) http2Answer(frame []byte) error { return c.write(frame) }

// inOrder records a published message. It returns an error if the message is out
// of order or was never published. Messages may be missing before it.
func (c *client) inOrder(m message) error {
	if m.seq <= c.last || m.seq >= firstEcho {
		return fmt.Errorf("message %d came after %d", m.seq, c.last)
	}
	c.last = m.seq
	return nil
}

func (c *client) close() {
	if c.fd >= 0 {
		unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		unix.Close(c.fd)
		c.fd = -1
	}
}
