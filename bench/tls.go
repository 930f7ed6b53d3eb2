//go:build linux

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	_ "embed" // for tls.md
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tlsRemarks says what the figures over TLS mean and why they are so.
//
//go:embed tls.md
var tlsRemarks string

// tlsContenders are servers that end TLS themselves, as a Go program does without
// a proxy before it.
var tlsContenders = []contender{
	{"floor", "", overTLS(noEcho), serveTLSFloor},
	{"realtime", ourModule, overTLS(plain), serveRealtime},
	{"realtime-sse", ourModule, overTLS(eventStream), serveRealtimeSSE},
	{"realtime-http2", ourModule, overHTTP2(eventStream), serveRealtimeSSE},
	{"gorilla", "github.com/gorilla/websocket", overTLS(plain), serveGorilla},
	{"gws", "github.com/lxzan/gws", overTLS(plain), serveGWS},
	{"go-sse", "github.com/tmaxmax/go-sse", overTLS(eventStream), serveGoSSE},
	{"go-sse-http2", "github.com/tmaxmax/go-sse", overHTTP2(eventStream), serveGoSSE},
}

func overTLS(p protocol) protocol {
	p.tls = true
	return p
}

func overHTTP2(p protocol) protocol {
	p.tls, p.http2 = true, true
	return p
}

// serverTLS returns settings with a certificate that is made now. All others are
// the defaults.
func serverTLS() (*tls.Config, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: []string{"localhost"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert}, PrivateKey: key}}}, nil
}

// serveTLSFloor does the least that a server can do with crypto/tls: one
// goroutine calls Write with ready-made bytes.
func serveTLSFloor() (http.Handler, func(int, func() []byte)) {
	var (
		mu    sync.Mutex // guards the field below
		conns []net.Conn
	)
	join := func(w http.ResponseWriter, r *http.Request) {
		conn, err := joinFloor(w, r)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, conn)
	}
	var frames []byte
	publish := func(n int, next func() []byte) {
		frames = appendFloor(frames[:0], n, next)
		mu.Lock()
		defer mu.Unlock()
		for i := 0; i < len(conns); i++ {
			if _, err := conns[i].Write(frames); err != nil {
				conns[i].Close()
				last := len(conns) - 1
				conns[i] = conns[last]
				conns = conns[:last]
				i--
			}
		}
	}
	return http.HandlerFunc(join), publish
}

// clientTLS is for all clients. They resume no sessions, because each is another
// browser.
var clientTLS = map[bool]*tls.Config{ // by http2
	false: {InsecureSkipVerify: true, NextProtos: []string{"http/1.1"}},
	true:  {InsecureSkipVerify: true, NextProtos: []string{"h2"}},
}

// startTLS makes the handshake. It waits for the server, so handshakes of a
// thread follow each other.
func (c *client) startTLS() error {
	c.tls = tls.Client(&descriptor{fd: c.fd}, clientTLS[c.http2])
	if err := c.tls.Handshake(); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	return nil
}

// receive is read(2), through TLS if there is some.
func (c *client) receive(b []byte) (int, error) {
	if c.tls == nil {
		return unix.Read(c.fd, b)
	}
	n, err := c.tls.Read(b)
	switch {
	case n > 0:
		return n, nil // an error comes again
	case errors.Is(err, os.ErrDeadlineExceeded):
		return 0, unix.EAGAIN
	case err == io.EOF:
		return 0, nil
	}
	return 0, err
}

// transmit is write(2), through TLS if there is some.
func (c *client) transmit(b []byte) (int, error) {
	if c.tls == nil {
		return unix.Write(c.fd, b)
	}
	return c.tls.Write(b)
}

// A descriptor is the connection below TLS. Where it would block, its Read ends
// as at a deadline. crypto/tls goes on after that.
type descriptor struct {
	net.Conn // nil: methods that aren't defined here are never called
	fd       int
}

func (d *descriptor) Read(b []byte) (int, error) {
	n, err := unix.Read(d.fd, b)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR:
		return 0, os.ErrDeadlineExceeded
	case err == nil && n == 0:
		return 0, io.EOF
	}
	return max(n, 0), err
}

func (d *descriptor) Write(b []byte) (int, error) {
	n, err := unix.Write(d.fd, b)
	if err == nil && n < len(b) {
		err = errors.New("the server does not read")
	}
	return max(n, 0), err
}
