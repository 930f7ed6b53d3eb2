package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// share connects the tab to /live and returns before it is open. topics are
// those of the tab.
func (tab *tab) share(url, transport string, topics ...string) {
	tab.Helper()
	tab.open(url)
	tab.run(fmt.Sprintf(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", %s);`+watch,
		options(transport, fmt.Sprintf(`shared: true, topics: %q.split(",").filter(Boolean)`, strings.Join(topics, ",")))))
}

// has waits until the hub has n clients, each with a number of topics.
func (s *site) has(n, topics int) {
	s.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var of []int
		for c := range s.hub.Clients() {
			of = append(of, len(c.Topics()))
		}
		if slices.Equal(of, slices.Repeat([]int{topics}, n)) {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the hub's clients have %d topics, want %d clients with %d", of, n, topics)
		}
	}
}

// TestScriptShared checks that eight tabs have one connection, and that each gets
// every event once, on its own topics and on those that OnConnect adds.
func TestScriptShared(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		heard := make(chan string, 10)
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { heard <- string(msg.Data) }
		})
		site.publishEvent("a", realtime.Event{Key: "k", Data: []byte("latest")})
		group := newProfile(t, browser)
		tabs := make([]*tab, 8)
		for i := range tabs {
			tabs[i] = newTabIn(t, group, fmt.Sprintf("tab%d-%s", i, transport))
			tabs[i].share(site.server.URL, transport, "a", fmt.Sprint("own", i))
		}
		for _, tab := range tabs {
			tab.until(`live.state === "open" && live.lastEventId !== ""`)
		}
		site.has(1, 1+len(tabs))
		for i := range 100 {
			site.publish("a", "", fmt.Sprint("all ", i))
			site.publish(fmt.Sprint("own", i%8), "", fmt.Sprint("own ", i))
			site.publish("", "", fmt.Sprint("everybody ", i))
		}
		for n, tab := range tabs {
			want := []string{"latest"}
			for i := range 100 {
				want = append(want, fmt.Sprint("all ", i))
				if i%8 == n {
					want = append(want, fmt.Sprint("own ", i))
				}
				want = append(want, fmt.Sprint("everybody ", i))
			}
			tab.until(fmt.Sprintf(`got.length >= %d`, len(want)))
			if got := eval[[]string](tab, `got`); !slices.Equal(got, want) {
				t.Errorf("%s got %q, want %q", tab.name, got, want)
			}
			if got := eval[string](tab, `live.id + live.transport`); got != transport {
				t.Errorf("%s has the id and the transport %q", tab.name, got)
			}
			tab.tells("open")
			if transport == "websocket" {
				eval[chromedp.Void](tab, fmt.Sprintf(`live.send("from %d")`, n))
				if got := <-heard; got != fmt.Sprint("from ", n) {
					t.Errorf("the hub heard %q, want what tab %d has sent", got, n)
				}
			}
		}
	})
}

// TestScriptSharedTabsClose closes tabs again and again, and opens others, while
// the network fails and publishers go on. Each tab gets every event once and in
// order.
func TestScriptSharedTabsClose(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		proxy := newProxy(t, site.addr())
		group := newProfile(t, browser)
		stop := make(chan struct{})
		published := 0
		var publisher sync.WaitGroup
		publisher.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond):
				}
				if err := publishTo(site.hub, []string{"a", "b"}[published%2], realtime.Event{Data: fmt.Append(nil, published)}); err != nil {
					t.Error(err)
					return
				}
				published++
			}
		})
		var tabs []*tab
		open := func() {
			tab := newTabIn(t, group, fmt.Sprintf("tab%d-%s", len(tabs), transport))
			tab.expectOutage(true)
			tab.share(proxy.url, transport, "a", "b", fmt.Sprint("c", len(tabs)%2))
			tab.until(`live.state === "open" && got.length > 0`)
			tabs = append(tabs, tab)
		}
		const most = 4
		for range most {
			open()
		}
		for i := range 8 {
			oldest := tabs[len(tabs)-most] // mostly the one with the connection
			switch i % 4 {
			case 0:
				oldest.shut() // as by its button
			case 1:
				oldest.crash()
			case 2:
				eval[chromedp.Void](oldest, `live.close()`)
			case 3:
				proxy.cut()
				oldest.shut()
			}
			open()
		}
		close(stop)
		publisher.Wait()
		last := fmt.Sprint(published - 1)
		for _, tab := range tabs[len(tabs)-most:] {
			tab.until(fmt.Sprintf(`got.at(-1) === %q`, last))
			got := eval[[]string](tab, `got`)
			var first int
			fmt.Sscan(got[0], &first)
			for i, data := range got {
				if data != fmt.Sprint(first+i) {
					t.Fatalf("%s: event %d of %d is %s, want %d", tab.name, i, len(got), data, first+i)
				}
			}
			if told := eval[[]string](tab, `told`); slices.Contains(told, "reset") {
				t.Errorf("%s got a reset: %q", tab.name, told)
			}
			t.Logf("%s: %d of %d events, told %q", tab.name, len(got), published, eval[[]string](tab, `told`))
		}
		site.has(1, 4)
	})
}

