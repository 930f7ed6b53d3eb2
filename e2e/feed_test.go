package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
)

// JavaScript expressions for the tests of the feed.
const (
	words = `document.querySelector("#words").textContent`
	ended = `document.querySelector("#end").textContent`
)

// asks writes a prompt and waits for the first words.
func (tab *tab) asks(prompt string) {
	tab.Helper()
	tab.write("#text", prompt)
	tab.enter()
	tab.until(state("state", "live", "Writing") + ` && ` + words + ` !== ""`)
	if got := eval[string](tab, `document.querySelector("#prompt").textContent`); got != prompt {
		tab.Errorf("the page shows the prompt %q, want %q", got, prompt)
	}
}

// TestFeed has an answer come through a network that breaks over and over, to two
// pages. One of them is opened late, and reloaded. Each gets each word once and in
// order, as a third page without trouble does.
func TestFeed(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "feed"), "localhost:0", "-pause", "40ms")
	_, addr, _ := strings.Cut(server.url, "//")
	proxy := newProxy(t, addr)
	ann, bob, eve := newTab(t, browser, "Ann"), newTab(t, browser, "Bob"), newTab(t, browser, "Eve")
	ann.expectOutage(true)
	bob.expectOutage(true)
	ann.open(proxy.url)
	ann.until(state("state", "idle", "Ready"))
	ann.asks("What is an event stream?")
	hash := eval[string](ann, `location.hash`)
	eve.open(server.url + "/" + hash)
	bob.open(proxy.url + "/" + hash)
	for i := range 4 {
		for _, tab := range []*tab{ann, bob} {
			tab.until(fmt.Sprintf(`%s.length > %d || %s !== ""`, words, len(eval[string](tab, words)), ended))
		}
		proxy.cut()
		if i == 2 {
			bob.do("reloading", chromedp.Reload())
		}
	}
	for _, tab := range []*tab{ann, bob, eve} {
		tab.until(state("state", "idle", "Finished"))
	}
	want := eval[string](eve, words)
	if n := len(strings.Fields(want)); n < 20 || !strings.Contains(eval[string](eve, ended), fmt.Sprintf("Finished after %d words", n)) {
		t.Errorf("Eve got the %d words\n%s\nand then %q", n, want, eval[string](eve, ended))
	}
	for _, tab := range []*tab{ann, bob} {
		if got := eval[string](tab, words); got != want {
			t.Errorf("%s got\n%s\nwant\n%s", tab.name, got, want)
		}
	}
	server.interrupt(eve)
}

// TestFeedStop stops an answer for two pages.
func TestFeedStop(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "feed"), "localhost:0", "-pause", "300ms")
	ann, bob := newTab(t, browser, "Ann"), newTab(t, browser, "Bob")
	ann.open(server.url)
	ann.asks("hello")
	bob.open(server.url + "/" + eval[string](ann, `location.hash`))
	for _, tab := range []*tab{ann, bob} {
		tab.until(`document.querySelector("#pulse").textContent.endsWith("2 pages watch")`)
	}
	bob.click("#stop")
	for _, tab := range []*tab{ann, bob} {
		tab.until(state("state", "idle", "Stopped") + ` && document.querySelector("#stop").hidden`)
	}
	got := eval[string](ann, words)
	if other := eval[string](bob, words); got != other {
		t.Errorf("Ann has %q, Bob has %q", got, other)
	}

	// The page shows it again, and then another one.
	ann.do("reloading", chromedp.Reload())
	ann.until(state("state", "idle", "Stopped") + fmt.Sprintf(` && %s === %q`, words, got))
	ann.click("#text")
	ann.asks("hello again")
	ann.do("going back", chromedp.NavigateBack())
	ann.until(state("state", "idle", "Stopped") + fmt.Sprintf(` && %s === %q`, words, got))
	server.interrupt(ann, bob)
}

// TestFeedGone has the server restart while an answer is written: it is gone, and
// the page says so. Before that it shows that the connection is lost.
func TestFeedGone(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	path := build(t, "feed")
	server := start(t, path, "localhost:0", "-pause", "1s")
	_, addr, _ := strings.Cut(server.url, "//")
	ann := newTab(t, browser, "Ann")
	ann.open(server.url)
	ann.asks("hello")
	server.interrupt(ann)
	ann.until(state("state", "again", "Reconnecting…"))
	start(t, path, addr, "-pause", "5ms")
	ann.until(state("state", "over", "Gone") + ` && !document.querySelector("#notice").hidden`)
	ann.expectOutage(false)
	ann.asks("hello again")
	ann.until(state("state", "idle", "Finished"))
}
