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
	seq    uint64        // counts the node's events, or its heartbeats
	before uint64        // seq of the node's previous event to the topic; zero: none, or forgotten
	age    time.Duration // the time since that event, in whole ms
	event  Event
	notice notice // disconnectNotice, or noNotice
	stamp  uint64 // of an event with a Key; in a heartbeat, the node's clock

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

	// In values and in members, which may take several messages.
	values      []agedValue
	part, parts uint64 // which message it is, from 0 on, and of how many
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

// brokeredVersion is the first byte. Nodes drop messages with another.
const brokeredVersion = 1

var errBrokered = errors.New("realtime: not a message between hubs of this version")

// append appends m encoded.
func (m brokered) append(b []byte) []byte {
	c := codec{b: b}
	m.code(&c)
	return c.b
}

// parseBrokered is the reverse of append. The event's data is part of b.
func parseBrokered(b []byte) (m brokered, err error) {
	c := codec{b: b, decodes: true}
	if m.code(&c); c.err == nil {
		c.err = m.check()
	}
	return m, c.err
}

// code encodes or decodes m: version, kind, node and the kind's fields.
func (m *brokered) code(c *codec) {
	c.begin(&m.kind, &m.node)
	switch m.kind {
	case brokeredEvent:
		c.numbers(&m.seq, &m.before)
		c.age(&m.age)
		if c.head(&m.event, &m.notice); m.event.Key != "" {
			c.numbers(&m.stamp)
		}
		c.rest(&m.event.Data)
	case brokeredHeartbeat:
		clients := uint64(m.clients)
		c.numbers(&clients)
		m.clients = int(min(clients, math.MaxInt32))
		c.flags(&m.leaving)
		m.trail.code(c)
		c.numbers(&m.stamp, &m.seq)
		n := uint64(len(m.sent))
		c.numbers(&n)
		for i := uint64(0); i < n && c.err == nil; i++ {
			s := elementOf(&m.sent, i)
			c.hash(&s.topic)
			c.numbers(&s.seq)
			c.age(&s.age)
		}
	case brokeredQuestion:
		c.hash(&m.digest)
	case brokeredValues:
		c.fixed(m.asker[:])
		c.flags(&m.sure)
		c.numbers(&m.part, &m.parts)
		m.codeValues(c)
	case brokeredMembers:
		c.numbers(&m.part, &m.parts, &m.seq, &m.before)
		c.age(&m.age)
		m.codeValues(c)
	case brokeredRepeat:
		c.numbers(&m.seq)
		codeText(c, &m.topic)
		c.rest(&m.event.Data)
		m.event.Binary, m.notice = true, disconnectNotice
	case brokeredHad:
		c.fixed(m.asker[:])
		c.numbers(&m.seq)
	default:
		c.fail()
	}
}

func (m *brokered) codeValues(c *codec) {
	n := uint64(len(m.values))
	c.numbers(&n)
	for i := uint64(0); i < n && c.err == nil; i++ {
		v := elementOf(&m.values, i)
		c.age(&v.age)
		c.numbers(&v.stamp)
		c.head(&v.event, new(notice))
		codeText(c, &v.event.Data)
	}
}

// check reports why no node can have sent m.
func (m *brokered) check() error {
	err := checkSent(&m.event, m.notice)
	if m.kind == brokeredRepeat {
		err = cmp.Or(err, checkTopic(m.topic))
	}
	latest := m.stamp
	for _, v := range m.values {
		err = cmp.Or(err, checkSent(&v.event, noNotice))
		if err == nil && m.kind == brokeredMembers && !(v.event.member && v.event.memberNode() == m.node) {
			err = errBrokered
		}
		latest = max(latest, v.stamp)
	}
	if len(m.sent) > maxSentEntries || latest > math.MaxInt64 { // later stamps must remain
		err = errBrokered
	}
	return err
}

// checkSent reports why no node can have sent e.
func checkSent(e *Event, n notice) error {
	if e.member && len(e.Key) <= len(nodeID{}) {
		return errBrokered
	}
	if status := parseClose(e.Data); n == disconnectNotice && !(validCode(status.Code) && validReason(status.Reason)) {
		return errBrokered
	}
	return e.check()
}

// size returns an upper bound for the encoded size of m, an event.
func (m brokered) size() int {
	return 80 + len(m.event.Name) + len(m.event.Key) + len(m.event.Except) + len(m.event.Data)
}

// A codec encodes or decodes messages and records, so that one description of each
// serves for both. Its methods append a value to b, or take it from there. They
// change no value that they encode: others may be reading it. Numbers are varints.
// Texts and lists follow their length.
type codec struct {
	b       []byte // what is encoded, or what is left to decode
	decodes bool
	err     error // of decoding: all further values are zero
}

func (c *codec) fail() { c.b, c.err = nil, errBrokered }

// begin codes the beginning of a message or record: version, kind and node.
func (c *codec) begin(kind *brokeredKind, node *nodeID) {
	b := []byte{brokeredVersion, byte(*kind)}
	if c.fixed(b); b[0] != brokeredVersion {
		c.fail()
	}
	*kind = brokeredKind(b[1])
	c.fixed(node[:])
}

// fixed codes bytes whose number is known.
func (c *codec) fixed(v []byte) {
	switch {
	case !c.decodes:
		c.b = append(c.b, v...)
	case len(c.b) < len(v):
		c.fail()
	default:
		c.b = c.b[copy(v, c.b):]
	}
}

func (c *codec) hash(hash *uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], *hash)
	if c.fixed(b[:]); c.decodes {
		*hash = binary.BigEndian.Uint64(b[:])
	}
}

