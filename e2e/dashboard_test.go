package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// JavaScript expressions for the tests of the dashboard.
const (
	requests = `document.querySelector("[data-metric=requests] b")?.textContent`
	curve    = `document.querySelector("[data-metric=requests] .curve").getAttribute("d")`
	gaps     = `document.querySelector("[data-metric=requests] .gap").getAttribute("d")`
	sections = `[...document.querySelectorAll("#board section:not([hidden])")].map((s) => s.dataset.topic).join()`
	notice   = `!document.querySelector("#notice").hidden`
)

// moves waits until the dashboard is live and the number of requests changes.
func (tab *tab) moves() {
	tab.Helper()
	tab.until(state("state", "live", "Live"))
	tab.until(fmt.Sprintf(`%s !== %q`, requests, eval[string](tab, requests)))
}

// TestDashboard chooses topics, cuts the connection and restarts the server.
func TestDashboard(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	path := build(t, "dashboard")
	server := start(t, path, "localhost:0", "-every", "200ms")
	_, addr, _ := strings.Cut(server.url, "//")
	proxy := newProxy(t, addr)
	ann := newTab(t, browser, "Ann")
	ann.open(proxy.url)
	ann.moves()
	ann.until(curve + `.split("L").length > 10`)
	if got := eval[string](ann, sections); got != "traffic,servers,shop" {
		t.Errorf("Ann sees %s, want all topics", got)
	}

	// Topics.
	ann.click("[value=servers]")
	ann.until(sections + ` === "traffic,shop" && location.hash === "#traffic,shop"`)
	ann.moves()
	ann.do("reloading", chromedp.Reload())
	ann.moves()
	ann.until(sections + ` === "traffic,shop"`)
	ann.click("[value=traffic]")
	ann.click("[value=shop]")
	ann.until(state("state", "off", "Nothing chosen") + ` && ` + sections + ` === ""`)
	ann.do("reloading", chromedp.Reload())
	ann.until(state("state", "off", "Nothing chosen"))
	ann.click("[value=traffic]")
	ann.moves()
	if eval[bool](ann, notice) {
		t.Error("the page says that samples are missing")
	}

	// The connection is lost for so long that the chart would show a gap. The
	// page gets what it missed, so there is none.
	ann.expectOutage(true)
	proxy.setLimit(func() int { return 0 })
	proxy.cut()
	ann.until(state("state", "lost", "Offline") + ` && !document.querySelector("#again").hidden`)
	time.Sleep(1500 * time.Millisecond)
	proxy.setLimit(nil)
	ann.click("#again")
	ann.moves()
	if eval[bool](ann, notice) || eval[string](ann, gaps) != "" {
		t.Errorf("after the connection was lost the chart has the gaps %q and the page says %q", eval[string](ann, gaps),
			eval[string](ann, `document.querySelector("#notice").textContent`))
	}

	// The server is restarted. There are no samples of the time in between.
	server.interrupt(ann)
	ann.until(state("state", "lost", "Offline"))
	before := eval[string](ann, requests)
	time.Sleep(1500 * time.Millisecond)
	start(t, path, addr, "-every", "200ms")
	ann.until(state("state", "live", "Live") + ` && ` + notice)
	ann.until(fmt.Sprintf(`%s !== %q`, requests, before))
	ann.until(gaps + ` !== ""`)
	ann.click("#seen")
	ann.until(`!(` + notice + `)`)
	ann.moves()
}

// TestDashboardLatest checks that a page has the latest values at once, long
// before the next samples. It also checks this for a topic that is chosen later.
func TestDashboardLatest(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "dashboard"), "localhost:0", "-every", "1h")
	ann := newTab(t, browser, "Ann")
	ann.open(server.url + "/#shop")
	numbers := func() []string {
		return eval[[]string](ann, `[...document.querySelectorAll("section:not([hidden]) .value b")].map((b) => b.textContent)`)
	}
	ann.until(state("state", "live", "Live") + ` && document.querySelector("[data-metric=basket] b").textContent !== "–"`)
	if got := numbers(); len(got) != 2 || slices.Contains(got, "–") {
		t.Errorf("Ann sees %q, want two numbers", got)
	}
	ann.click("[value=traffic]")
	ann.until(state("state", "live", "Live") + ` && document.querySelector("[data-metric=latency] b").textContent !== "–"`)
	if got := numbers(); len(got) != 4 || slices.Contains(got, "–") {
		t.Errorf("Ann sees %q, want four numbers", got)
	}
	server.interrupt(ann)
}

// TestDashboardPhone checks that the page fits on small screens.
func TestDashboardPhone(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "dashboard"), "localhost:0", "-every", "50ms")
	phone := newTab(t, browser, "Phone")
	phone.open(server.url)
	phone.moves()
	look := func(size [2]int64) {
		t.Helper()
		phone.do("resizing", chromedp.EmulateViewport(size[0], size[1],
			chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulateScale(3)))
		phone.until(fmt.Sprintf("screen.width === %d", size[0]))
		if got := eval[int](phone, "innerWidth"); got != int(size[0]) {
			t.Errorf("at %v the page doesn't fit: it is zoomed out to %d px", size, got)
		}
		if over := eval[int](phone, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
			t.Errorf("at %v the page is %d px too wide", size, over)
		}
		if got := eval[[]string](phone, `[...document.querySelectorAll("h1, #state, #again:not([hidden]), label, h3, .value, .card svg, .range")].filter((e) => {
			e.scrollIntoView({block: "center"});
			const r = e.getBoundingClientRect();
			return r.width < 20 || r.height < 10 || r.left < 0 || r.right > innerWidth || e.scrollWidth > e.clientWidth + 1 && e.tagName !== "svg" && getComputedStyle(e).display !== "inline" ||
				!e.contains(document.elementFromPoint(r.left + r.width / 2, r.top + r.height / 2));
		}).map((e) => e.outerHTML.slice(0, 100))`); len(got) > 0 {
			t.Errorf("at %v these can't be seen: %s", size, strings.Join(got, "\n"))
		}
		eval[chromedp.Void](phone, `scrollTo(0, 0)`)
	}
	for _, size := range [][2]int64{{390, 844}, {320, 568}, {844, 390}} {
		look(size)
	}
	server.interrupt(phone)
	phone.until(state("state", "lost", "Offline"))
	look([2]int64{320, 568})
}
