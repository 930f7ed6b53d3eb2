package redisbroker_test

import (
	"net"
	"sync"
	"testing"
)

// A proxy is the network between a node and Redis.
type proxy struct {
	listener net.Listener

	mu     sync.Mutex // guards the fields below
	target string
	up     *sync.Cond // signals that a way is open again
	shut   [2]bool
	conns  []net.Conn
	ended  bool
}

// The two ways, which index shut.
const (
	toRedis = iota
	fromRedis
)

func startProxy(t *testing.T, target string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: l, target: target}
	p.up = sync.NewCond(&p.mu)
	var own sync.WaitGroup
	own.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			own.Go(func() { p.serve(conn) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		p.ended = true
		for _, conn := range p.conns {
			conn.Close()
		}
		p.up.Broadcast()
		p.mu.Unlock()
		own.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.listener.Addr().String() }

// set shuts or opens each of the two ways. On a way that is shut bytes wait, with
// connections open and new ones accepted.
func (p *proxy) set(to, from bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = [2]bool{to, from}
	p.up.Broadcast()
}

// cut closes all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		conn.Close()
	}
	p.conns = nil
}

// sources returns the addresses from which connections come to Redis.
func (p *proxy) sources() (addrs []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, conn := range p.conns {
		if conn.RemoteAddr().String() == p.target {
			addrs = append(addrs, conn.LocalAddr().String())
		}
	}
	return addrs
}

// wait waits until a way is open. It returns false when the proxy has ended.
func (p *proxy) wait(way int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.shut[way] && !p.ended {
		p.up.Wait()
	}
	return !p.ended
}

func (p *proxy) keep(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns = append(p.conns, conn); p.ended {
		conn.Close()
	}
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	p.keep(client)
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	p.keep(server)
	var ways sync.WaitGroup
	for way, conns := range [2][2]net.Conn{toRedis: {client, server}, fromRedis: {server, client}} {
		ways.Go(func() {
			from, to := conns[0], conns[1]
			defer from.Close()
			defer to.Close()
			buf := make([]byte, 32<<10)
			for p.wait(way) {
				n, err := from.Read(buf)
				if err != nil || !p.wait(way) {
					return
				}
				if _, err := to.Write(buf[:n]); err != nil {
					return
				}
			}
		})
	}
	ways.Wait()
}

// lead leads new connections to another target. Those that there are stay.
func (p *proxy) lead(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = target
}
