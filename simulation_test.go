package realtime_test

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

var (
	simulations  = flag.Int("simulations", 50, "how many seeds TestSimulation runs, of each kind")
	simulateFrom = flag.Uint64("simulate-from", 0, "the first seed of TestSimulation; with -simulations 1 the only one")
)

// Nodes, clients and an engine come and go at random. No client loses an event
// silently: it gets each event of its topics once and in order, or a reset
// before later events. With a Broker without history a connected client gets no
// reset, but its node counts a gap. A disconnect ends the connections with its
// topic, behind what its publisher published before it. In the end the nodes
// agree on the latest values of a topic.
//
//	go test -run TestSimulation -simulations 100000   # a night
func TestSimulation(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprintf("history=%v", history), func(t *testing.T) {
			t.Parallel()
			for seed := *simulateFrom; seed < *simulateFrom+uint64(*simulations); seed++ {
				synctest.Test(t, func(t *testing.T) {
					newSimulation(t, seed, history).run()
					if t.Failed() {
						t.Logf("again by: go test -run 'TestSimulation/history=%v' -simulations 1 -simulate-from %d", history, seed)
					}
				})
				if t.Failed() {
					return
				}
			}
		})
	}
}

// A simulation is one run. Its seed decides what happens.
type simulation struct {
	t       *testing.T
	rnd     *rand.Rand
	history bool
	engine  *brokertest.Memory
	start   time.Time
	nodes   [3]*simNode
	started int   // how many nodes have been started
	weights []int // one for each of simSteps
	total   int
	ending  bool // nothing goes wrong any more
	clients []*simClient
	trace   []string
	values  int           // how many values have been published
	age     time.Duration // of events in the history

	mu          sync.Mutex               // guards the fields below
	published   map[simStream][]simEvent // in the order of publishing
	disconnects []*simDisconnect
}

// A simDisconnect is a call of Disconnect.
type simDisconnect struct {
	simStream
	began, done time.Duration // since the start; done is zero until it has returned
	failed      bool
	before      map[simStream]int // how many events there were
	gaps        map[*simNode]int64
}

// A simStream has the events of one publisher to one topic.
type simStream struct {
	publisher *simNode
	topic     string
}

// A simEvent is an event of a stream. Its index is its number.
type simEvent struct {
	done   time.Duration // when Publish returned, since the start; zero: it hasn't
	failed bool
}

// A simNode is a node from one start to the next.
type simNode struct {
	name      string
	site      *site
	dead      atomic.Bool  // it has crashed: it sends and gets nothing
	drop      atomic.Int64 // how many messages to it, or answers of Append, are lost next
	dropBeats atomic.Bool  // these may be heartbeats
	tasks     chan func()
	gaps      int64    // Stats.Gaps at its end
	joined    sync.Map // the newest *realtime.Client of each simClient's name
}

func newSimulation(t *testing.T, seed uint64, history bool) *simulation {
	s := &simulation{
		t: t, rnd: rand.New(rand.NewPCG(seed, 1)), history: history, engine: brokertest.NewMemory(), start: time.Now(),
		published: make(map[simStream][]simEvent), age: time.Hour,
	}
	if history && s.rnd.IntN(2) == 0 {
		s.age = 10 * time.Second // so that nodes trim the log, and values outlive their events
	}
	kinds := len(simSteps)
	if !history {
		kinds -= simLogSteps
	}
	for k := range kinds {
		weight := s.rnd.IntN(4)
		if k < 4 {
			weight += 3 // a run needs events and clients
		}
		s.weights = append(s.weights, weight*weight)
		s.total += weight * weight
	}
	for i := range s.nodes {
		s.startNode(i)
	}
	return s
}

// A simBroker is a node's broker, with faults. It drops messages to the node
// silently, as a broken connection does.
type simBroker struct {
	realtime.Broker
	node *simNode
}

func (b simBroker) Start(h realtime.BrokerHandler) error {
	return b.Broker.Start(simHandler{h, b.node})
}

func (b simBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	if b.node.dead.Load() {
		return brokertest.ErrStopped
	}
	return b.Broker.Publish(ctx, topic, msg)
}

type simHandler struct {
	realtime.BrokerHandler
	node *simNode
}

func (h simHandler) Deliver(topic string, msg []byte) {
	switch {
	case h.node.dead.Load():
	case topic == "nodes" && !h.node.dropBeats.Load() || h.node.drop.Add(-1) < 0:
		h.BrokerHandler.Deliver(topic, msg)
	}
}

// A simLog is a node's HistoryBroker, with faults.
type simLog struct {
	realtime.HistoryBroker
	node *simNode
}

