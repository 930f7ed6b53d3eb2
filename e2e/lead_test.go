package e2e

import (
	"fmt"
	"testing"
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
