package e2e

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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
	tab.until(fmt.Sprintf(`document.querySelector("#prompt").textContent === %q && %s !== ""`, prompt, words))
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
	ann.until(state("state", "live", "Writing") + ` && !document.querySelector("#stop").hidden`)
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

// TestFeedProxy has a proxy answer 502 for a while, after which an EventSource
// gives up. The page begins again, behind the last word that it has.
func TestFeedProxy(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "feed"), "localhost:0", "-pause", "100ms")
	target, err := url.Parse(server.url)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(target)
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	var down atomic.Bool
	var refused atomic.Int64
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			if strings.HasPrefix(r.URL.Path, "/events/") {
				refused.Add(1)
			}
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		proxy.ServeHTTP(w, r)
	}))
	defer front.Close()
	ann := newTab(t, browser, "Ann")
	ann.open(front.URL)
	ann.asks("What is an event stream?")
	ann.expectOutage(true)
	down.Store(true)
	front.CloseClientConnections()
	ann.until(state("state", "again", "Reconnecting…"))
	for refused.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	down.Store(false)
	ann.until(state("state", "idle", "Finished"))
	want := newTab(t, browser, "Eve")
	want.open(server.url + "/" + eval[string](ann, `location.hash`))
	want.until(state("state", "idle", "Finished"))
	if got, want := eval[string](ann, words), eval[string](want, words); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	ann.do("leaving", chromedp.Navigate("about:blank"))
	server.interrupt(want)
}
