package realtime

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// A scripted is a connection from which pieces come. After each of them, one Read
// ends as if the sweeper had kicked the client. The last is followed by the
// connection's end.
type scripted struct {
	net.Conn
	pieces [][]byte
	kicked bool
}

func (c *scripted) Read(p []byte) (int, error) {
	for len(c.pieces) > 0 {
		if n := copy(p, c.pieces[0]); n > 0 {
			c.pieces[0] = c.pieces[0][n:]
			return n, nil
		}
		if c.kicked = !c.kicked; c.kicked {
			return 0, os.ErrDeadlineExceeded
		}
		c.pieces = c.pieces[1:]
	}
	return 0, io.EOF
}

func (*scripted) SetDeadline(time.Time) error      { return nil }
func (*scripted) SetReadDeadline(time.Time) error  { return nil }
func (*scripted) SetWriteDeadline(time.Time) error { return nil }
func (*scripted) Close() error                     { return nil }

// A sitter is a client that reads a script, and what came of it.
type sitter struct {
	*Client
	conn *recorder
	got  []string // the messages
	over bool
}

func newSitter(h *Hub, inflates bool, pieces [][]byte) *sitter {
	c := &sitter{Client: newClient(h, webSocket{}), conn: &recorder{room: func() int { return 1 << 20 }}}
	c.onMessage = func(_ *Hub, msg Message) { c.got = append(c.got, fmt.Sprintf("%v %q", msg.Binary, msg.Data)) }
	c.wire.attach(&scripted{pieces: pieces}, nil)
	c.wire.inflates = inflates
	c.out.open(c.conn, c.conn.try, format{})
	return c
}

// read reads until the sitter could be parked. At the end it notes what else is
// to be seen.
func (c *sitter) read() {
	err := c.transport.read(c.Client)
	if errors.Is(err, errPark) {
		return
	}
	c.over = true
	c.got = append(c.got, c.transport.ended(c.Client, err).Error(), fmt.Sprintf("%x", c.conn.got))
	if c.seat != nil {
		c.seat.conn.CloseNow()
	}
}

// newSeatHub returns a hub that a sitter can read for.
func newSeatHub() *Hub {
	h := NewHub()
	h.settle()
	h.shared.clock.until.Store(int64(time.Hour)) // there is no sweeper to wind it
	return h
}

// alone returns what comes of a script for a client of a hub of its own.
func alone(inflates bool, pieces [][]byte) []string {
	c := newSitter(newSeatHub(), inflates, pieces)
	for !c.over {
		c.read()
	}
	return c.got
}

// lent returns what comes of scripts whose clients take turns on one seat.
func lent(t *testing.T, inflates bool, scripts ...[][]byte) (got [][]string) {
	h := newSeatHub()
	var clients []*sitter
	for _, pieces := range scripts {
		clients = append(clients, newSitter(h, inflates, pieces))
	}
	for over := 0; over < len(clients); {
		over = 0
		for _, c := range clients {
			if !c.over {
				c.read()
			}
			if c.over {
				over++
			}
			if n := len(h.seats.free); n > 1 {
				t.Fatalf("%d seats are free, want one that all share", n)
			}
		}
	}
	for _, c := range clients {
		got = append(got, c.got)
	}
	h.seats.clear()
	return got
}

// masked returns a client's frame.
func masked(first byte, payload string) []byte {
	b := []byte{first, 0x80 | byte(len(payload)), 1, 2, 3, 4}
	for i := range payload {
		b = append(b, payload[i]^b[2+i%4])
	}
	return b
}

// cutUp returns copies of the pieces: scripts change what they have.
func cutUp(pieces ...[]byte) [][]byte { return slices.Clone(pieces) }

// Nothing of one client reaches another that gets its seat, whatever it sends.
func TestSeatForgets(t *testing.T) {
	final, _ := hex.DecodeString("f348cdc9c9070000") // "Hello" with BFINAL (RFC 7692 §7.2.3.4)
	rude := map[string][]byte{
		"a stream that ends in its message": masked(0xC1, string(final)),
		"a stream and more":                 masked(0xC1, string(final)+"more"),
		"a ping":                            masked(0x89, "secret"),
		"text":                              masked(0x81, "secret"),
		"a compressed frame without an end": masked(0xC1, "\xf2"),
	}
	for name, first := range rude {
		for i, second := range [][]byte{masked(0xC1, string(final)), masked(0x81, "plain"), slices.Concat(masked(0x01, "in "), masked(0x80, "pieces"))} {
			a, b := cutUp(first, first), cutUp(second, second, second)
			got := lent(t, true, a, b)
			if want := alone(true, cutUp(second, second, second)); !slices.Equal(got[1], want) {
				t.Errorf("behind %s, %d is read as %q, want %q", name, i, got[1], want)
			}
		}
	}
}

// Only a seat that can serve is lent again, and few are kept.
func TestSeatsAreKept(t *testing.T) {
	h := newSeatHub()
	var all []*seat
	for range maxFreeSeats + 10 {
		s, err := h.seats.take()
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	}
	all[0].conn.CloseNow() // as its own timer does
	for _, s := range all {
		h.seats.give(s)
	}
	if n := len(h.seats.free); n != maxFreeSeats || slices.Contains(h.seats.free, all[0]) {
		t.Errorf("%d seats are kept, want %d, and not the closed one", n, maxFreeSeats)
	}
	h.seats.clear()
	if len(h.seats.free) != 0 || !all[1].closed {
		t.Error("seats outlive the clients")
	}
}

