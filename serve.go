package realtime

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// accept makes conn the client's connection, from which rest has been read
// already. answer writes the HTTP answer.
func (c *Client) accept(conn net.Conn, rest []byte, answer func() (format, error)) error {
	conn.SetWriteDeadline(time.Now().Add(c.hub.shared.writeTimeout)) // before attach, whose abort it would undo
	c.beat = c.hub.shared.clock.now()                                // before attach, which lets the sweeper look at c
	c.wire.attach(conn, rest)
	f, err := answer()
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(time.Time{})
	try := tryWriter(conn)
	if try == nil {
		try = tlsTryWriter(c)
	}
	var hello []*event
	if c.envelopes = f.encoding.isEnvelope(); c.envelopes {
		hello = []*event{c.hub.shared.newHello(c.ID())}
	}
	c.out.open(conn, try, f, hello...) // what it held goes out
	if c.out.isClosed() {              // OnConnect has closed it
		c.limitClosing()
	}
	return nil
}

// serve is the body of the reading goroutine. It reads until the connection
// ends and then ends the client, or until it can park the idle connection. The
// parker starts the next reading goroutine.
func (c *Client) serve() {
	parked := false
	defer func() { // deferred because a handler may end the goroutine by runtime.Goexit
		if !parked {
			c.gone()
		}
	}()
	for !parked {
		if err := c.transport.read(c); !errors.Is(err, errPark) {
			c.end(c.transport.ended(c, err))
			return
		}
		parked = c.park() // if so, another goroutine may be reading already
	}
}

// park lets the connection wait for its next message without a goroutine, and
// reports whether it does. If so, the caller has nothing more to do with c.
func (c *Client) park() bool {
	w := &c.wire
	if !w.parkable || !w.idle() {
		return false
	}
	p := c.hub.parker()
	if p == nil || !w.startParking() {
		return false
	}
	return p.arm(c) || !w.unpark()
}

// A parking has a hub's parker.
type parking struct {
	mu     sync.Mutex // guards the fields below
	parker *parker    // nil: there is none
	again  time.Time  // when to try again to make it
	outage outage
	closed bool
}

// parker returns the hub's parker, or nil while it can have none. The first
// client that can be parked makes it: other hubs don't need one. It takes a
// descriptor. If the process has none left, a later call tries again.
func (h *Hub) parker() *parker {
	p := &h.park
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.parker != nil || p.closed || time.Now().Before(p.again) {
		return p.parker
	}
	made, err := newParker(&h.registry)
	if err != nil {
		p.again = time.Now().Add(revolution)
		p.outage.failed(err)
		return nil
	}
	p.outage.over()
	p.parker = made
	h.own.Go(made.loop) // the caller is a client or the sweeper, so Shutdown still waits
	return made
}

// close ends the parker. None is made afterwards.
func (p *parking) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.parker != nil {
		p.parker.close()
	}
}

// run calls f, which runs a handler. Its time does not count as the client's
// silence.
func (c *Client) run(handler string, f func()) {
	c.inHandler.Store(true)
	defer func() {
		c.wire.heard.Store(int64(c.hub.shared.clock.now()))
		c.between()
		c.inHandler.Store(false)
	}()
	defer c.hub.catch(handler, c, func(panicked error) {
		c.close(websocket.CloseError{Code: websocket.StatusInternalError, Reason: "internal error"}, panicked)
	})
	f()
}
