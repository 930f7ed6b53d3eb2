package realtime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

const maxMemberKeyBytes = 1024

// A Member is shown in a topic; see [Client.Appear].
type Member struct {
	Key  string
	Data json.RawMessage // nil: none; don't modify it
}

// Appear shows the client as a member of a topic that it has, under a key: a
// user's name, not a tab's. The member stays until the client leaves the topic or
// is gone, and [Hub.LeaveAfter] longer. Several clients with one key, on any
// nodes, are one member, which leaves with the last of them. data is encoded as
// JSON; nil means none. If the clients of a member have different data, the newest
// is shown. Another call changes it.
//
// Each client that has the topic sees its members. It gets an event named
// "presence" for each change, and each member as a latest value when it
// subscribes. The event's data is {"key":"…","data":…}, with "gone":true in the
// place of data when the member leaves. The hub needs a [History] for that, and
// members count in its Values.
//
// Appear doesn't wait until others know. In OnConnect, the client is shown when
// that has returned nil. The error is [ErrClientClosed] if the client is gone or
// closing, or tells what is wrong: a topic that the client doesn't have, a hub
// without a History, a key that is empty, not UTF-8 or over 1024 bytes, or data
// that isn't JSON.
func (c *Client) Appear(topic, key string, data any) error {
	if key == "" || len(key) > maxMemberKeyBytes || !utf8.ValidString(key) {
		return fmt.Errorf("realtime: a member's key is 1 to %d bytes of UTF-8: %.50q isn't", maxMemberKeyBytes, key)
	}
	shown, err := json.Marshal(memberJSON{Key: key, Data: data})
	if err != nil {
		return fmt.Errorf("realtime: appear: %w", err)
	}
	if !c.hub.shared.history.keeps() {
		return errors.New("realtime: appear: presence needs a Hub.History")
	}
	c.tmu.Lock()
	defer c.tmu.Unlock()
	if c.unlisted || c.why() != nil {
		return ErrClientClosed
	}
	if _, has := c.findTopic(topic); !has {
		return fmt.Errorf("realtime: appear: the client doesn't have the topic %.50q: subscribe it first", topic)
	}
	c.hub.presence.show(c, topicKey{topic, key}, shown)
	return nil
}

// memberJSON is the data of an event of presence.
type memberJSON struct {
	Key  string `json:"key"`
	Data any    `json:"data,omitempty"`
	Gone bool   `json:"gone,omitempty"`
}

// Members iterates over the members of a topic when the iteration starts, on all
// nodes, in the order in which they came. With a [Broker] that keeps no history,
// a node knows those of the topics that its own clients have.
func (h *Hub) Members(topic string) iter.Seq[Member] {
	return func(yield func(Member) bool) {
		for _, ev := range h.values(topic) {
			if !ev.member {
				continue
			}
			var m struct{ Data json.RawMessage }
			json.Unmarshal(ev.Data, &m) // a node has made it
			if !yield(Member{ev.memberKey(), m.Data}) {
				return
			}
		}
	}
}

// Presence is made of events with a Key, which stay as latest values do. Each node
// publishes who is there on that node, under Keys of its own: a member's key and
// the node. So no node overwrites what another says, and all nodes agree by the
// order of events. Of the events of one member, clients get those that tell
// something new, see history.note.
//
//	Appear, leave ──▶ presence ──announcer──▶ Publish ──▶ order ──▶ all nodes
//
// When a node is gone, the others take its members away; see history.bereaved and
// peers.isGone.
type presence struct {
	hub *Hub

	mu      sync.Mutex // guards the fields below
	here    map[topicKey]*appearance
	of      map[*Client][]topicKey // the names in here
	changed []topicKey             // for the announcer
	leaving []leave                // for the announcer, in the order of time
	buried  []*event               // of other nodes' members, for the announcer
	wake    chan struct{}          // wakes the announcer; has room for one; nil: it doesn't run
}

// An appearance is a member that this node's clients show.
type appearance struct {
	clients map[*Client][]byte // the data that each shows
	data    []byte             // the newest, as JSON; nil: all are still joining
	told    []byte             // data that is published; nil: none is
	leaves  time.Time          // when the newest leave is due
}

// A leave is due when nobody has shown the member since.
type leave struct {
	name topicKey
	what *appearance
	at   time.Time
}

// show notes that a client shows a member. Its caller holds the client's tmu.
func (p *presence) show(c *Client, name topicKey, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.here == nil {
		p.here, p.of = make(map[topicKey]*appearance), make(map[*Client][]topicKey)
	}
	a := p.here[name]
	if a == nil {
		a = &appearance{clients: make(map[*Client][]byte)}
		p.here[name] = a
	}
	if a.clients[c] == nil {
		p.of[c] = append(p.of[c], name)
	}
	a.clients[c] = data
	if c.isOpen() { // otherwise opened does it, or OnConnect refuses c
		a.data = data
		p.changedLocked(name)
	}
}