// Two clients that share a seat get what each would get on its own.
func FuzzSeat(f *testing.F) {
	f.Add(masked(0x81, "one"), masked(0x82, "two"), uint8(3), true)
	f.Add(slices.Concat(masked(0x01, "a"), masked(0x89, "ping"), masked(0x80, "b")), masked(0xC1, "\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), uint8(9), true)
	f.Add(masked(0x88, "\x03\xe8bye"), slices.Concat(masked(0x8A, ""), masked(0x81, "\xff")), uint8(7), false)
	f.Fuzz(func(t *testing.T, one, two []byte, cut uint8, inflates bool) {
		pieces := func(b []byte) (all [][]byte) {
			for p := range slices.Chunk(b, 1+int(cut)) {
				all = append(all, bytes.Clone(p))
			}
			return all
		}
		got := lent(t, inflates, pieces(one), pieces(two))
		for i, b := range [][]byte{one, two} {
			if want := alone(inflates, pieces(b)); !slices.Equal(got[i], want) {
				t.Errorf("client %d gets %q, alone it gets %q", i, got[i], want)
			}
		}
	})
}

// Messages that come as whole plain frames are read without a seat, and so are
// pongs.
func TestPlainMessageNeedsNoSeat(t *testing.T) {
	h := newSeatHub()
	c := newSitter(h, true, cutUp(slices.Concat(masked(0x8A, ""), masked(0x81, "one"), masked(0x8A, "pong"), masked(0x82, "two"), masked(0x8A, ""))))
	if c.read(); c.over || !slices.Equal(c.got, []string{`false "one"`, `true "two"`}) {
		t.Errorf("got %q, want two messages", c.got)
	}
	if n := len(h.seats.free); n != 0 {
		t.Errorf("%d seats were made, want none", n)
	}
}

// The limit is for plain messages, too.
func TestPlainMessageTooLarge(t *testing.T) {
	h := newSeatHub()
	h.shared.maxMessageBytes = 5
	c := newSitter(h, false, cutUp(slices.Concat(masked(0x81, "right"), masked(0x81, "too large"))))
	for !c.over {
		c.read()
	}
	if len(c.got) != 3 || c.got[0] != `false "right"` || !strings.Contains(c.got[1], "MaxMessageBytes") {
		t.Errorf("got %q, want one message and the limit", c.got)
	}
}

// A plain message is read without a seat if it comes whole, and by the library if
// it comes in bytes. Nobody can tell which.
func FuzzPlain(f *testing.F) {
	f.Add(slices.Concat(masked(0x81, "one"), masked(0x82, "two"), masked(0x81, "three")), true)
	f.Add(slices.Concat(masked(0x01, "a"), masked(0x81, "not now"), masked(0x80, "b")), false)
	f.Add(slices.Concat(masked(0x81, "caf\xc3\xa9"), masked(0x81, "caf\xc3"), masked(0x81, "late")), false)
	f.Add(slices.Concat(masked(0x81, ""), masked(0x89, "ping"), masked(0x82, "\xff"), masked(0x88, "\x03\xe8bye"), masked(0x81, "late")), true)
	f.Add(slices.Concat(masked(0x8A, ""), masked(0x81, "one"), masked(0x8A, "pong"), []byte{0x8A, 0x00}), true)
	f.Add(slices.Concat(masked(0x8A, ""), []byte{0x8A, 0xFE, 0, 1, 1, 2, 3, 4, 5}), false)
	f.Add(slices.Concat(masked(0x8A, ""), masked(0x01, "a"), masked(0x8A, ""), masked(0x80, "b"), masked(0xCA, "")), true)
	f.Add(slices.Concat(masked(0xC1, "\xf3\x48\xcd\xc9\xc9\x07\x00\x00"), masked(0xA1, "")), true)
	f.Add(slices.Concat(masked(0x82, strings.Repeat("x", 21)), []byte{0x81, 0x01, 'x'}), false)
	begun := masked(0x00, "not now\x84")
	begun[1] += 100 // of which nothing comes
	f.Add(slices.Concat(masked(0x01, "a"), begun), false)
	f.Add(slices.Concat(masked(0x01, "a"), masked(0x89, "p"), begun), true)
	f.Add([]byte{0x82, 0xFE, 0, 3, 1, 2, 3, 4, 'a', 'b', 'c', 0x82, 0xFE, 0, 22, 1, 2, 3, 4}, false)
	f.Add([]byte{0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 'a', 'b', 'c', 0x83, 0x80, 1, 2, 3, 4}, false)
	f.Fuzz(func(t *testing.T, sent []byte, inflates bool) {
		read := func(size int) []string {
			h := newSeatHub()
			var pieces [][]byte
			for p := range slices.Chunk(sent, size) {
				pieces = append(pieces, bytes.Clone(p))
			}
			c := newSitter(h, inflates, pieces)
			for !c.over {
				c.read()
			}
			h.seats.clear()
			return c.got
		}
		want := read(1)
		for _, size := range []int{20, seatReadBytes - 1} { // a full seat would read a large frame in larger steps
			if got := read(size); !slices.Equal(got, want) {
				t.Errorf("in pieces of %d bytes %x is read as %q, byte by byte as %q", size, sent, got, want)
			}
		}
	})
}
