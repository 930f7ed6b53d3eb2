package brokertest

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Cluster is the configuration of [RunNodes].
type Cluster struct {
	// Config has the text that Main passes to its broker function in each
	// node's process. It is the same after a restart.
	Config [3]string

	// Faults are done to the engine, or to the way of nodes to it, one after
	// another.
	Faults []Fault

	// Steady is set where no node is to be killed: another test of the engine
	// does that.
	Steady bool

	// Large is set where the history is so large that nodes need long to start:
	// two minutes instead of half of one.
	Large bool

	// Torn is set where a fault leaves the engine's servers with different
	// records, and none knows which are right. Whichever leads next may take
	// values back, so they need not outlive all nodes.
	Torn bool
}

// A Fault harms an engine for a while.
type Fault struct {
	Name       string        // for the test's log
	Begin, End func() error  // called by the goroutine of RunNodes; nil: nothing is done
	For        time.Duration // the time between the two calls
	Large      int           // bytes of one event that each node publishes after Begin, and that nobody has; zero: none
	Kill       bool          // all nodes are killed after Begin, and start again after End
}

const (
	calm         = 3 * time.Second       // between two faults, without any gap
	calmRounds   = 6                     // of which one has to be calm
	downFor      = 3 * time.Second       // before a node that was killed starts again
	publishEvery = 20 * time.Millisecond // by each publisher
	lateBy       = 50 * time.Millisecond // after OnConnect, a client subscribes its late topic
	localWithin  = 4 * time.Second       // for an event to reach the clients of its node that are connected
	wellWithin   = 30 * time.Second      // for events to reach all clients again
	logPatience  = 2 * time.Second       // in addition, where there is a history
	goneAfter    = 3 * time.Second       // members of a killed node are there at least so long: it counts as gone 7 s after its last heartbeat
	goneWithin   = 25 * time.Second      // for them to be taken away, which a node does at every other heartbeat of its own, at random
	longAge      = 5 * time.Minute       // of the history
	shortAge     = time.Second           // of the history when the log is to be trimmed
	trimmedIn    = 5 * shortAge          // for that
	setEvery     = 5                     // events of a publisher, for each value
	valueKeys    = 4                     // of all publishers together

	valuesTopic  = "values"
	membersTopic = "members"
	everybody    = "a member on two nodes"
)

