package e2e

import (
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// away lets a page find that its timers stood still for a while, as those of a page
// in the background may.
const away = `{
	const {now} = Date;
	Date.now = () => now() + 45_000;
	document.dispatchEvent(new Event("visibilitychange"));
}; undefined`

// TestScriptReturns checks that a page that was in the background for a while asks
// whether the hub is still there. Its connection may be dead.
func TestScriptReturns(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	for _, tt := range []struct{ name, returns string }{
		{"shown at once", away},
		{"shown later", `Object.defineProperty(document, "hidden", {value: true, configurable: true}); ` + away + `
			delete document.hidden;
			document.dispatchEvent(new Event("visibilitychange"));`},
	} {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, tt.name)
		tab.connect(proxy.url, options("websocket", `topics: ["a"]`))
		tab.until(`live.lastEventId !== ""`)
		eval[chromedp.Void](tab, tt.returns)
		time.Sleep(6 * time.Second) // more than it waits for an answer
		site.publish("a", "", "1")
		tab.until(`got.join() === "1"`)
		tab.tells("open")
		if n := len(site.asked()); n != 1 {
			t.Errorf("the page made %d connections, want 1", n)
		}

		proxy.unplug()
		site.publish("a", "", "2")
		eval[chromedp.Void](tab, tt.returns)
		tab.until(`got.join() === "1,2"`)
		tab.tells("open", "close 1006", "open")
	}
}

// TestScriptSharedReturns checks that a page that was in the background takes the
// lead from one that still is, and that is frozen.
func TestScriptSharedReturns(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	profile := newProfile(t, newBrowser(t))
	open := func(name string) *tab {
		tab := newTabIn(t, profile, name)
		tab.expectOutage(true) // its connection ends
		tab.share(site.server.URL, "websocket", "a")
		tab.until(`live.lastEventId !== "" && live.state === "open"`)
		return tab
	}
	leader := open("leader")
	follower := open("follower")
	site.has(1, 1)
	eval[chromedp.Void](follower, away)
	time.Sleep(6 * time.Second)
	follower.tells("open")
	leader.freeze(true)
	site.publish("a", "", "1")
	eval[chromedp.Void](follower, away)
	follower.until(`got.join() === "1"`)
	follower.tells("open", "close 1006", "open")
	leader.freeze(false)
	leader.until(`got.join() === "1"`)
}
