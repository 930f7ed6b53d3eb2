package realtime_test

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A tlsPeer is a WebSocket client whose TLS records can be sent in pieces.
type tlsPeer struct {
	*rawClient
	tcp  *holder
	conn *tls.Conn
	keys safeBuffer // NSS key log
}

// A holder is a connection whose writes can be held.
type holder struct {
	net.Conn
	holds bool
	held  []byte
}

func (h *holder) Write(b []byte) (int, error) {
	if !h.holds {
		return h.Conn.Write(b)
	}
	h.held = append(h.held, b...)
	return len(b), nil
}

func newTLSPeer(t *testing.T, hub *realtime.Hub, version uint16) *tlsPeer {
	t.Helper()
	s := newTLSSite(t, hub)
	tcp, err := net.Dial("tcp", s.host())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tcp.Close() })
	p := &tlsPeer{tcp: &holder{Conn: tcp}}
	p.conn = tls.Client(p.tcp, &tls.Config{InsecureSkipVerify: true, MaxVersion: version, KeyLogWriter: &p.keys})
	p.rawClient = newRawClient(t, p.conn, nil)
	return p
}

// record returns the records that write makes.
func (p *tlsPeer) record(write func() error) []byte {
	p.t.Helper()
	p.tcp.holds = true
	err := write()
	b := p.tcp.held
	p.tcp.holds, p.tcp.held = false, nil
	if err != nil {
		p.t.Fatal(err)
	}
	return b
}

// message returns a message in a record of its own.
func (p *tlsPeer) message(text string) []byte {
	p.t.Helper()
	return p.record(func() error { return p.rawClient.send(frame(0x81, []byte(text))) })
}

// sendRecords sends records as they are.
func (p *tlsPeer) sendRecords(b []byte) {
	p.t.Helper()
	p.tcp.SetWriteDeadline(time.Time{}) // crypto/tls sets one for a goodbye
	if _, err := p.tcp.Conn.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

func (p *tlsPeer) expect(texts ...string) {
	p.t.Helper()
	for _, want := range texts {
		if _, got, err := p.readFrame(); err != nil || string(got) != want {
			p.t.Fatalf("got %q, %v; want %q", got, err, want)
		}
	}
}

func newEchoHub() *realtime.Hub {
	hub := realtime.NewHub()
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { msg.Client.Send(msg.Data) }
	return hub
}

var tlsVersions = map[string]uint16{"TLS 1.2": tls.VersionTLS12, "TLS 1.3": tls.VersionTLS13}

// A client parks within a record of TLS too, wherever it was cut.
func TestParkingWithinARecord(t *testing.T) {
	for name, version := range tlsVersions {
		t.Run(name, func(t *testing.T) {
			hub := newEchoHub()
			p := newTLSPeer(t, hub, version)
			records := func() []byte {
				return slices.Concat(p.message("a"), p.message(strings.Repeat("b", 100)), p.message("c"))
			}
			all := records()
			for cut := 0; ; cut++ {
				p.sendRecords(all[:cut])
				parkNow(t, hub)
				p.sendRecords(all[cut:])
				p.expect("a", strings.Repeat("b", 100), "c")
				if cut == len(all) {
					return
				}
				all = records()
			}
		})
	}
}

// Records that crypto/tls has read ahead are handled before a client parks.
func TestNoParkingBeforeRecords(t *testing.T) {
	for name, version := range tlsVersions {
		t.Run(name, func(t *testing.T) {
			hub := newEchoHub()
			p := newTLSPeer(t, hub, version)
			for range 50 {
				var all []byte
				for range 20 {
					all = append(all, p.message("a")...)
				}
				p.sendRecords(all)
				realtime.Kick(hub)
				p.expect(slices.Repeat([]string{"a"}, 20)...)
				parkNow(t, hub)
			}
		})
	}
}

// A part of a peer's goodbye, in one segment with a message, neither loses the
// message nor ends the client at a kick.
func TestGoodbyeInPieces(t *testing.T) {
	for name, version := range tlsVersions {
		t.Run(name, func(t *testing.T) {
			hub := newEchoHub()
			gone := make(chan error, 1)
			hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
			p := newTLSPeer(t, hub, version)
			parked(t)
			text, goodbye := p.message("a"), p.record(p.conn.CloseWrite)
			p.sendRecords(append(text, goodbye[:10]...))
			parkNow(t, hub)
			p.expect("a")
			p.sendRecords(goodbye[10:])
			if err := <-gone; !errors.Is(err, io.EOF) {
				t.Errorf("OnDisconnect got %v, want io.EOF", err)
			}
		})
	}
}

// New keys (RFC 8446 §4.6.3) change nothing for a parked client, wherever their
// message was cut.
func TestKeyUpdateWhileParked(t *testing.T) {
	hub := newEchoHub()
	p := newTLSPeer(t, hub, tls.VersionTLS13)
	w := newRecordWriter(p)
	p.sendRecords(w.application("a"))
	p.expect("a")
	for cut := 1; ; cut++ {
		update := w.record(22, []byte{24, 0, 0, 1, 1}) // key_update, update_requested
		w.update()
		if cut == len(update) {
			break
		}
		p.sendRecords(update[:cut])
		parkNow(t, hub)
		p.sendRecords(update[cut:])
		if cut%2 == 0 {
			parkNow(t, hub)
		}
		p.sendRecords(w.application("b"))
		p.expect("b")
	}
}

// So it is where the message is in two records.
func TestKeyUpdateInPieces(t *testing.T) {
	hub := newEchoHub()
	p := newTLSPeer(t, hub, tls.VersionTLS13)
	w := newRecordWriter(p)
	for cut := 1; cut < 5; cut++ {
		update := []byte{24, 0, 0, 1, 0}
		p.sendRecords(w.record(22, update[:cut]))
		parkNow(t, hub)
		p.sendRecords(w.record(22, update[cut:]))
		w.update()
		p.sendRecords(w.application("a"))
		p.expect("a")
	}
}

// Events that are written at the moment of waking lose no messages.
func TestEventsAndMessagesOverTLS(t *testing.T) {
	hub := newEchoHub()
	s := newTLSSite(t, hub)
	stop := make(chan struct{})
	var all sync.WaitGroup
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				realtime.Kick(hub)
				if hub.Stats().Queued < 100 {
					hub.Broadcast <- []byte("event")
				}
				runtime.Gosched()
			}
		}
	})
	var clients sync.WaitGroup
	for range 4 {
		c := s.connect()
		clients.Go(func() {
			for i := range 300 {
				want := fmt.Sprint(i)
				write(t, c, want)
				for got := "event"; got != want; {
					if got = read(t, c); got != "event" && got != want {
						t.Errorf("got %q, want %q", got, want)
						return
					}
				}
			}
			go closeStatus(c)
		})
	}
	clients.Wait()
	close(stop)
	all.Wait()
}