// TestScriptSharedFrozen freezes the tab that has the connection, as a browser
// does with tabs in the background. The others notice by the hub's silence, and
// what was missed comes to all.
func TestScriptSharedFrozen(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History, hub.PingInterval = keep, time.Second })
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 3 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.expectOutage(true) // its connection ends
			tab.share(site.server.URL, transport, "a")
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tabs = append(tabs, tab)
		}
		site.has(1, 1)
		tabs[0].freeze(true)
		site.publish("a", "", "1")
		for _, tab := range tabs[1:] {
			tab.until(`got.join() === "1"`)
		}
		tabs[0].freeze(false)
		site.publish("a", "", "2")
		for _, tab := range tabs {
			tab.until(`got.at(-1) === "2"`)
			if got := eval[string](tab, `got.join()`); got != "1,2" {
				t.Errorf("%s got %s, want 1,2", tab.name, got)
			}
		}
		site.has(1, 1)
	})
}

// TestScriptSharedRestart restarts the server of tabs that share a connection.
func TestScriptSharedRestart(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		setup := func(hub *realtime.Hub) { hub.History = keep }
		site := newSite(t, "", setup)
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 3 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.expectOutage(true)
			tab.share(site.server.URL, transport, "a", fmt.Sprint("own", i))
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tabs = append(tabs, tab)
		}
		site.has(1, 4)
		site.stop()
		for _, tab := range tabs {
			tab.tells("open", "close 1001")
		}
		site = newSite(t, site.addr(), setup)
		for _, tab := range tabs {
			tab.tells("open", "close 1001", "open", "reset")
		}
		site.publish("a", "", "1")
		for i, tab := range tabs {
			site.publish(fmt.Sprint("own", i), "", "2")
			tab.until(`got.join() === "1,2"`)
		}
		site.has(1, 4)
	})
}

// TestScriptSharedRefused closes the connection of several tabs for good. Each
// learns why. A tab that OnConnect refuses doesn't take the others with it.
func TestScriptSharedRefused(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		var banned atomic.Bool
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
				topics := r.URL.Query()["topic"]
				if banned.Load() || slices.Contains(topics, "secret") {
					return realtime.Refuse(403, "not you")
				}
				return c.Subscribe(topics...)
			}
		})
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 3 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.share(site.server.URL, transport, "a", fmt.Sprint("own", i))
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tabs = append(tabs, tab)
		}
		site.has(1, 4)
		refused := newTabIn(t, profile, "refused-"+transport)
		refused.share(site.server.URL, transport, "secret")
		refused.tells("close 4403 final")
		site.has(1, 4)
		banned.Store(true)
		for c := range site.hub.Clients() {
			c.Close(4403, "banned")
		}
		for _, tab := range tabs {
			tab.until(`live.state === "closed"`)
			if got := eval[string](tab, `told.at(-1)`); got != "close 4403 final" {
				t.Errorf("%s was told %q", tab.name, got)
			}
		}
	})
}