func (b simLog) Append(ctx context.Context, record []byte) error {
	if b.node.dead.Load() {
		return brokertest.ErrStopped
	}
	err := b.HistoryBroker.Append(ctx, record)
	if b.node.drop.Add(-1) >= 0 {
		<-ctx.Done() // the answer is lost
		return ctx.Err()
	}
	return err
}

func (s *simulation) startNode(i int) {
	hub := realtime.NewHub()
	s.started++
	n := &simNode{name: fmt.Sprintf("n%d.%d", i, s.started), tasks: make(chan func(), 1000)}
	hub.History = realtime.History{Events: 1000, Age: s.age}
	if s.history {
		hub.Broker = simLog{s.engine.HistoryBroker(), n}
	} else {
		hub.Broker = simBroker{s.engine.Broker(), n}
	}
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		query := r.URL.Query()
		n.joined.Store(query.Get("name"), c)
		if err := c.Subscribe(query["topic"]...); err != realtime.ErrBrokerUnavailable {
			return err
		}
		return nil
	}
	n.site = newPipeSite(s.t, hub)
	if n := s.rnd.IntN(4); n > 0 { // others start with their first client
		realtime.StartWithParts(hub, n) // so that more happens between the parts of a replay
	}
	s.nodes[i] = n
	go func() {
		for task := range n.tasks {
			task()
		}
	}()
	s.t.Cleanup(func() { close(n.tasks) })
}

func (s *simulation) log(format string, args ...any) {
	s.trace = append(s.trace, fmt.Sprintf("%8v %s", time.Since(s.start), fmt.Sprintf(format, args...)))
}

func (s *simulation) run() {
	for range 2 + s.rnd.IntN(3) {
		s.join()
	}
	for range 10 + s.rnd.IntN(40) {
		s.step()
		if s.rnd.IntN(3) > 0 {
			time.Sleep(time.Duration(s.rnd.IntN(3000)) * time.Millisecond)
		}
		synctest.Wait()
	}
	s.log("the end")
	s.engine.Start()
	for _, n := range s.nodes {
		n.drop.Store(0)
	}
	time.Sleep(30 * time.Second)
	s.ending = true
	for _, c := range s.clients {
		c.cutAfter.Store(0)
	}
	s.connectAll()
	for i := range s.nodes {
		if s.rnd.IntN(2) == 0 { // otherwise nothing follows, and a loss must still show
			s.publish(i, 6)
		}
	}
	time.Sleep(30 * time.Second)
	synctest.Wait()
	s.checkValues()
	for _, n := range s.nodes {
		n.gaps = n.site.hub.Stats().Gaps
	}
	for _, c := range s.clients {
		s.check(c)
	}
	for _, d := range s.disconnects {
		s.checkDisconnect(d)
	}
	if s.t.Failed() {
		s.t.Logf("what happened:\n%s", strings.Join(s.trace, "\n"))
	}
	for _, c := range s.clients {
		c.cut(s)
	}
}

// simSteps are the steps of a run. Each run gives them weights of its own, so
// some runs are full of one kind of fault.
var simSteps = []func(s *simulation, i int){
	func(s *simulation, i int) { s.publish(i, 1+s.rnd.IntN(10)) },
	func(s *simulation, i int) { s.publish(i, 1) },
	func(s *simulation, _ int) {
		c := s.clients[s.rnd.IntN(len(s.clients))]
		s.log("%s is cut off", c.name)
		c.cut(s)
	},
	func(s *simulation, _ int) { s.connectAll() },
	func(s *simulation, i int) { s.disconnect(i) },
	func(s *simulation, _ int) {
		s.log("the engine is away")
		s.engine.Stop()
	},
	func(s *simulation, _ int) {
		s.log("the engine is back")
		s.engine.Start()
	},
	func(s *simulation, i int) {
		n, beats := 1+s.rnd.IntN(5), s.rnd.IntN(2) == 0
		s.log("%s loses %d, heartbeats too %v", s.nodes[i].name, n, beats)
		s.nodes[i].dropBeats.Store(beats)
		s.nodes[i].drop.Store(int64(n))
	},
	func(s *simulation, i int) { s.setValue(i) },
	func(s *simulation, i int) { s.restart(i, false) },
	func(s *simulation, i int) { s.restart(i, true) },
	// For a log alone.
	func(s *simulation, _ int) {
		n := s.rnd.IntN(10)
		s.log("the engine keeps the newest %d", n)
		s.engine.Trim(n)
	},
	func(s *simulation, _ int) {
		n := s.rnd.IntN(30)
		s.log("the engine is put back to %d", n)
		s.engine.Stop()
		synctest.Wait()
		s.engine.PutBack(n)
		s.engine.Start()
	},
	func(s *simulation, _ int) {
		s.log("the engine begins again")
		s.engine.Forget()
	},
}

