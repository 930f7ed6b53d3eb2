package realtime_test

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// members returns a topic's members, sorted, as key=data.
func members(hub *realtime.Hub, topic string) string {
	var all []string
	for m := range hub.Members(topic) {
		all = append(all, m.Key+"="+string(m.Data))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// lobby makes each client of a hub appear in the topic lobby, under the name in
// its URL.
func lobby(hub *realtime.Hub) {
	hub.History.Events = 100
	hub.PingInterval, hub.WriteTimeout = -1, time.Hour // clients that don't read stay
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		q := r.URL.Query()
		if err := c.Subscribe("lobby"); err != nil && !errors.Is(err, realtime.ErrBrokerUnavailable) {
			return err
		}
		if user := q.Get("user"); user != "" {
			var data any
			if status := q.Get("status"); status != "" {
				data = status
			}
			if err := c.Appear("lobby", user, data); err != nil {
				return err
			}
		}
		if q.Has("refused") {
			return realtime.Refuse(403, "no")
		}
		c.Set("name", q.Get("name"))
		return nil
	}
}

// drained reads all that comes to a client, so that it stays.
func drained(c resumer) resumer {
	go func() {
		for {
			if _, err := c.event(); err != nil {
				return
			}
		}
	}()
	return c
}

// A user with several tabs is there once, leaves with the last, and not while
// reloading.
func TestAppear(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		lobby(hub)
		s := newPipeSite(t, hub)
		watcher := join(s, "")
		first := drained(join(s, "user=ann"))
		expect(t, watcher, `{"key":"ann"}`+"presence")
		var tabs []resumer
		for range 4 {
			tabs = append(tabs, drained(join(s, "user=ann")))
		}
		bob := drained(join(s, "user=bob&status=away"))
		expect(t, watcher, `{"key":"bob","data":"away"}`+"presence")
		late := join(s, "")
		expect(t, late, `{"key":"ann"}`+"presence", `{"key":"bob","data":"away"}`+"presence") // the whole list
		if got := members(hub, "lobby"); got != `ann= bob="away"` {
			t.Errorf("the members are %s", got)
		}
		if got := latest(hub, "lobby"); got != nil {
			t.Errorf("members count as values: %q", got)
		}
		bob.cut()
		time.Sleep(9 * time.Second)
		drained(join(s, "user=bob&status=away")) // it has reloaded
		first.cut()
		for _, tab := range tabs[1:] {
			tab.cut()
		}
		time.Sleep(15 * time.Second)
		tabs[0].cut()
		left := time.Now()
		expect(t, watcher, `{"key":"ann","gone":true}`+"presence")
		if d := time.Since(left); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("ann left after %v", d)
		}
		drained(join(s, "user=bob&status=here"))
		expect(t, watcher, `{"key":"bob","data":"here"}`+"presence")
		if got := members(hub, "lobby"); got != `bob="here"` {
			t.Errorf("the members are %s", got)
		}
	})
}

// What a client shows that OnConnect refuses is shown to nobody, also under the key
// of a member that is there.
func TestAppearRefused(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		lobby(hub)
		s := newPipeSite(t, hub)
		drained(join(s, "user=ann&status=here"))
		synctest.Wait()
		s.url += "?user=ann&status=forged&refused"
		if resp := s.refused(); resp.StatusCode != 403 {
			t.Errorf("answered with %s, want 403", resp.Status)
		}
		synctest.Wait()
		if got := members(hub, "lobby"); got != `ann="here"` {
			t.Errorf("the members are %s", got)
		}
	})
}