// TestScriptSharedForbidden checks that tabs have connections of their own where
// they can't talk to each other. So it is in Firefox, if the user blocks cookies.
func TestScriptSharedForbidden(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	profile := newProfile(t, browser)
	for i := range 2 {
		tab := newTabIn(t, profile, fmt.Sprint("tab", i))
		tab.open(site.server.URL)
		tab.run(`
			globalThis.BroadcastChannel = class {
				constructor() { throw new DOMException("The operation is insecure.", "SecurityError"); }
			};
			const {connect} = await import("/realtime.js");
			globalThis.live = connect("/live", {shared: true, topics: ["a"]});`)
		tab.until(`live.state === "open" && live.id !== ""`)
	}
	site.has(2, 1)
}

// TestScriptSharedWithoutHistory checks that tabs of a hub without ids have
// connections of their own.
func TestScriptSharedWithoutHistory(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	site := newSite(t, "", nil)
	profile := newProfile(t, browser)
	for i := range 3 {
		tab := newTabIn(t, profile, fmt.Sprint("tab", i))
		tab.share(site.server.URL, "eventsource", "a")
		tab.until(`live.state === "open"`)
	}
	site.has(3, 1)
}

// TestScriptSharedLostPosts loses and holds up posts between tabs, as a browser
// might with a page that is suspended. A tab notices by the ids.
func TestScriptSharedLostPosts(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 2 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.share(site.server.URL, transport, "a")
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tabs = append(tabs, tab)
		}
		site.has(1, 1)
		follower := tabs[1]
		follower.open(site.server.URL)
		follower.run(`
			globalThis.lost = 0;
			globalThis.losing = true;
			const Channel = BroadcastChannel;
			globalThis.BroadcastChannel = class extends Channel {
				set onmessage(f) {
					super.onmessage = (e) => {
						if (losing && e.data.text && Math.random() < 0.2) lost++;
						else f(e);
					};
				}
			};`)
		follower.run(fmt.Sprintf(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", %s);`+watch,
			options(transport, `shared: true, topics: ["a"]`)))
		follower.until(`live.lastEventId !== "" && live.state === "open"`)
		site.has(1, 1)
		const n = 300
		for i := range n {
			site.publish("a", "", fmt.Sprint(i))
			time.Sleep(time.Millisecond) // else one link could bring all
		}
		eval[chromedp.Void](follower, `losing = false`)
		site.publish("a", "", fmt.Sprint(n)) // shows the loss of the last one
		for _, tab := range tabs {
			if tab == follower {
				tab.until(fmt.Sprintf(`got.at(-1) === "%d"`, n))
				for i, data := range eval[[]string](tab, `got`) {
					if data != fmt.Sprint(i) {
						t.Fatalf("%s: event %d is %s", tab.name, i, data)
					}
				}
				if lost := eval[int](tab, `lost`); lost == 0 {
					t.Error("no post was lost")
				}
				continue
			}
			tab.until(fmt.Sprintf(`got.length === %d`, n+1))
		}
	})
}

// TestScriptSharedHistoryRestored checks that a history whose numbers begin again,
// as one that was restored from a backup, is not taken for one that was seen.
func TestScriptSharedHistoryRestored(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL)
	tab.run(`
		globalThis.WebSocket = class {
			static OPEN = 1;
			readyState = 1;
			constructor() { globalThis.socket = this; }
			close() {}
		};
		const {connect} = await import("/realtime.js");
		globalThis.live = connect("/live", {shared: true, transports: ["websocket"]});` + watch)
	tab.until(`globalThis.socket`)
	for _, object := range []string{
		`{"client":"c"}`,
		`{"id":"x-100","data":"a"}`,
		`{"id":"x-100","data":"again"}`,
		`{"id":"x-99","data":"again"}`,
		`{"id":"x-ln.1.2-0-local","data":"b"}`,
		`{"id":"x-ln.2.2-0-local","data":"c"}`,
		`{"data":"d"}`,
		`{"id":"x-102-9f3a","data":"e"}`,
		`{"id":"x-102-9f3a","data":"again"}`,
		`{"reset":true}`,
		`{"id":"x-5","data":"f"}`,
		`{"id":"x-5","data":"again"}`,
	} {
		eval[chromedp.Void](tab, fmt.Sprintf(`socket.onmessage({data: %q})`, object))
	}
	tab.until(`got.join() === "a,b,c,d,e,f"`)
	tab.tells("open", "reset")
}

