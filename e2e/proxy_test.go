package e2e

import (
	"net"
	"sync"
	"testing"
	"time"
)

// A proxy passes TCP connections on. Tests can break them as networks do.
type proxy struct {
	url    string // the proxy's, for browsers
	target string // the server's address

	mu    sync.Mutex         // guards the fields below
	conns map[*conn]struct{} // the open connections
	limit func() int         // returns how many bytes the next connection brings to the browser before it is killed; nil: all
	life  time.Duration      // after which a new connection is killed; zero: never
	kills int                // connections that were killed

	// tap is told what passes on new connections, before it is passed on, and may
	// change it. down means to the browser. Nil: nobody is.
	tap func(down bool, b []byte)
}

// newProxy starts a proxy for the server at target. It ends with the test.
func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{url: "http://" + listener.Addr().String(), target: target, conns: make(map[*conn]struct{})}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			browser, err := listener.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.pass(browser.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		p.cut()
		running.Wait()
	})
	return p
}

// A conn is a pair of connections, from the browser and to the server.
type conn struct {
	browser, server *net.TCPConn
	limit           int // negative: none
	tap             func(down bool, b []byte)

	mu   sync.Mutex // held during a write; guards the field below
	dead bool       // passes nothing on, but stays open
}

// pass serves a connection to its end.
func (p *proxy) pass(browser *net.TCPConn) {
	server, err := net.Dial("tcp", p.target)
	if err != nil {
		browser.Close() // as a proxy does when its server is down
		return
	}
	c := &conn{browser: browser, server: server.(*net.TCPConn), limit: -1}
	p.mu.Lock()
	p.conns[c] = struct{}{}
	c.tap = p.tap
	if p.limit != nil {
		c.limit = p.limit()
	}
	if p.life > 0 {
		defer time.AfterFunc(p.life, func() { p.kill(c) }).Stop()
	}
	p.mu.Unlock()

	var copying sync.WaitGroup
	copying.Go(func() { c.copy(c.server, c.browser, -1); c.server.CloseWrite() })
	if c.copy(c.browser, c.server, c.limit) {
		p.kill(c)
	} else {
		c.browser.CloseWrite()
	}
	copying.Wait()
	c.browser.Close()
	c.server.Close()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}

// copy passes up to limit bytes on and reports whether it reached the limit. A
// negative limit means all.
func (c *conn) copy(to, from *net.TCPConn, limit int) bool {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if c.tap != nil {
			c.tap(from == c.server, buf[:n])
		}
		more := limit >= 0 && n >= limit
		if more {
			n = limit
		}
		c.mu.Lock()
		if !c.dead {
			to.Write(buf[:n]) // if its reader is gone, the other direction ends
		}
		c.mu.Unlock()
		if more || err != nil {
			return more
		}
		if limit >= 0 {
			limit -= n
		}
	}
}

// kill closes c. Every second time it sends a reset.
func (p *proxy) kill(c *conn) {
	p.mu.Lock()
	p.kills++
	if p.kills%2 == 0 {
		c.browser.SetLinger(0)
		c.server.SetLinger(0)
	}
	p.mu.Unlock()
	c.browser.Close()
	c.server.Close()
}

// each calls f with every open connection.
func (p *proxy) each(f func(*conn)) {
	p.mu.Lock()
	var conns []*conn
	for c := range p.conns {
		conns = append(conns, c)
	}
	p.mu.Unlock()
	for _, c := range conns {
		f(c)
	}
}

// cut kills all connections.
func (p *proxy) cut() { p.each(p.kill) }

// unplug makes all open connections pass nothing on any more. They stay open, as
// if the browser's computer slept or had moved to another network.
func (p *proxy) unplug() {
	p.each(func(c *conn) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.dead = true
	})
}

// bury kills the connections that unplug has left. A browser would wait for a
// minute until a WebSocket's close is answered.
func (p *proxy) bury() {
	p.each(func(c *conn) {
		c.mu.Lock()
		dead := c.dead
		c.mu.Unlock()
		if dead {
			p.kill(c)
		}
	})
}

// setLimit sets how many bytes each new connection brings to the browser before
// it is killed. Nil means all.
func (p *proxy) setLimit(limit func() int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.limit = limit
}

// setTap sets what is told what passes on new connections.
func (p *proxy) setTap(tap func(down bool, b []byte)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tap = tap
}

// setLife sets how long each new connection lasts until it is killed. Zero means
// for ever.
func (p *proxy) setLife(life time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.life = life
}

// killed returns how many connections have been killed.
func (p *proxy) killed() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.kills
}
