package e2e

import (
	"context"
	_ "embed" // for the page
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

var (
	recoveries  = flag.Int("recoveries", 20, "how many seeds TestRecovery runs")
	recoverFrom = flag.Uint64("recover-from", 0, "the first seed of TestRecovery; with -recoveries 1 the only one")
)

// recoveriesAtOnce is how many seeds run at a time. A run mostly waits.
const recoveriesAtOnce = 10

// Everything between a server and a person's tabs fails: the network, proxies,
// servers, credentials, the tabs, and the clock. No tab loses an event silently.
// It gets each event of its topics once and in order, or a reset before later
// events. In the end every tab is connected and has the last events.
//
// A seed decides on the script of what fails, and on the setup. It doesn't decide
// on the time that a browser, a server and the network take. So a seed that has
// failed may need several runs to fail again.
//
//	go test -run TestRecovery -recoveries 20000 -timeout 0   # a night
func TestRecovery(t *testing.T) {
	t.Parallel()
	pool := &tabPool{T: t, browser: newBrowser(t)}
	var next, resets, restored, events atomic.Int64
	var running sync.WaitGroup
	for range recoveriesAtOnce {
		running.Go(func() {
			for !t.Failed() {
				n := next.Add(1) - 1
				if n >= int64(*recoveries) {
					return
				}
				seed := *recoverFrom + uint64(n)
				t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					r := newRecovery(t, pool, seed)
					defer func() {
						if t.Failed() {
							t.Logf("%s\nagain by: go test -run TestRecovery -recoveries 1 -recover-from %d", r, seed)
						}
					}()
					r.run()
					resets.Add(int64(r.count["reset"]))
					restored.Add(int64(r.count["restored"]))
					events.Add(int64(r.count["event"]))
				})
			}
		})
	}
	running.Wait()
	t.Logf("%d runs: %d events came, %d resets, %d pages were kept", min(next.Load(), int64(*recoveries)), events.Load(), resets.Load(), restored.Load())
}

// A recovery is one run.
type recovery struct {
	*testing.T
	pool *tabPool

	// Decided by the seed.
	transport string
	shared    bool
	tickets   bool               // a URL is good for one connection
	ending    bool               // the hub ends all connections for good at last
	engine    *brokertest.Memory // keeps the events; nil: the hub does
	topics    [][]string         // of each tab
	script    []recoveryStep

	site   *site
	proxy  *proxy
	tabs   []*recoveryTab // that are open
	closed []*recoveryTab
	count  map[string]int // entries of the tabs' records, by type

	refusal atomic.Int32 // the HTTP status; zero: none
	ticket  atomic.Int64 // the last one
	used    sync.Map     // tickets

	mu        sync.Mutex             // guards the fields below
	hub       *realtime.Hub          // nil: the server is down
	published map[string][]time.Time // when each topic's events were
	breaks    []time.Time            // when events were lost by intention
}

// A recoveryStep is a step of a script. n says how: on which tab, for how long.
type recoveryStep struct {
	kind  int // index in recoverySteps
	n     int
	pause time.Duration // after it
}

// recoverySteps are what may happen. A step of the network lasts until the next
// calm.
var recoverySteps = []struct {
	name string
	do   func(r *recovery, n int)
}{
	{"burst", func(r *recovery, n int) {
		for range n % 200 {
			r.publish(n)
		}
	}},
	{"cut", func(r *recovery, n int) { r.proxy.cut() }},
	{"cut after bytes", func(r *recovery, n int) { r.proxy.setLimit(func() int { return n % 3000 }) }},
	{"cut after a time", func(r *recovery, n int) { r.proxy.setLife(time.Duration(50+n%500) * time.Millisecond) }},
	{"swallow", func(r *recovery, n int) { r.proxy.unplug() }},
	{"calm", func(r *recovery, n int) { r.calm() }},
	{"restart", func(r *recovery, n int) { r.restart(n, false) }},
	{"crash", func(r *recovery, n int) { r.restart(n, true) }},
	{"replace", func(r *recovery, n int) { r.replace() }},
	{"forget", func(r *recovery, n int) { r.forget() }},
	{"refuse", func(r *recovery, n int) {
		r.refusal.Store(503)
		r.proxy.cut()
	}},
	{"expire", func(r *recovery, n int) { r.expire() }},
	{"new tab", func(r *recovery, n int) { r.open(r.topics[n%len(r.topics)]) }},
	{"close tab", func(r *recovery, n int) {
		tab := r.pick(n)
		if tab.suspended == "" {
			tab.record = eval[[]recoveryEntry](tab.tab, `record`)
		}
		tab.shut()
		r.closed = append(r.closed, tab)
		if r.tabs = slices.DeleteFunc(r.tabs, func(t *recoveryTab) bool { return t == tab }); len(r.tabs) == 0 {
			r.open(r.topics[0])
		}
	}},
	{"reload", func(r *recovery, n int) { r.pick(n).reload() }},
	{"freeze", func(r *recovery, n int) { r.pick(n).suspend("frozen") }},
	{"leave", func(r *recovery, n int) { r.pick(n).suspend("away") }},
	{"offline", func(r *recovery, n int) { r.pick(n).suspend("offline") }},
	{"wake", func(r *recovery, n int) { r.pick(n).wake() }},
	{"sleep", func(r *recovery, n int) {
		r.proxy.unplug()
		r.pick(n).act(`jump(3_600_000)`)
	}},
	{"clock back", func(r *recovery, n int) { r.pick(n).act(`jump(-3_600_000)`) }},
	{"lose posts", func(r *recovery, n int) { r.pick(n).act(fmt.Sprint(`losing = `, n%3 > 0)) }},
	{"reconnect", func(r *recovery, n int) { r.pick(n).act(`live.reconnect()`) }},
}

