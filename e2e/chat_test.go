package e2e

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"
)

// JavaScript expressions for the tests.
const (
	lastAuthor = `document.querySelector("#log article:last-of-type b")?.textContent`
	lastText   = `document.querySelector("#log article:last-of-type p")?.textContent`
	count      = `document.querySelector("#count").textContent`
	tick       = `document.querySelector("#tick").dateTime`
	here       = `[...document.querySelectorAll("#people li")].map((e) => e.textContent).join()`
	typing     = `document.querySelector("#typing").textContent`
	draft      = `document.querySelector("#text").value`
	hint       = `document.querySelector("#hint").textContent`
	atEnd      = `(log => log.scrollHeight - log.scrollTop - log.clientHeight < 2)(document.querySelector("#log"))`
)

// state returns a condition: the element is in that state and shows those words.
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
	tab.until(state("state", "live", "Live"))
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
		tab.until(state("state", "again", "Reconnecting…"))
		tab.until(`document.querySelector("#feed").className === ""`)
	}
	ann.write("#text", "Are you back?")
	ann.enter()
	if got := eval[string](ann, draft); got != "Are you back?" {
		t.Errorf("the text that can't be sent is now %q", got)
	}
	ann.until(hint + `.includes("stays here")`)

	_, addr, _ := strings.Cut(server.url, "//")
	server = start(t, path, addr)
	for _, tab := range []*tab{ann, bob} {
		tab.online()
		tab.expectOutage(false)
		tab.until(count + ` === "2"`)
	}
	for _, tab := range []*tab{ann, bob} {
		tab.until(`document.querySelector(".lost:last-child")?.textContent.includes("may be missing")`)
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

// TestChatNewcomer checks that a newcomer gets the last 50 messages, and that a
// reload loses nothing: not the messages, the name or what is being written.
func TestChatNewcomer(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "chat"), "localhost:0")
	var talker talker
	for i := range 60 {
		if i%20 == 0 {
			talker = dialChat(t, server.url, "Zoe") // one may send 20 at once
		}
		talker.say(fmt.Sprint(i), fmt.Sprint("Message ", i))
	}
	ann := newTab(t, browser, "Ann")
	ann.join(server.url)
	texts := `[...document.querySelectorAll("#log article p")].map((e) => e.textContent).join()`
	var want []string
	for i := 10; i < 60; i++ {
		want = append(want, fmt.Sprint("Message ", i))
	}
	last50 := fmt.Sprintf(`%s === %q`, texts, strings.Join(want, ","))
	ann.until(last50 + " && " + atEnd)
	ann.write("#text", "half a sentence")
	ann.do("reloading", chromedp.Reload())
	ann.online()
	ann.until(last50)
	if got := eval[string](ann, draft); got != "half a sentence" {
		t.Errorf("after a reload the text is %q", got)
	}
	ann.enter()
	ann.sees("You", "half a sentence")
	ann.do("reloading", chromedp.Reload())
	ann.online()
	ann.sees("You", "half a sentence")
	if got := eval[string](ann, draft); got != "" {
		t.Errorf("after it was sent and the page reloaded the text is %q", got)
	}

	// A text of which the page doesn't know whether it has arrived: one has, the
	// other hasn't.
	for _, tt := range []struct{ id, want string }{{"known", ""}, {"lost", "it is lost"}} {
		eval[chromedp.Void](ann, fmt.Sprintf(`void sessionStorage.setItem("draft", JSON.stringify({sent: {id: %q, text: "it is " + %[1]q}, text: ""}))`, tt.id))
		if tt.id == "known" {
			dialChat(t, server.url, "Ann", ann.cookies()...).say("known", "it is known")
			ann.sees("You", "it is known")
		}
		ann.do("reloading", chromedp.Reload())
		ann.online()
		ann.sees("You", "it is known")
		ann.until(fmt.Sprintf(`%s === %q`, draft, tt.want))
	}
	server.interrupt(ann)
}