// Who is refused was never there. Who leaves the topic isn't shown in it.
func TestAppearAndLeaveTheTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		lobby(hub)
		hub.LeaveAfter = -1
		s := newPipeSite(t, hub)
		watcher := s.listen("")
		if l := s.request("GET", "user=eve&refused", "Accept: text/event-stream"); l.resp.StatusCode != 403 {
			t.Errorf("eve got %s", l.resp.Status)
		}
		time.Sleep(5 * time.Second)
		drained(s.listen("user=ann&name=ann"))
		if got := watcher.next(); got != `{"key":"ann"}` {
			t.Errorf("got %s", got)
		}
		var ann *realtime.Client
		for c := range hub.Clients() {
			if name, _ := c.Get("name"); name == "ann" {
				ann = c
			}
		}
		for _, err := range []error{
			ann.Appear("lobby", "", nil), ann.Appear("lobby", "\xff", nil), ann.Appear("lobby", strings.Repeat("x", 1025), nil),
			ann.Appear("elsewhere", "ann", nil), ann.Appear("lobby", "ann", func() {}),
		} {
			if err == nil {
				t.Error("there is no error")
			}
		}
		ann.Appear("lobby", "ann", map[string]int{"x": 1})
		if got := watcher.next(); got != `{"key":"ann","data":{"x":1}}` {
			t.Errorf("got %s", got)
		}
		ann.Unsubscribe("lobby")
		if got := watcher.next(); got != `{"key":"ann","gone":true}` {
			t.Errorf("got %s", got)
		}
		ann.Close(1000, "")
		synctest.Wait()
		if err := ann.Appear("lobby", "ann", nil); err != realtime.ErrClientClosed {
			t.Errorf("Appear of a client that is gone: %v", err)
		}
		if got := members(hub, "lobby"); got != "" {
			t.Errorf("the members are %s", got)
		}
	})
}

func TestAppearWithoutHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var got error
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			c.Subscribe("a")
			got = c.Appear("a", "x", nil)
			return nil
		}
		newPipeSite(t, hub).connect()
		if got == nil || !strings.Contains(got.Error(), "History") {
			t.Errorf("Appear: %v", got)
		}
	})
}

// The envelope has the member's key, and says that it is gone.
func TestPresenceInEnvelope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.PingInterval = -1
		lobby(hub)
		s := newPipeSite(t, hub)
		conn := s.connectAs("user=ann", realtime.Subprotocol)
		for {
			var got struct{ Topic, Event, Key, Data string }
			if err := json.Unmarshal([]byte(read(t, conn)), &got); err != nil {
				t.Fatal(err)
			}
			if got.Data != "" {
				if got.Topic != "lobby" || got.Event != "presence" || got.Key != "ann" || got.Data != `{"key":"ann"}` {
					t.Errorf("got %+v", got)
				}
				return
			}
		}
	})
}

// A crashingBroker is a node's broker that stops to work at once when its node
// crashes.
type crashing struct {
	mu   sync.Mutex
	dead bool
}

func (c *crashing) crash() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dead = true
}

func (c *crashing) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

type crashingBroker struct {
	realtime.Broker
	node *crashing
}

func (b crashingBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	if b.node.isDead() {
		return brokertest.ErrStopped
	}
	return b.Broker.Publish(ctx, topic, msg)
}

type crashingLog struct {
	realtime.HistoryBroker
	node *crashing
}

func (b crashingLog) Publish(ctx context.Context, topic string, msg []byte) error {
	return crashingBroker{b.HistoryBroker, b.node}.Publish(ctx, topic, msg)
}

func (b crashingLog) Append(ctx context.Context, record []byte) error {
	if b.node.isDead() {
		return brokertest.ErrStopped
	}
	return b.HistoryBroker.Append(ctx, record)
}

func (b crashingLog) Trim(ctx context.Context, epoch string, before uint64) error {
	if b.node.isDead() {
		return brokertest.ErrStopped
	}
	return b.HistoryBroker.Trim(ctx, epoch, before)
}

// lobbyNode returns a node with the lobby on an engine.
func lobbyNode(t *testing.T, engine *brokertest.Memory, history bool) (*site, *crashing) {
	hub, node := realtime.NewHub(), new(crashing)
	lobby(hub)
	if history {
		hub.Broker = crashingLog{engine.HistoryBroker(), node}
	} else {
		hub.Broker = crashingBroker{engine.Broker(), node}
	}
	return newPipeSite(t, hub), node
}

func eachEngine(t *testing.T, test func(t *testing.T, engine *brokertest.Memory, history bool)) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprintf("history=%v", history), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, brokertest.NewMemory(), history) })
		})
	}
}