// TestScriptSharedEngineAway checks that tabs share what a hub sends while its engine
// is away. The ids resume nowhere. Some events have no number, and others keep such
// an id when the engine is back.
func TestScriptSharedEngineAway(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	profile := newProfile(t, newBrowser(t))
	open := func(name, lastEventID string) *tab {
		tab := newTabIn(t, profile, name)
		tab.open(site.server.URL)
		tab.run(fmt.Sprintf(`
			globalThis.sockets = [];
			globalThis.WebSocket = class {
				readyState = 1;
				constructor(url) { this.url = url.href; sockets.push(this); }
				close() { this.readyState = 3; }
			};
			const {connect} = await import("/realtime.js");
			globalThis.live = connect("/live", {shared: true, transports: ["websocket"], topics: ["a"], lastEventId: %q});`+watch, lastEventID))
		return tab
	}
	get := func(tab *tab, objects ...string) {
		t.Helper()
		for _, object := range objects {
			eval[chromedp.Void](tab, fmt.Sprintf(`sockets.at(-1).onmessage({data: %q})`, object))
		}
	}
	const follows = `sockets.length === 1 && sockets[0].readyState === 3`
	leader := open("leader", "")
	leader.until(`sockets.length === 1`)
	get(leader, `{"client":"c"}`, `{"id":"x-100-1"}`)
	follower := open("follower", "")
	follower.until(`sockets.length === 1`)
	get(follower, `{"client":"d"}`, `{"id":"x-100-1"}`)
	follower.until(follows)
	get(leader, `{"id":"x-l9.1.2-local","data":"a"}`, `{"id":"x-l9.2.2-local","data":"b"}`)
	follower.until(`got.join() === "a,b"`)
	stranger := open("stranger", "") // everybody hears where the leader is
	stranger.until(`sockets.length === 1`)
	stranger.shut()
	get(leader, `{"id":"x-103-7c1-local","data":"c"}`, `{"id":"x-104-9","data":"d"}`)
	follower.until(`got.join() === "a,b,c,d"`)
	late := open("late", "x-102-8")
	late.until(`sockets.length === 1`)
	get(late, `{"client":"e"}`, `{"id":"x-102-8"}`)
	leader.until(`sockets.length === 2`)
	if url := eval[string](leader, `sockets.at(-1).url`); !strings.Contains(url, "lastEventId=x-102-8") {
		t.Errorf("the leader goes back with %s, want the id of the late tab", url)
	}
	get(leader, `{"client":"c"}`, `{"id":"x-103-7c1-local","data":"c"}`, `{"id":"x-104-9","data":"d"}`, `{"id":"x-105-3","data":"e"}`)
	late.until(`got.join() === "c,d,e"`)
	lost := open("lost", "x-104-9-local")
	lost.until(`sockets.length === 1`)
	get(lost, `{"client":"f"}`, `{"id":"x-104-9-local"}`) // which it asks the leader to go back to
	time.Sleep(200 * time.Millisecond)
	get(lost, `{"id":"x-105-3","data":"e"}`)
	lost.until(follows)
	get(leader, `{"reset":true}`, `{"id":"y-1-2","data":"f"}`)
	for tab, want := range map[*tab]string{leader: "a,b,c,d,e,f", follower: "a,b,c,d,e,f", late: "c,d,e,f", lost: "e,f"} {
		tab.until(fmt.Sprintf(`got.join() === %q`, want))
		tab.tells("open", "reset")
		if tab != leader {
			tab.until(follows)
		}
	}
	if n := eval[int](leader, `sockets.length`); n != 2 {
		t.Errorf("the leader made %d connections, want 2", n)
	}
}