// RunNodes runs three nodes, each in a process of its own, with two clients and a
// publisher each. One of the two subscribes one of its topics later than the
// other, each time that it has connected. RunNodes kills each node and starts it
// again, unless the cluster is Steady, and then does one fault after another. It
// fails unless all of this is true:
//   - Clients get all events that are published on their own node, within seconds.
//   - They get the events of each publisher in order, each once; those of a late
//     topic behind others.
//   - When clients lose events, their node has noticed a gap.
//   - No node notices a gap while nothing is wrong.
//   - With a history, clients lose no event for which Publish has returned nil,
//     unless they get a reset.
//   - Half a minute after each fault events reach all clients again.
//   - Disconnect ends the connections of its node, and of all nodes when nothing
//     is wrong, within seconds. It ends those of a node that can't be reached when
//     that is back, with a history only if it has returned nil.
//   - Half a minute after each fault all nodes have the same latest values, and the
//     same members. With a history the values outlive all nodes, and the records
//     in which they were published.
//   - The members of a node that was killed are there until it counts as gone, and
//     then no longer. A member that another node has too stays.
//
// The TestMain of the package has to call [Main].
func RunNodes(t *testing.T, history bool, cluster Cluster) {
	s := &scene{t: t, history: history, cluster: cluster, start: time.Now(), age: longAge}
	t.Cleanup(s.end)
	for i := range s.nodes {
		s.boot(i)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	for i := range s.nodes {
		for _, late := range []bool{false, true} {
			c := &client{scene: s, home: i, late: late}
			s.clients = append(s.clients, c)
			s.running.Go(func() { c.run(ctx) })
		}
	}
	s.counted("at the start")
	publishing, stopPublishing := context.WithCancel(ctx)
	for i := range s.publishers {
		s.publishers[i] = &publisher{scene: s, node: i}
		s.running.Go(func() { s.publishers[i].run(publishing) })
	}
	s.settle("at the start")
	s.agree("before anything was wrong")
	s.inCalm("before anything was wrong")
	s.disconnect(0, "before anything was wrong")
	s.settle("after all were disconnected")

	for i := range s.nodes {
		if cluster.Steady {
			break
		}
		s.note(fmt.Sprintf("node %d is killed", i))
		killed := s.node(i)
		s.kill(i)
		s.mourn(killed)
		s.counted("after a node was killed")
		if history { // otherwise nobody knows whether the node is only cut off
			s.disconnect((i+1)%3, "after a node was killed")
		}
		time.Sleep(downFor)
		s.boot(i)
		s.settle("after a node was started again")
		s.agree("after a node was started again")
		s.inCalm("after a node was started again")
	}
	for _, fault := range cluster.Faults {
		s.do(fault.Name, fault.Begin)
		if fault.Large > 0 {
			s.publishLarge(fault.Large)
		}
		if fault.Kill {
			for i := range s.nodes {
				s.kill(i)
			}
		}
		disconnected := func() {}
		if !fault.Kill {
			disconnected = s.disconnectDuring(fault.Name)
		}
		time.Sleep(fault.For)
		s.do(fault.Name+" is over", fault.End)
		if fault.Kill {
			for i := range s.nodes {
				s.boot(i)
			}
		}
		s.settle("after " + fault.Name)
		disconnected()
		s.agree("after " + fault.Name)
		s.counted("after " + fault.Name)
		s.inCalm("after " + fault.Name)
	}
	stopPublishing()
	s.settle("in the end")
	s.agree("in the end")
	stop()
	s.running.Wait()
	s.judge()
	if history && !cluster.Large && !cluster.Torn {
		s.outlive()
	}
}

// A scene is one run of RunNodes.
type scene struct {
	t       *testing.T
	history bool
	cluster Cluster
	start   time.Time
	age     time.Duration // of the history of nodes that start
	boots   int           // how many nodes have started
	running sync.WaitGroup
	clients []*client

	publishers [3]*publisher

	recovery  time.Duration // the longest time until all was well
	recovered string        // after which fault

	mu    sync.Mutex // guards the fields below
	nodes [3]*process
	gaps  map[*process]int64 // that each had noticed when it was asked last
	notes []string
}

func (s *scene) wellWithin() time.Duration {
	if s.cluster.Large {
		return 4 * wellWithin
	}
	return wellWithin
}

// note adds a line to the log of a test that fails.
func (s *scene) note(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, fmt.Sprintf("%6.2fs %s", time.Since(s.start).Seconds(), text))
}