// opened shows a client that has joined.
func (p *presence) opened(c *Client) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !c.isOpen() { // it has been closed in OnConnect
		return
	}
	for _, name := range p.of[c] {
		a := p.here[name]
		a.data = a.clients[c]
		p.changedLocked(name)
	}
}

// left notes that a client has left topics, which are sorted. Its caller holds the
// client's tmu.
func (p *presence) left(c *Client, topics []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := p.of[c]
	if len(names) == 0 {
		return
	}
	at := time.Now().Add(p.hub.shared.leaveAfter)
	names = slices.DeleteFunc(names, func(name topicKey) bool {
		if _, left := slices.BinarySearch(topics, name.topic); !left {
			return false
		}
		a := p.here[name]
		if delete(a.clients, c); len(a.clients) == 0 {
			a.leaves = at
			p.leaving = append(p.leaving, leave{name, a, at})
			p.wakeLocked()
		}
		return true
	})
	if p.of[c] = names; len(names) == 0 {
		delete(p.of, c)
	}
}

// heard notes an event of a node's member. If it is of this node, and not true,
// the announcer says what is: others may have taken this node for gone, or have
// missed that the member left.
func (p *presence) heard(node nodeID, name topicKey, gone bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if node != p.hub.order.self() {
		return
	}
	switch a := p.here[name]; {
	case a != nil && gone:
		a.told = nil
		p.changedLocked(name)
	case a == nil && !gone:
		p.buried = append(p.buried, newGoneMember(name, node))
		p.wakeLocked()
	}
}

// bury has the announcer publish events that say who is gone.
func (p *presence) bury(gone []*event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.buried = append(p.buried, gone...)
	p.wakeLocked()
}

func (p *presence) changedLocked(name topicKey) {
	p.changed = append(p.changed, name)
	p.wakeLocked()
}

// wakeLocked wakes the announcer. It starts it if need be.
func (p *presence) wakeLocked() {
	if p.wake == nil {
		p.wake = make(chan struct{}, 1)
		p.hub.own.Go(p.announce)
	}
	signal(p.wake)
}

// announce is the body of the announcer, the one goroutine that publishes who is
// there. It ends when Shutdown begins. Other nodes notice that this one is gone.
func (p *presence) announce() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		events, wait := p.news(time.Now())
		for _, ev := range events {
			pub := publication{ev, make(chan receipt, 1)}
			select {
			case p.hub.publish <- pub:
				<-pub.taken // whether other nodes get it shows later, as with any value
			case <-p.hub.done:
				return
			}
		}
		timer.Reset(wait)
		select {
		case <-p.wake:
		case <-timer.C:
		case <-p.hub.done:
			return
		}
	}
}

// news returns the events that are to be published now, and the time until a
// member leaves.
func (p *presence) news(now time.Time) (events []*event, wait time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	node := p.hub.order.self()
	for _, name := range p.changed {
		if a := p.here[name]; a != nil && !bytes.Equal(a.data, a.told) {
			a.told = a.data
			events = append(events, newMember(name, node, a.data, false))
		}
	}
	p.changed = nil
	for len(p.leaving) > 0 && !now.Before(p.leaving[0].at) {
		l := p.leaving[0]
		p.leaving = p.leaving[1:]
		if p.here[l.name] != l.what || len(l.what.clients) > 0 || l.at.Before(l.what.leaves) {
			continue // it came back, and may have left again
		}
		delete(p.here, l.name)
		if l.what.told != nil {
			events = append(events, newGoneMember(l.name, node))
		}
	}
	events = append(events, p.buried...)
	p.buried = nil
	if len(p.leaving) == 0 {
		return events, time.Hour
	}
	return events, p.leaving[0].at.Sub(now)
}

// newMember returns an event that shows a member on a node, or takes it away.
func newMember(name topicKey, node nodeID, data []byte, gone bool) *event {
	return newEvent(name.topic, Event{Name: "presence", Key: name.key + string(node[:]), Data: data, Gone: gone, member: true})
}

func newGoneMember(name topicKey, node nodeID) *event {
	data, _ := json.Marshal(memberJSON{Key: name.key, Gone: true}) // text can be encoded
	return newMember(name, node, data, true)
}

// memberKey returns e's Key as clients get it: that of a member has no node.
func (e *Event) memberKey() string {
	if !e.member {
		return e.Key
	}
	return e.Key[:len(e.Key)-len(nodeID{})]
}

// memberNode returns the node of a member.
func (e *Event) memberNode() (node nodeID) {
	copy(node[:], e.Key[len(e.Key)-len(node):])
	return node
}

