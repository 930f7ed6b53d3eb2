package realtime

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coder/websocket"
)

// Disconnect closes every client that has topic, on all nodes, as
// [Client.Close] does. If OnConnect gives each client a topic of its user, it
// ends all connections of a user who logs out. A page may reconnect, unless
// OnConnect then refuses it.
//
// It has a place among what is published: a client gets what was published to
// it before, and nothing that is published afterwards. Only the rest of a replay
// is left out. A client has a topic from the return of Subscribe on, also in
// OnConnect.
//
// It blocks until the hub accepts it, with a [HistoryBroker] and a History until
// the engine has it, and with any other [Broker] until the other nodes have, for
// some 2 s at most. The errors are those of [Hub.Publish], and one for a code that
// Close refuses. A reason is cut and repaired as by [Client.Close]. After
// [ErrBrokerUnavailable] this node's clients are closed, those of others may not
// be.
//
// A node that the engine can't reach learns of it when it is back. Without a
// HistoryBroker that needs this node to be there still, and takes an hour at most;
// after a minute Disconnect takes such a node for dead, and returns no error for
// it. A node that comes back also closes clients that have joined it in the
// meantime, unless they came with an id of a shared history from behind the
// disconnect.
func (h *Hub) Disconnect(ctx context.Context, topic string, code websocket.StatusCode, reason string) error {
	if err := checkTopic(topic); err != nil {
		return err
	}
	status, err := checkClose(code, reason)
	if err != nil {
		return err
	}
	return h.takeEvent(ctx, newDisconnect(topic, status))
}

// newDisconnect returns the notice that closes a topic's clients. It has an
// event's way and its place in the order, up to the shards.
func newDisconnect(topic string, status websocket.CloseError) *event {
	payload := closeFrame(status.Code, status.Reason).b[2:]
	return &event{Event: Event{Data: payload, Binary: true}, topic: topic, notice: disconnectNotice}
}

// disconnect closes the clients of ev's topic. It waits for none of them: each
// leaves the shard by an entry of its own. An old notice is one from before the
// log was current. Clients whose Subscribe still waits for that don't have the
// topic yet.
func (s *shard) disconnect(ev *event, old bool) {
	cause := &closedError{parseClose(ev.Data), ErrClientClosed}
	for _, sub := range s.topics[ev.topic] {
		if sub.early || !old {
			sub.client.close(cause.status, cause)
		}
	}
}

// A roll lists the nodes of a Broker that have not said that they have had a
// disconnect of this node: a node that the engine can't reach gets no message, and
// the engine doesn't say so. The loop owns it.
type roll struct {
	ev     *event
	seq    uint64
	at     time.Time
	absent map[nodeID]bool // true: Disconnect waits for it; false: it counts as dead
	waits  int             // how many of them are true
	over   chan struct{}   // closed when waits has become zero
}

// A disconnectID names a disconnect by its node and its number.
type disconnectID struct {
	node nodeID
	seq  uint64
}

const (
	rollTimeout = 2 * time.Second        // for the answers of nodes
	rollEvery   = 500 * time.Millisecond // between two calls in that time; later it is a heartbeat
	deadAfter   = time.Minute            // without a message: nobody waits for such a node
	maxRolls    = 1000
	maxHad      = 10_000 // disconnects of other nodes that are known to have been had
)

// callRoll has the other nodes say that they have had a disconnect that was queued
// just now, and the error of that sent to sent. The channel gets the error for the
// caller of Disconnect.
func (r *relay) callRoll(ev *event, seq uint64, sent <-chan error, now time.Time) <-chan error {
	l := &roll{ev: ev, seq: seq, at: now, absent: make(map[nodeID]bool), over: make(chan struct{})}
	for id, silent := range r.peers.silence(now) {
		if l.absent[id] = silent < deadAfter; l.absent[id] {
			l.waits++
		}
	}
	waits := l.waits > 0
	if len(l.absent) > 0 {
		if len(r.rolls) == maxRolls {
			r.rolls = slices.Delete(r.rolls, 0, 1)
		}
		r.rolls = append(r.rolls, l)
	}
	result := make(chan error, 1)
	r.peers.own.Go(func() {
		err := <-sent
		if err == nil && waits {
			err = r.awaitRoll(l)
		}
		result <- err
	})
	return result
}