// A user on two nodes is there once. When a node dies, its members leave soon, but
// not before it counts as gone.
func TestPresenceOnNodes(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
		first, _ := lobbyNode(t, engine, history)
		second, crashed := lobbyNode(t, engine, history)
		watchers := []*listener{first.listen(""), second.listen("")}
		next := func(want ...string) {
			t.Helper()
			for i, w := range watchers {
				for _, want := range want {
					if got := w.next(); got != want {
						t.Errorf("the watcher on node %d got %s, want %s", i, got, want)
					}
				}
			}
		}
		ann := drained(first.listen("user=ann"))
		next(`{"key":"ann"}`)
		synctest.Wait()
		drained(second.listen("user=ann"))
		drained(second.listen("user=bob"))
		next(`{"key":"bob"}`)
		ann.cut()
		time.Sleep(15 * time.Second)
		drained(first.listen("user=cid"))
		next(`{"key":"cid"}`) // ann has not left
		third, _ := lobbyNode(t, engine, history)
		watchers = append(watchers, third.listen(""))
		seen := map[string]bool{}
		for range 3 {
			seen[watchers[2].next()] = true
		}
		if len(seen) != 3 {
			t.Errorf("a client of a new node got %v", seen)
		}
		for i, s := range []*site{first, second, third} {
			if got := members(s.hub, "lobby"); got != "ann= bob= cid=" {
				t.Errorf("node %d has the members %s", i, got)
			}
		}
		crashed.crash()
		began := time.Now()
		watchers = []*listener{watchers[0], watchers[2]}
		gone := map[string]bool{}
		for range 2 {
			for _, w := range watchers {
				gone[w.next()] = true
			}
		}
		if d := time.Since(began); d < 8*time.Second || d > 40*time.Second { // nodes draw who takes them away
			t.Errorf("the node's members left after %v", d)
		}
		if fmt.Sprint(gone) != `map[{"key":"ann","gone":true}:true {"key":"bob","gone":true}:true]` {
			t.Errorf("the watchers got %v", gone)
		}
		for i, s := range []*site{first, third} {
			if got := members(s.hub, "lobby"); got != "cid=" {
				t.Errorf("node %d has the members %s", i, got)
			}
		}
	})
}

// When the node leaves whose data is shown, the data of another node is shown.
func TestPresenceDataOfTheOtherNode(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
		first, _ := lobbyNode(t, engine, history)
		second, _ := lobbyNode(t, engine, history)
		watchers := []*listener{first.listen(""), second.listen("")}
		next := func(want string) {
			t.Helper()
			for i, w := range watchers {
				if got := w.next(); got != want {
					t.Errorf("the watcher on node %d got %s, want %s", i, got, want)
				}
			}
		}
		drained(first.listen("user=ann&status=here"))
		next(`{"key":"ann","data":"here"}`)
		phone := drained(second.listen("user=ann&status=away"))
		next(`{"key":"ann","data":"away"}`)
		phone.cut()
		next(`{"key":"ann","data":"here"}`)
		for i, s := range []*site{first, second} {
			if got := members(s.hub, "lobby"); got != `ann="here"` {
				t.Errorf("node %d has the members %s", i, got)
			}
		}
	})
}

// Clients of a node that shuts down have LeaveAfter to come to another one.
func TestPresenceWhileANodeIsReplaced(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
		first, _ := lobbyNode(t, engine, history)
		second, _ := lobbyNode(t, engine, history)
		second.hub.LeaveAfter = 30 * time.Second
		watcher := second.listen("")
		drained(first.listen("user=ann"))
		drained(first.listen("user=bob"))
		watcher.next()
		watcher.next()
		if err := first.hub.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		left := time.Now()
		time.Sleep(20 * time.Second)
		drained(second.listen("user=ann"))
		if got := watcher.next(); got != `{"key":"bob","gone":true}` {
			t.Errorf("the watcher got %s", got)
		}
		if d := time.Since(left); d < 29*time.Second {
			t.Errorf("bob left after %v", d)
		}
		if got := members(second.hub, "lobby"); got != "ann=" {
			t.Errorf("the members are %s", got)
		}
	})
}

// So they have with a node that was started in the meantime: it may never have heard
// of theirs.
func TestPresenceWhileANodeStarts(t *testing.T) {
	for _, crash := range []bool{false, true} {
		eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
			first, crashed := lobbyNode(t, engine, history)
			second, _ := lobbyNode(t, engine, history)
			second.hub.LeaveAfter = 30 * time.Second
			watcher := second.listen("")
			drained(first.listen("user=ann"))
			watcher.next()
			time.Sleep(3 * time.Second)
			if crash {
				crashed.crash()
			} else if err := first.hub.Shutdown(t.Context()); err != nil {
				t.Fatal(err)
			}
			left := time.Now()
			time.Sleep(time.Second)
			third, _ := lobbyNode(t, engine, history)
			third.hub.LeaveAfter = 30 * time.Second
			drained(third.listen(""))
			if got := watcher.next(); got != `{"key":"ann","gone":true}` {
				t.Errorf("the watcher got %s", got)
			}
			if d := time.Since(left); d < 28*time.Second || d > 36*time.Second {
				t.Errorf("crash=%v: ann left after %v", crash, d)
			}
		})
	}
}

