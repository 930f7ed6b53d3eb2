package realtime

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// In any order, format and pieces, messages arrive in order and once, unless
// newer ones replaced them. All counters agree with the queue.
func TestOutboxModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(15) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				m := newOutboxModel(t, seed)
				for range 20 + m.rnd.IntN(150) {
					m.step()
					m.check()
				}
				m.finish()
			})
		})
	}
}

// An outboxModel makes random calls of an outbox and knows their results.
type outboxModel struct {
	t      *testing.T
	rnd    *rand.Rand
	o      *outbox
	conn   *recorder
	direct bool // try is set
	room   int  // bytes that try accepts
	format format
	past   *history
	sent   []modelMessage
	opened bool
	most   int // the most buffers that waited
}

type modelMessage struct {
	n          int
	topic, key string
}

func newOutboxModel(t *testing.T, seed uint64) *outboxModel {
	m := &outboxModel{t: t, rnd: rand.New(rand.NewPCG(seed, 0)), conn: &recorder{gate: make(chan error)}}
	m.conn.room = func() int { return m.room }
	all := allFormats()
	m.format = all[m.rnd.IntN(len(all))]
	m.direct = m.rnd.IntN(3) > 0
	m.o = newOutbox()
	m.o.shared.sendBuffer, m.o.shared.writeTimeout = 1<<20, time.Hour // nobody is slow here
	m.past = newHistory(History{Events: 5, Age: time.Hour})
	if m.rnd.IntN(3) > 0 {
		m.open()
	}
	return m
}

func (m *outboxModel) open() {
	m.opened = true
	try := m.conn.try
	if !m.direct {
		try = nil
	}
	m.o.open(m.conn, try, m.format)
	synctest.Wait()
}

// event returns an event whose data is a number and some padding.
func (m *outboxModel) event(topic string) *event {
	padding := m.rnd.IntN(50)
	switch m.rnd.IntN(10) {
	case 0:
		padding = m.rnd.IntN(20_000)
	case 1:
		padding = m.rnd.IntN(200_000)
	}
	n := len(m.sent)
	ev := &event{topic: topic, Event: Event{
		Key:  []string{"", "", "k1", "k2", "k3"}[m.rnd.IntN(5)],
		Data: fmt.Appendf(nil, "%d:%s", n, strings.Repeat("x", padding)),
	}}
	m.sent = append(m.sent, modelMessage{n, topic, ev.Key})
	return ev
}

func (m *outboxModel) step() {
	m.room = []int{0, m.rnd.IntN(5000), 1 << 20}[m.rnd.IntN(3)]
	switch m.rnd.IntN(10) {
	case 0, 1, 2, 3: // a batch, as a shard gives it
		var events []*event
		for range 1 + m.rnd.IntN(90*m.rnd.IntN(2)+1) {
			ev := m.event([]string{"", "t1", "t2"}[m.rnd.IntN(3)])
			m.past.add(ev, time.Now())
			events = append(events, ev)
		}
		r := new(run)
		r.add(conflate(events, func(*event) { m.o.shared.replaced.Add(1) })...)
		if err := m.o.push(r); err != nil {
			m.t.Error(err)
		}
	case 4, 5:
		if err := m.o.post(&m.event("").Event); err != nil {
			m.t.Error(err)
		}
	case 6:
		if !m.format.encoding.isStream() {
			m.o.answer(controlFrame(opPong, []byte("pong")))
		}
	case 7:
		m.o.position(m.past.position())
	case 8:
		if !m.opened && m.rnd.IntN(3) == 0 {
			m.open()
		}
	case 9:
		for range m.rnd.IntN(4) {
			select {
			case m.conn.gate <- nil: // a write ends
			default:
			}
			synctest.Wait()
		}
	}
	synctest.Wait()
}

// check compares the outbox's figures with its queue.
func (m *outboxModel) check() {
	o := m.o
	if !m.opened {
		return
	}
	var buffers, messages, private int
	for i, q := range o.queue[o.head:] {
		if q != replacedBuffer {
			buffers++
		}
		messages += len(q.ends)
		if i == 0 {
			messages -= int(o.done)
		}
		if q.private {
			private += len(q.b)
			if i == 0 {
				private -= o.off
			}
		}
	}
	if messages != int(o.backlog.messages) || int64(messages) != o.shared.queued.Load() || private != o.backlog.private {
		m.t.Errorf("%d messages wait, it says %d and %d; %d private bytes, it says %d",
			messages, o.backlog.messages, o.shared.queued.Load(), private, o.backlog.private)
	}
	m.most = max(m.most, buffers)
	if cap(o.queue) > 4*m.most+64 {
		m.t.Errorf("a queue of %d for %d buffers at most", cap(o.queue), m.most)
	}
	if o.latest == nil {
		return
	}
	for key, i := range o.latest {
		if i < o.head || i >= len(o.queue) || len(o.queue[i].keyed) != 1 || o.queue[i].keyed[0].topicKey() != key {
			m.t.Errorf("%v is said to wait at %d of %d to %d", key, i, o.head, len(o.queue))
		}
	}
}