// note notes an event of a member. It hides the event from clients if it tells
// them nothing new: the member is there on another node too, with the same data,
// or was not there.
func (h *history) note(m *keptEvent) {
	p, ev, key := m.log, m.event, m.event.memberKey()
	shown := p.shown[key]
	knew := p.unlist(ev)
	node := ev.memberNode()
	h.heard(node, topicKey{p.topic, key}, ev.Gone)
	if ev.Gone {
		rest := p.members[key]
		m.hidden = !knew || len(rest) > 0
		if n := len(rest); n > 0 && !rest[n-1].event.isLike(&shown.Event) {
			h.heard(rest[n-1].event.memberNode(), topicKey{p.topic, key}, true) // its data is to be shown again
		}
		return
	}
	if p.members == nil {
		p.members, p.shown = make(map[string][]*keptEvent), make(map[string]*event)
	}
	p.members[key] = append(p.members[key], m)
	if m.hidden = shown != nil && shown.isLike(&ev.Event); !m.hidden {
		shown = ev
	}
	p.shown[key] = shown
	if _, known := h.nodes[node]; !known {
		h.nodes[node] = m.at
	}
}

// unlist takes the node's event of a member out of p.members. It reports whether
// it was there.
func (p *topicLog) unlist(ev *event) bool {
	key := ev.memberKey()
	nodes := p.members[key]
	rest := slices.DeleteFunc(nodes, func(m *keptEvent) bool { return m.event.Key == ev.Key })
	if len(rest) > 0 {
		p.members[key] = rest
	} else {
		delete(p.members, key)
		delete(p.shown, key)
	}
	return len(rest) < len(nodes)
}

// membersOf returns the newest events of a node's members.
func (p *topicLog) membersOf(node nodeID) (all []*keptEvent) {
	for _, nodes := range p.members {
		for _, m := range nodes {
			if m.event.memberNode() == node {
				all = append(all, m)
			}
		}
	}
	return all
}

// bereaved returns events that take away the members of nodes that are gone.
func (h *history) bereaved(gone func(node nodeID, since time.Time) bool) (events []*event) {
	for node, since := range h.nodes {
		if !gone(node, since) {
			continue
		}
		before := len(events)
		for _, p := range h.topics {
			for _, m := range p.membersOf(node) {
				events = append(events, newGoneMember(topicKey{p.topic, m.event.memberKey()}, node))
			}
		}
		if len(events) == before {
			delete(h.nodes, node)
		}
	}
	return events
}

// beat takes away members of nodes that are gone, on this node. It also calls rolls,
// and forgets.
func (r *relay) beat(now time.Time, out *batch) {
	r.callRolls(now)
	r.forgetDropped(now)
	// The next message of such a list is lost, or its node.
	maps.DeleteFunc(r.lists, func(_ answer, l *memberList) bool { return now.Sub(l.at) > nodeTimeout })
	if r.peers.down.Load() { // nobody can be heard
		r.peers.hearAgain()
		return
	}
	for _, ev := range r.past.bereaved(r.peers.isGone) {
		r.accept(ev, now, out)
	}
}

// tellMembers sends the other nodes all members of this node in a topic.
func (r *relay) tellMembers(topic string, now time.Time) {
	members := r.past.log(topic).membersOf(r.peers.node)
	if len(members) == 0 && !r.shows[topic] {
		return // other nodes know of none
	}
	messages := r.pack(members, now)
	for i, values := range messages {
		msg := r.numbered(brokeredMembers, topic, now)
		msg.values, msg.part, msg.parts = values, uint64(i), uint64(len(messages))
		r.peers.send(msg)
	}
}

// A memberList is what a node tells about its members in a topic, in several
// messages.
type memberList struct {
	next  uint64          // the number of the message to come
	named map[string]bool // Keys
	at    time.Time       // when the last message came
}

// toldMembers accepts all members of another node in a topic. Others that it had
// are gone.
func (r *relay) toldMembers(topic string, m *brokered, now time.Time, out *batch) {
	list := answer{topic, m.node}
	if m.part == 0 {
		r.lists[list] = &memberList{next: m.seq, named: make(map[string]bool)}
	}
	l := r.lists[list]
	if l == nil || l.next != m.seq { // an earlier part is lost, which is noticed by its number
		delete(r.lists, list)
		return
	}
	l.next, l.at = l.next+1, now
	for _, v := range m.values {
		l.named[v.event.Key] = true
		ev := newEvent(topic, v.event)
		if here := r.past.latest(ev); here == nil || !here.event.isLike(&ev.Event) {
			ev.Data = bytes.Clone(ev.Data) // it would keep the whole message
			r.accept(ev, now, out)
		}
	}
	if m.part+1 < m.parts {
		return
	}
	delete(r.lists, list)
	for _, m := range r.past.log(topic).membersOf(list.asker) {
		if !l.named[m.event.Key] {
			r.accept(newGoneMember(topicKey{topic, m.event.memberKey()}, list.asker), now, out)
		}
	}
}