// awaitRoll calls the roll until all have answered that are not dead, or for
// rollTimeout.
func (r *relay) awaitRoll(l *roll) error {
	again := time.NewTicker(rollEvery)
	defer again.Stop()
	for patience := time.After(rollTimeout); ; {
		r.peers.pass(func(time.Time, *batch) { r.repeat(l) })
		select {
		case <-l.over:
			return nil
		case <-again.C:
		case <-patience:
			return fmt.Errorf("%w: another node has not answered, and gets the disconnect when it is back", ErrBrokerUnavailable)
		case <-r.peers.done:
			return ErrBrokerUnavailable
		}
	}
}

// callRolls calls those rolls again in which a node is absent that can be heard.
func (r *relay) callRolls(now time.Time) {
	r.rolls = slices.DeleteFunc(r.rolls, func(l *roll) bool { return now.Sub(l.at) > nodeMemory })
	if len(r.rolls) == 0 {
		return
	}
	silence := r.peers.silence(now)
	for _, l := range r.rolls {
		for id := range l.absent {
			if silent, known := silence[id]; known && silent < nodeTimeout {
				r.repeat(l)
				break
			}
		}
	}
}

func (r *relay) repeat(l *roll) {
	if len(l.absent) > 0 {
		r.peers.send(outgoing{topic: nodesTopic, brokered: brokered{kind: brokeredRepeat, seq: l.seq, topic: l.ev.topic, event: l.ev.Event}})
	}
}

// repeated accepts a disconnect that another node repeats. A Broker gives two
// topics no order. So where this node has the topic, the repetition waits until what
// was published before the disconnect has arrived, the disconnect included.
func (r *relay) repeated(m *brokered, now time.Time, out *batch) {
	if !r.had[disconnectID{m.node, m.seq}] && r.peers.has(m.topic) {
		r.peers.later(maxOnItsWay, func(now time.Time, out *batch) { r.takeRepeated(m, now, out) })
		return
	}
	r.takeRepeated(m, now, out)
}

func (r *relay) takeRepeated(m *brokered, now time.Time, out *batch) {
	if r.isFirst(disconnectID{m.node, m.seq}) {
		ev := newEvent(m.topic, m.event)
		ev.notice = disconnectNotice
		r.accept(ev, now, out)
	}
	r.peers.send(outgoing{topic: nodesTopic, brokered: brokered{kind: brokeredHad, asker: m.node, seq: m.seq}})
}

// isFirst reports whether a disconnect comes for the first time.
func (r *relay) isFirst(id disconnectID) bool {
	if r.had[id] {
		return false
	}
	if len(r.had) >= maxHad {
		clear(r.had)
	}
	r.had[id] = true
	return true
}

// answered notes that a node has had a disconnect of this one, or that it has left and
// has no clients any more.
func (r *relay) answered(m *brokered) {
	r.rolls = slices.DeleteFunc(r.rolls, func(l *roll) bool {
		waits, absent := l.absent[m.node]
		if !absent || !m.leaving && l.seq != m.seq {
			return false
		}
		delete(l.absent, m.node)
		if waits {
			if l.waits--; l.waits == 0 {
				close(l.over)
			}
		}
		return len(l.absent) == 0
	})
}

// checkClose returns what a close frame can carry of code and reason: of a long
// reason the beginning.
func checkClose(code websocket.StatusCode, reason string) (websocket.CloseError, error) {
	if !validCode(code) {
		return websocket.CloseError{}, fmt.Errorf("realtime: close code %d can't be sent: use 1000, 1001, 1003, 1007 to 1014, or 3000 to 4999", code)
	}
	return websocket.CloseError{Code: code, Reason: fitReason(reason)}, nil
}

// silence returns for how long nothing has come from each node that has not said
// good-bye.
func (p *peers) silence(now time.Time) map[nodeID]time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := make(map[nodeID]time.Duration)
	for id, n := range p.nodes {
		if !n.goodbye {
			all[id] = now.Sub(n.heard)
		}
	}
	return all
}