// do notes what is done, and does it.
func (s *scene) do(what string, act func() error) {
	s.t.Helper()
	s.note(what)
	if act == nil {
		return
	}
	if err := act(); err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

// publishLarge publishes an event on each node, to a topic that no client has.
// Whether Publish succeeds is up to the engine.
func (s *scene) publishLarge(size int) {
	for i := range s.nodes {
		if p := s.node(i); p != nil {
			p.publish("large", strings.Repeat("x", size))
		}
	}
}

func (s *scene) boot(i int) {
	s.t.Helper()
	p := startNode(s.t, s.cluster.Config[i], s.age)
	s.boots++
	p.show(fmt.Sprint("a member on process ", s.boots))
	if i < 2 {
		p.show(everybody)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[i] = p
}

func (s *scene) kill(i int) {
	s.look(i)
	s.mu.Lock()
	p := s.nodes[i]
	s.nodes[i] = nil
	s.mu.Unlock()
	p.kill()
	if s.t.Failed() {
		s.t.Logf("node %d:\n%s", i, p.log)
	}
}

func (s *scene) end() {
	for i, p := range s.nodes {
		if p != nil {
			s.kill(i)
		}
	}
	if s.t.Failed() {
		s.t.Log(strings.Join(s.notes, "\n"))
	}
}

// node returns the process of a node, or nil while it doesn't run.
func (s *scene) node(i int) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nodes[i]
}

// look asks a node for its figures. ok is false if it doesn't run or answer.
func (s *scene) look(i int) (f figures, ok bool) {
	p := s.node(i)
	if p == nil {
		return f, false
	}
	f, err := p.figures()
	if err != nil {
		return f, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gaps == nil {
		s.gaps = make(map[*process]int64)
	}
	s.gaps[p] = f.Stats.Gaps
	return f, true
}

// counted waits until all nodes know the number of all clients.
func (s *scene) counted(when string) {
	s.t.Helper()
	var counts [3]int
	want := len(s.clients)
	for i := range s.nodes {
		if p := s.node(i); p != nil {
			want += len(p.members)
		}
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		right := true
		for i := range s.nodes {
			f, ok := s.look(i)
			counts[i] = f.Cluster
			right = right && (!ok || f.Cluster == want)
		}
		if right {
			return
		}
		if time.Now().After(deadline) {
			s.t.Errorf("%s: after %v nodes count %v clients, want %d", when, patience, counts, want)
			return
		}
	}
}

// agree waits until all nodes have the same values, and the right members.
func (s *scene) agree(when string) {
	s.t.Helper()
	began := time.Now()
	s.agreeOnValues(when)
	var members []string
	for i := range s.nodes {
		if p := s.node(i); p != nil {
			members = append(members, p.members...)
		}
	}
	slices.Sort(members)
	members = slices.Compact(members)
	s.agreeOn("members", when, func(f figures) []string { return f.Members }, func(got []string) bool { return slices.Equal(got, members) })
	s.note(fmt.Sprintf("all nodes agreed in %v, %s", time.Since(began), when))
}

// agreeOnValues sets a value on each node, and waits until all have the same
// values, and these among them.
func (s *scene) agreeOnValues(when string) (values []string) {
	s.t.Helper()
	var marks []string
	for i, p := range s.publishers {
		p.setting.Lock() // until the nodes agree
		defer p.setting.Unlock()
		p.sets++
		key, data := fmt.Sprint("last of ", i), fmt.Sprint(p.sets)
		eventually(s.t, fmt.Sprintf("value that node %d sets, %s", i, when), func() bool {
			return s.node(i).set(key, data, false) == http.StatusOK
		})
		marks = append(marks, key+"="+data)
	}
	return s.agreeOn("values", when, func(f figures) []string { return f.Values }, func(got []string) bool {
		return !slices.ContainsFunc(marks, func(mark string) bool { return !slices.Contains(got, mark) })
	})
}

// agreeOn waits until all nodes have the same of something, and have it right.
func (s *scene) agreeOn(what, when string, of func(figures) []string, right func([]string) bool) []string {
	s.t.Helper()
	for deadline := time.Now().Add(s.wellWithin()); ; time.Sleep(100 * time.Millisecond) {
		var got [3][]string
		agreed := true
		for i := range s.nodes {
			f, ok := s.look(i)
			got[i] = of(f)
			agreed = agreed && ok && right(got[i]) && slices.Equal(got[i], got[0])
		}
		if agreed {
			return got[0]
		}
		if time.Now().After(deadline) {
			s.t.Errorf("%v after nodes could agree on the %s, %s, they have\n%q\n%q\n%q", s.wellWithin(), what, when, got[0], got[1], got[2])
			return got[0]
		}
	}
}

// mourn waits until the other nodes have taken away the members of a process that
// was killed right before.
func (s *scene) mourn(p *process) {
	s.t.Helper()
	killed := time.Now()
	alone := p.members[0] // which no other node has
	for there := true; there; time.Sleep(100 * time.Millisecond) {
		there = false
		for i := range s.nodes {
			f, ok := s.look(i)
			if !ok {
				continue
			}
			has := slices.Contains(f.Members, alone)
			there = there || has
			if d := time.Since(killed); !has && d < goneAfter {
				s.t.Errorf("node %d has %q %v after a node was killed, without its member: want that for %v", i, f.Members, d, goneAfter)
				return
			}
			if !slices.Contains(f.Members, everybody) {
				s.t.Errorf("node %d has %q after a node was killed, want the member that another node has too", i, f.Members)
				return
			}
		}
		if there && time.Since(killed) > goneWithin {
			s.t.Errorf("%v after a node was killed its member is there", goneWithin)
			return
		}
	}
	s.note(fmt.Sprintf("its member was gone after %v", time.Since(killed)))
}

// outlive tests that values outlive all nodes, and the records in which they were
// published. So the log is trimmed before all nodes are killed. Nodes with a short
// Age start one after another: one that still reads what others trim may have read a
// value, and not the record that took it away.
func (s *scene) outlive() {
	s.t.Helper()
	s.age, s.clients = shortAge, nil
	var want []string
	for i := range s.nodes {
		s.kill(i)
		s.boot(i)
		want = s.agreeOnValues(fmt.Sprintf("since node %d has a short Age", i))
	}
	s.counted("after all nodes were killed, one after another")
	time.Sleep(trimmedIn)
	for i := range s.nodes {
		s.kill(i)
	}
	for i := range s.nodes {
		s.boot(i)
	}
	s.counted("after all nodes were killed")
	s.agreeOn("values", "when all nodes were killed", func(f figures) []string { return f.Values }, func(got []string) bool { return slices.Equal(got, want) })
}

// disconnect disconnects all clients, by one node, when nothing is wrong. An engine
// that is part of the nodes may need some time for that, after one was killed.
func (s *scene) disconnect(i int, when string) {
	s.t.Helper()
	var connections []<-chan struct{}
	var began time.Time
	eventually(s.t, "Disconnect that succeeds, "+when, func() bool {
		connections, began = s.connections(-1), time.Now()
		return s.node(i).disconnect("a") == http.StatusOK
	})
	s.ended(connections, localWithin, "Disconnect, "+when)
	s.note(fmt.Sprintf("all were disconnected in %v, %s", time.Since(began), when))
}

// disconnectDuring disconnects all clients by node 0, while something may be
// wrong. It returns a function to be called when that is over.
func (s *scene) disconnectDuring(fault string) (over func()) {
	s.t.Helper()
	here, all := s.connections(0), s.connections(-1)
	status := s.node(0).disconnect("a")
	s.note(fmt.Sprintf("Disconnect during %s: %d", fault, status))
	s.ended(here, localWithin+logPatience, "Disconnect on their own node during "+fault)
	return func() {
		if status == http.StatusOK || !s.history {
			s.ended(all, localWithin, "Disconnect and "+fault)
		}
	}
}

// connections returns the open connections to a node, or to all if i is negative.
func (s *scene) connections(i int) (open []<-chan struct{}) {
	for _, c := range s.clients {
		c.mu.Lock()
		if c.ended != nil && (i < 0 || c.at == i) {
			open = append(open, c.ended)
		}
		c.mu.Unlock()
	}
	return open
}

// ended waits until connections have ended.
func (s *scene) ended(connections []<-chan struct{}, limit time.Duration, why string) {
	s.t.Helper()
	late := time.After(limit)
	for _, ended := range connections {
		select {
		case <-ended:
		case <-late:
			s.t.Errorf("%v after %s connections are open", limit, why)
			return
		}
	}
}

// settle waits until an event that is published on each node reaches all clients.
func (s *scene) settle(when string) {
	s.t.Helper()
	began := time.Now()
	for i := range s.nodes {
		eventually(s.t, fmt.Sprintf("clients that got an event of node %d, %s", i, when), func() bool {
			p := s.publishers[i]
			n, result := p.publish()
			if result != everywhere {
				return false
			}
			for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				all := true
				for _, c := range s.clients {
					all = all && c.hasSeen(i, n)
				}
				if all {
					return true
				}
			}
			return false
		})
	}
	s.note("all is well, " + when)
	took := time.Since(began)
	if took > s.recovery {
		s.recovery, s.recovered = took, when
	}
	if took > s.wellWithin() {
		s.t.Errorf("it took %v until all was well, %s, want %v", took, when, s.wellWithin())
	}
}

// inCalm tests that no node notices a gap or an outage for a while. Nodes may
// notice earlier gaps late, by the heartbeats of others, so not every round has
// to be calm.
func (s *scene) inCalm(when string) {
	s.t.Helper()
	for round := 1; ; round++ {
		var before [3]figures
		for i := range s.nodes {
			before[i], _ = s.look(i)
		}
		time.Sleep(calm)
		var noticed []string
		for i := range s.nodes {
			f, ok := s.look(i)
			if gaps := f.Stats.Gaps - before[i].Stats.Gaps; !ok || gaps != 0 || f.Stats.BrokerDown {
				noticed = append(noticed, fmt.Sprintf("node %d has noticed %d gaps, want none and no outage: %+v", i, gaps, f.Stats))
			}
		}
		if len(noticed) == 0 {
			return
		}
		s.note(fmt.Sprintf("not calm %s: %s", when, strings.Join(noticed, "; ")))
		if round == calmRounds {
			s.t.Errorf("%s, in each of %d rounds: %s", when, calmRounds, strings.Join(noticed, "; "))
			return
		}
	}
}

// A result says which clients get an event, as far as the publisher knows.
type result int

const (
	unknown    result = iota
	here              // the clients of its node
	everywhere        // the clients of all nodes
)

// A publisher publishes on one node until the test ends.
type publisher struct {
	scene *scene
	node  int

	publishing sync.Mutex // held for each event
	setting    sync.Mutex // held for each value; guards sets
	sets       int        // how many values so far
	mu         sync.Mutex // guards the fields below
	results    []result   // of events, by their number
	times      []time.Time
}

func (p *publisher) run(ctx context.Context) {
	for i := 0; ctx.Err() == nil; i++ {
		p.publish()
		if i%setEvery == 0 {
			p.set()
		}
		time.Sleep(publishEvery)
	}
}

// set sets a value, or takes one away. All publishers have the same Keys.
func (p *publisher) set() {
	p.setting.Lock()
	defer p.setting.Unlock()
	p.sets++
	key := fmt.Sprint("key ", p.sets%valueKeys)
	if node := p.scene.node(p.node); node != nil {
		node.set(key, fmt.Sprint(p.node, " ", p.sets), p.sets%3 == 0)
	}
}

// publish publishes one event. Its number chooses topic "a" or "b".
func (p *publisher) publish() (number int, r result) {
	p.publishing.Lock()
	defer p.publishing.Unlock()
	p.mu.Lock()
	number = len(p.results)
	p.results = append(p.results, unknown)
	p.times = append(p.times, time.Now())
	p.mu.Unlock()
	if node := p.scene.node(p.node); node != nil {
		switch status := node.publish(topicOf(number), fmt.Sprint(p.node, " ", number)); status {
		case 0: // it was killed
		case http.StatusOK:
			r = everywhere
		case http.StatusServiceUnavailable:
			r = here
		default:
			p.scene.t.Errorf("publish: %s", http.StatusText(status))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.results[number] = r
	return number, r
}

func topicOf(number int) string { return string(rune('a' + number%2)) }

// A client reads an event stream. When that ends it reconnects to the next node
// that runs.
type client struct {
	scene *scene
	home  int
	late  bool // it subscribes topic "b" when it has connected

	mu   sync.Mutex // guards the fields below
	seen []sighting
	last [3]map[int]bool // the numbers that were seen of each publisher

	ended <-chan struct{} // closed when the newest connection has ended; nil: there was none
	at    int             // its node
}

// A sighting is an event that a client got, or a reset.
type sighting struct {
	publisher, number int
	reset             bool      // a reset, or the first connection
	topic             string    // of a reset; empty: all
	node              int       // to which the client was connected
	process           *process  // of that node
	joined, at        time.Time // when it was connected; when it got the event
}

func (c *client) hasSeen(publisher, number int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.last[publisher][number]
}

func (c *client) run(ctx context.Context) {
	id := ""
	for at := c.home; ctx.Err() == nil; at = (at + 1) % 3 {
		p := c.scene.node(at)
		if p == nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		c.listen(ctx, p, at, &id)
	}
}

func (c *client) listen(ctx context.Context, p *process, at int, id *string) {
	query := "?topic=a&topic=b"
	if c.late {
		query = "?topic=a&late=b"
	}
	req, err := http.NewRequestWithContext(ctx, "GET", p.url+"/live"+query, nil)
	if err != nil {
		c.scene.t.Error(err)
		return
	}
	req.Header.Set("Accept", "text/event-stream")
	if *id != "" {
		req.Header.Set("Last-Event-ID", *id)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	c.scene.note(fmt.Sprintf("a client of node %d joins node %d with %q", c.home, at, *id))
	ended := make(chan struct{})
	defer close(ended)
	c.mu.Lock()
	c.ended, c.at = ended, at
	c.mu.Unlock()
	here := sighting{node: at, process: p, joined: time.Now()}
	reset := here
	reset.reset = true
	if *id == "" {
		c.see(reset)
	}
	name, data := "", ""
	next := *id
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		field, value, _ := strings.Cut(lines.Text(), ": ")
		switch {
		case field == "id":
			next = value
		case field == "event":
			name = value
		case field == "data":
			data = value
		case field == "":
			*id = next
			switch {
			case name == "reset":
				c.scene.note(fmt.Sprintf("a client of node %d gets a reset of topic %q from node %d", c.home, data, at))
				reset.topic = data
				c.see(reset)
			case data != "":
				s := here
				fmt.Sscan(data, &s.publisher, &s.number)
				c.see(s)
			}
			name, data = "", ""
		}
	}
}

func (c *client) see(s sighting) {
	s.at = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, s)
	if !s.reset {
		if c.last[s.publisher] == nil {
			c.last[s.publisher] = make(map[int]bool)
		}
		c.last[s.publisher][s.number] = true
	}
}

// judge looks for events that clients have lost, or got twice or too late.
func (s *scene) judge() {
	lostAt := make(map[*process]int)
	var events, lost int
	var slowest time.Duration
	for _, c := range s.clients {
		last := make(map[[2]int]int) // of each publisher and topic, or with one order of all topics of each publisher
		for _, got := range c.seen {
			if got.reset {
				maps.DeleteFunc(last, func(key [2]int, _ int) bool { return got.topic == "" || got.topic == topicOf(key[1]) })
				continue
			}
			events++
			p := s.publishers[got.publisher]
			key, step := [2]int{got.publisher, got.number % 2}, 2
			if s.history && !c.late {
				key, step = [2]int{got.publisher}, 1
			}
			before, ok := last[key]
			last[key] = got.number
			if !ok {
				continue
			}
			if got.number <= before {
				s.t.Errorf("a client of node %d got event %d of publisher %d after event %d", c.home, got.number, got.publisher, before)
			}
			local := got.publisher == got.node
			if local {
				since := p.times[got.number]
				if got.joined.After(since) {
					since = got.joined
				}
				slowest = max(slowest, got.at.Sub(since))
			}
			for n := before + step; n < got.number; n += step {
				if r := p.results[n]; r == everywhere || r == here && local {
					lost++
					lostAt[got.process]++
					if local || s.history {
						s.t.Errorf("a client of node %d, at node %d, has lost event %d of publisher %d, between %d and %d", c.home, got.node, n, got.publisher, before, got.number)
					}
				}
			}
		}
	}
	for p, n := range lostAt {
		if s.gaps[p] == 0 {
			s.t.Errorf("clients of a node have lost %d events, and the node has noticed no gap", n)
		}
	}
	limit := localWithin
	if s.history {
		limit += logPatience
	}
	if slowest > limit {
		s.t.Errorf("a client got an event of its own node after %v, want it within %v", slowest, limit)
	}
	published, only := 0, 0
	for _, p := range s.publishers {
		for _, r := range p.results {
			published++
			if r != everywhere {
				only++
			}
		}
	}
	s.t.Logf("%d events, %d of them not for all nodes; %d were received by clients, %d were lost; the slowest reached a client of its own node after %v; it took %v until all was well, %s", published, only, events, lost, slowest, s.recovery.Round(time.Millisecond), s.recovered)
}
