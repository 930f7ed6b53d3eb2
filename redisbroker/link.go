package redisbroker

import (
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

// maxJoin is how many topics are subscribed by one round trip.
const maxJoin = 1000

// A link is what keeps this node's topics subscribed at one Redis, or one node
// of a cluster. One goroutine does it over one connection, however many topics
// there are: each comes here in joining, again whenever the connection was lost.
type link struct {
	// Set at construction, never changed.
	b      *Broker
	addr   string // as the cluster's client has it; empty if it isn't one
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // has room for one word that joining or leaving has grown
	tried  chan struct{} // closed when the first try to connect is over

	// Guarded by b.mu.
	err     error // why there is no connection
	joining []*topic
	leaving []string // channels
}

func newLink(b *Broker, addr string) *link {
	l := &link{b: b, addr: addr, wake: make(chan struct{}, 1), tried: make(chan struct{}), err: errConnecting}
	l.ctx, l.cancel = context.WithCancel(b.ctx)
	return l
}

// join has a topic subscribed. Its caller holds b.mu, as that of leave.
func (l *link) join(t *topic) {
	l.joining = append(l.joining, t)
	l.poke()
}

func (l *link) leave(channel string) {
	l.leaving = append(l.leaving, channel)
	l.poke()
}

func (l *link) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// doubt notes that publishing has failed. The link counts as down until it has
// asked Redis, or what waits to be published would find out one by one.
func (l *link) doubt(err error) {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf("no connection to Redis: publish: %w", err)
		l.poke()
	}
}

// down returns why there is no connection, or nil.
func (l *link) down() error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	return l.err
}

// run is the link's goroutine. It ends with ctx, or when the dial of that moment
// is over, and the broker's run waits for it.
func (l *link) run() {
	wait := minBackoff
	for first := true; l.ctx.Err() == nil; first = false {
		err := l.serve(func() {
			wait = minBackoff
			l.connected()
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

// connected notes that there is a connection.
func (l *link) connected() {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.err = nil
}

// lost notes that there is none, and takes back what was subscribed by it.
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

// serve connects, calls up, and keeps the topics subscribed until the connection
// is lost, whose reason it returns, or ctx ends.
func (l *link) serve(up func()) (err error) {
	client, err := l.client()
	if err != nil {
		return err
	}
	conn, _ := client.Dedicate()
	s := &session{link: l, conn: conn}
	defer func() {
		s.close()
		l.lost(err) // not after Close, which can take a second
		conn.Close()
	}()
	lost := conn.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: s.receive, OnSubscription: s.subscription})
	if err := s.ping(); err != nil {
		return err
	}
	if err := l.freshen(client); err != nil {
		return err
	}
	up()
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
		case <-l.wake:
			if l.down() != nil { // somebody doubts it
				if err := s.ping(); err != nil {
					return err
				}
				l.connected()
			}
		case <-retry:
		case <-ticker.C:
			if err := s.ping(); err != nil {
				return err
			}
			if !slices.Equal(addresses(client), at) {
				// The last one may be well, but cut off from all others.
				return errors.New("the sentinels have chosen another master")
			}
		case <-l.ctx.Done():
			return l.ctx.Err()
		}
	}
}

// addresses returns where a client connects to.
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
	// The client learns of a node by being sent there: with a message to a
	// channel that nobody has, as a user may be allowed nothing else.
	for i := range 1 << 20 {
		cmd := client.B().Spublish().Channel(fmt.Sprintf("%s\x00%d", l.b.prefix, i)).Message("").Build()
		if owners[cmd.Slot()] == l.addr {
			ctx, cancel := context.WithTimeout(l.ctx, callTimeout)
			defer cancel()
			client.Do(ctx, cmd)
			break
		}
	}
	return nil, errors.New("this node of the cluster is new")
}

// freshen has the client notice if the connection that it publishes by was lost
// as well, or that would take a message.
func (l *link) freshen(client rueidis.Client) (err error) {
	for range 2 {
		ctx, cancel := context.WithTimeout(l.ctx, callTimeout)
		err = client.Do(ctx, client.B().Ping().Build()).NonRedisError()
		cancel()
		if err == nil {
			return nil
		}
	}
	return err
}

// A session is a link's while it has a connection.
type session struct {
	*link
	conn rueidis.DedicatedClient

	mu       sync.Mutex // guards the fields below
	received int
	holding  bool // what comes waits in held, for a gap to be told before it
	held     []delivery
	bytes    int // in held
	closed   bool
}

func (s *session) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// receive takes a message, on the goroutine that reads the connection. It
// doesn't block.
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
	case s.bytes+d.size() <= maxInboxBytes: // the gap is told behind what this drops
		s.held = append(s.held, d)
		s.bytes += d.size()
	}
}

// subscription takes Redis' word that a subscription has changed, on the same
// goroutine. It matters where nobody has asked for it: a node of the cluster
// has given the slot away.
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
	s.join(t) // which will be told where to
	s.b.changed()
}

// ping returns nil if Redis answers, or is busy with what it sends us.
func (s *session) ping() error {
	s.mu.Lock()
	before := s.received
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(s.ctx, callTimeout)
	defer cancel()
	err := s.conn.Do(ctx, s.conn.B().Ping().Build()).NonRedisError()
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

// settle subscribes and unsubscribes until nothing is left of it. It reports
// whether Redis has refused something that is to be tried again. An error means
// that the connection is of no more use.
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

// next returns what is to be done by the next round trip, and whether there is a
// topic in it of which something was missed.
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

// subscribe returns the topics that Redis has refused and that are to be tried
// again, and reports whether of those that it has not something was missed.
func (s *session) subscribe(topics []*topic) (refused []*topic, missed bool, err error) {
	if len(topics) == 0 {
		return nil, false, nil
	}
	// A command for each: rueidis takes the first answer to one for all of it.
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
			// It has gone meanwhile, and leaving says so.
		case err == nil:
			missed = missed || t.lost
			t.confirmed, t.lost = true, false
			t.answer(nil)
		case s.addr == "" && !t.lost: // a permission, most likely
			delete(s.b.topics, t.channel)
			t.answer(err)
		default:
			refused = append(refused, t)
			s.b.changed()
		}
	})
	return refused, missed, err
}

// do sends commands and calls done for the answer to each, with b.mu held. It
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

func (s *session) hold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holding = true
}

// release lets messages flow, behind a gap if some were missed.
func (s *session) release(missed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if missed {
		s.b.inbox.put(delivery{gap: errMissed})
	}
	s.b.inbox.put(s.held...)
	s.holding, s.held, s.bytes = false, nil, 0
}