// A recordWriter writes a client's records of TLS 1.3, which crypto/tls can't all
// write.
type recordWriter struct {
	t      *testing.T
	secret []byte
	aead   cipher.AEAD
	iv     []byte
	seq    uint64
}

// newRecordWriter continues behind the handshake's request, the first record of
// the client's traffic.
func newRecordWriter(p *tlsPeer) *recordWriter {
	t := p.t.(*testing.T)
	if p.conn.ConnectionState().CipherSuite != tls.TLS_AES_128_GCM_SHA256 {
		t.Skip("without hardware for AES, crypto/tls prefers another cipher")
	}
	for line := range strings.Lines(p.keys.String()) {
		if f := strings.Fields(line); f[0] == "CLIENT_TRAFFIC_SECRET_0" {
			w := &recordWriter{t: t}
			w.secret, _ = hex.DecodeString(f[2])
			w.key()
			w.seq = 1
			return w
		}
	}
	t.Fatal("the key log has no secret")
	return nil
}

// expand is HKDF-Expand-Label of RFC 8446 §7.1, without a context.
func (w *recordWriter) expand(label string, size int) []byte {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(size))
	info = append(append(append(info, byte(len(label))), label...), 0)
	b, err := hkdf.Expand(sha256.New, w.secret, string(info), size)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *recordWriter) key() {
	block, err := aes.NewCipher(w.expand("key", 16))
	if err == nil {
		w.aead, err = cipher.NewGCM(block)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.iv, w.seq = w.expand("iv", 12), 0
}

func (w *recordWriter) update() {
	w.secret = w.expand("traffic upd", 32)
	w.key()
}

func (w *recordWriter) record(typ byte, data []byte) []byte {
	nonce := bytes.Clone(w.iv)
	for i := range 8 {
		nonce[4+i] ^= byte(w.seq >> (8 * (7 - i)))
	}
	w.seq++
	header := binary.BigEndian.AppendUint16([]byte{23, 3, 3}, uint16(len(data)+1+w.aead.Overhead()))
	return w.aead.Seal(header, nonce, append(bytes.Clone(data), typ), header)
}

func (w *recordWriter) application(text string) []byte {
	return w.record(23, frame(0x81, []byte(text)))
}

// An event stream over TLS is taken over and parked, and ends well.
func TestIdleTLSStreamHoldsNoGoroutine(t *testing.T) {
	hub := realtime.NewHub()
	clients := make(chan *realtime.Client, 10)
	hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
		clients <- c
		return nil
	}
	gone := make(chan error, 10)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
	s := newTLSSite(t, hub)
	soon(t, 4*time.Second, func() error { // a client that doesn't hear of the end is cut off after 5 s
		l := s.listen("")
		c := <-clients
		parked(t)
		if n := running("(*Client).stayInHandler"); n != 0 {
			t.Errorf("%d streams stay in the handler", n)
		}
		hub.Broadcast <- []byte("hello")
		if got := l.next(); got != "hello" {
			t.Errorf("got %q", got)
		}
		c.Close(4000, "")
		if _, err := l.event(); err != io.EOF {
			return fmt.Errorf("after Close the stream ends with %v, want io.EOF", err)
		}
		l.conn.Close()
		if err := <-gone; websocket.CloseStatus(err) != 4000 {
			t.Errorf("OnDisconnect got %v", err)
		}
		return nil
	})
	s.listen("").cut()
	if err := <-gone; err != io.EOF {
		t.Errorf("after its client's end OnDisconnect got %v, want io.EOF", err)
	}
}

// Bytes that come on an event stream are counted, also those that crypto/tls has
// read ahead.
func TestJunkOverTLS(t *testing.T) {
	hub := realtime.NewHub()
	gone := make(chan error, 1)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
	s := newTLSSite(t, hub)
	l := s.listen("")
	parked(t)
	for range 64 { // and a byte more is too much
		if _, err := l.conn.Write(make([]byte, 1<<10)); err != nil {
			t.Fatal(err)
		}
	}
	parked(t)
	select {
	case err := <-gone:
		t.Fatalf("it has left: %v", err)
	default:
	}
	l.conn.Write([]byte{0})
	if err := <-gone; !strings.Contains(err.Error(), "65536 bytes") {
		t.Errorf("OnDisconnect got %v", err)
	}
}