// flags codes a byte of which each value is a bit, the first one the lowest.
func (c *codec) flags(values ...*bool) {
	b := []byte{0}
	for i, v := range values {
		if *v {
			b[0] |= 1 << i
		}
	}
	if c.fixed(b); !c.decodes {
		return
	}
	for i, v := range values {
		*v = b[0]>>i&1 > 0
	}
	if b[0]>>len(values) > 0 {
		c.fail()
	}
}

func (c *codec) numbers(values ...*uint64) {
	for _, v := range values {
		if !c.decodes {
			c.b = binary.AppendUvarint(c.b, *v)
			continue
		}
		n, size := binary.Uvarint(c.b)
		if size <= 0 {
			c.fail()
			return
		}
		*v, c.b = n, c.b[size:]
	}
}

func (c *codec) age(age *time.Duration) {
	ms := uint64(age.Milliseconds())
	if c.numbers(&ms); c.decodes {
		*age = time.Duration(min(ms, math.MaxInt32)) * time.Millisecond
	}
}

func codeText[T string | []byte](c *codec, text *T) {
	n := uint64(len(*text))
	c.numbers(&n)
	switch {
	case !c.decodes:
		c.b = append(c.b, *text...)
	case n > uint64(len(c.b)):
		c.fail()
	default:
		*text, c.b = T(c.b[:n:n]), c.b[n:]
	}
}

// rest codes the bytes up to the end.
func (c *codec) rest(b *[]byte) {
	if c.decodes {
		*b, c.b = c.b, nil
	} else {
		c.b = append(c.b, *b...)
	}
}

// elementOf returns the element i of a list. It adds one that is being decoded.
func elementOf[T any](list *[]T, i uint64) *T {
	if i == uint64(len(*list)) {
		*list = append(*list, *new(T))
	}
	return &(*list)[i]
}

// head codes an event, or a disconnect, without its data.
func (c *codec) head(e *Event, n *notice) {
	disconnects := *n == disconnectNotice
	if c.flags(&e.Binary, &e.Gone, &e.member, &disconnects); c.decodes && disconnects {
		*n = disconnectNotice
	}
	codeText(c, &e.Name)
	codeText(c, &e.Key)
	codeText(c, &e.Except)
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
	events []*event // in a cut, a gap for each topic that loses events; the empty one stands for all
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
	r := record{kind: brokeredRecord, node: node, number: events[0].number, trail: read}
	for _, e := range events {
		r.events = append(r.events, e.event)
	}
	return r.encode()
}

// encodeCut returns the record of a cut.
func encodeCut(node nodeID, number uint64, topics map[string]bool) []byte {
	r := record{kind: brokeredCut, node: node, number: number}
	for topic := range topics {
		r.events = append(r.events, newGap(topic))
	}
	return r.encode()
}

// encodeCarried returns the record of carried values, as far as they fit into most
// bytes, and how many these are. view is the newest record that the node has taken.
func encodeCarried(node nodeID, view, trim uint64, values []dueValue, most int) (b []byte, n int) {
	r := record{kind: brokeredValues, node: node, number: view}
	size := 0
	for _, m := range values[:min(len(values), maxRecordEvents)] {
		if size += m.event.size(); size > most && len(r.events) > 0 {
			break
		}
		r.events, r.homes = append(r.events, m.event), append(r.homes, m.home)
	}
	if n = len(r.events); n == len(values) { // otherwise others follow first
		r.trim = trim
	}
	return r.encode(), n
}

func (r record) encode() []byte {
	var c codec
	r.code(&c)
	return c.b
}

// parseRecord is the reverse of encode. It may keep b.
func parseRecord(b []byte) (record, error) {
	var r record
	c := codec{b: b, decodes: true}
	r.code(&c)
	for _, ev := range r.events {
		if c.err != nil {
			break
		}
		if c.err = checkSent(&ev.Event, ev.notice); ev.topic != "" {
			c.err = cmp.Or(c.err, checkTopic(ev.topic))
		}
		if ev.findExcept(); len(r.events) > 1 {
			ev.Data = bytes.Clone(ev.Data) // otherwise one kept event would keep all of b
		}
	}
	if c.err != nil {
		return record{}, c.err
	}
	return r, nil
}

// code encodes or decodes r: its beginning, and a list of events.
func (r *record) code(c *codec) {
	c.begin(&r.kind, &r.node)
	n := uint64(len(r.events))
	c.numbers(&r.number, &n)
	switch r.kind {
	case brokeredRecord:
		r.trail.code(c)
	case brokeredValues:
		c.numbers(&r.trim)
	case brokeredCut, brokeredQuestion:
	default:
		c.fail()
	}
	if n > maxRecordEvents+1 {
		c.fail()
	}
	for i := uint64(0); i < n && c.err == nil; i++ {
		if c.decodes {
			r.events = append(r.events, new(event))
		}
		ev := r.events[i]
		codeText(c, &ev.topic)
		if r.kind == brokeredCut {
			ev.notice = gapNotice
			continue
		}
		if r.kind == brokeredValues {
			c.numbers(elementOf(&r.homes, i))
		}
		c.head(&ev.Event, &ev.notice)
		codeText(c, &ev.Data)
	}
}

// fits reports whether a record can be from this node, whose newest event has
// the number last.
func (r *record) fits(last uint64) bool {
	switch r.kind {
	case brokeredRecord:
		end := r.number + uint64(max(len(r.events), 1)) - 1
		return end >= r.number && end <= last
	case brokeredCut:
		return r.number <= last
	}
	return true
}
