package realtime_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// FuzzClientBytes sends a hub whatever bytes a client can. What OnMessage gets
// is what RFC 6455 says they mean, read by an independent parser; what the hub
// answers are well-formed frames, with nothing behind a close frame; and no
// other client is harmed.
func FuzzClientBytes(f *testing.F) {
	f.Add(frame(0x81, []byte("hello")))
	f.Add(slices.Concat(frame(0x01, []byte("he")), frame(0x89, []byte("ping")), frame(0x80, []byte("llo")), frame(0x82, []byte{0xFF})))
	f.Add(slices.Concat(frame(0x81, []byte("bye")), frame(0x88, []byte{3, 0xE8, 'o', 'k'}), frame(0x81, []byte("late"))))
	f.Add(slices.Concat(frame(0x81, []byte("one")), frame(0x81, []byte("\xc3\x28")), frame(0x81, []byte("late"))))
	f.Add(slices.Concat(frame(0x82, make([]byte, 1000)), frame(0x82, make([]byte, 1001))))
	f.Add([]byte{0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0, 3, 1, 2, 3, 4, 'a', 'b', 'c'})
	f.Add([]byte{0x81, 0x01, 'x'})
	f.Add([]byte{0xC1, 0x80, 0, 0, 0, 0})
	f.Add(frame(0x01, []byte("half of a mess")))
	f.Add(frame(0x81, []byte("age"))[:6])
	f.Fuzz(func(t *testing.T, sent []byte) {
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.MaxMessageBytes = 1000
			var got []string
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
				got = append(got, fmt.Sprint(msg.Binary, string(msg.Data)))
			}
			left := recordLeft(hub)
			s := newPipeSite(t, hub)
			healthy := s.connect()
			c := s.raw()
			answered := make(chan error)
			go func() { answered <- c.readAnswers() }()
			c.send(sent)
			synctest.Wait()
			c.conn.Close()
			if err := <-answered; err != nil {
				t.Error(err)
			}
			synctest.Wait()
			if left.n != 1 || left.err == nil {
				t.Errorf("OnDisconnect: %d times, last with %v; want once, and why", left.n, left.err)
			}
			if want := messagesIn(sent, 1000); !slices.Equal(got, want) {
				t.Errorf("OnMessage got %q, want %q", got, want)
			}
			hub.Broadcast <- []byte("still here")
			if got := read(t, healthy); got != "still here" {
				t.Errorf("another client got %q", got)
			}
			go closeStatus(healthy)
		})
	})
}

// readAnswers reads the server's frames to the end of the connection.
func (c *rawClient) readAnswers() error {
	for closed := false; ; {
		first, payload, err := c.readFrame()
		if err != nil {
			return nil
		}
		switch {
		case closed:
			return fmt.Errorf("frame %#x behind a close frame", first)
		case first == 0x88:
			closed = true
			if len(payload) == 1 || len(payload) > 2 && !utf8.Valid(payload[2:]) {
				return fmt.Errorf("close frame with payload %q", payload)
			}
		case first != 0x8A:
			return fmt.Errorf("frame %#x", first)
		}
	}
}

// messagesIn returns the messages in what a client sent, up to the first
// thing that ends the connection.
func messagesIn(b []byte, limit int) (messages []string) {
	var message []byte
	var opcode byte // of the message under way
	for {
		if len(b) < 2 {
			return messages
		}
		fin, op, masked, n := b[0]&0x80 != 0, b[0]&0x0F, b[1]&0x80 != 0, uint64(b[1]&0x7F)
		reserved := b[0]&0x70 != 0
		b = b[2:]
		switch {
		case n == 126 && len(b) >= 2:
			n, b = uint64(binary.BigEndian.Uint16(b)), b[2:]
		case n == 127 && len(b) >= 8:
			n, b = binary.BigEndian.Uint64(b), b[8:]
		case n > 125:
			return messages
		}
		if !masked || reserved || len(b) < 4 {
			return messages
		}
		mask := b[:4]
		b = b[4:]
		if op >= 8 && (!fin || n > 125 || op > 10) || uint64(len(b)) < n {
			return messages
		}
		payload := slices.Clone(b[:n])
		for i := range payload {
			payload[i] ^= mask[i%4]
		}
		b = b[n:]
		switch {
		case op == 8:
			return messages
		case op > 8:
			continue
		case op == 0 && opcode == 0, op != 0 && opcode != 0, op > 2:
			return messages
		case op != 0:
			opcode = op
		}
		message = append(message, payload...)
		if len(message) > limit {
			return messages
		}
		if fin {
			if opcode == 1 && !utf8.Valid(message) {
				return messages
			}
			messages = append(messages, fmt.Sprint(opcode == 2, string(message)))
			message, opcode = nil, 0
		}
	}
}