const simLogSteps = 3 // how many at the end of simSteps are for a log alone

func (s *simulation) step() {
	for n := s.rnd.IntN(s.total); ; {
		for k, weight := range s.weights {
			if n -= weight; n < 0 {
				simSteps[k](s, s.rnd.IntN(len(s.nodes)))
				return
			}
		}
	}
}

// restart shuts a node down, or crashes it, and starts another in its place.
func (s *simulation) restart(i int, crash bool) {
	n := s.nodes[i]
	s.log("%s is restarted, crash %v", n.name, crash)
	ctx, cancel := context.WithTimeout(s.t.Context(), 20*time.Second)
	if crash {
		n.dead.Store(true)
		cancel()
	}
	n.site.hub.Shutdown(ctx)
	cancel()
	n.gaps = n.site.hub.Stats().Gaps
	for _, c := range s.clients {
		if c.node == n {
			c.cut(s)
		}
	}
	s.startNode(i)
}

// publish makes a node publish events, one after another.
func (s *simulation) publish(i, count int) {
	n := s.nodes[i]
	s.log("%s publishes %d", n.name, count)
	for range count {
		stream := simStream{n, []string{"", "a", "b", "c"}[s.rnd.IntN(4)]}
		n.tasks <- func() {
			s.mu.Lock()
			events := append(s.published[stream], simEvent{})
			s.published[stream] = events
			s.mu.Unlock()
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			e := realtime.Event{Data: fmt.Appendf(nil, "%s|%s|%d", n.name, stream.topic, len(events)-1)}
			var err error
			if stream.topic == "" {
				err = n.site.hub.PublishAll(ctx, e)
			} else {
				err = n.site.hub.Publish(ctx, stream.topic, e)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			ev := &s.published[stream][len(events)-1]
			ev.done, ev.failed = max(1, time.Since(s.start)), err != nil
		}
	}
}

// setValue makes a node publish a value or take it away.
func (s *simulation) setValue(i int) {
	n := s.nodes[i]
	key := fmt.Sprint("key", s.rnd.IntN(3))
	s.values++
	e := realtime.Event{Key: key, Data: fmt.Append(nil, "value ", s.values), Gone: s.rnd.IntN(4) == 0}
	s.log("%s sets %s to %s, gone %v", n.name, key, e.Data, e.Gone)
	n.tasks <- func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		n.site.hub.Publish(ctx, "values", e) // it may fail: then the nodes agree on any value
	}
}

// checkValues checks that all nodes have the same values.
func (s *simulation) checkValues() {
	for _, n := range s.nodes {
		n.site.listen("topic=values")
	}
	time.Sleep(10 * time.Second)
	synctest.Wait()
	var first []string
	for i, n := range s.nodes {
		got := latest(n.site.hub, "values")
		slices.Sort(got)
		if i == 0 {
			first = got
		} else if !slices.Equal(got, first) {
			s.t.Errorf("%s has the values %q, %s has %q", s.nodes[0].name, first, n.name, got)
		}
	}
}

// disconnect makes a node disconnect the clients of a topic, after what it has
// published.
func (s *simulation) disconnect(i int) {
	n := s.nodes[i]
	d := &simDisconnect{simStream: simStream{n, []string{"a", "b", "c"}[s.rnd.IntN(3)]}, before: make(map[simStream]int), gaps: make(map[*simNode]int64)}
	s.log("%s disconnects %q", n.name, d.topic)
	n.tasks <- func() {
		s.mu.Lock()
		for stream, events := range s.published {
			d.before[stream] = len(events)
		}
		for _, n := range s.nodes {
			d.gaps[n] = n.site.hub.Stats().Gaps
		}
		d.began = time.Since(s.start)
		s.disconnects = append(s.disconnects, d)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		err := n.site.hub.Disconnect(ctx, d.topic, codeOut, "")
		s.mu.Lock()
		defer s.mu.Unlock()
		d.done, d.failed = max(1, time.Since(s.start)), err != nil
	}
}

// A simClient is a client that may reconnect.
type simClient struct {
	name      string
	topics    []string // the empty one is the first
	late      []string // topics that it subscribes when it is connected
	transport string
	lastID    string

	cutAfter atomic.Int64 // how many events it reads before it is cut off; zero: it isn't

	conn resumer  // nil: it is cut off
	node *simNode // the node of the newest connection
	ends chan struct{}

	mu    sync.Mutex // guards the field below
	items []simItem
}

