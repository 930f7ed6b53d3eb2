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

// joined makes the page keep what listeners of subscribe get, by topic.
const joined = `
	globalThis.joined = {};
	globalThis.stops = {};
	globalThis.join = (...topics) => {
		for (const topic of topics) {
			joined[topic] ??= [];
			stops[topic] = live.subscribe(topic, (e) => joined[topic].push(e.data));
		}
	};
	globalThis.refusals = [];
	live.addEventListener("refused", (e) => refusals.push([e.topic, e.code, e.reason, e.final].join(" ")));
	live.addEventListener("reset", (e) => { for (const topic in joined) if (!e.topic || e.topic === topic) joined[topic].push("reset"); });
`

// gets waits until a listener of a topic has got these.
func (tab *tab) gets(topic string, want ...string) {
	tab.Helper()
	tab.until(fmt.Sprintf(`joined[%q].length >= %d`, topic, len(want)))
	if got := eval[[]string](tab, fmt.Sprintf(`joined[%q]`, topic)); !slices.Equal(got, want) {
		tab.Fatalf("%s got %q on %s, want %q", tab.name, got, topic, want)
	}
}

// TestScriptSubscribe checks that a page joins and leaves topics while it is
// connected, and that each begins with its latest values.
func TestScriptSubscribe(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		var asked atomic.Int64
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnSubscribe = func(c *realtime.Client, topic string) error {
				asked.Add(1)
				return nil
			}
		})
		proxy := newProxy(t, site.addr())
		site.publishEvent("b", realtime.Event{Key: "k", Data: []byte("b1")})
		site.publishEvent("c", realtime.Event{Key: "k", Data: []byte("c1")})
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(proxy.url, options(transport, `topics: ["a"]`))
		tab.run(joined + `join("b", "c"); join("b");`)
		tab.gets("b", "b1", "b1") // two listeners
		tab.gets("c", "c1")
		if got := eval[string](tab, `live.topics.join()`); got != "a,b,c" {
			t.Errorf("the topics are %s", got)
		}
		site.has(1, 3)
		if n := asked.Load(); transport == "websocket" && n != 3 {
			t.Errorf("OnSubscribe was asked %d times, want 3", n)
		}
		site.publish("b", "", "b2")
		site.publish("a", "", "a1")
		tab.gets("b", "b1", "b1", "b2", "b2")
		tab.until(`got.at(-1) === "a1"`)

		tab.expectOutage(true)
		proxy.cut()
		site.publish("b", "", "b3")
		site.publishEvent("c", realtime.Event{Key: "k", Data: []byte("c2")})
		tab.gets("b", "b1", "b1", "b2", "b2", "b3", "b3")
		tab.gets("c", "c1", "c2")

		tab.run(`stops.b(); stops.c(); stops.c();`) // the first listener of b stays
		site.has(1, 2)
		site.publish("c", "", "c3")
		site.publish("b", "", "b4")
		tab.gets("b", "b1", "b1", "b2", "b2", "b3", "b3", "b4")
		tab.gets("c", "c1", "c2")
		tab.run(`live.unsubscribe("b"); live.unsubscribe("never"); live.unsubscribe("a");`)
		site.has(1, 0)
		tab.run(`join("b");`)
		tab.gets("b", "b1", "b1", "b2", "b2", "b3", "b3", "b4", "b1") // its value
		tab.tells("open", "close 1006", "open")
		tab.run(`live.close(); join("d");`)
	})
}