// TestScriptSharedJoinsAgain checks that a tab waits for its turn to join the others,
// also if it has joined them before. There is a time after which it doesn't wait
// any more, and each turn has its own. If a turn comes at that very time, as to a page
// that was frozen, it counts once.
func TestScriptSharedJoinsAgain(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	profile := newProfile(t, newBrowser(t))
	var tabs []*tab
	for _, name := range []string{"leader", "follower"} {
		tab := newTabIn(t, profile, name)
		tab.open(site.server.URL)
		tab.run(`
			globalThis.sockets = [];
			globalThis.WebSocket = class {
				readyState = 1;
				constructor() { sockets.push(this); }
				close() { this.readyState = 3; }
			};
			globalThis.impatient = []; // what would end each wait for a turn
			const {setTimeout} = globalThis;
			globalThis.setTimeout = (f, time) => {
				if (String(f).includes("#join({steal: true})")) impatient.push(f);
				return setTimeout(f, time);
			};
			globalThis.turns = []; // that have come, while they are held up
			globalThis.holds = false;
			const request = navigator.locks.request.bind(navigator.locks);
			navigator.locks.request = (name, options, f) => request(name, options, (lock) => {
				return holds ? new Promise((done) => turns.push(() => done(f(lock)))) : f(lock);
			});
			const {connect} = await import("/realtime.js");
			globalThis.live = connect("/live", {shared: "tabs", transports: ["websocket"]});` + watch)
		tab.until(`sockets.length === 1`)
		eval[chromedp.Void](tab, `sockets[0].onmessage({data: '{"id":"x-1-1"}'})`)
		tabs = append(tabs, tab)
	}
	leader, follower := tabs[0], tabs[1]
	follower.until(`sockets[0].readyState === 3`)
	leader.run(`
		await new Promise((has) => navigator.locks.request("realtime tabs join", {}, () => new Promise((over) => {
			globalThis.over = over;
			has();
		})));
		const open = {from: "y-1-1", topics: [], fresh: [], transport: "websocket"}; // that is elsewhere
		globalThis.confuse = () => new BroadcastChannel("realtime tabs").postMessage({tab: 1, open});
		confuse();`)
	follower.until(`impatient.length === 2`)
	eval[chromedp.Void](follower, `impatient[0]()`)
	time.Sleep(200 * time.Millisecond)
	if n := eval[int](follower, `sockets.length`); n != 1 {
		t.Errorf("the follower made %d connections before its turn, want 1", n)
	}
	eval[chromedp.Void](leader, `over()`)
	follower.until(`sockets.length === 2`)
	follows := func() {
		eval[chromedp.Void](follower, `sockets.at(-1).onmessage({data: '{"id":"x-1-1"}'})`)
		follower.until(`sockets.at(-1).readyState === 3`)
	}
	follows()
	eval[chromedp.Void](follower, `holds = true`)
	eval[chromedp.Void](leader, `confuse()`)
	follower.until(`turns.length === 1`)
	eval[chromedp.Void](follower, `impatient.at(-1)()`)
	follower.until(`turns.length === 2`)
	eval[chromedp.Void](follower, `for (const turn of turns) turn()`)
	follower.until(`sockets.length > 2`)
	follows()
}

// TestScriptSharedTopicRefusedForNow checks that a tab whose topic is refused for a
// while gets the topic's events afterwards, although another tab has the connection.
func TestScriptSharedTopicRefusedForNow(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		var busy atomic.Bool
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnSubscribe = func(_ *realtime.Client, topic string) error {
				if topic == "b" && busy.Load() {
					return realtime.Refuse(500, "later")
				}
				return nil
			}
		})
		proxy := newProxy(t, site.addr())
		profile := newProfile(t, browser)
		var tabs []*tab
		for i, topics := range [][]string{{"a"}, {"a", "b"}} {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.expectOutage(true)
			tab.share(proxy.url, transport, topics...)
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tab.run(joined)
			tabs = append(tabs, tab)
		}
		site.has(1, 2)
		busy.Store(true)
		proxy.cut()
		tabs[1].until(`refusals.length > 0`)
		busy.Store(false)
		site.has(1, 2)
		site.publish("b", "", "1")
		tabs[1].until(`got.join() === "1"`)
	})
}

