package realtime

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"math"
	"strings"
	"time"
)

// nodesTopic is the topic of heartbeats. Users' topics differ: they are UTF-8.
const nodesTopic = "\xff"

// brokerName returns a topic's name at the broker. It is never empty, and the
// hub's own names differ from those of users' topics.
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

// A brokered is a message from node to node.
type brokered struct {
	kind   brokeredKind
	node   nodeID
	seq    uint64        // counts the node's events, or its heartbeats, or the messages of an answer
	before uint64        // seq of the node's previous event to the topic; zero: none, or forgotten. In values: how many messages there are
	age    time.Duration // the time since that event, in whole ms
	event  Event
	notice notice // disconnectNotice, or noNotice
	stamp  uint64 // of an event with a Key

	// In heartbeats alone.
	clients int         // how many clients the node has
	leaving bool        // the node shuts down
	trail   trail       // of a node with a log
	sent    []sentEntry // the last event to each topic since the previous heartbeat

	digest uint64 // in a question: of the values that the node has
	topic  string // in a repeated disconnect

	// In values alone, an answer to a question.
	asker nodeID
	sure  bool // the node itself has no question about the topic

	values      []agedValue // also in members
	part, parts uint64      // in members: which message it is, of how many
}

// An agedValue is the newest event of its Key, and the time since it came.
type agedValue struct {
	event Event
	age   time.Duration // in whole ms
	stamp uint64
}

type brokeredKind byte

const (
	brokeredEvent     brokeredKind = 'e'
	brokeredHeartbeat brokeredKind = 'h'
	brokeredQuestion  brokeredKind = 'q' // for a topic's latest values
	brokeredValues    brokeredKind = 'v'
	brokeredMembers   brokeredKind = 'm' // all of a node in a topic
	brokeredRepeat    brokeredKind = 'd' // a disconnect, for those who have not had it
	brokeredHad       brokeredKind = 'a' // the answer: the node has had it
)

// isNumbered reports whether a node numbers messages of this kind, so that others
// notice a loss.
func (m *brokered) isNumbered() bool { return m.kind == brokeredEvent || m.kind == brokeredMembers }

// brokeredVersion is the first byte. Nodes drop messages with another.
const brokeredVersion = 1

// append appends m encoded: version, kind, node and the kind's fields. Numbers
// are varints. Texts follow their length.
func (m brokered) append(b []byte) []byte {
	b = append(b, brokeredVersion, byte(m.kind))
	b = append(b, m.node[:]...)
	switch m.kind {
	case brokeredQuestion:
		return binary.BigEndian.AppendUint64(b, m.digest)
	case brokeredRepeat:
		return append(appendText(binary.AppendUvarint(b, m.seq), m.topic), m.event.Data...)
	case brokeredHad:
		return binary.AppendUvarint(append(b, m.asker[:]...), m.seq)
	case brokeredValues:
		b = append(append(b, m.asker[:]...), flag(m.sure))
		b = binary.AppendUvarint(binary.AppendUvarint(b, m.seq), m.before)
		return m.appendValues(b)
	case brokeredMembers:
		b = binary.AppendUvarint(binary.AppendUvarint(b, m.part), m.parts)
		b = appendAge(binary.AppendUvarint(binary.AppendUvarint(b, m.seq), m.before), m.age)
		return m.appendValues(b)
	case brokeredHeartbeat:
		b = binary.AppendUvarint(b, uint64(m.clients))
		b = append(b, flag(m.leaving))
		b = m.trail.append(b)
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
	b = appendHead(b, &m.event, m.notice)
	if m.event.Key != "" {
		b = binary.AppendUvarint(b, m.stamp)
	}
	return append(b, m.event.Data...)
}

func (m brokered) appendValues(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(m.values)))
	for _, v := range m.values {
		b = binary.AppendUvarint(appendAge(b, v.age), v.stamp)
		b = appendText(appendHead(b, &v.event, noNotice), v.event.Data)
	}
	return b
}

// size returns an upper bound for the encoded size of m, an event.
func (m brokered) size() int {
	return 80 + len(m.event.Name) + len(m.event.Key) + len(m.event.Except) + len(m.event.Data)
}

// The bits of an event's first byte.
const (
	flagBinary = 1 << iota
	flagGone
	flagMember
	flagDisconnect
)

