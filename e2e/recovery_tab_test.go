package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
)

// A recoveryTab is a tab of a run.
type recoveryTab struct {
	*tab
	site      string // its URL
	topics    []string
	suspended string          // "frozen", "away" or "offline"
	record    []recoveryEntry // when it was closed
}

func (r *recovery) open(topics []string) {
	tab := &recoveryTab{tab: r.pool.get(r.T, fmt.Sprintf("tab%d", len(r.tabs)+len(r.closed))), site: r.site.server.URL, topics: topics}
	setup, _ := json.Marshal(map[string]any{
		"url": r.proxy.url + "/live", "tickets": r.tickets, "topics": topics, "shared": r.shared, "transports": []string{r.transport},
		"backoff": map[string]int{"min": 20, "max": 200},
	})
	tab.open(r.site.server.URL + "/recovery/#" + url.PathEscape(string(setup)))
	r.tabs = append(r.tabs, tab)
}

// pick returns one of the tabs.
func (r *recovery) pick(n int) *recoveryTab { return r.tabs[n%len(r.tabs)] }

func (tab *recoveryTab) has(topic string) bool {
	return topic == "" || topic == "given" || slices.Contains(tab.topics, topic)
}

// suspend makes the page frozen, away (its tab shows another one) or offline.
func (tab *recoveryTab) suspend(how string) {
	tab.wake()
	switch tab.suspended = how; how {
	case "frozen":
		tab.freeze(true)
	case "away":
		tab.open(tab.site + "/elsewhere")
	case "offline":
		tab.setOffline(true)
	}
}

// wake ends what suspend began.
func (tab *recoveryTab) wake() {
	switch tab.suspended {
	case "frozen":
		tab.freeze(false)
	case "away":
		eval[chromedp.Void](tab.tab, `history.back()`)
		tab.until(`globalThis.live`)
	case "offline":
		tab.setOffline(false)
	}
	tab.suspended = ""
}

// act runs JavaScript in the page, awake.
func (tab *recoveryTab) act(js string) {
	tab.wake()
	eval[chromedp.Void](tab.tab, js+"; undefined")
}

func (tab *recoveryTab) reload() {
	tab.act(`globalThis.old = true; location.reload()`)
	tab.until(`!globalThis.old && globalThis.live`)
}

// setOffline sets whether the page has a network.
func (tab *recoveryTab) setOffline(offline bool) {
	tab.do("going offline", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		rule := &network.Conditions{Offline: offline, DownloadThroughput: -1, UploadThroughput: -1}
		if _, err := cdp.Call(ctx, target, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{
			MatchedNetworkConditions: []*network.Conditions{rule},
		}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, target, network.OverrideNetworkState, network.OverrideNetworkStateParams{
			Offline: offline, DownloadThroughput: -1, UploadThroughput: -1,
		})
		return err
	}))
}

// A recoveryEntry is an entry of a page's record.
type recoveryEntry struct {
	Type   string `json:"type"`
	At     int64  `json:"at"` // in Unix milliseconds
	ID     string `json:"id"` // of an event; of begin: from which the page resumes after a reload
	Topic  string `json:"topic"`
	Number int    `json:"number"`
	Code   int    `json:"code"`
	Final  bool   `json:"final"`
}

// check checks the tab's record.
func (tab *recoveryTab) check(r *recovery) {
	c := recoveryCheck{recovery: r, tab: tab, last: make(map[string]int), anew: make(map[string]int64)}
	for i, e := range tab.record {
		r.count[e.Type]++
		wrong := c.next(e)
		if e.Final && !(r.ending && e.Code == 4403 && i == len(tab.record)-1) {
			wrong = "it was final"
		}
		if wrong != "" {
			r.Errorf("%s, entry %d of %d: %+v: %s, after %+v", tab.name, i, len(tab.record), e, wrong, tab.record[max(0, i-8):i])
			return
		}
	}
}

// A recoveryCheck is what is known of a page at a place of its record.
type recoveryCheck struct {
	*recovery
	tab    *recoveryTab
	open   bool
	fresh  bool             // it has begun without an id and wasn't open yet
	empty  bool             // no event has come since it began or was reset, so it may have no id
	resets int              // that may come
	last   map[string]int   // the number of each topic's last event
	anew   map[string]int64 // topics whose next event is the first one after this time, or an earlier one
}

// next says what is wrong with the next entry.
func (c *recoveryCheck) next(e recoveryEntry) (wrong string) {
	if !c.open && (e.Type == "event" || e.Type == "reset") {
		return "it isn't open"
	}
	switch e.Type {
	case "begin":
		c.open = false
		if e.ID == "" {
			c.fresh, c.empty = true, true
			c.resets = len(after(c.breaks, e.At))
		}
	case "open":
		if c.open {
			return "it is open"
		}
		c.open = true
		if c.fresh {
			c.fresh = false
			c.beginAnew("", e.At)
		}
	case "close":
		c.open = false
	case "reset":
		if !c.empty { // otherwise there is nothing that it could resume from
			c.resets--
		}
		if c.resets < 0 {
			return "nothing was lost"
		}
		c.empty = true
		c.beginAnew(e.Topic, e.At)
	case "event":
		want := c.last[e.Topic] + 1
		limit := want
		if at, ok := c.anew[e.Topic]; ok {
			limit = len(c.published[e.Topic]) - len(after(c.published[e.Topic], at)) + 1
			delete(c.anew, e.Topic)
		}
		switch {
		case !c.tab.has(e.Topic):
			return "it doesn't have this topic"
		case e.Number < want:
			return fmt.Sprintf("it came twice, want %d", want)
		case e.Number > limit:
			return fmt.Sprintf("events are lost, want %d", want)
		}
		c.last[e.Topic], c.empty = e.Number, false
	}
	return ""
}

// beginAnew lets a topic, or all, begin again at a time.
func (c *recoveryCheck) beginAnew(topic string, at int64) {
	for _, t := range recoveryTopics {
		if topic == "" || topic == t {
			c.anew[t] = at
		}
	}
}

// after returns those times that are after one in Unix milliseconds.
func after(times []time.Time, ms int64) []time.Time {
	t := time.UnixMilli(ms).Add(2 * time.Millisecond) // clocks are rounded
	n, _ := slices.BinarySearchFunc(times, t, time.Time.Compare)
	return times[n:]
}

// A tabPool has the tabs that runs have left. To open a page in one of them is much
// cheaper than to open a tab.
type tabPool struct {
	*testing.T
	browser context.Context

	mu   sync.Mutex // guards the field below
	tabs []*tab
}

// get returns a tab for a run.
func (p *tabPool) get(t *testing.T, name string) *tab {
	p.mu.Lock()
	var got *tab
	if n := len(p.tabs); n > 0 {
		got, p.tabs = p.tabs[n-1], p.tabs[:n-1]
	}
	p.mu.Unlock()
	if got == nil {
		got = newTabIn(p.T, p.browser, name, chromedp.WithNewWindow(false))
		got.expectOutage(true)
	}
	got.T, got.name = t, name
	return got
}

// put takes a tab back. Its run fails if the browser has complained.
func (p *tabPool) put(tab *tab) {
	tab.checkComplaints(tab.T)
	tab.T = p.T
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tabs = append(p.tabs, tab)
}
