package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// reasons makes the page record the reasons of its closes.
const reasons = `
	globalThis.reasons = [];
	live.addEventListener("close", (e) => reasons.push(e.reason));
`

// TestScriptRefused checks that a page learns why it is refused. It doesn't knock
// again where that is final, and comes back where it isn't.
func TestScriptRefused(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
				switch r.URL.Query().Get("for") {
				case "good":
					return realtime.Refuse(401, "sign in first")
				case "a bug":
					return errors.New("secret")
				}
				return nil
			}
		})
		for _, tt := range []struct{ query, told, reason string }{
			{"for=good", "close 4401 final", "sign in first"},
			{"for=a+bug", "close 4403 final", "Forbidden"},
		} {
			tab := newTab(t, browser, "Ann-"+transport)
			tab.open(site.server.URL)
			before := len(site.asked())
			tab.run(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live?` + tt.query + `", ` + options(transport, "") + `);` + watch + reasons)
			tab.tells(tt.told)
			if got := eval[string](tab, `reasons.join() + "|" + live.state`); got != tt.reason+"|closed" {
				t.Errorf("the page was told %q, want %q", got, tt.reason)
			}
			time.Sleep(300 * time.Millisecond) // enough for another attempt if there were one
			if got := len(site.asked()) - before; got != 1 {
				t.Errorf("the page has asked %d times, want once", got)
			}
		}
	})
}

// TestScriptRefusedForNow checks that a page waits for as long as the hub says.
func TestScriptRefusedForNow(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		var asked atomic.Int32
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.OnConnect = func(*realtime.Client, *http.Request) error {
				if asked.Add(1) == 1 {
					return realtime.RefuseFor(time.Second, 429, "slowly")
				}
				return nil
			}
		})
		tab := newTab(t, browser, "Ann-"+transport)
		tab.open(site.server.URL)
		start := time.Now()
		tab.run(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", ` + options(transport, "") + `);` + watch + reasons)
		tab.tells("close 4429")
		// Neither the network nor the user's look at the page is a reason.
		eval[chromedp.Void](tab, `dispatchEvent(new Event("online")); document.dispatchEvent(new Event("visibilitychange")); undefined`)
		tab.tells("close 4429", "open")
		if d := time.Since(start); d < time.Second {
			t.Errorf("the page came back after %v, want a second at least", d)
		}
		if got := eval[string](tab, `reasons.join()`); got != "slowly" || asked.Load() != 2 {
			t.Errorf("the page was told %q and has asked %d times, want %q and twice", got, asked.Load(), "slowly")
		}
	})
}

// TestScriptClosed checks that a page learns why the hub closes it.
func TestScriptClosed(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		clients := make(chan *realtime.Client, 10)
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error { clients <- c; return nil }
		})
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(site.server.URL, options(transport, ""))
		tab.run(reasons)
		tab.until(`live.lastEventId !== ""`)
		c := <-clients
		if got := eval[string](tab, `live.id`); got != c.ID() {
			t.Errorf("the page's id is %q, want %q", got, c.ID())
		}
		c.Close(3000, "credentials have expired")
		tab.tells("open", "close 3000", "open")
		c = <-clients
		if got := eval[string](tab, `live.id`); got != c.ID() {
			t.Errorf("the page's new id is %q, want %q", got, c.ID())
		}
		c.Close(4403, "banned: "+strings.Repeat("é", 100))
		tab.tells("open", "close 3000", "open", "close 4403 final")
		want := "credentials have expired,banned: " + strings.Repeat("é", 57)
		if got := eval[string](tab, `reasons.join() + live.id`); got != want {
			t.Errorf("the page was told %q, want %q", got, want)
		}
	})
}