// stays checks that a watcher gets no more events, until the function that it returns
// is called.
func stays(t *testing.T, watcher *listener) (end func()) {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			ev, err := watcher.event()
			if err != nil {
				return
			}
			t.Errorf("a client was told %s", ev.data)
		}
	}()
	return func() {
		watcher.cut()
		<-ended
	}
}

// While the engine is away no heartbeats come. Nobody leaves because of that, nor when
// it is back.
func TestPresenceAfterAnOutage(t *testing.T) {
	for phase := range 20 { // of the nodes' heartbeats
		eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
			first, _ := lobbyNode(t, engine, history)
			watcher := first.listen("")
			time.Sleep(time.Duration(phase) * 100 * time.Millisecond)
			second, _ := lobbyNode(t, engine, history)
			drained(second.listen("user=ann"))
			watcher.next()
			time.Sleep(5 * time.Second)
			end := stays(t, watcher)
			engine.Stop()
			time.Sleep(30 * time.Second)
			engine.Start()
			time.Sleep(30 * time.Second)
			end()
			if got := members(first.hub, "lobby"); got != "ann=" {
				t.Errorf("the members are %s", got)
			}
		})
	}
}

// Behind a reset that a connected page gets, all members follow, as docs/presence.md
// says: the page has forgotten them.
func TestPresenceBehindAReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		first, _ := lobbyNode(t, engine, true)
		watcher := first.listen("")
		drained(first.listen("user=ann"))
		watcher.next()
		time.Sleep(5 * time.Second)
		engine.Forget()
		ev, err := watcher.event()
		if err != nil || ev.name != "reset" {
			t.Fatalf("the watcher got %+v, %v", ev, err)
		}
		got := make(chan string, 1)
		go func() {
			ev, _ := watcher.event()
			got <- ev.data
		}()
		time.Sleep(time.Minute)
		watcher.cut()
		if got := <-got; got != `{"key":"ann"}` {
			t.Errorf("behind the reset the watcher got %q", got)
		}
	})
}

// A deafLog is a node's broker whose heartbeats from other nodes don't come until it
// hears.
type deafLog struct {
	realtime.HistoryBroker
	hears *atomic.Bool
}

func (b deafLog) Subscribe(ctx context.Context, topic string) error {
	if !b.hears.Load() {
		return brokertest.ErrStopped
	}
	return b.HistoryBroker.Subscribe(ctx, topic)
}

// A node that reads the history and can't hear heartbeats takes nobody away.
func TestPresenceWithoutHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		first, crashed := lobbyNode(t, engine, true)
		drained(first.listen("user=ann"))
		time.Sleep(5 * time.Second)
		hears := new(atomic.Bool)
		hub := realtime.NewHub()
		lobby(hub)
		hub.Broker = deafLog{engine.HistoryBroker(), hears}
		watcher := newPipeSite(t, hub).listen("")
		watcher.next()
		end := stays(t, watcher)
		time.Sleep(time.Minute)
		hears.Store(true)
		time.Sleep(time.Minute)
		end()
		crashed.crash()
		time.Sleep(20 * time.Second)
		if got := members(hub, "lobby"); got != "" {
			t.Errorf("the members are %s", got)
		}
	})
}

// Members of nodes that have all ended are not there when a node starts.
func TestPresenceOfADeadCluster(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
		first, crashed := lobbyNode(t, engine, history)
		drained(first.listen("user=ann"))
		time.Sleep(time.Second)
		crashed.crash()
		time.Sleep(time.Minute)
		second, _ := lobbyNode(t, engine, history)
		drained(second.listen("user=bob"))
		time.Sleep(20 * time.Second)
		if got := members(second.hub, "lobby"); got != "bob=" {
			t.Errorf("the members are %s", got)
		}
	})
}

// Whatever happens to nodes, their clients and the engine, in the end all nodes
// know who is there, and so do the clients that were told.
func TestPresenceSimulation(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprintf("history=%v", history), func(t *testing.T) {
			t.Parallel()
			for seed := *simulateFrom; seed < *simulateFrom+uint64(*simulations); seed++ {
				synctest.Test(t, func(t *testing.T) { simulatePresence(t, seed, history) })
				if t.Failed() {
					t.Logf("again by: go test -run 'TestPresenceSimulation/history=%v' -simulations 1 -simulate-from %d", history, seed)
					return
				}
			}
		})
	}
}