// TestScriptSharedOneBehind checks that a tab that is far behind, as one that was
// frozen, gets a reset alone. The others have lost nothing.
func TestScriptSharedOneBehind(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = realtime.History{Events: 10, Age: time.Hour} })
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 3 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.open(site.server.URL)
			tab.run(`
				globalThis.asleep = false;
				const Channel = BroadcastChannel;
				globalThis.BroadcastChannel = class extends Channel {
					set onmessage(f) { super.onmessage = (e) => { if (!asleep) f(e); }; }
				};`)
			tab.run(fmt.Sprintf(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", %s);`+watch,
				options(transport, `shared: true, topics: ["a"]`)))
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tabs = append(tabs, tab)
		}
		site.has(1, 1)
		late := tabs[1]
		eval[chromedp.Void](late, `asleep = true`)
		for i := range 30 {
			site.publish("a", "", fmt.Sprint(i))
		}
		tabs[0].until(`got.length === 30`)
		tabs[2].until(`got.length === 30`)
		eval[chromedp.Void](late, `asleep = false`)
		site.publish("a", "", "30")
		late.tells("open", "reset")
		site.has(1, 1)
		site.publish("a", "", "end")
		for _, tab := range tabs {
			tab.until(`got.at(-1) === "end"`)
			if tab != late {
				tab.tells("open")
			}
		}
	})
}

// TestScriptSharedJoinsFirst checks that a tab that has lost its place asks the one
// with the connection for nothing before it has an id of its own connection.
func TestScriptSharedJoinsFirst(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	profile := newProfile(t, newBrowser(t))
	open := func(name, lastEventID string) *tab {
		tab := newTabIn(t, profile, name)
		tab.feign(site.server.URL, `
			globalThis.posts = [];
			const Channel = BroadcastChannel;
			globalThis.BroadcastChannel = class extends Channel {
				set onmessage(f) { super.onmessage = (e) => { posts.push(e.data); f(e); }; }
			};`, fmt.Sprintf(`{shared: true, transports: ["websocket"], lastEventId: %q}`, lastEventID))
		return tab
	}
	leader := open("leader", "")
	leader.until(`links.length === 1`)
	leader.hears(`{"client":"c"}`, `{"id":"x-100"}`)
	late := open("late", "x-1")
	late.until(`links.length === 1`)
	stranger := open("stranger", "") // everybody hears where the leader is
	late.until(`posts.filter((post) => post.open).length === 2`)
	stranger.shut()
	late.hears(`{"client":"d"}`, `{"reset":true}`, `{"id":"x-100"}`)
	late.until(`links[0].readyState === 3`)
	if n := eval[int](leader, `links.length`); n != 1 {
		t.Errorf("the leader made %d connections, want 1", n)
	}
	if got := eval[string](leader, `posts.filter((post) => post.want).map((post) => post.want.id).join()`); got != "x-100" {
		t.Errorf("the leader was asked for %s, want x-100", got)
	}
}

// clients waits until the hub's clients have these numbers of topics.
func (s *site) clients(want ...int) {
	s.Helper()
	slices.Sort(want)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		var of []int
		for c := range s.hub.Clients() {
			of = append(of, len(c.Topics()))
		}
		slices.Sort(of)
		if slices.Equal(of, want) {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the hub's clients have %d topics, want %d", of, want)
		}
	}
}

// TestScriptSharedManyTopics checks what becomes of tabs whose topics are too many
// for one connection. The tab with the connection may subscribe one too many.
// Another tab, which didn't fit, may get the lead, and then one that follows
// doesn't fit.
func TestScriptSharedManyTopics(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		start := func(t *testing.T, counts ...int) (*site, context.Context, []*tab) {
			site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
			profile := newProfile(t, browser)
			var tabs []*tab
			for i, n := range counts {
				tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
				tab.expectOutage(true)
				var topics []string
				for j := range n {
					topics = append(topics, fmt.Sprint(i, "-", j))
				}
				tab.share(site.server.URL, transport, topics...)
				tab.until(`live.lastEventId !== "" && live.state === "open"`)
				tab.run(joined)
				tabs = append(tabs, tab)
			}
			return site, profile, tabs
		}
		t.Run("one more", func(t *testing.T) {
			site, _, tabs := start(t, 60, 40)
			site.clients(100)
			tabs[0].run(`join("x")`)
			site.clients(61, 40)
			site.publish("x", "", "1")
			tabs[0].gets("x", "1")
			site.publish("1-0", "", "2")
			tabs[1].until(`got.join() === "2"`)
		})
		t.Run("room again", func(t *testing.T) {
			site, profile, tabs := start(t, 60, 40)
			site.clients(100)
			tabs[1].shut()
			third := newTabIn(t, profile, "third-"+transport)
			third.share(site.server.URL, transport, strings.Split("abcdefghijklmnopqrst", "")...)
			site.clients(80)
		})
		t.Run("another lead", func(t *testing.T) {
			site, _, tabs := start(t, 60, 50, 40)
			site.clients(100, 50)
			tabs[1].run(`join(...Array.from({length: 11}, (_, i) => "x" + i))`)
			site.clients(100, 61)
			tabs[0].shut()
			site.clients(61, 40)
			site.publish("2-0", "", "1")
			tabs[2].until(`got.join() === "1"`)
			tabs[2].tells("open")
			tabs[1].tells("open")
		})
	})
}

