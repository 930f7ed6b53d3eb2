package room

import (
	"io"
	"net"
	"sync"
)

// A Proxy passes connections on to an engine. It stands in for the network between
// a node and the engine, which it can cut.
type Proxy struct {
	Addr string // where the node finds it

	to string

	mu       sync.Mutex   // guards the fields below
	listener net.Listener // nil: it is cut
	conns    map[net.Conn]bool
}

// NewProxy starts a proxy for an engine's address.
func NewProxy(to string) (*Proxy, error) {
	p := &Proxy{Addr: "127.0.0.1:0", to: to, conns: make(map[net.Conn]bool)}
	return p, p.Cut(false)
}

// Cut breaks all connections and refuses new ones, or accepts them again. When it
// has cut, the proxy has no goroutines that wait for anything else than to end.
func (p *Proxy) Cut(cut bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !cut && p.listener == nil {
		l, err := net.Listen("tcp", p.Addr)
		if err != nil {
			return err
		}
		p.listener, p.Addr = l, l.Addr().String()
		go p.accept(l)
	}
	if cut && p.listener != nil {
		p.listener.Close()
		p.listener = nil
		for conn := range p.conns {
			conn.Close()
		}
		clear(p.conns)
	}
	return nil
}

// accept passes connections on until it is cut.
func (p *Proxy) accept(l net.Listener) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer near.Close()
			far, err := net.Dial("tcp", p.to)
			if err != nil {
				return
			}
			defer far.Close()
			if !p.keep(l, near, far) {
				return
			}
			go func() {
				io.Copy(far, near)
				far.Close() // ends the other way
			}()
			io.Copy(near, far)
		}()
	}
}

// keep keeps connections to be cut. It reports whether they are not cut already.
func (p *Proxy) keep(l net.Listener, near, far net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.listener != l {
		return false
	}
	p.conns[near], p.conns[far] = true, true
	return true
}