// appendHead appends an event, or a disconnect, without its data.
func appendHead(b []byte, e *Event, n notice) []byte {
	flags := flag(e.Binary)*flagBinary | flag(e.Gone)*flagGone | flag(e.member)*flagMember
	if n == disconnectNotice {
		flags |= flagDisconnect
	}
	b = append(b, flags)
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
		m.trail = p.trail()
		m.seq = p.number()
		n := p.number()
		if n > maxSentEntries {
			return m, errBrokered
		}
		for i := uint64(0); i < n && p.err == nil; i++ {
			m.sent = append(m.sent, sentEntry{p.hash(), p.number(), p.age()})
		}
		return m, p.err
	case brokeredQuestion:
		m.digest = p.hash()
		return m, p.err
	case brokeredRepeat:
		m.seq, m.topic, m.notice = p.number(), string(p.text()), disconnectNotice
		m.event = Event{Data: p.b, Binary: true}
		if p.err == nil {
			p.err = cmp.Or(checkTopic(m.topic), checkSent(&m.event, m.notice))
		}
		return m, p.err
	case brokeredHad:
		p.node(&m.asker)
		m.seq = p.number()
		return m, p.err
	case brokeredValues:
		p.node(&m.asker)
		m.sure = p.flag()
		m.seq, m.before = p.number(), p.number()
		m.values = p.values()
		return m, p.err
	case brokeredMembers:
		m.part, m.parts = p.number(), p.number()
		m.seq, m.before, m.age = p.number(), p.number(), p.age()
		m.values = p.values()
		for _, v := range m.values {
			if !v.event.member || v.event.memberNode() != m.node {
				return m, errBrokered
			}
		}
		return m, p.err
	case brokeredEvent:
		m.seq, m.before, m.age = p.number(), p.number(), p.age()
		if m.event, m.notice = p.head(); m.event.Key != "" {
			m.stamp = p.stamp()
		}
		if m.event.Data = p.b; p.err == nil {
			p.err = checkSent(&m.event, m.notice)
		}
		return m, p.err
	}
	return m, errBrokered
}

func (p *parser) values() (values []agedValue) {
	for range p.number() {
		v := agedValue{age: p.age(), stamp: p.stamp()}
		v.event, _ = p.head()
		v.event.Data = p.text()
		if p.err == nil {
			p.err = v.event.check()
		}
		if p.err != nil {
			return nil
		}
		values = append(values, v)
	}
	return values
}

// A parser decodes messages and records. After an error it returns zero values.
type parser struct {
	b   []byte // the bytes that are left
	err error
}

// begin parses the beginning of a message or record: version, kind and node.
func (p *parser) begin(node *nodeID) (kind brokeredKind) {
	if len(p.b) < 2 || p.b[0] != brokeredVersion {
		p.fail()
		return 0
	}
	kind = brokeredKind(p.b[1])
	p.b = p.b[2:]
	if p.node(node); p.err != nil {
		return 0
	}
	return kind
}