// TestScriptSharedLeadWithoutID gives the lead to a tab that has no id yet. Others
// join it once.
func TestScriptSharedLeadWithoutID(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	profile := newProfile(t, newBrowser(t))
	open := func(name string) *tab {
		tab := newTabIn(t, profile, name)
		tab.feign(site.server.URL, ``, `{shared: true, transports: ["websocket"]}`)
		return tab
	}
	leader := open("leader")
	leader.until(`links.length === 1`)
	follower := open("follower")
	leader.hears(`{"client":"c"}`)
	follower.until(`links.length === 1`)
	follower.hears(`{"client":"d"}`, `{"id":"x-1"}`)
	leader.hears(`{"id":"x-1"}`, `{"id":"x-2","data":"a"}`)
	follower.until(`got.join() === "a"`)
	if n := eval[int](follower, `links.length`); n != 1 {
		t.Errorf("the follower made %d connections, want 1", n)
	}
}

// TestScriptSharedStolen takes the lead from a tab, as others do if it is frozen.
// When it leads again, it asks for nothing that tabs wanted that are gone.
func TestScriptSharedStolen(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 3 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.expectOutage(true)
			tab.share(site.server.URL, transport, "a", fmt.Sprint("own", i))
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tabs = append(tabs, tab)
		}
		site.has(1, 4)
		tabs[0].run("await navigator.locks.request(`realtime ${location.origin}/live`, {steal: true}, () => {});")
		tabs[0].tells("open", "close 1006", "open")
		site.has(1, 4)
		tabs[2].shut()
		tabs[1].shut()
		site.has(1, 2)
	})
}

// TestScriptSharedLastEventIDNull checks that a page may have no id, as one whose
// storage has none.
func TestScriptSharedLastEventIDNull(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.feign(site.server.URL, ``, `{shared: true, transports: ["websocket"], lastEventId: sessionStorage.getItem("none")}`)
	tab.until(`links.length === 1`)
	tab.hears(`{"client":"c"}`, `{"id":"x-1","data":"a"}`)
	tab.until(`got.join() === "a" && live.lastEventId === "x-1"`)
}

// TestScriptSharedRefusedForNow checks that no tab takes the lead before the time
// that the hub has told, also if a tab comes meanwhile, and that all learn why they
// wait. A page that was asleep waits as well.
func TestScriptSharedRefusedForNow(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	profile := newProfile(t, newBrowser(t))
	open := func(name string) *tab {
		tab := newTabIn(t, profile, name)
		tab.feign(site.server.URL, `
			globalThis.waits = [];
			const {setTimeout} = globalThis;
			globalThis.setTimeout = (f, ms) => { waits.push(ms); return setTimeout(f, ms); };`, `{shared: true, transports: ["websocket"]}`)
		return tab
	}
	const longer = `waits.at(-1) > 360_000 + 14_000`
	leader := open("leader")
	leader.until(`links.length === 1`)
	leader.hears(`{"client":"c"}`, `{"id":"x-1"}`)
	follower := open("follower")
	follower.until(`links.length === 1`)
	follower.hears(`{"client":"d"}`, `{"id":"x-1"}`)
	follower.until(`links[0].readyState === 3`)
	leader.hears(`{"close":{"code":4503,"retry":370000}}`)
	follower.tells("open", "close 4503")
	follower.until(longer)
	open("third").until(longer)
	follower.until(longer)
	eval[chromedp.Void](leader, `{
		const {now} = Date;
		Date.now = () => now() + 100_000;
		document.dispatchEvent(new Event("visibilitychange"));
	}; undefined`)
	if n := eval[int](leader, `links.length`); n != 1 {
		t.Errorf("the leader made %d connections, want 1", n)
	}
}
