package realtime

import (
	"crypto/tls"
	"net"
	"net/http/httptest"
	"testing"
	"time"
)

// A client over TLS is written to at once only while it is parked, by one record,
// and if its peer has acknowledged all.
func TestTLSTryWriter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	tcp, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	cert.Close()
	conn := tls.Server(tcp, &tls.Config{Certificates: cert.TLS.Certificates})
	defer tcp.Close()
	go tls.Client(peer, &tls.Config{InsecureSkipVerify: true}).Handshake()
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	c := new(Client)
	c.wire.Conn = tcp
	if tlsTryWriter(c) != nil {
		t.Error("it tries without TLS")
	}
	c.wire.Conn = conn
	try := tlsTryWriter(c)
	wants := func(size, want int) {
		t.Helper()
		stuck := time.AfterFunc(time.Minute, func() { panic("try blocks") })
		defer stuck.Stop()
		if n, err := try(make([]byte, size)); n != want || err != nil {
			t.Errorf("try of %d bytes = %d, %v; want %d", size, n, err, want)
		}
	}
	wants(1, 0) // a goroutine reads
	c.wire.parking.Store(wireParked)
	for deadline := time.Now().Add(time.Minute); !isAcknowledgedBy(conn); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the peer acknowledges nothing")
		}
	}
	wants(1, 1)
	wants(maxTLSTry+1, 0)
	if !c.wire.isParked() {
		t.Error("it is not parked any more")
	}
	stuck := time.AfterFunc(time.Minute, func() { panic("try blocks") })
	defer stuck.Stop()
	for n := maxTLSTry; ; { // the peer doesn't read
		if n, err = try(make([]byte, maxTLSTry)); err != nil {
			t.Fatal(err)
		}
		if n == 0 && !isAcknowledgedBy(conn) {
			break
		}
	}
}

func isAcknowledgedBy(conn *tls.Conn) bool {
	n, ok := unsent(conn)
	return ok && n == 0
}

// What wakes a client during a write is left to the writer.
func TestUnparkDuringAWrite(t *testing.T) {
	w := new(wire)
	if w.unpark() || w.hold() {
		t.Error("a goroutine reads, but unpark or hold succeeds")
	}
	w.parking.Store(wireParked)
	if !w.hold() || w.hold() || !w.isParked() {
		t.Error("it can't be held, or twice")
	}
	for range 2 {
		if w.unpark() {
			t.Error("it is woken during a write")
		}
	}
	if !w.letGo() || w.isParked() {
		t.Error("a wake-up during a write is lost")
	}
	w.parking.Store(wireParked)
	if !w.hold() || w.letGo() || !w.unpark() || w.isParked() {
		t.Error("after a write it can't be woken")
	}
}
