package realtime

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"time"
)

// nodesTopic is where heartbeats go. Users' topics are valid UTF-8, so none
// equals it.
const nodesTopic = "\xff"

// brokerName returns what the broker gets as the name of a topic: none is empty
// there, and the hub's own can't be mistaken for a user's.
func brokerName(topic string) string {
	switch topic {
	case "":
		return "all"
	case nodesTopic:
		return "nodes"
	}
	return "topic/" + topic
}

// brokerTopicOf is the reverse of brokerName.
func brokerTopicOf(name string) (topic string, ok bool) {
	switch name {
	case "all":
		return "", true
	case "nodes":
		return nodesTopic, true
	}
	return strings.CutPrefix(name, "topic/")
}

// A brokered is what nodes send each other.
type brokered struct {
	kind   brokeredKind
	node   nodeID
	seq    uint64        // its number among the events of its node, or among the heartbeats
	before uint64        // that of the event before to the same topic; zero: there is none, or it is forgotten
	age    time.Duration // of that one, in whole ms
	event  Event

	// Of a heartbeat.
	clients int         // how many the node has
	leaving bool        // it is the last one
	sent    []sentEntry // since the one before
}

type brokeredKind byte

const (
	brokeredEvent     brokeredKind = 'e'
	brokeredHeartbeat brokeredKind = 'h'
)

// brokeredVersion is the first byte. A node drops what has another.
const brokeredVersion = 1

// append appends m as it goes through the broker: version, kind and node, then
// what the kind has, numbers as varints and each text behind its length.
func (m brokered) append(b []byte) []byte {
	b = append(b, brokeredVersion, byte(m.kind))
	b = append(b, m.node[:]...)
	if m.kind == brokeredHeartbeat {
		b = binary.AppendUvarint(b, uint64(m.clients))
		b = append(b, flag(m.leaving))
		b = binary.AppendUvarint(b, m.seq)
		b = binary.AppendUvarint(b, uint64(len(m.sent)))
		for _, s := range m.sent {
			b = binary.BigEndian.AppendUint64(b, s.topic)
			b = binary.AppendUvarint(b, s.seq)
			b = appendAge(b, s.age)
		}
		return b
	}
	b = binary.AppendUvarint(b, m.seq)
	b = binary.AppendUvarint(b, m.before)
	b = appendAge(b, m.age)
	return append(appendHead(b, &m.event), m.event.Data...)
}

// size returns how many bytes m has at most, if it is an event.
func (m brokered) size() int {
	return 64 + len(m.event.Name) + len(m.event.Key) + len(m.event.Except) + len(m.event.Data)
}

// appendHead appends an event but for its data.
func appendHead(b []byte, e *Event) []byte {
	b = append(b, flag(e.Binary))
	for _, text := range []string{e.Name, e.Key, e.Except} {
		b = appendText(b, text)
	}
	return b
}

func appendAge(b []byte, age time.Duration) []byte {
	return binary.AppendUvarint(b, uint64(age.Milliseconds()))
}

func flag(set bool) byte {
	if set {
		return 1
	}
	return 0
}

func appendText[T string | []byte](b []byte, text T) []byte {
	b = binary.AppendUvarint(b, uint64(len(text)))
	return append(b, text...)
}

var errBrokered = errors.New("realtime: not a message between hubs of this version")

// parseBrokered is the reverse of append. The event's data is part of b.
func parseBrokered(b []byte) (m brokered, err error) {
	p := parser{b: b}
	switch m.kind = p.begin(&m.node); m.kind {
	case brokeredHeartbeat:
		m.clients = int(min(p.number(), math.MaxInt32))
		m.leaving = p.flag()
		m.seq = p.number()
		n := p.number()
		if n > maxSentEntries {
			return m, errBrokered
		}
		for i := uint64(0); i < n && p.err == nil; i++ {
			m.sent = append(m.sent, sentEntry{p.hash(), p.number(), p.age()})
		}
		return m, p.err
	case brokeredEvent:
		m.seq, m.before, m.age = p.number(), p.number(), p.age()
		m.event = p.head()
		if m.event.Data = p.b; p.err == nil {
			p.err = m.event.check()
		}
		return m, p.err
	}
	return m, errBrokered
}

// A parser takes apart what a node has sent. After an error it returns zero
// values.
type parser struct {
	b   []byte // what is left
	err error
}

// begin takes what all messages and records begin with.
func (p *parser) begin(node *nodeID) (kind brokeredKind) {
	if len(p.b) < 2+len(node) || p.b[0] != brokeredVersion {
		p.fail()
		return 0
	}
	kind = brokeredKind(p.b[1])
	p.b = p.b[2+copy(node[:], p.b[2:]):]
	return kind
}

