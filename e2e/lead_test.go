package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// TestScriptSharedTakesTurns checks that tabs without a server, which take the lead
// from each other again and again, don't ask for ever more locks.
func TestScriptSharedTakesTurns(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	profile := newProfile(t, newBrowser(t))
	var tabs []*tab
	for i := range 2 {
		tab := newTabIn(t, profile, fmt.Sprint("tab", i))
		tab.feign(site.server.URL, `
			const {setTimeout} = globalThis;
			globalThis.setTimeout = (f, ms) => setTimeout(f, ms < 15e3 ? ms : ms / 300);
			globalThis.turns = 0;
			const request = navigator.locks.request.bind(navigator.locks);
			navigator.locks.request = (name, options, f) => request(name, options, (lock) => {
				turns++;
				return f(lock);
			});`, `{shared: true, transports: ["websocket"]}`)
		tabs = append(tabs, tab)
	}
	for _, tab := range tabs {
		tab.until(`turns > 10`)
	}
	tabs[0].run(`globalThis.locks = await navigator.locks.query()`)
	if n := eval[int](tabs[0], `locks.pending.length`); n > len(tabs) {
		t.Errorf("%d tabs wait for %d locks, want one each", len(tabs), n)
	}
}

// TestScriptSharedSendsOnce checks that the hub gets a message of a tab once, also if
// the tab that had the connection was frozen then, and still thinks that it leads
// when it goes on.
func TestScriptSharedSendsOnce(t *testing.T) {
	t.Parallel()
	heard := make(chan string, 10)
	site := newSite(t, "", func(hub *realtime.Hub) {
		hub.History, hub.PingInterval = keep, time.Second
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { heard <- string(msg.Data) }
	})
	profile := newProfile(t, newBrowser(t))
	var tabs []*tab
	for i := range 3 {
		tab := newTabIn(t, profile, fmt.Sprint("tab", i))
		tab.expectOutage(true) // its connection ends
		tab.share(site.server.URL, "websocket", "a")
		tab.until(`live.lastEventId !== "" && live.state === "open"`)
		tabs = append(tabs, tab)
	}
	site.has(1, 1)
	tabs[0].freeze(true)
	for _, tab := range tabs[1:] {
		tab.until(`told.length > 2 && live.state === "open"`) // the lead has changed
	}
	for i := range 20 {
		site.publish("a", "", fmt.Sprint(i))
		for n, tab := range tabs[1:] {
			eval[chromedp.Void](tab, fmt.Sprintf(`live.send("%d from %d")`, i, n))
		}
	}
	tabs[0].freeze(false)
	tabs[0].until(`got.at(-1) === "19"`)
	site.has(1, 1)
	eval[chromedp.Void](tabs[1], `live.send("end")`)
	var got []string
	for len(got) == 0 || got[len(got)-1] != "end" {
		select {
		case data := <-heard:
			got = append(got, data)
		case <-time.After(patience):
			t.Fatalf("timed out waiting for the last message, got %q", got)
		}
	}
	slices.Sort(got)
	if twice := len(got) - len(slices.Compact(slices.Clone(got))); twice > 0 || len(got) != 41 {
		t.Errorf("the hub got %d messages, %d of them twice, want 41", len(got), twice)
	}
}