// A presenceTab is a client that appears, or one that only watches.
type presenceTab struct {
	node int
	user string
	conn *listener

	mu    sync.Mutex // guards the fields below
	sees  map[string]bool
	reset bool
}

// watch is the body of the goroutine that reads a connection.
func (tab *presenceTab) watch() {
	for {
		ev, err := tab.conn.event()
		if err != nil {
			return
		}
		tab.mu.Lock()
		var m struct {
			Key  string
			Gone bool
		}
		if ev.name == "reset" {
			tab.reset = true
		} else if json.Unmarshal([]byte(ev.data), &m) == nil {
			if tab.sees[m.Key] = true; m.Gone {
				delete(tab.sees, m.Key)
			}
		}
		tab.mu.Unlock()
	}
}

func simulatePresence(t *testing.T, seed uint64, history bool) {
	rnd := rand.New(rand.NewPCG(seed, 2))
	engine := brokertest.NewMemory()
	var sites [3]*site
	var nodes [3]*crashing
	var drops [3]*simNode
	var tabs []*presenceTab
	var trace []string
	start := time.Now()
	note := func(format string, args ...any) {
		trace = append(trace, fmt.Sprintf("%8v %s", time.Since(start), fmt.Sprintf(format, args...)))
	}
	boot := func(i int) {
		hub := realtime.NewHub()
		lobby(hub)
		nodes[i], drops[i] = new(crashing), new(simNode)
		if history {
			hub.History.Age = cmp.Or(time.Duration(rnd.IntN(2))*10*time.Second, time.Hour)
			hub.Broker = crashingLog{engine.HistoryBroker(), nodes[i]}
		} else {
			hub.Broker = simBroker{crashingBroker{engine.Broker(), nodes[i]}, drops[i]}
		}
		sites[i] = newPipeSite(t, hub)
	}
	join := func(i int, user string) {
		tab := &presenceTab{node: i, user: user, conn: sites[i].listen("user=" + user), sees: make(map[string]bool)}
		go tab.watch()
		tabs = append(tabs, tab)
	}
	for i := range sites {
		boot(i)
		join(i, "")
	}
	for range 20 + rnd.IntN(30) {
		switch i := rnd.IntN(3); rnd.IntN(12) {
		case 0, 1, 2, 3:
			user := fmt.Sprint("u", rnd.IntN(4))
			note("%s joins at node %d", user, i)
			join(i, user)
		case 4, 5, 6:
			if k := rnd.IntN(len(tabs)); tabs[k].user != "" {
				note("%s leaves node %d", tabs[k].user, tabs[k].node)
				tabs[k].conn.cut()
				tabs = slices.Delete(tabs, k, k+1)
			}
		case 7:
			note("the engine stops")
			engine.Stop()
		case 8:
			note("the engine starts")
			engine.Start()
		case 9:
			if !history {
				note("node %d loses messages", i)
				drops[i].drop.Store(int64(1 + rnd.IntN(4)))
			}
		case 10:
			crash := rnd.IntN(2) == 0
			note("node %d is restarted, crash %v", i, crash)
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if crash {
				nodes[i].crash()
				drops[i].dead.Store(true)
				cancel()
			}
			sites[i].hub.Shutdown(ctx)
			cancel()
			tabs = slices.DeleteFunc(tabs, func(tab *presenceTab) bool { return tab.node == i })
			boot(i)
			join(i, "")
		case 11:
			d := time.Duration(rnd.IntN(30)) * time.Second
			note("%v pass", d)
			time.Sleep(d)
		}
		if rnd.IntN(2) == 0 {
			time.Sleep(time.Duration(rnd.IntN(2000)) * time.Millisecond)
		}
		synctest.Wait()
	}
	note("the end")
	engine.Start()
	for i := range drops {
		drops[i].drop.Store(0)
	}
	time.Sleep(time.Minute)
	synctest.Wait()
	there := map[string]bool{}
	for _, tab := range tabs {
		if tab.user != "" {
			there[tab.user] = true
		}
	}
	want := slices.Sorted(maps.Keys(there))
	for i, s := range sites {
		var got []string
		for m := range s.hub.Members("lobby") {
			got = append(got, m.Key)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("node %d has the members %q, want %q", i, got, want)
		}
	}
	for _, tab := range tabs {
		tab.mu.Lock()
		if got := slices.Sorted(maps.Keys(tab.sees)); !tab.reset && !slices.Equal(got, want) {
			t.Errorf("a client of node %d (%q) sees %q, want %q", tab.node, tab.user, got, want)
		}
		tab.mu.Unlock()
	}
	if t.Failed() {
		t.Logf("seed %d:\n%s", seed, strings.Join(trace, "\n"))
	}
	for _, tab := range tabs {
		tab.conn.cut()
	}
}