// finish has everything written and checks it.
func (m *outboxModel) finish() {
	if !m.opened {
		m.open()
	}
	last := new(buffer)
	if !m.format.encoding.isStream() {
		last = closeFrame(1000, "")
	}
	isCut := m.o.moved && m.rnd.IntN(2) == 0
	if !isCut {
		m.o.closeWith(last)
	} else if !m.o.cut(just(last), func() {}) {
		m.t.Error("cut says that nothing is accepted")
	}
	m.check()
	close(m.conn.gate)
	synctest.Wait()
	m.o.ends().want(m.t, 1)

	got := make(map[int]bool)
	previous := -1
	for _, data := range m.messages() {
		digits, _, _ := strings.Cut(data, ":")
		n, err := strconv.Atoi(digits)
		if err != nil || n <= previous {
			m.t.Fatalf("got %.20q behind %d", data, previous)
		}
		got[n], previous = true, n
	}
	newest := make(map[topicKey]int)
	for _, sent := range m.sent {
		newest[topicKey{sent.topic, sent.key}] = sent.n
	}
	for _, sent := range m.sent {
		if !got[sent.n] && !isCut && (sent.key == "" || newest[topicKey{sent.topic, sent.key}] == sent.n) {
			m.t.Errorf("message %d to %q with the Key %q is missing", sent.n, sent.topic, sent.key)
		}
	}
	o, s := m.o, m.o.shared
	if s.delivered.Load() != int64(len(got)) || s.delivered.Load()+s.replaced.Load()+s.dropped.Load() != int64(len(m.sent)) ||
		s.queued.Load() != 0 || s.dropped.Load() != 0 && !isCut || o.backlog.messages != 0 || o.backlog.private != 0 || o.backlog.exempt != 0 {
		m.t.Errorf("%d of %d arrived; delivered %d, replaced %d, queued %d, dropped %d, waiting %d, private %d, exempt %d", len(got), len(m.sent),
			s.delivered.Load(), s.replaced.Load(), s.queued.Load(), s.dropped.Load(), o.backlog.messages, o.backlog.private, o.backlog.exempt)
	}
	if cap(o.queue) > 8 || o.latest != nil || o.writing {
		m.t.Errorf("it keeps a queue of %d, %v, writing %v", cap(o.queue), o.latest, o.writing)
	}
}

// messages returns the data of the messages that were written.
func (m *outboxModel) messages() (messages []string) {
	if m.format.encoding.isStream() {
		for block := range strings.SplitSeq(string(m.conn.got), "\n\n") {
			if _, data, ok := strings.Cut("\n"+block, "\ndata: "); ok {
				data, _, _ = strings.Cut(data, "\nid: ")
				messages = append(messages, data)
			}
		}
	} else {
		messages = m.frames()
	}
	if enc := m.format.encoding; enc == plainFrame || enc == plainStream {
		return messages
	}
	var data []string
	for _, text := range messages {
		var e envelope
		if err := json.Unmarshal([]byte(text), &e); err != nil {
			m.t.Fatalf("%.50q: %v", text, err)
		}
		if e.Data != nil { // else it is a position
			data = append(data, *e.Data)
		}
	}
	return data
}

// frames returns a WebSocket's messages up to its close frame.
func (m *outboxModel) frames() (messages []string) {
	rest := m.conn.got
	for len(rest) > 0 {
		first, payload, n := parseFrame(rest)
		if n == 0 {
			m.t.Fatalf("%d bytes are torn at the end", len(rest))
		}
		rest = rest[n:]
		switch first {
		case finBit | opText:
			messages = append(messages, string(payload))
		case finBit | rsv1Bit | opText:
			messages = append(messages, inflate(m.t, payload))
		case finBit | opPong:
		case finBit | opClose:
			if len(rest) > 0 {
				m.t.Errorf("%d bytes are behind the close frame", len(rest))
			}
			return messages
		default:
			m.t.Fatalf("frame %#x", first)
		}
	}
	m.t.Error("there is no close frame")
	return messages
}

// parseFrame parses an unmasked frame. A size of zero means it is incomplete.
func parseFrame(b []byte) (first byte, payload []byte, size int) {
	if len(b) < 2 {
		return 0, nil, 0
	}
	n, head := uint64(b[1]), 2
	switch n {
	case 126:
		n, head = uint64(binary.BigEndian.Uint16(b[2:])), 4
	case 127:
		n, head = binary.BigEndian.Uint64(b[2:]), 10
	}
	size = head + int(n)
	if len(b) < size {
		return 0, nil, 0
	}
	return b[0], b[head:size], size
}

// inflate decompresses a message (RFC 7692 §7.2.2).
func inflate(t *testing.T, b []byte) string {
	t.Helper()
	const end = "\x00\x00\xff\xff\x01\x00\x00\xff\xff" // the end that the sender left out, and an empty last block
	text, err := io.ReadAll(flate.NewReader(io.MultiReader(bytes.NewReader(b), strings.NewReader(end))))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