func newRecovery(t *testing.T, pool *tabPool, seed uint64) *recovery {
	rnd := rand.New(rand.NewPCG(seed, 1))
	r := &recovery{
		T: t, pool: pool, count: make(map[string]int), published: make(map[string][]time.Time),
		transport: []string{"websocket", "eventsource"}[seed%2],
		shared:    seed/2%2 == 1,
		tickets:   rnd.IntN(3) == 0,
		ending:    rnd.IntN(4) == 0,
	}
	if rnd.IntN(2) == 0 {
		r.engine = brokertest.NewMemory()
	}
	for range 1 + rnd.IntN(3) {
		r.topics = append(r.topics, slices.DeleteFunc([]string{"a", "b", "c"}, func(string) bool { return rnd.IntN(3) == 0 }))
	}
	for range 4 + rnd.IntN(6) {
		r.script = append(r.script, recoveryStep{rnd.IntN(len(recoverySteps)), rnd.IntN(1 << 30), time.Duration(rnd.IntN(4)*rnd.IntN(100)) * time.Millisecond})
	}
	return r
}

// String returns the setup and the script.
func (r *recovery) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, shared %v, tickets %v, ending %v, an engine %v, topics %q\n", r.transport, r.shared, r.tickets, r.ending, r.engine != nil, r.topics)
	for _, step := range r.script {
		fmt.Fprintf(&s, "\t%s %d, then %v\n", recoverySteps[step.kind].name, step.n, step.pause)
	}
	return s.String()
}

//go:embed testdata/recovery.html
var recoveryPage []byte

// fastScript is realtime.js with a fifth of its times, which suits a hub with a
// heartbeat a second.
var fastScript = sync.OnceValue(func() []byte {
	w := httptest.NewRecorder()
	realtime.Script().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	return regexp.MustCompile(`\b\d+e3\b|pause = \d+`).ReplaceAll(w.Body.Bytes(), []byte("$0 / 5"))
})

func (r *recovery) run() {
	r.site = newSite(r.T, "", nil)
	r.site.mux.HandleFunc("/recovery/{$}", func(w http.ResponseWriter, _ *http.Request) { w.Write(recoveryPage) })
	r.site.mux.HandleFunc("/recovery/realtime.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		w.Write(fastScript())
	})
	r.site.mux.HandleFunc("/ticket", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, r.ticket.Add(1)) })
	r.site.server.Config.SetKeepAlivesEnabled(false) // a browser may send a request twice if it uses a connection again
	r.proxy = newProxy(r.T, r.site.addr())
	r.proxy.setTap(func(down bool, b []byte) {
		if down {
			hasten(b)
		}
	})
	r.serve(r.newHub())
	r.breaks = nil
	r.Cleanup(func() { r.down().Shutdown(context.Background()) })

	stop := make(chan struct{})
	var publisher sync.WaitGroup
	publisher.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(rand.N(60 * time.Millisecond)):
				r.publish(rand.Int())
			}
		}
	})
	for _, topics := range r.topics {
		r.open(topics)
	}
	for _, step := range r.script {
		recoverySteps[step.kind].do(r, step.n)
		time.Sleep(step.pause)
	}
	close(stop)
	publisher.Wait()
	r.end()
}

// newHub returns a hub for the server.
func (r *recovery) newHub() *realtime.Hub {
	hub := realtime.NewHub()
	hub.History, hub.PingInterval = keep, time.Second
	hub.Logger = slog.New(slog.DiscardHandler)
	if r.engine != nil {
		hub.Broker = r.engine.HistoryBroker()
	}
	hub.OnConnect = func(c *realtime.Client, req *http.Request) error {
		query := req.URL.Query()
		if status := int(r.refusal.Load()); status != 0 {
			return realtime.Refuse(status, http.StatusText(status))
		}
		if _, used := r.used.LoadOrStore(query.Get("ticket"), true); used && r.tickets {
			return realtime.Refuse(401, "this ticket was used")
		}
		return c.Subscribe(append(query["topic"], "given")...)
	}
	return hub
}

