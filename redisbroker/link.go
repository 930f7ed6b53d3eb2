package redisbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/redis/rueidis"
)

// maxJoin is the number of topics that one round trip subscribes.
const maxJoin = 1000

// A link keeps this node's topics subscribed at one Redis, or at one node of a
// cluster. One goroutine does it over one connection, however many topics there
// are. It also keeps the connection by which the node publishes. Each topic is in joining until it is subscribed, and again after the
// connection was lost.
type link struct {
	// Set at construction, never changed.
	b      *Broker
	addr   string // as the cluster's client has it; empty without a cluster
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // has room for one signal that joining or leaving has grown
	tried  chan struct{} // closed when the first try to connect is over

	// Guarded by b.mu.
	err     error   // the reason why there is no connection; nil: there is one
	out     *sender // set while err is nil
	limits  limits
	joining []*topic
	leaving []string // channels
}

func newLink(b *Broker, addr string) *link {
	l := &link{b: b, addr: addr, wake: make(chan struct{}, 1), tried: make(chan struct{}), err: errConnecting}
	l.ctx, l.cancel = context.WithCancel(b.ctx)
	return l
}

// join has a topic subscribed. The caller holds b.mu.
func (l *link) join(t *topic) {
	l.joining = append(l.joining, t)
	l.poke()
}

// leave has a channel unsubscribed. The caller holds b.mu.
func (l *link) leave(channel string) {
	l.leaving = append(l.leaving, channel)
	l.poke()
}

// poke wakes the goroutine run.
func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// doubt notes that publishing has failed. The link counts as down until it has
// another connection to publish by. Otherwise each message that waits would fail
// by a timeout of its own. The failure of a sender that was replaced in the
// meantime says nothing. Nil stands for the one that there is.
func (l *link) doubt(out *sender, err error) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if l.err == nil && (out == nil || out == l.out) {
		l.err = fmt.Errorf("no connection to Redis: publish: %w", err)
		l.poke()
	}
}

// down returns the reason why there is no connection, or nil.
func (l *link) down() error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	return l.err
}

// run is the link's goroutine. It ends with ctx, once a dial that is running has
// returned. The broker's run waits for it.
func (l *link) run() {
	wait := minBackoff
	for first := true; l.ctx.Err() == nil; first = false {
		err := l.serve(func(out *sender) {
			wait = minBackoff
			l.connected(out)
			if first {
				close(l.tried)
			}
			first = false
		})
		l.lost(err)
		if first {
			close(l.tried)
		}
		l.b.changed()
		wait = l.b.backOff(wait)
	}
}

// connected notes that there is a connection, and another one to publish by.
func (l *link) connected(out *sender) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.err, l.out = nil, out
}

// lost notes that the connection was lost, and that its topics are to be
// subscribed again.
func (l *link) lost(err error) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.err = fmt.Errorf("no connection to Redis: %w", err)
	l.b.trusted.Store(false)
	l.joining, l.leaving = nil, nil
	for _, t := range l.b.topics {
		if t.link == l {
			t.lost = t.lost || t.confirmed
			t.confirmed = false
			l.joining = append(l.joining, t)
		}
	}
}