// TestScriptSubscribeEarly subscribes while the page isn't connected yet.
func TestScriptSubscribeEarly(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		for _, history := range []bool{true, false} {
			t.Run(fmt.Sprint("history ", history), func(t *testing.T) {
				site := newSite(t, "", func(hub *realtime.Hub) {
					if history {
						hub.History = keep
					}
				})
				tab := newTab(t, browser, fmt.Sprint("Ann-", transport, history))
				tab.open(site.server.URL)
				tab.run(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", ` + options(transport, "") + `);` + watch + joined + `
					join("a");
					live.addEventListener("open", () => join("b"), {once: true});`)
				site.has(1, 2)
				if history {
					tab.tells("open")
				}
				site.publish("a", "", "1")
				site.publish("b", "", "2")
				tab.until(`got.join().endsWith("1,2")`)
				tab.run(`live.close()`)
			})
		}
	})
}

// TestScriptSubscribeRefused checks what becomes of topics that OnSubscribe refuses.
func TestScriptSubscribeRefused(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		var busy, banned atomic.Bool
		busy.Store(true)
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnSubscribe = func(_ *realtime.Client, topic string) error {
				switch {
				case topic == "secret", topic == "b" && banned.Load():
					return realtime.Refuse(403, "not you")
				case topic == "busy" && busy.Load():
					return realtime.Refuse(500, "later")
				}
				return nil
			}
		})
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(proxy.url, options(transport, `topics: ["a"]`))
		tab.until(`live.lastEventId !== ""`)
		site.publishEvent("busy", realtime.Event{Key: "k", Data: []byte("value")})
		tab.run(joined + `join("b", "secret", "busy");`)
		tab.until(`refusals.length >= 2`)
		if got := eval[string](tab, `[...new Set(refusals)].sort().join()`); got != "busy 4500 later false,secret 4403 not you true" {
			t.Errorf("refusals: %s", got)
		}
		if got := eval[string](tab, `live.topics.join()`); got != "a,b,busy" {
			t.Errorf("the topics are %s", got)
		}
		busy.Store(false)
		tab.gets("busy", "value")
		site.publish("b", "", "b1")
		tab.gets("b", "b1")

		banned.Store(true)
		tab.expectOutage(true)
		proxy.cut()
		tab.until(`refusals.at(-1) === "b 4403 not you true" && live.topics.join() === "a,busy"`)
		site.publish("a", "", "a1")
		tab.until(`got.at(-1) === "a1"`)

		// A topic that is refused for a while may have lost events.
		busy.Store(true)
		proxy.cut()
		tab.until(`refusals.at(-1) === "busy 4500 later false"`)
		site.publish("busy", "", "lost")
		busy.Store(false)
		tab.gets("busy", "value", "reset", "value")
	})
}

// TestScriptSubscribeCuts subscribes and leaves topics again and again while the
// connection is cut at any byte. On each topic the page gets the latest values and
// then all that is published, or a reset and the latest values.
func TestScriptSubscribeCuts(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(proxy.url, options(transport, `topics: ["a"]`))
		tab.until(`live.lastEventId !== ""`)
		tab.expectOutage(true)
		const topics = 5
		stop := make(chan struct{})
		counts := make([]int, topics)
		var publishers sync.WaitGroup
		for i := range topics {
			publishers.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(rand.IntN(10)) * time.Millisecond):
					}
					// The value says how many events there are, so each may be the first.
					e := realtime.Event{Data: fmt.Appendf(nil, "%d %s", counts[i], strings.Repeat("é", rand.IntN(300)))}
					if err := publishTo(site.hub, fmt.Sprint("t", i), e); err != nil {
						t.Error(err)
						return
					}
					counts[i]++
				}
			})
		}
		tab.run(joined + fmt.Sprintf(`
			globalThis.faults = [];
			globalThis.resets = 0;
			const last = {};
			live.addEventListener("reset", (e) => { resets++; if (e.topic) delete last[e.topic]; else for (const t in last) delete last[t]; });
			live.onAny((e) => {
				if (!e.topic.startsWith("t")) return;
				const n = parseInt(e.data);
				if (!live.topics.includes(e.topic)) faults.push("left " + e.topic);
				if (e.topic in last && n !== last[e.topic] + 1) faults.push(e.topic + ": " + n + " after " + last[e.topic]);
				last[e.topic] = n;
			});
			globalThis.juggler = setInterval(() => {
				const topic = "t" + Math.floor(Math.random() * %d);
				if (live.topics.includes(topic)) { live.unsubscribe(topic); delete last[topic]; }
				else live.subscribe(topic, () => {});
			}, 20);`, topics))
		cuts := 40
		if transport == "eventsource" {
			cuts = 8
		}
		proxy.setLimit(func() int { return max(0, rand.IntN(100_000)-5_000) })
		proxy.cut()
		for deadline := time.Now().Add(patience); proxy.killed() < cuts; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("only %d connections have been killed", proxy.killed())
				break
			}
		}
		proxy.setLimit(nil)
		proxy.cut()
		tab.run(fmt.Sprintf(`clearInterval(juggler); for (let i = 0; i < %d; i++) if (!live.topics.includes("t" + i)) join("t" + i);`, topics))
		site.has(1, topics+1)
		time.Sleep(200 * time.Millisecond)
		close(stop)
		publishers.Wait()
		for i := range topics {
			site.publish(fmt.Sprint("t", i), "end", fmt.Sprint(counts[i]))
		}
		site.publish("a", "", "end")
		tab.until(`got.at(-1) === "end"`)
		if faults := eval[[]string](tab, `faults`); len(faults) > 0 {
			t.Errorf("%d faults: %q", len(faults), faults[:min(len(faults), 10)])
		}
		t.Logf("%v events, %d connections killed, %d requests, %d resets", counts, proxy.killed(), len(site.asked()), eval[int](tab, `resets`))
	})
}

// TestScriptSharedSubscribe checks that tabs with one connection join topics, one
// that no other tab has and one that others have. None loses or doubles anything.
func TestScriptSharedSubscribe(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		for _, topic := range []string{"b", "c", "d"} {
			site.publishEvent(topic, realtime.Event{Key: "k", Data: []byte("value")})
		}
		profile := newProfile(t, browser)
		var tabs []*tab
		for i := range 3 {
			tab := newTabIn(t, profile, fmt.Sprintf("tab%d-%s", i, transport))
			tab.expectOutage(true)
			tab.share(site.server.URL, transport, "a")
			tab.until(`live.lastEventId !== "" && live.state === "open"`)
			tab.run(joined)
			tabs = append(tabs, tab)
		}
		site.has(1, 1)
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
				for _, topic := range []string{"a", "b", "c", "d"} {
					if err := publishTo(site.hub, topic, realtime.Event{Data: fmt.Append(nil, published)}); err != nil {
						t.Error(err)
						return
					}
				}
				published++
			}
		})
		steps := []struct {
			tab   int
			topic string
		}{
			{0, "b"}, // the leader's alone
			{1, "b"}, // a follower joins it
			{2, "c"}, // a follower's alone
			{0, "c"}, // the leader joins it
			{1, "c"}, {2, "d"}, {0, "d"}, {1, "d"}, {2, "b"},
		}
		for _, step := range steps {
			tab := tabs[step.tab]
			tab.run(fmt.Sprintf(`join(%q)`, step.topic))
			tab.until(fmt.Sprintf(`joined[%q].length > 3`, step.topic))
		}
		site.has(1, 4)
		time.Sleep(300 * time.Millisecond)
		close(stop)
		publisher.Wait()
		for _, topic := range []string{"a", "b", "c", "d"} {
			site.publish(topic, "", "end")
		}
		for _, tab := range tabs {
			for _, topic := range []string{"b", "c", "d"} {
				tab.until(fmt.Sprintf(`joined[%q].at(-1) === "end"`, topic))
				got := eval[[]string](tab, fmt.Sprintf(`joined[%q]`, topic))
				got = got[:len(got)-1]
				if got[0] != "value" {
					t.Errorf("%s, %s: the first is %s, want the value", tab.name, topic, got[0])
				}
				var first int
				fmt.Sscan(got[1], &first)
				for i, data := range got[1:] {
					if data != fmt.Sprint(first+i) {
						t.Fatalf("%s, %s: event %d of %d is %s, want %d", tab.name, topic, i, len(got), data, first+i)
					}
				}
				if got[len(got)-1] != fmt.Sprint(published-1) {
					t.Errorf("%s, %s: the last is %s, want %d", tab.name, topic, got[len(got)-1], published-1)
				}
			}
			if told := eval[[]string](tab, `told`); slices.Contains(told, "reset") {
				t.Errorf("%s was told %q", tab.name, told)
			}
			t.Logf("%s: %q", tab.name, eval[[]string](tab, `told`))
		}
		// What all have left is left with the next connection.
		for _, tab := range tabs {
			tab.run(`stops.d(); stops.c();`)
		}
		tabs[1].run(`join("e")`)
		site.has(1, 3)
	})
}

// TestScriptMembers checks that a page follows who is in a topic.
func TestScriptMembers(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		setup := func(hub *realtime.Hub) {
			hub.History, hub.LeaveAfter = keep, -1
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
				if name := r.URL.Query().Get("name"); name != "" {
					c.Subscribe("room")
					return c.Appear("room", name, map[string]string{"mood": r.URL.Query().Get("mood")})
				}
				return nil
			}
			hub.OnSubscribe = func(*realtime.Client, string) error { return nil }
		}
		site := newSite(t, "", setup)
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(site.server.URL, options(transport, ""))
		tab.run(joined + `
			globalThis.others = {};
			globalThis.come = async (name, mood) => {
				const {connect} = await import("/realtime.js");
				others[name]?.close();
				others[name] = connect("/live?name=" + name + "&mood=" + mood, {transports: ["websocket"], backoff: {min: 20, max: 200}});
			};
			globalThis.seen = [];
			globalThis.members = live.members("room", (m) => seen.push(m.size));
			globalThis.who = () => [...members].map(([key, data]) => key + " " + data.mood).sort().join();
			await come("Bob", "fine");
			join("room");`)
		tab.until(`who() === "Bob fine"`)
		eval[chromedp.Void](tab, `void come("Cid", "well")`)
		tab.until(`who() === "Bob fine,Cid well"`)
		eval[chromedp.Void](tab, `others.Bob.close()`)
		tab.until(`who() === "Cid well"`)
		if got := eval[string](tab, `seen.join()`); got != "1,2,1" {
			t.Errorf("changed was called with %s members, want 1,2,1", got)
		}
		// It leaves the room, and learns who is there when it is back.
		eval[chromedp.Void](tab, `stops.room()`)
		tab.until(`members.size === 0`)
		eval[chromedp.Void](tab, `others.Cid.close(); void come("Dan", "ill")`)
		time.Sleep(300 * time.Millisecond)
		eval[chromedp.Void](tab, `join("room")`)
		tab.until(`who() === "Dan ill"`)
		// A new hub knows nothing of the old one.
		tab.expectOutage(true)
		site.stop()
		eval[chromedp.Void](tab, `void others.Dan.close()`)
		newSite(t, site.addr(), setup)
		tab.until(`told.at(-1) === "reset" && members.size === 0`)
		eval[chromedp.Void](tab, `void come("Eve", "new")`)
		tab.until(`who() === "Eve new"`)
		eval[chromedp.Void](tab, `members.stop(); others.Eve.close()`)
		time.Sleep(200 * time.Millisecond)
		if got := eval[string](tab, `who()`); got != "Eve new" {
			t.Errorf("members that are no longer followed are %s", got)
		}
	})
}

// TestScriptSubscribeRefusedTogether refuses two topics for a while. An event stream
// asks for both each time, so the time of the one that isn't due yet is over then.
// Otherwise the number of attempts would grow without end.
func TestScriptSubscribeRefusedTogether(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.feign(site.server.URL, `
		globalThis.later = [];
		const {setTimeout} = globalThis;
		globalThis.setTimeout = (f, ms) => {
			if (ms === 6000 || ms === 7000) later.push(f);
			else return setTimeout(f, ms);
		};
		Math.random = () => 0;`, `{transports: ["eventsource"], backoff: {min: 100}}`)
	tab.hears(`{"client":"c"}`, `{"id":"x-1"}`)
	tab.run(joined + `join("b", "c");`)
	refuse := func() {
		tab.hears(`{"client":"c"}`, `{"topic":"b","refused":{"code":4503,"retry":6000}}`, `{"topic":"c","refused":{"code":4503,"retry":7000}}`)
	}
	tab.until(`links.length === 2`)
	refuse()
	eval[chromedp.Void](tab, `later[0]()`)
	tab.until(`links.length === 3`)
	refuse()
	eval[chromedp.Void](tab, `later[1]()`)
	time.Sleep(300 * time.Millisecond) // enough for an attempt
	if n := eval[int](tab, `links.length`); n != 3 {
		t.Errorf("the page made %d connections, want 3", n)
	}
	eval[chromedp.Void](tab, `later[2]()`)
	tab.until(`links.length === 4`)
}

// TestScriptSubscribeAgainEarly leaves a topic and joins it again before the hub has
// said that the page has it. The topic begins as for a new client then.
func TestScriptSubscribeAgainEarly(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.feign(site.server.URL, ``, `{transports: ["eventsource"]}`)
	tab.hears(`{"client":"c"}`, `{"id":"x-1"}`)
	tab.run(joined + `join("b");`)
	tab.until(`links.length === 2`)
	begin := []string{`{"client":"c"}`, `{"topic":"b","data":"value"}`, `{"id":"x-1"}`, `{"subscribed":["b"]}`}
	tab.run(fmt.Sprintf(`stops.b(); join("b"); for (const data of %s) links[1].onmessage({data});`, "['"+strings.Join(begin, "','")+"']"))
	tab.until(`links.length === 3`)
	if url := eval[string](tab, `links[2].url`); !strings.Contains(url, "&new=b") {
		t.Errorf("the page asks for %s, want b as new", url)
	}
	tab.hears(begin...)
	tab.gets("b", "value")
}

// TestScriptSubscribeWhileAnotherBegins subscribes a topic while the values of
// another one are coming. That is no reason for a reset of the other one.
func TestScriptSubscribeWhileAnotherBegins(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.feign(site.server.URL, ``, `{transports: ["websocket"]}`)
	tab.hears(`{"client":"c"}`, `{"id":"x-1"}`)
	tab.run(joined + `join("b");`)
	tab.until(`links[0].sent.length === 1`)
	tab.hears(`{"topic":"b","data":"value 1"}`)
	tab.run(`join("c");`)
	tab.until(`links[0].sent.length === 2`)
	tab.hears(`{"topic":"b","data":"value 2"}`, `{"subscribed":["b"]}`, `{"subscribed":["c"]}`)
	tab.gets("b", "value 1", "value 2")
}

// TestScriptMembersThrow checks that a refusal is told although a listener of the
// topic's members throws an error.
func TestScriptMembersThrow(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.feign(site.server.URL, ``, `{transports: ["websocket"]}`)
	tab.hears(`{"client":"c"}`, `{"id":"x-1"}`)
	tab.run(joined + `
		globalThis.errors = [];
		addEventListener("error", (e) => { errors.push(e.message); e.preventDefault(); });
		live.members("b", () => { throw new Error("bad"); });
		join("b");`)
	tab.until(`links[0].sent.length === 1`)
	eval[chromedp.Void](tab, `setTimeout(() => links[0].onmessage({data: '{"topic":"b","refused":{"code":4403,"final":true}}'})); undefined`)
	tab.until(`errors.length > 0`)
	if got := eval[string](tab, `errors.join() + "|" + refusals.join() + "|" + live.topics`); got != "Uncaught Error: bad|b 4403  true|" {
		t.Errorf("the page has %q", got)
	}
}