// TestScriptURL checks that a page may give a function for the URL, which is asked
// before each attempt.
func TestScriptURL(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", nil)
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.open(proxy.url)
		tab.run(`
			const {connect} = await import("/realtime.js");
			globalThis.asked = 0;
			const answers = [
				() => { throw new Error("sync") },
				async () => { throw new Error("async") },
				() => "https://",
				() => "/live?token=" + asked,
				async () => new URL("/live?token=" + asked, location.href),
			];
			globalThis.live = connect(() => answers[asked++](), ` + options(transport, `topics: ["a"]`) + `);` + watch + reasons)
		tab.tells("close 1006", "close 1006", "close 1006", "open")
		tab.expectOutage(true)
		proxy.cut()
		tab.until(`live.state === "open" && asked === 5`)
		if got := eval[string](tab, `reasons.slice(0, 3).join()`); !strings.HasPrefix(got, "Error: sync,Error: async,TypeError: ") {
			t.Errorf("the page was told %q", got)
		}
		var queries []string
		for _, r := range site.asked() {
			queries = append(queries, r.URL.Query().Get("token")+r.URL.Query().Get("topic"))
		}
		if want := []string{"4a", "5a"}; !slices.Equal(queries, want) {
			t.Errorf("the hub was asked with %q, want %q", queries, want)
		}
		// What is answered too late is ignored.
		tab.run(`
			const {connect} = await import("/realtime.js");
			live.close();
			let answer;
			globalThis.live = connect(() => new Promise((f) => { answer = f; }), {});
			live.close();
			answer("/live?late");
		`)
		time.Sleep(100 * time.Millisecond) // enough for the request if there were one
		if last := site.asked()[len(site.asked())-1]; last.URL.Query().Has("late") {
			t.Error("a Connection that is closed has connected")
		}
	})
}

// TestScriptURLHangs checks that a function for the URL that doesn't return in time
// doesn't let the page try another transport: that one didn't fail.
func TestScriptURLHangs(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL)
	tab.run(links + `
		const {setTimeout} = globalThis;
		globalThis.setTimeout = (f, ms) => setTimeout(f, ms < 15e3 ? ms : 1);
		globalThis.asked = 0;
		const {connect} = await import("/realtime.js");
		globalThis.live = connect(() => asked++ < 3 ? new Promise(() => {}) : "/live", {backoff: {min: 1, max: 2}});` + watch)
	tab.until(`links.length > 0`)
	if got := eval[string](tab, `links[0].url`); !strings.HasPrefix(got, "ws:") {
		t.Errorf("the page tries %s first, want a WebSocket", got)
	}
}

// eachShared runs test over both transports, with a page that may share its
// connection and with one that doesn't. more has the option.
func eachShared(t *testing.T, test func(t *testing.T, browser context.Context, transport, more string)) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		for _, more := range []string{"shared: false, ", "shared: true, "} {
			t.Run(more[:len(more)-2], func(t *testing.T) { test(t, browser, transport, more) })
		}
	})
}