// serve makes hub the server's.
func (r *recovery) serve(hub *realtime.Hub) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.engine == nil {
		r.breaks = append(r.breaks, time.Now())
	}
	r.hub = hub
	r.site.answer(hub.ServeHTTP)
}

// down takes the server's hub away and returns it.
func (r *recovery) down() *realtime.Hub {
	r.mu.Lock()
	defer r.mu.Unlock()
	hub := r.hub
	r.hub = nil
	r.site.answer(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "the server is down", http.StatusBadGateway)
	})
	return hub
}

func (r *recovery) restart(n int, crash bool) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if crash {
		cancel()
	}
	r.down().Shutdown(ctx)
	time.Sleep(time.Duration(n%300) * time.Millisecond)
	r.serve(r.newHub())
}

// replace starts a new server before the old one stops.
func (r *recovery) replace() {
	old := r.hub
	r.serve(r.newHub())
	old.Shutdown(r.Context())
}

// forget loses the history.
func (r *recovery) forget() {
	if r.engine == nil {
		r.replace()
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.breaks = append(r.breaks, time.Now())
	r.engine.Forget()
}

// expire ends the credentials of all who are connected.
func (r *recovery) expire() {
	for c := range r.hub.Clients() {
		c.ExpireAt(time.Now())
	}
}

// hasten makes the time that a hub tells to wait, of 1 to 9 s, less than 200 ms.
func hasten(b []byte) {
	for _, at := range retryInObject.FindAllIndex(b, -1) {
		copy(b[at[1]-4:], " 1")
	}
	for _, at := range retryField.FindAllIndex(b, -1) {
		copy(b[at[1]-4:], "01")
	}
}

var (
	retryInObject = regexp.MustCompile(`"retry":\d{4}`)
	retryField    = regexp.MustCompile(`retry: \d{4}`)
)

// calm ends what is wrong with the network and the server.
func (r *recovery) calm() {
	r.proxy.setLimit(nil)
	r.proxy.setLife(0)
	r.refusal.Store(0)
}

var recoveryTopics = []string{"a", "b", "c", "given", ""}

// publish publishes the next event of a topic.
func (r *recovery) publish(n int) {
	topic := recoveryTopics[n%len(recoveryTopics)]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hub == nil {
		return
	}
	r.published[topic] = append(r.published[topic], time.Now())
	data := fmt.Sprint(len(r.published[topic]), strings.Repeat(" ", n%1000))
	switch err := publishTo(r.hub, topic, realtime.Event{Data: []byte(data)}); {
	case errors.Is(err, realtime.ErrBrokerUnavailable): // it was too slow, on a busy machine
		r.breaks = append(r.breaks, time.Now())
	case err != nil:
		r.Errorf("publishing event %s to %q: %v", data, topic, err)
	}
}

// end lets all recover, and checks that it did. First it wakes all tabs: a frozen one
// that was about to join others may keep new ones from that.
func (r *recovery) end() {
	r.calm()
	for _, tab := range r.tabs {
		tab.act(`losing = false`)
	}
	deadline := time.Now().Add(patience)
	for lag := r.tabs; len(lag) > 0; {
		if time.Now().After(deadline) {
			for _, tab := range lag {
				r.Errorf("%s doesn't recover: %s", tab.name, eval[string](tab.tab, `live.state + JSON.stringify(record.slice(-8))`))
			}
			return
		}
		for i := range recoveryTopics {
			r.publish(i)
		}
		lag = slices.DeleteFunc(slices.Clone(r.tabs), r.recovered)
	}
	r.proxy.bury()
	want := len(r.tabs)
	if r.shared {
		want = 1
	}
	for r.hub.ClientCount() != want {
		if time.Now().After(deadline) {
			r.Errorf("the hub has %d clients, want %d", r.hub.ClientCount(), want)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	if r.ending {
		r.refusal.Store(403)
		r.proxy.cut()
	}
	for _, tab := range r.tabs {
		if r.ending {
			tab.until(`live.state === "closed"`)
		}
		tab.record = eval[[]recoveryEntry](tab.tab, `record`)
	}
	for _, tab := range append(r.closed, r.tabs...) {
		tab.check(r)
	}
	for _, tab := range r.tabs {
		tab.act(`live.close()`)
		r.pool.put(tab.tab)
	}
}

// recovered reports whether a tab has the last events, or gets them soon.
func (r *recovery) recovered(tab *recoveryTab) bool {
	numbers := make(map[string]int)
	for topic, events := range r.published {
		if tab.has(topic) {
			numbers[topic] = len(events)
		}
	}
	want, _ := json.Marshal(numbers)
	got, err := chromedp.Run(tab.ctx, chromedp.Evaluate[bool](fmt.Sprintf(`until(%s)`, want), chromedp.EvalAwaitPromise))
	if err != nil {
		r.Fatal(err)
	}
	return got
}