// A simItem is something that happened to a client.
type simItem struct {
	kind  simKind
	node  *simNode
	gaps  int64             // the node's Stats.Gaps at that time
	at    time.Duration     // since the start
	from  map[simStream]int // in an arrival: how many events there were
	event string
}

type simKind uint8

const (
	simArrival simKind = iota // it connects, without an id
	simReturn                 // it connects, with an id
	simJoin                   // it has subscribed the topic in event
	simCut
	simEnd   // the node has ended its connection
	simReset // for the topic in event, or for all
	simGot
)

func (s *simulation) join() {
	c := &simClient{name: fmt.Sprint("c", len(s.clients)), topics: []string{""}}
	for _, topic := range []string{"a", "b", "c"} {
		switch s.rnd.IntN(3) {
		case 0:
			c.topics = append(c.topics, topic)
		case 1:
			c.late = append(c.late, topic)
		}
	}
	names := slices.Sorted(maps.Keys(transports))
	c.transport = names[s.rnd.IntN(len(names))]
	s.clients = append(s.clients, c)
	s.connect(c)
}

// connectAll connects the clients that aren't, or whose connection has ended.
func (s *simulation) connectAll() {
	for _, c := range s.clients {
		select {
		case <-c.ends:
			c.cut(s)
			s.connect(c)
		default:
		}
	}
}

func (s *simulation) connect(c *simClient) {
	n := s.nodes[s.rnd.IntN(len(s.nodes))]
	query := url.Values{"lastEventId": {c.lastID}, "topic": c.topics[1:], "name": {c.name}}.Encode()
	s.log("%s (%s, %q) connects to %s with %q", c.name, c.transport, c.topics, n.name, c.lastID)
	if !s.ending && s.rnd.IntN(4) == 0 {
		c.cutAfter.Store(1 + int64(s.rnd.IntN(10)))
	}
	it := simItem{kind: simReturn, node: n}
	if c.lastID == "" {
		it.kind = simArrival
	}
	c.conn, c.node, c.ends = transports[c.transport](n.site, query), n, make(chan struct{})
	synctest.Wait()
	it.from = s.lengths()
	c.note(s, it)
	go c.read(s)
	time.Sleep(300 * time.Millisecond) // losses right after a subscription don't show
	synctest.Wait()
	if !s.ending && s.rnd.IntN(5) == 0 {
		s.log("%s is cut off at once", c.name)
		c.cut(s)
		return
	}
	s.joinLate(c)
}

// joinLate subscribes a connected client's late topics, as a page does by a
// message, within the time in which it is to do so.
func (s *simulation) joinLate(c *simClient) {
	if s.rnd.IntN(2) == 0 {
		time.Sleep(time.Duration(s.rnd.IntN(6000)) * time.Millisecond)
	}
	client, _ := c.node.joined.Load(c.name)
	var subscribing sync.WaitGroup
	for _, topic := range c.late {
		subscribing.Go(func() {
			err := client.(*realtime.Client).Subscribe(topic)
			if err == nil || err == realtime.ErrBrokerUnavailable {
				c.note(s, simItem{kind: simJoin, node: c.node, event: topic, from: s.lengths()})
			}
		})
	}
	subscribing.Wait()
	s.log("%s has subscribed %q", c.name, c.late)
	time.Sleep(300 * time.Millisecond)
	synctest.Wait()
}

// lengths returns how many events have been published.
func (s *simulation) lengths() map[simStream]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := make(map[simStream]int)
	for stream, events := range s.published {
		n[stream] = len(events)
	}
	return n
}

// read is the body of the goroutine that reads a connection.
func (c *simClient) read(s *simulation) {
	defer close(c.ends)
	conn, node := c.conn, c.node
	for {
		ev, err := conn.event()
		if err != nil {
			c.note(s, simItem{kind: simEnd, node: node})
			return
		}
		it := simItem{kind: simGot, node: node, event: ev.data}
		if ev.name == "reset" || ev.data == "" {
			it.kind = simReset
		}
		c.note(s, it)
		if c.cutAfter.Add(-1) == 0 {
			conn.cut()
		}
	}
}

func (c *simClient) note(s *simulation, it simItem) {
	it.gaps, it.at = it.node.site.hub.Stats().Gaps, time.Since(s.start)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.items = append(c.items, it)
}