// A meter counts the bytes and the messages that nodes give to their engine.
type meter struct{ bytes, messages atomic.Int64 }

func (m *meter) count(b []byte) {
	m.bytes.Add(int64(len(b)))
	m.messages.Add(1)
}

func (m *meter) reset() (bytes, messages int64) { return m.bytes.Swap(0), m.messages.Swap(0) }

type meteredBroker struct {
	realtime.Broker
	*meter
}

func (b meteredBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	b.count(msg)
	return b.Broker.Publish(ctx, topic, msg)
}

type meteredLog struct {
	realtime.HistoryBroker
	*meter
}

func (b meteredLog) Publish(ctx context.Context, topic string, msg []byte) error {
	b.count(msg)
	return b.HistoryBroker.Publish(ctx, topic, msg)
}

func (b meteredLog) Append(ctx context.Context, record []byte) error {
	b.count(record)
	return b.HistoryBroker.Append(ctx, record)
}

// Members cost the engine bytes when they come, and next to none while nothing
// happens. With -v it tells how many.
func TestPresenceCost(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				engine := brokertest.NewMemory()
				m := new(meter)
				var clients []*realtime.Client
				var hubs []*realtime.Hub
				for range 2 {
					hub := realtime.NewHub()
					lobby(hub)
					hub.SendBuffer = 10_000
					hub.Broker = meteredBroker{engine.Broker(), m}
					if history {
						hub.Broker = meteredLog{engine.HistoryBroker(), m}
					}
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
						clients = append(clients, c)
						return c.Subscribe("lobby")
					}
					hubs = append(hubs, hub)
					drained(newPipeSite(t, hub).listen(""))
				}
				const minutes = 60
				time.Sleep(time.Minute)
				m.reset()
				time.Sleep(time.Hour)
				alone, _ := m.reset()
				members := 0
				come := func(n int) {
					for range n {
						if err := clients[members%2].Appear("lobby", fmt.Sprintf("user-%06d", members), nil); err != nil {
							t.Fatal(err)
						}
						members++
					}
					time.Sleep(10 * time.Second)
				}
				come(1000)
				bytes, messages := m.reset()
				t.Logf("1,000 members that come: %d bytes in %d messages", bytes, messages)
				if bytes > 1000*150 {
					t.Errorf("1,000 members cost %d bytes when they come", bytes)
				}
				come(9000)
				for _, hub := range hubs {
					n := 0
					for range hub.Members("lobby") {
						n++
					}
					if n != members {
						t.Fatalf("%d members are there, want %d", n, members)
					}
				}
				time.Sleep(2 * time.Hour) // until the log is tidy
				m.reset()
				time.Sleep(10 * time.Hour)
				bytes, messages = m.reset()
				t.Logf("10,000 members, while nothing happens: %d bytes in %d messages a minute; without members %d bytes", bytes/10/minutes, messages/10/minutes, alone/minutes)
				if bytes/10 > 2*alone+1<<20 {
					t.Errorf("10,000 members cost %d bytes an hour while nothing happens", bytes/10)
				}
			})
		})
	}
}

// A page that has reconnected and subscribes a topic only then gets all members,
// also one that has appeared on a second node since.
func TestMembersOfALaterTopic(t *testing.T) {
	eachEngine(t, func(t *testing.T, engine *brokertest.Memory, history bool) {
		first, _ := lobbyNode(t, engine, history)
		second, _ := lobbyNode(t, engine, history)
		watched := realtime.NewHub()
		watched.History.Events = 100
		client := byName(watched)
		if watched.Broker = engine.Broker(); history {
			watched.Broker = engine.HistoryBroker()
		}
		third := newPipeSite(t, watched)
		third.listen("topic=lobby") // so the node has the topic
		drained(first.listen("user=ann"))
		drained(first.listen("user=bob"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		id := watched.Position()
		drained(second.listen("user=ann"))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		c := third.listen("name=c&lastEventId=" + id)
		subscribe(t, client("c"), "lobby")
		publish(t, watched, "lobby", "end")
		expect(t, c, `{"key":"bob"}`+"presence", `{"key":"ann"}`+"presence", "end")
	})
}
