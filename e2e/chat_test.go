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

// JavaScript expressions for the tests.
const (
	lastAuthor = `document.querySelector("#log article:last-of-type b")?.textContent`
	lastText   = `document.querySelector("#log article:last-of-type p")?.textContent`
	count      = `document.querySelector("#online").textContent`
	tick       = `document.querySelector("#tick time").dateTime`
	atEnd      = `(log => log.scrollHeight - log.scrollTop - log.clientHeight < 2)(document.querySelector("#log"))`
)

// state returns a condition: the chat ("state") or the feed ("feed-state") is in
// that state and shows those words.
func state(id, state, words string) string {
	return fmt.Sprintf(`(e => e.dataset.state === %q && e.textContent === %q)(document.getElementById(%q))`, state, words, id)
}

// join opens the chat and joins it with the tab's name.
func (tab *tab) join(url string) {
	tab.Helper()
	tab.open(url)
	tab.write("#name", tab.name)
	tab.enter()
	tab.online()
}

// online waits until the tab is in the chat and its feed alive.
func (tab *tab) online() {
	tab.Helper()
	tab.until(state("state", "online", "Online"))
	tab.until(state("feed-state", "online", "Live"))
	tab.until(fmt.Sprintf(`%s > %q`, tick, eval[string](tab, tick)))
}

// say writes a message and sends it with the Enter key.
func (tab *tab) say(text string) {
	tab.Helper()
	tab.write("#text", text)
	tab.enter()
	tab.sees("You", text)
	tab.until(`document.querySelector("#text").value === ""`)
}

// sees waits for the message to be the last in the log.
func (tab *tab) sees(author, text string) {
	tab.Helper()
	tab.until(fmt.Sprintf(`%s === %q && %s === %q`, lastAuthor, author, lastText, text))
}

// TestChat lets two people chat while the server is restarted.
func TestChat(t *testing.T) {
	browser := newBrowser(t)
	path := build(t, "chat")
	server := start(t, path, "localhost:0")

	ann, bob := newTab(t, browser, "Ann"), newTab(t, browser, "Bob")
	ann.join(server.url)
	bob.join(server.url)
	for _, tab := range []*tab{ann, bob} {
		tab.until(count + ` === "2"`)
	}

	ann.say("Hello, is anybody here?")
	bob.sees("Ann", "Hello, is anybody here?")
	bob.say("Yes, I am.")
	ann.sees("Bob", "Yes, I am.")

	html := `<script>window.hacked = 1</script><img src=x onerror="window.hacked = 1"> &amp;`
	ann.say(html)
	bob.sees("Ann", html)
	for _, tab := range []*tab{ann, bob} {
		if eval[bool](tab, `"hacked" in window || document.querySelector("#log :is(script, img)") !== null`) {
			t.Errorf("%s's page has parsed a message as HTML", tab.name)
		}
	}

	// The server ends. A text that is written then is kept.
	server.interrupt(ann, bob)
	for _, tab := range []*tab{ann, bob} {
		tab.until(state("state", "offline", "Offline"))
		tab.until(state("feed-state", "offline", "Not live"))
	}
	ann.write("#text", "Are you back?")
	ann.enter()
	if got := eval[string](ann, `document.querySelector("#text").value`); got != "Are you back?" {
		t.Errorf("the text that can't be sent is now %q", got)
	}

	_, addr, _ := strings.Cut(server.url, "//")
	server = start(t, path, addr)
	for _, tab := range []*tab{ann, bob} {
		tab.online()
		tab.expectOutage(false)
		tab.until(count + ` === "2"`)
	}
	ann.click("#send")
	ann.sees("You", "Are you back?")
	bob.sees("Ann", "Are you back?")
	bob.say("Here I am again.")
	ann.sees("Bob", "Here I am again.")

	// A name is kept, and then changed.
	ann.open(server.url)
	ann.online()
	ann.say("Still me.")
	bob.sees("Ann", "Still me.")
	ann.click("#rename")
	ann.write("#name", "ie") // replaces the name, which is selected
	ann.enter()
	ann.online()
	ann.say("Call me otherwise.")
	bob.sees("ie", "Call me otherwise.")

	server.interrupt(ann, bob)
}

