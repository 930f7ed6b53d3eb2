package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// JavaScript expressions for the tests of the dashboard.
const (
	requests = `document.querySelector("[data-metric=requests] b")?.textContent`
	curve    = `document.querySelector("[data-metric=requests] .curve").getAttribute("d")`
	gaps     = `document.querySelector("[data-metric=requests] .gap").getAttribute("d")`
	sections = `[...document.querySelectorAll("#board section:not([hidden])")].map((s) => s.dataset.topic).join()`
	notice   = `!document.querySelector("#notice").hidden`
	tip      = `document.querySelector("[data-metric=requests] .tip")`
	dot      = `document.querySelector("[data-metric=requests] .dot").getAttribute("d")`
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
	ann.until(state("state", "idle", "Nothing chosen") + ` && ` + sections + ` === ""`)
	ann.do("reloading", chromedp.Reload())
	ann.until(state("state", "idle", "Nothing chosen"))
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
	ann.until(state("state", "again", "Reconnecting…") + ` && !document.querySelector("#again").hidden`)
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
	ann.until(state("state", "again", "Reconnecting…"))
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

// TestDashboardTabs has two tabs of one browser show different topics over the
// connection that they share. Its owner is closed.
func TestDashboardTabs(t *testing.T) {
	t.Parallel()
	profile := newProfile(t, newBrowser(t))
	server := start(t, build(t, "dashboard"), "localhost:0", "-every", "200ms")
	ann := newTabIn(t, profile, "Ann")
	ann.open(server.url + "/#traffic")
	ann.moves()
	other := newTabIn(t, profile, "Ann's other tab")
	other.open(server.url + "/#shop,traffic")
	other.moves()
	ann.shut()
	other.moves()
	other.until(sections + ` === "traffic,shop"`)
	if eval[bool](other, notice) || eval[string](other, gaps) != "" {
		t.Errorf("when the other tab is closed, this one has the gaps %q and says %q", eval[string](other, gaps),
			eval[string](other, `document.querySelector("#notice").textContent`))
	}
	server.interrupt(other)
}

// TestDashboardChart reads a chart: its scale and times, and the value under the
// mouse, a finger and as the keys choose it.
func TestDashboardChart(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "dashboard"), "localhost:0", "-every", "200ms")
	ann := newTab(t, browser, "Ann")
	ann.open(server.url)
	ann.moves()
	ann.do("resizing", chromedp.EmulateViewport(1280, 900))
	ann.until(curve + `.split("L").length > 10`)

	// The scale and the times.
	if wrong := eval[[]string](ann, `[...document.querySelectorAll(".plot")].flatMap((plot) => {
		const labels = (c) => [...plot.querySelectorAll(c)];
		const box = (e) => e.getBoundingClientRect();
		const apart = (a, b) => box(a).right < box(b).left || box(b).right < box(a).left || box(a).bottom < box(b).top || box(b).bottom < box(a).top;
		const inside = (e) => box(e).left >= box(plot.parentElement).left && box(e).right <= box(plot.parentElement).right;
		const all = labels(".x, .y");
		return [
			...labels(".x").filter((e) => !/^([01]\d|2[0-3]):[0-5]\d:[0-5]\d$/.test(e.textContent)),
			...all.filter((e, i) => !inside(e) || all.slice(i + 1).some((other) => !apart(e, other))),
		].map((e) => e.outerHTML).concat(labels(".y").length < 2 || labels(".x").length < 2 ? plot.parentElement.innerText : []);
	})`); len(wrong) > 0 {
		t.Errorf("the labels are wrong:\n%s", strings.Join(wrong, "\n"))
	}
	if got := eval[float64](ann, `document.querySelector("#board").getBoundingClientRect().bottom / innerHeight`); got < .9 || got > 1 {
		t.Errorf("the charts end at %.0f %% of the window's height, want them to fill it", 100*got)
	}

	// The mouse.
	at := func(part float64) (x, y float64) {
		return eval[float64](ann, fmt.Sprintf(`(r => r.left + %g * r.width)(%s.parentElement.getBoundingClientRect())`, part, tip)),
			eval[float64](ann, fmt.Sprintf(`(r => r.top + r.height / 2)(%s.parentElement.getBoundingClientRect())`, tip))
	}
	mouse := func(x, y float64) {
		t.Helper()
		ann.do("moving the mouse", chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, y))
	}
	mouse(at(.997))
	ann.until(`[...document.querySelectorAll(".tip")].every((e) => !e.hidden)`)
	ann.until(fmt.Sprintf(`/^[\d,]+ \/s at \d\d:\d\d:\d\d$/.test(%[1]s.textContent) && %[1]s.textContent.startsWith(%[2]s + " ") && %[1]s.textContent.endsWith(document.querySelector("#latest").textContent)`,
		tip, requests))
	if got := eval[string](ann, dot); got == "" {
		t.Error("no dot shows where the value is")
	}
	mouse(at(.01))
	ann.until(tip + `.textContent === "no sample" && ` + dot + ` === ""`)
	mouse(5, 5)
	ann.until(tip + `.hidden`)

	// Keys.
	value := tip + `.parentElement.ariaValueText`
	press := func(key string) {
		t.Helper()
		ann.do("pressing a key", chromedp.KeyEvent(key))
	}
	eval[chromedp.Void](ann, tip+`.parentElement.focus()`)
	press(kb.End)
	ann.until(`!` + tip + `.hidden`)
	last := eval[string](ann, value)
	press(kb.Home)
	ann.until(fmt.Sprintf(`%s !== %q && %s.textContent === %[1]s`, value, last, tip))
	first := eval[string](ann, value)
	for range 10 { // a time label has full seconds, and five samples
		press(kb.ArrowRight)
	}
	ann.until(fmt.Sprintf(`%s !== %q && %s.textContent === %[1]s`, value, first, tip))
	press(kb.Escape)
	ann.until(tip + `.hidden`)

	// A finger, which is lifted. The value stays until it touches something else.
	ann.do("making it a phone", chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile, chromedp.EmulateTouch))
	ann.until(`innerWidth === 390 && matchMedia("(pointer: coarse)").matches`)
	touch := func(x, y float64) {
		t.Helper()
		ann.do("touching", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, input.DispatchTouchEvent, input.DispatchTouchEventParams{
				Type: input.DispatchTouchEventTypeTouchStart, TouchPoints: []*input.TouchPoint{{X: x, Y: y}}})
			if err != nil {
				return err
			}
			_, err = cdp.Call(ctx, target, input.DispatchTouchEvent, input.DispatchTouchEventParams{
				Type: input.DispatchTouchEventTypeTouchEnd, TouchPoints: []*input.TouchPoint{}})
			return err
		}))
	}
	touch(at(.9))
	ann.until(`!` + tip + `.hidden`)
	ann.moves()
	if eval[bool](ann, tip+`.hidden`) {
		t.Error("the value goes when the finger is lifted")
	}
	touch(5, 5)
	ann.until(tip + `.hidden`)
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
		if got := eval[[]string](phone, `[...document.querySelectorAll("h1, #state, #latest, #again:not([hidden]), label, #legend li, h3, .value, .plot")].filter((e) => {
			e.scrollIntoView({block: "center"});
			const r = e.getBoundingClientRect();
			return r.width < 20 || r.height < 10 || r.left < 0 || r.right > innerWidth || e.scrollWidth > e.clientWidth + 1 && !e.matches(".plot") && getComputedStyle(e).display !== "inline" ||
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
	phone.until(state("state", "again", "Reconnecting…"))
	look([2]int64{320, 568})
}

// TestDashboardRefused checks that the page tells why it gets no more samples.
func TestDashboardRefused(t *testing.T) {
	t.Parallel()
	server := start(t, build(t, "dashboard"), "localhost:0")
	ann := newTab(t, newBrowser(t), "Ann")
	ann.do("watching the page", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{
			Source: `globalThis.EventSource = class extends EventSource { constructor(...all) { super(...all); globalThis.stream = this; } }`,
		})
		return err
	}))
	ann.open(server.url)
	ann.moves()
	eval[chromedp.Void](ann, `stream.onmessage({data: '{"close":{"code":4403,"reason":"the board is not yours","final":true}}'})`)
	ann.until(state("state", "over", "Refused") + ` && document.querySelector("#notice").innerText.includes("the board is not yours")`)
	server.interrupt(ann)
}