// cut closes the client's connection, if there is one.
func (c *simClient) cut(s *simulation) {
	if c.conn != nil {
		c.conn.cut()
		<-c.ends
		c.lastID = c.conn.last()
		c.conn = nil
		c.note(s, simItem{kind: simCut, node: c.node})
	}
}

// nodeAt returns the node that the client was connected to at a time, or nil.
func (c *simClient) nodeAt(at time.Duration) (n *simNode) {
	for _, it := range c.items {
		if it.at > at {
			break
		}
		switch it.kind {
		case simArrival, simReturn:
			n = it.node
		case simCut, simEnd:
			n = nil
		}
	}
	return n
}

// checkDisconnect checks the connections that were there when d began, and those
// of its own node that came after it.
func (s *simulation) checkDisconnect(d *simDisconnect) {
	for _, c := range s.clients {
		if !slices.Contains(c.topics, d.topic) {
			continue
		}
		var from simItem // of the connection
		reached := func(gaps int64) bool {
			return from.node != nil && from.at+300*time.Millisecond < d.began && d.done != 0 &&
				(from.node == d.publisher || !d.failed && gaps == d.gaps[from.node])
		}
		for _, it := range c.items {
			switch it.kind {
			case simArrival, simReturn:
				from = it
			case simGot:
				publisher, topic, n := s.parse(c, it.event)
				ordered := s.history || from.node == d.publisher || topic == d.topic
				if ordered && publisher == d.publisher && n >= d.before[simStream{publisher, topic}] && reached(it.gaps) {
					s.t.Errorf("%s got event %d of %s to %q, which was published after a disconnect from %q at %v", c.name, n, publisher.name, topic, d.topic, d.began)
				}
			case simEnd, simCut:
				from = simItem{}
			}
		}
		if from.node != nil && reached(from.node.gaps) {
			s.t.Errorf("%s is still connected to %s, which was disconnected from %q by %s at %v", c.name, from.node.name, d.topic, d.publisher.name, d.began)
		}
	}
}

// parse returns what an event says.
func (s *simulation) parse(c *simClient, event string) (publisher *simNode, topic string, n int) {
	parts := strings.Split(event, "|")
	n, err := strconv.Atoi(parts[2])
	if err != nil {
		s.t.Fatalf("%s got %q", c.name, event)
	}
	for stream := range s.published {
		if stream.publisher.name == parts[0] {
			publisher = stream.publisher
		}
	}
	return publisher, parts[1], n
}

// check checks the events that a client got.
func (s *simulation) check(c *simClient) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for stream, events := range s.published {
		late := slices.Contains(c.late, stream.topic)
		if !late && !slices.Contains(c.topics, stream.topic) {
			continue
		}
		next := -1        // the number of the event to come; negative: any
		from := -1        // the number of events when a late topic was first subscribed; negative: it hasn't been
		told := false     // a reset arrived after the last event
		var node *simNode // the node of the last event, or of the connection since
		var gaps int64    // the node's Stats.Gaps at that time
		explain := func(m int, until string) {
			ev := events[m]
			switch {
			case told:
			case ev.done == 0 || ev.failed && c.nodeAt(ev.done) != stream.publisher: // its publisher got an error, or no answer
			case !s.history && node.gaps > gaps:
			default:
				s.t.Errorf("%s has lost event %d of %s to %q without a word, %s", c.name, m, stream.publisher.name, stream.topic, until)
			}
		}
		for _, it := range c.items {
			switch it.kind {
			case simArrival:
				next, from, told, node, gaps = it.from[stream], -1, false, it.node, it.gaps
				if late {
					next = -1
				}
			case simJoin:
				if it.event == stream.topic && from < 0 {
					from = it.from[stream]
					told, node, gaps = false, it.node, it.gaps
				}
			case simReturn:
				if node != it.node {
					node, gaps = it.node, it.gaps
				}
			case simReset:
				told = told || it.event == "" || it.event == stream.topic
			case simGot:
				publisher, topic, n := s.parse(c, it.event)
				if publisher != stream.publisher || topic != stream.topic {
					continue
				}
				if next < 0 {
					next = n
					if from >= 0 {
						next = min(n, from)
					}
				}
				if n < next {
					s.t.Errorf("%s got event %d of %s to %q at %v, where %d was next", c.name, n, publisher.name, topic, it.at, next)
				}
				for m := next; m < n; m++ {
					explain(m, fmt.Sprintf("before %d at %v", n, it.at))
				}
				next, told, node, gaps = n+1, false, it.node, it.gaps
			}
		}
		if next < 0 {
			next = max(from, 0)
		}
		for m := next; m < len(events); m++ {
			explain(m, "until the end")
		}
	}
}