// TestReading checks that the log follows the conversation. It must not scroll
// while somebody reads further up.
func TestReading(t *testing.T) {
	browser := newBrowser(t)
	server := start(t, build(t, "chat"), "localhost:0")
	ann, bob := newTab(t, browser, "Ann"), newTab(t, browser, "Bob")
	ann.join(server.url)
	bob.join(server.url)

	talk := func(text string) {
		t.Helper()
		long := text + strings.Repeat(" and so on", 95)
		eval[chromedp.Void](bob, fmt.Sprintf(`void (document.querySelector("#text").value = %q)`, long))
		bob.write("#text", ".")
		bob.until(`!document.querySelector("#send").disabled`) // the previous message has come back
		bob.enter()
		ann.sees("Bob", long+".")
	}
	for i := range 8 {
		talk(fmt.Sprint("Chapter ", i))
		ann.until(atEnd)
	}
	if eval[bool](ann, `document.querySelector("#log").scrollTop === 0`) {
		t.Fatal("the log doesn't scroll yet: the test needs more text")
	}
	eval[chromedp.Void](ann, `void (document.querySelector("#log").scrollTop = 0)`)
	ann.until(`document.querySelector("#newer").hidden`)
	talk("Epilogue")
	ann.until(`!document.querySelector("#newer").hidden`)
	if top := eval[float64](ann, `document.querySelector("#log").scrollTop`); top != 0 {
		t.Errorf("the log scrolled by %v px while Ann was reading", top)
	}
	ann.click("#newer")
	ann.until(atEnd + ` && document.querySelector("#newer").hidden`)
	server.interrupt(ann, bob)
}

// TestFeedRefused checks that the page restarts the feed when the browser has
// given it up. The browser does that after the 502 of a proxy whose server is
// down.
func TestFeedRefused(t *testing.T) {
	browser := newBrowser(t)
	chat := start(t, build(t, "chat"), "localhost:0")
	target, err := url.Parse(chat.url)
	if err != nil {
		t.Fatal(err)
	}
	var down atomic.Bool
	refused := make(chan bool, 100)
	forward := httputil.NewSingleHostReverseProxy(target)
	forward.ErrorLog = log.New(io.Discard, "", 0)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if down.Load() {
			http.Error(w, "the server is down", http.StatusBadGateway)
			if r.URL.Path == "/events" {
				refused <- true
			}
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)

	ann := newTab(t, browser, "Ann")
	ann.join(proxy.URL)
	ann.expectOutage(true)
	down.Store(true)
	proxy.CloseClientConnections()
	select {
	case <-refused:
	case <-time.After(patience):
		t.Fatal("the browser doesn't reconnect")
	}
	ann.until(state("feed-state", "offline", "Not live"))
	down.Store(false)
	ann.online()
	ann.do("leaving", chromedp.Navigate("about:blank")) // so that the proxy can close
	chat.interrupt()
}

// TestPhone checks that the page fits on small screens.
func TestPhone(t *testing.T) {
	browser := newBrowser(t)
	server := start(t, build(t, "chat"), "localhost:0")
	phone := newTab(t, browser, "Wolfeschlegelsteinhausen")
	resize := func(width, height int64) {
		phone.do("resizing", chromedp.EmulateViewport(width, height,
			chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulateScale(3)))
	}
	resize(390, 844)
	phone.join(server.url)
	phone.say(strings.Repeat("Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft", 3))
	phone.say("https://example.com/" + strings.Repeat("x/", 100))
	for _, size := range [][2]int64{{390, 844}, {320, 568}, {844, 390}} {
		resize(size[0], size[1])
		phone.until(fmt.Sprintf("screen.width === %d", size[0]))
		if got := eval[int](phone, "innerWidth"); got != int(size[0]) {
			t.Errorf("at %v the page doesn't fit: it is zoomed out to %d px", size, got)
		}
		for _, box := range []string{"document.documentElement", `document.querySelector("#log")`} {
			if over := eval[int](phone, fmt.Sprintf("%[1]s.scrollWidth - %[1]s.clientWidth", box)); over > 0 {
				t.Errorf("at %v %s is %d px too wide", size, box, over)
			}
		}
		for _, id := range []string{"text", "send", "state", "online", "rename"} {
			if !eval[bool](phone, fmt.Sprintf(`(e => {
				const r = e.getBoundingClientRect();
				return r.top >= 0 && r.left >= 0 && r.bottom <= innerHeight && r.right <= innerWidth &&
					e.contains(document.elementFromPoint(r.left + r.width / 2, r.top + r.height / 2));
			})(document.getElementById(%q))`, id)) {
				t.Errorf("at %v #%s can't be seen", size, id)
			}
		}
	}
	server.interrupt(phone)
}