// serve connects, calls up, and keeps the topics subscribed. It returns when the
// connection is lost, with the reason, or ctx ends.
func (l *link) serve(up func(*sender)) (err error) {
	client, err := l.client()
	if err != nil {
		return err
	}
	conn, _ := client.Dedicate()
	s := &session{link: l, conn: conn}
	defer func() {
		s.close()
		l.lost(err) // before conn.Close, which can take a second
		conn.Close()
	}()
	lost := conn.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: s.receive, OnSubscription: s.subscription})
	if err := s.ping(); err != nil {
		return err
	}
	out, err := l.newSender(client)
	if err != nil {
		return err
	}
	defer func() { out.close(l.b) }()
	up(out)
	at := addresses(client)
	ticker := time.NewTicker(pingInterval)
	defer ticker.Stop()
	for {
		again, err := s.settle()
		if err != nil {
			return err
		}
		var retry <-chan time.Time
		if again {
			retry = time.After(retryDelay)
		}
		select {
		case err := <-lost:
			if err == nil {
				err = errLost
			}
			return err
		case err := <-out.lost:
			l.doubt(out, cmp.Or(err, errLost))
			out.lost = nil
		case <-l.wake:
			if l.down() != nil { // by doubt
				if err := s.ping(); err != nil {
					return err
				}
				other, err := l.newSender(client)
				if err != nil {
					return err
				}
				out.close(l.b)
				out = other
				l.connected(out)
			}
		case <-retry:
		case <-ticker.C:
			if err := s.ping(); err != nil {
				return err
			}
			if err := l.check(out); err == errReplica {
				return err
			} else if err != nil {
				l.doubt(out, err)
			}
			if !slices.Equal(addresses(client), at) {
				// The former master may still answer, cut off from the others.
				return errSentinel
			}
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

// addresses returns the addresses that a client connects to.
func addresses(client rueidis.Client) []string { return slices.Sorted(maps.Keys(client.Nodes())) }

// client returns the client of the link's Redis.
func (l *link) client() (rueidis.Client, error) {
	l.b.mu.Lock()
	client, owners := l.b.client, l.b.owners
	l.b.mu.Unlock()
	if l.addr == "" {
		return client, nil
	}
	if node := client.Nodes()[l.addr]; node != nil {
		return node, nil
	}
	// The client learns of a node when a command is redirected to it. The
	// command is a message to a channel without subscribers, because the user
	// may have no other permission.
	for i := range 1 << 20 {
		cmd := client.B().Spublish().Channel(fmt.Sprintf("%s\x00%d", l.b.prefix, i)).Message("").Build()
		if owners[cmd.Slot()] == l.addr {
			ctx, cancel := context.WithTimeout(l.ctx, callTimeout)
			defer cancel()
			client.Do(ctx, cmd)
			break
		}
	}
	return nil, errors.New("the client doesn't know this node of the cluster yet")
}

// A session is one connection of a link.
type session struct {
	*link
	conn rueidis.DedicatedClient

	mu       sync.Mutex // guards the fields below
	received int
	holding  bool // messages wait in held, until a gap is told before them
	held     []delivery
	bytes    int // in held
	closed   bool
}

func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// receive puts a message into the inbox, or into held. The goroutine that reads
// the connection calls it, so it doesn't block.
func (s *session) receive(m rueidis.PubSubMessage) {
	name, ok := strings.CutPrefix(m.Channel, s.b.prefix)
	if !ok {
		return
	}
	d := delivery{topic: name, msg: []byte(m.Message)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received++
	switch {
	case s.closed:
	case !s.holding:
		s.b.inbox.put(d)
	case s.bytes+d.size() <= maxInboxBytes: // release tells a gap for those above it
		s.held = append(s.held, d)
		s.bytes += d.size()
	}
}

// subscription is called when a subscription has changed, on the same goroutine.
// An unsubscription that the broker has not asked for means that the node of the
// cluster has given the slot to another.
func (s *session) subscription(p rueidis.PubSubSubscription) {
	if p.Kind != "sunsubscribe" {
		return
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	t := s.b.topics[p.Channel]
	if t == nil || t.link != s.link || !t.confirmed {
		return
	}
	t.confirmed, t.lost = false, true
	s.join(t) // Redis refuses it until the topic has the link of the other node
	s.b.changed()
}

// ping returns nil if Redis answers, or sends messages in the meantime, and is a
// master.
func (s *session) ping() error {
	s.mu.Lock()
	before := s.received
	s.mu.Unlock()
	err := s.check(s.conn)
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.received > before {
		return nil
	}
	return err
}

// settle subscribes and unsubscribes until joining and leaving are empty. It
// reports whether Redis has refused a topic that is to be tried again. After an
// error the connection can't be used.
func (s *session) settle() (again bool, err error) {
	var refused []*topic
	missed := false
	for {
		joining, leaving, lost := s.next()
		if len(joining)+len(leaving) == 0 {
			break
		}
		if lost {
			s.hold()
		}
		if err := s.unsubscribe(leaving); err != nil {
			return false, err
		}
		more, got, err := s.subscribe(joining)
		if err != nil {
			return false, err
		}
		refused = append(refused, more...)
		missed = missed || got
	}
	s.release(missed)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.joining = append(s.joining, refused...)
	return len(refused) > 0, nil
}

// next returns the topics and channels of the next round trip, and reports
// whether one of the topics was subscribed before.
func (s *session) next() (joining []*topic, leaving []string, lost bool) {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	leaving, s.leaving = s.leaving, nil
	for len(s.joining) > 0 && len(joining) < maxJoin {
		t := s.joining[0]
		s.joining = s.joining[1:]
		if s.b.topics[t.channel] == t && t.link == s.link && !t.confirmed {
			joining = append(joining, t)
			lost = lost || t.lost
		}
	}
	return joining, leaving, lost
}

func (s *session) unsubscribe(channels []string) error {
	if len(channels) == 0 {
		return nil
	}
	cmds := make([]rueidis.Completed, len(channels))
	for i, channel := range channels {
		if s.addr == "" {
			cmds[i] = s.conn.B().Unsubscribe().Channel(channel).Build()
		} else {
			cmds[i] = s.conn.B().Sunsubscribe().Channel(channel).Build()
		}
	}
	return s.do(cmds, func(int, error) {})
}

// subscribe subscribes topics. It returns the ones that Redis has refused and
// that are to be tried again. It reports whether one that is subscribed now was
// subscribed before, so that messages of it may be lost.
func (s *session) subscribe(topics []*topic) (refused []*topic, missed bool, err error) {
	if len(topics) == 0 {
		return nil, false, nil
	}
	// One command for each topic, because rueidis takes the first answer to a
	// command for the answer to all of its channels.
	cmds := make([]rueidis.Completed, len(topics))
	for i, t := range topics {
		if s.addr == "" {
			cmds[i] = s.conn.B().Subscribe().Channel(t.channel).Build()
		} else {
			cmds[i] = s.conn.B().Ssubscribe().Channel(t.channel).Build()
		}
	}
	err = s.do(cmds, func(i int, err error) {
		t := topics[i]
		switch {
		case s.b.topics[t.channel] != t || t.link != s.link:
			// It was given up in the meantime, and leaving has it.
		case err == nil:
			missed = missed || t.lost
			t.confirmed, t.lost = true, false
			t.answer(nil)
		case s.addr == "" && !t.lost: // most likely the user has no permission
			delete(s.b.topics, t.channel)
			t.answer(err)
		default:
			refused = append(refused, t)
			s.b.changed()
		}
	})
	return refused, missed, err
}

// do sends commands, and calls done for the answer to each, holding b.mu. It
// returns an error if the connection is lost.
func (s *session) do(cmds []rueidis.Completed, done func(i int, err error)) error {
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	results := s.conn.DoMulti(ctx, cmds...)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for i, result := range results {
		if err := result.NonRedisError(); err != nil {
			return err
		}
		done(i, result.Error())
	}
	return nil
}

// hold makes messages wait until release.
func (s *session) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = true
}

// release puts the messages that wait into the inbox, behind a gap if missed is
// true.
func (s *session) release(missed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if missed {
		s.b.inbox.put(delivery{gap: errMissed})
	}
	s.b.inbox.put(s.held...)
	s.holding, s.held, s.bytes = false, nil, 0
}