// TestChatPeople checks who is shown as present and as typing. Tabs of one browser
// are one person.
func TestChatPeople(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "chat"), "localhost:0")
	profile := newProfile(t, browser)
	ann, bob := newTabIn(t, profile, "Ann"), newTab(t, browser, "Bob")
	ann.join(server.url)
	bob.join(server.url)
	again := newTabIn(t, profile, "Ann again")
	again.open(server.url)
	again.online() // the browser knows the name
	sees := func(tab *tab, people ...string) {
		t.Helper()
		tab.until(fmt.Sprintf(`%s === %q && %s === "%d"`, here, strings.Join(people, ","), count, len(people)))
	}
	for _, tab := range []*tab{ann, again} {
		sees(tab, "Ann (you)", "Bob")
	}
	sees(bob, "Ann", "Bob (you)")

	// Only the others are told of who is typing.
	ann.write("#text", "Wel")
	bob.until(typing + ` === "Ann is typing…"`)
	if got := eval[string](again, typing) + eval[string](ann, typing); got != "" {
		t.Errorf("Ann herself is told %q", got)
	}
	bob.until(typing + ` === ""`) // she pauses
	ann.write("#text", "l")
	bob.until(typing + ` === "Ann is typing…"`)
	ann.enter()
	bob.sees("Ann", "Well")
	bob.until(typing + ` === ""`)
	again.sees("You", "Well")

	// She is there until her last tab is closed, and for 10 s more.
	ann.shut()
	bob.say("Are you still there?")
	again.sees("Bob", "Are you still there?")
	sees(bob, "Ann", "Bob (you)")
	again.shut()
	sees(bob, "Bob (you)")
	server.interrupt(bob)
}

// TestChatRefused checks what the page shows when the server refuses a name, or a
// message.
func TestChatRefused(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	server := start(t, build(t, "chat"), "localhost:0")
	ann := newTab(t, browser, "Ann")
	ann.open(server.url)
	eval[chromedp.Void](ann, `void localStorage.setItem("name", "A\u009bnn")`)
	ann.do("reloading", chromedp.Reload())
	ann.until(state("state", "over", "Refused") + ` && document.querySelector("#bad-name").textContent.includes("control characters")`)
	ann.write("#name", "Ann")
	ann.enter()
	ann.online()
	eval[chromedp.Void](ann, `void (document.querySelector("#text").maxLength = 2000, document.querySelector("#text").value = "x".repeat(1000))`)
	ann.write("#text", "y")
	ann.enter()
	ann.until(hint + `.includes("Not sent") && ` + draft + `.length === 1001`)
	server.interrupt(ann)
}

// A talker is a program in the chat.
type talker struct {
	*testing.T
	conn *websocket.Conn
}

func dialChat(t *testing.T, url, name string, cookies ...*network.Cookie) talker {
	t.Helper()
	header := http.Header{}
	for _, c := range cookies {
		header.Add("Cookie", c.Name+"="+c.Value)
	}
	conn, _, err := websocket.Dial(t.Context(), url+"/live?name="+name, &websocket.DialOptions{HTTPHeader: header})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	return talker{t, conn}
}

// say sends a message and waits until it has come back.
func (g talker) say(id, text string) {
	g.Helper()
	if err := g.conn.Write(g.Context(), websocket.MessageText, fmt.Appendf(nil, `{"id": %q, "text": %q}`, id, text)); err != nil {
		g.Fatal(err)
	}
	for data := ""; !strings.Contains(data, fmt.Sprintf(`"text":%q`, text)); {
		_, got, err := g.conn.Read(g.Context())
		if err != nil {
			g.Fatal(err)
		}
		data = string(got)
	}
}

// cookies returns the cookies that the page has.
func (tab *tab) cookies() (cookies []*network.Cookie) {
	tab.Helper()
	tab.do("reading cookies", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		got, err := cdp.Call(ctx, target, network.GetCookies, network.GetCookiesParams{})
		if err == nil {
			cookies = got.Cookies
		}
		return err
	}))
	return cookies
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
	ann.until(`document.querySelector("#feed").className === ""`)
	down.Store(false)
	ann.online()
	ann.do("leaving", chromedp.Navigate("about:blank")) // so that the proxy can close
	chat.interrupt()
}

// TestChatFirst checks that the page says nothing of a lost connection before it has
// had one.
func TestChatFirst(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	chat := start(t, build(t, "chat"), "localhost:0")
	target, err := url.Parse(chat.url)
	if err != nil {
		t.Fatal(err)
	}
	answer := make(chan struct{})
	release := sync.OnceFunc(func() { close(answer) })
	forward := httputil.NewSingleHostReverseProxy(target)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/live" {
			<-answer
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(proxy.Close)
	t.Cleanup(release)
	ann := newTab(t, browser, "Ann")
	ann.open(proxy.URL)
	eval[chromedp.Void](ann, `void new MutationObserver(() => {
		(window.states ??= []).push(document.querySelector("#state").textContent);
	}).observe(document.querySelector("#state"), {childList: true})`)
	ann.write("#name", "Ann")
	ann.enter()
	ann.until(state("state", "again", "No answer yet…"))
	release()
	ann.online()
	if got, want := eval[string](ann, `states.join()`), "Connecting…,No answer yet…,Live"; got != want {
		t.Errorf("the states are %s, want %s", got, want)
	}
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
		for _, id := range []string{"text", "send", "state", "count", "rename"} {
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