// TestScriptListenersMayAct checks that each listener may close the Connection or
// reconnect it.
func TestScriptListenersMayAct(t *testing.T) {
	eachShared(t, func(t *testing.T, browser context.Context, transport, more string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		for _, tt := range []struct {
			what, told string
			events     int
		}{
			{`live.addEventListener("open", () => live.close())`, "open, close 1000 final", 0},
			{`live.addEventListener("open", () => live.reconnect(), {once: true})`, "open, close 1006, open, reset", 3}, // it had no id yet
			{`live.on("1", () => live.close())`, "open, close 1000 final", 1},
			{`live.on("1", () => live.close()); live.on("1", () => told.push("another"))`, "open, close 1000 final", 1},
			{`live.on("1", () => live.reconnect())`, "open, close 1006, open", 3},
			{`live.on("3", () => live.reconnect()); live.addEventListener("close", () => live.close())`, "open, close 1006, close 1000 final", 3},
		} {
			tab := newTab(t, browser, "Ann-"+transport)
			tab.expectOutage(true) // an attempt that is given up is one to the browser
			tab.open(site.server.URL)
			tab.run(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", ` + options(transport, more+`topics: ["a"]`) + `);` + watch + tt.what)
			tab.until(`live.lastEventId || live.state === "closed"`)
			for i := range 3 {
				site.publish("a", fmt.Sprint(i+1), fmt.Sprint(i+1))
			}
			tab.until(fmt.Sprintf("got.length >= %d", tt.events))
			tab.tells(strings.Split(tt.told, ", ")...)
			if got, want := eval[string](tab, `got.join()`), "1,2,3"[:max(0, 2*tt.events-1)]; got != want {
				t.Errorf("%s: got the events %q, want %q", tt.what, got, want)
			}
			eval[chromedp.Void](tab, "live.close()")
		}
	})
}

// TestScriptPageGone checks that the hub can tell a page that is gone from one that
// closed its Connection.
func TestScriptPageGone(t *testing.T) {
	t.Parallel()
	left := make(chan error, 1)
	site := newSite(t, "", func(hub *realtime.Hub) {
		hub.OnDisconnect = func(_ *realtime.Client, err error) { left <- err }
	})
	tab := newTab(t, newBrowser(t), "Ann")
	tab.connect(site.server.URL, options("websocket", ""))
	tab.shut()
	if err := <-left; websocket.CloseStatus(err) != websocket.StatusGoingAway {
		t.Errorf("the page left with %v, want 1001", err)
	}
}

// TestScriptPageCache checks that a page that the browser keeps while the user is
// elsewhere comes back by itself, and misses nothing.
func TestScriptPageCache(t *testing.T) {
	eachShared(t, func(t *testing.T, browser context.Context, transport, more string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(site.server.URL, options(transport, more+`topics: ["a"]`))
		site.publish("a", "", "1")
		tab.until(`got.join() === "1"`)
		eval[chromedp.Void](tab, `addEventListener("pageshow", (e) => { globalThis.kept = e.persisted; })`)
		tab.open(site.server.URL + "/elsewhere")
		for deadline := time.Now().Add(patience); site.hub.ClientCount() > 0; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the page stays connected")
			}
		}
		site.publish("a", "", "2")
		eval[chromedp.Void](tab, `history.back()`)
		tab.until(`globalThis.kept !== undefined || globalThis.live === undefined`)
		if !eval[bool](tab, `globalThis.kept === true`) {
			t.Fatal("the browser hasn't kept the page")
		}
		start := time.Now()
		tab.until(`got.join() === "1,2"`)
		t.Logf("back after %v", time.Since(start))
		tab.tells("open", "close 1006", "open")
	})
}

// TestScriptPageCacheOneConnection checks that a page that comes back from the
// browser's cache makes one connection, although something else had it connect just
// before.
func TestScriptPageCacheOneConnection(t *testing.T) {
	eachShared(t, func(t *testing.T, browser context.Context, transport, more string) {
		for _, why := range []string{"it was about to try again", "its computer slept"} {
			t.Run(why, func(t *testing.T) {
				site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
				tab := newTab(t, browser, "Ann-"+transport)
				tab.expectOutage(true)
				tab.open(site.server.URL)
				tab.run(`
				const {setInterval} = globalThis;
				globalThis.setInterval = (f) => setInterval(f, 20); // realtime.js looks at the time
				const {now} = Date;
				globalThis.slept = 0;
				Date.now = () => now() + slept;`)
				tab.run(fmt.Sprintf(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", %s);`+watch,
					options(transport, more+`topics: ["a"]`)))
				tab.until(`live.state === "open" && live.lastEventId !== ""`)
				eval[chromedp.Void](tab, `addEventListener("pageshow", (e) => { globalThis.kept = e.persisted; })`)
				if why == "its computer slept" {
					eval[chromedp.Void](tab, `document.addEventListener("freeze", () => { slept += 3_600_000; })`)
				} else {
					site.answer(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) })
					for c := range site.hub.Clients() {
						c.Close(1001, "")
					}
					tab.until(`live.state === "connecting"`)
				}
				tab.open(site.server.URL + "/elsewhere")
				for deadline := time.Now().Add(patience); site.hub.ClientCount() > 0; time.Sleep(10 * time.Millisecond) {
					if time.Now().After(deadline) {
						t.Fatal("the page stays connected")
					}
				}
				site.answer(site.hub.ServeHTTP)
				eval[chromedp.Void](tab, `history.back()`)
				tab.until(`globalThis.kept === true && live.state === "open"`)
				time.Sleep(300 * time.Millisecond) // what is too much may take longer
				site.has(1, 1)
				eval[chromedp.Void](tab, `live.close()`)
			})
		}
	})
}