func (p *parser) fail() { p.b, p.err = nil, errBrokered }

func (p *parser) number() (n uint64) {
	n, size := binary.Uvarint(p.b)
	if size <= 0 {
		p.fail()
		return 0
	}
	p.b = p.b[size:]
	return n
}

func (p *parser) text() (text []byte) {
	n := p.number()
	if n > uint64(len(p.b)) {
		p.fail()
		return nil
	}
	text, p.b = p.b[:n:n], p.b[n:]
	return text
}

func (p *parser) age() time.Duration {
	return time.Duration(min(p.number(), math.MaxInt32)) * time.Millisecond
}

func (p *parser) flag() bool {
	if len(p.b) == 0 || p.b[0] > 1 {
		p.fail()
		return false
	}
	set := p.b[0] == 1
	p.b = p.b[1:]
	return set
}

func (p *parser) hash() (hash uint64) {
	if len(p.b) < 8 {
		p.fail()
		return 0
	}
	hash, p.b = binary.BigEndian.Uint64(p.b), p.b[8:]
	return hash
}

// head takes an event but for its data.
func (p *parser) head() (e Event) {
	e.Binary = p.flag()
	e.Name, e.Key, e.Except = string(p.text()), string(p.text()), string(p.text())
	return e
}

// A record is what nodes have in their log: events of one of them, or a cut,
// behind which those of its events are lost that are not in the log before it.
type record struct {
	epoch string // set by Record, as the next two are
	seq   uint64
	print uint32 // of its bytes

	kind   brokeredKind
	node   nodeID
	number uint64   // of the first event; of a cut: of the last that it concerns
	events []*event // none, if it is a cut
	topics []string // of a cut: those whose events are lost; the empty one stands for all
}

const (
	brokeredRecord brokeredKind = 'r'
	brokeredCut    brokeredKind = 'c'
)

// encodeRecord returns the record of a node's events.
func encodeRecord(node nodeID, events []*ownEvent) []byte {
	b := beginRecord(brokeredRecord, node, events[0].number, len(events))
	for _, e := range events {
		b = appendText(b, e.topic)
		b = appendHead(b, &e.Event)
		b = appendText(b, e.Data)
	}
	return b
}

// encodeCut returns the record of a cut: the events of a node up to number are
// lost to others, unless they are in the log before, on the given topics.
func encodeCut(node nodeID, number uint64, topics map[string]bool) []byte {
	b := beginRecord(brokeredCut, node, number, len(topics))
	for topic := range topics {
		b = appendText(b, topic)
	}
	return b
}

// encodeMark returns a record without events that is unlike any other.
func encodeMark(node nodeID) []byte {
	b := beginRecord(brokeredRecord, node, 0, 0)
	return append(b, rand.Text()...)
}

// beginRecord returns what all records begin with: version, kind, node, a number
// and how much of the kind follows.
func beginRecord(kind brokeredKind, node nodeID, number uint64, n int) []byte {
	b := []byte{brokeredVersion, byte(kind)}
	b = append(b, node[:]...)
	b = binary.AppendUvarint(b, number)
	return binary.AppendUvarint(b, uint64(n))
}

// fits reports whether a record can be one of this node, which has published as
// many events as last says.
func (r *record) fits(last uint64) bool {
	end := r.number + uint64(max(len(r.events), 1)) - 1
	return end >= r.number && end <= last
}

// parseRecord is the reverse of encodeRecord and encodeCut. It may keep b.
func parseRecord(b []byte) (r record, err error) {
	p := parser{b: b}
	r.kind = p.begin(&r.node)
	r.number = p.number()
	n := p.number()
	if n > maxRecordEvents+1 || r.kind != brokeredRecord && r.kind != brokeredCut {
		return record{}, errBrokered
	}
	for range n {
		topic := string(p.text())
		if topic != "" && checkTopic(topic) != nil {
			return record{}, errBrokered
		}
		if r.kind == brokeredCut {
			r.topics = append(r.topics, topic)
			continue
		}
		e := p.head()
		if e.Data = p.text(); n > 1 {
			e.Data = bytes.Clone(e.Data) // or one that is kept would keep them all
		}
		if p.err == nil {
			p.err = e.check()
		}
		if p.err != nil {
			break
		}
		r.events = append(r.events, newEvent(topic, e))
	}
	if p.err != nil {
		return record{}, p.err
	}
	return r, nil
}