func (p *parser) node(node *nodeID) {
	if len(p.b) < len(node) {
		p.fail()
		return
	}
	p.b = p.b[copy(node[:], p.b):]
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

// stamp parses a stamp. Later ones must remain.
func (p *parser) stamp() uint64 {
	n := p.number()
	if n > math.MaxInt64 {
		p.fail()
	}
	return n
}

func (p *parser) flag() bool { return p.flags(1) != 0 }

// flags parses a byte in which only bits of known may be set.
func (p *parser) flags(known byte) (set byte) {
	if len(p.b) == 0 || p.b[0]&^known != 0 {
		p.fail()
		return 0
	}
	set, p.b = p.b[0], p.b[1:]
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

// head parses an event, or a disconnect, without its data.
func (p *parser) head() (e Event, n notice) {
	flags := p.flags(flagBinary | flagGone | flagMember | flagDisconnect)
	e.Binary, e.Gone, e.member = flags&flagBinary != 0, flags&flagGone != 0, flags&flagMember != 0
	if flags&flagDisconnect != 0 {
		n = disconnectNotice
	}
	e.Name, e.Key, e.Except = string(p.text()), string(p.text()), string(p.text())
	if e.member && len(e.Key) <= len(nodeID{}) {
		p.fail()
	}
	return e, n
}

// checkSent reports why no node can have sent e.
func checkSent(e *Event, n notice) error {
	if status := parseClose(e.Data); n == disconnectNotice && !(validCode(status.Code) && validReason(status.Reason)) {
		return errBrokered
	}
	return e.check()
}

// A record is an entry of the log: events of a node, or a cut. A cut says that
// the node's events up to number are lost, unless the log has them before the
// cut.
type record struct {
	epoch string // set by Record, like seq and print
	seq   uint64
	print uint32 // the checksum of the encoded record
	bytes int    // how long that is

	kind   brokeredKind
	node   nodeID
	number uint64   // of the first event; in a cut, of the last; else see carry.go
	events []*event // nil in a cut
	topics []string // in a cut, those that lose events; the empty one stands for all
	trail  trail    // in events, of the node when it appended them
	trim   uint64   // in carried values, see carry.go
	homes  []uint64 // in carried values, of each event
}

const (
	brokeredRecord brokeredKind = 'r'
	brokeredCut    brokeredKind = 'c'
	// And brokeredQuestion and brokeredValues, see carry.go.
)

// encodeRecord returns the record of a node's events.
func encodeRecord(node nodeID, read trail, events []*ownEvent) []byte {
	b := beginRecord(brokeredRecord, node, events[0].number, len(events))
	b = read.append(b)
	for _, e := range events {
		b = appendText(b, e.topic)
		b = appendHead(b, &e.Event, e.notice)
		b = appendText(b, e.Data)
	}
	return b
}

// encodeCut returns the record of a cut.
func encodeCut(node nodeID, number uint64, topics map[string]bool) []byte {
	b := beginRecord(brokeredCut, node, number, len(topics))
	for topic := range topics {
		b = appendText(b, topic)
	}
	return b
}

// encodeCarried returns the record of carried values, as far as they fit into most
// bytes, and how many these are. view is the newest record that the node has taken.
func encodeCarried(node nodeID, view, trim uint64, values []dueValue, most int) (b []byte, n int) {
	for size := 0; n < min(len(values), maxRecordEvents); n++ {
		if size += values[n].event.size(); size > most && n > 0 {
			break
		}
	}
	if n < len(values) {
		trim = 0 // others follow first
	}
	b = binary.AppendUvarint(beginRecord(brokeredValues, node, view, n), trim)
	for _, m := range values[:n] {
		b = appendText(b, m.event.topic)
		b = binary.AppendUvarint(b, m.home)
		b = appendHead(b, &m.event.Event, noNotice)
		b = appendText(b, m.event.Data)
	}
	return b, n
}

// beginRecord returns the beginning of a record. n events or topics follow.
func beginRecord(kind brokeredKind, node nodeID, number uint64, n int) []byte {
	b := []byte{brokeredVersion, byte(kind)}
	b = append(b, node[:]...)
	b = binary.AppendUvarint(b, number)
	return binary.AppendUvarint(b, uint64(n))
}

// fits reports whether a record can be from this node, whose newest event has
// the number last.
func (r *record) fits(last uint64) bool {
	if r.kind != brokeredRecord && r.kind != brokeredCut {
		return true
	}
	end := r.number + uint64(max(len(r.events), 1)) - 1
	return end >= r.number && end <= last
}

// parseRecord is the reverse of encodeRecord and encodeCut. It may keep b.
func parseRecord(b []byte) (r record, err error) {
	p := parser{b: b}
	r.kind = p.begin(&r.node)
	r.number = p.number()
	n := p.number()
	switch r.kind {
	case brokeredRecord:
		r.trail = p.trail()
	case brokeredValues:
		r.trim = p.number()
	}
	if n > maxRecordEvents+1 || !strings.ContainsRune("rcqv", rune(r.kind)) {
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
		if r.kind == brokeredValues {
			r.homes = append(r.homes, p.number())
		}
		e, kind := p.head()
		if e.Data = p.text(); n > 1 {
			e.Data = bytes.Clone(e.Data) // otherwise one kept event would keep all of b
		}
		if p.err == nil {
			p.err = checkSent(&e, kind)
		}
		if p.err != nil {
			break
		}
		ev := newEvent(topic, e)
		ev.notice = kind
		r.events = append(r.events, ev)
	}
	if p.err != nil {
		return record{}, p.err
	}
	return r, nil
}
