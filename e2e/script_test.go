package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// eachTransport runs test over both transports, in parallel, in one browser.
func eachTransport(t *testing.T, test func(t *testing.T, browser context.Context, transport string)) {
	t.Parallel()
	browser := newBrowser(t)
	t.Run("transports", func(t *testing.T) { // ends before the browser does
		for _, transport := range []string{"websocket", "eventsource"} {
			t.Run(transport, func(t *testing.T) {
				t.Parallel()
				test(t, browser, transport)
			})
		}
	})
}

// A site is a server with a hub at /live and an empty page.
type site struct {
	*testing.T
	hub    *realtime.Hub
	server *httptest.Server
	mux    *http.ServeMux // the server's

	mu       sync.Mutex       // guards the fields below
	live     http.HandlerFunc // serves /live: the hub, until answer replaces it
	requests []*http.Request  // for /live
}

// newSite starts a site. setup, unless it is nil, sets up the hub. An empty addr
// means a free port.
func newSite(t *testing.T, addr string, setup func(*realtime.Hub)) *site {
	t.Helper()
	s := &site{T: t, hub: realtime.NewHub()}
	if setup != nil {
		setup(s.hub)
	}
	s.live = s.hub.ServeHTTP
	mux := http.NewServeMux()
	s.mux = mux
	mux.HandleFunc("/live", func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r)
		live := s.live
		s.mu.Unlock()
		live(w, r)
	})
	mux.Handle("/realtime.js", realtime.Script())
	page := func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><title>Script</title>`)
	}
	mux.HandleFunc("/{$}", page)
	mux.HandleFunc("/elsewhere", page)
	s.server = httptest.NewUnstartedServer(mux)
	if addr != "" {
		listener, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		s.server.Listener.Close()
		s.server.Listener = listener
	}
	s.server.Start()
	t.Cleanup(s.stop)
	return s
}

// stop stops the site. It may be called again.
func (s *site) stop() {
	s.Helper()
	if err := s.hub.Shutdown(context.Background()); err != nil {
		s.Error(err)
	}
	s.server.CloseClientConnections()
	s.server.Close()
}

func (s *site) addr() string { return s.server.Listener.Addr().String() }

// answer lets live serve /live instead of the hub.
func (s *site) answer(live http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live = live
}

// asked returns all requests for /live.
func (s *site) asked() []*http.Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *site) publish(topic, name, data string) {
	s.Helper()
	s.publishEvent(topic, realtime.Event{Name: name, Data: []byte(data)})
}

func (s *site) publishEvent(topic string, e realtime.Event) {
	s.Helper()
	var err error
	if topic == "" {
		err = s.hub.PublishAll(s.Context(), e)
	} else {
		err = s.hub.Publish(s.Context(), topic, e)
	}
	if err != nil {
		s.Error(err)
	}
}

// watch makes the page record what the connection live does: its open, close and
// reset events in told, the data of its events in got. A test may record the
// times that it waits in delays.
const watch = `
	globalThis.told = [];
	globalThis.got = [];
	globalThis.delays = [];
	for (const type of ["open", "close", "reset"]) {
		live.addEventListener(type, (e) => told.push(type + (type === "close" ? " " + e.code + (e.final ? " final" : "") : "")));
	}
	live.onAny((e) => got.push(e.data));
`

// connect opens the page and connects it to /live, with options in JavaScript.
func (tab *tab) connect(url, options string) {
	tab.Helper()
	tab.open(url)
	tab.run(`const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", ` + options + `);` + watch)
	tab.until(`live.state === "open"`)
}

// run runs JavaScript that may await.
func (tab *tab) run(js string) {
	tab.Helper()
	ctx, cancel := context.WithTimeout(tab.ctx, patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Evaluate[chromedp.Void]("(async () => {"+js+"})()", chromedp.EvalAwaitPromise)); err != nil {
		tab.Fatalf("%s: %s: %v", tab.name, js, err)
	}
}

// tells waits until told has exactly these entries.
func (tab *tab) tells(want ...string) {
	tab.Helper()
	line := strings.Join(want, ", ")
	tab.until(fmt.Sprintf(`told.join(", ") === %q || (told.length >= %d && %q)`, line, len(want), "something else"))
	if got := eval[string](tab, `told.join(", ")`); got != line {
		tab.Errorf("%s got the events %q, want %q", tab.name, got, line)
	}
}

// links makes the page's connections stand-ins that a test speaks for.
const links = `
	globalThis.links = [];
	globalThis.WebSocket = globalThis.EventSource = class {
		readyState = 1;
		sent = [];
		constructor(url) { this.url = url.href; links.push(this); }
		send(data) { this.sent.push(data); }
		close() { this.readyState = 3; }
	};
`

// feign opens the page and connects it over stand-ins, with options in JavaScript.
// before runs first.
func (tab *tab) feign(url, before, options string) {
	tab.Helper()
	tab.open(url)
	tab.run(links + before + `const {connect} = await import("/realtime.js"); globalThis.live = connect("/live", ` + options + `);` + watch)
}

// hears lets objects come over the page's last connection.
func (tab *tab) hears(objects ...string) {
	tab.Helper()
	for _, object := range objects {
		eval[chromedp.Void](tab, fmt.Sprintf(`links.at(-1).onmessage({data: %q})`, object))
	}
}

func options(transport, more string) string {
	return fmt.Sprintf(`{transports: [%q], backoff: {min: 20, max: 200}, %s}`, transport, more)
}

var keep = realtime.History{Events: 100_000, Age: time.Hour}

func TestScript(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		heard, left := make(chan string, 10), make(chan error, 10)
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.History = keep
			hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) { heard <- string(msg.Data) }
			hub.OnDisconnect = func(c *realtime.Client, err error) { left <- err }
		})
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(site.server.URL, options(transport, `topics: ["prices", "a&b=ü ?"]`))
		tab.until(`live.lastEventId !== ""`)
		if got := eval[string](tab, `[live.transport, live.state, ...live.topics].join("|")`); got != transport+"|open|prices|a&b=ü ?" {
			t.Errorf("the connection's properties are %q", got)
		}
		tab.run(`
			globalThis.calls = [];
			addEventListener("error", (e) => { calls.push(e.message); e.preventDefault(); });
			const note = (who) => (e) => calls.push([who, e.event, e.topic, e.data].join(" "));
			live.on("price", note("name"));
			live.on("price", () => { throw new Error("bad"); });
			live.onTopic("prices", note("topic"));
			live.on("message", note("unnamed"));
			live.on("reset", note("reset"));
			globalThis.stop = live.on("price", note("stopped"));
			stop();
			live.onAny((e) => { globalThis.last = e; });
		`)
		calls := func(want ...string) {
			t.Helper()
			site.publish("", "end", "")
			tab.until(`globalThis.last?.event === "end"`)
			if got := eval[[]string](tab, `calls.splice(0)`); !slices.Equal(got, want) {
				t.Errorf("got calls %q, want %q", got, want)
			}
			eval[chromedp.Void](tab, `void (last = undefined)`)
		}
		site.publish("prices", "price", `{"value": 1}`)
		calls(`name price prices {"value": 1}`, "Uncaught Error: bad", `topic price prices {"value": 1}`)
		site.publish("a&b=ü ?", "", " two\nlines\r\n \u2028<b>\u0000 ")
		calls("unnamed message a&b=ü ?  two\nlines\r\n \u2028<b>\u0000 ")
		site.publish("others", "price", "not for us")
		site.publish("", "reset", "an event of that name is an event")
		calls("reset reset  an event of that name is an event")
		site.publish("prices", "empty", "")
		calls("topic empty prices ")

		site.publishEvent("", realtime.Event{Data: []byte{0, 255, 128, 10}, Binary: true})
		tab.until(`last?.data instanceof Uint8Array && last.data.join() === "0,255,128,10"`)
		site.publishEvent("prices", realtime.Event{Key: "tea", Gone: true})
		tab.until(`last?.key === "tea" && last.gone === true`)
		site.publish("prices", "json", `{"value": [1]}`)
		tab.until(`last?.event === "json" && last.json().value[0] === 1 && last.key === "" && !last.gone && last.id === live.lastEventId`)

		if transport == "websocket" {
			eval[chromedp.Void](tab, `live.send("Hello!")`)
			if got := <-heard; got != "Hello!" {
				t.Errorf("the hub got %q, want Hello!", got)
			}
		} else if got := eval[string](tab, `(() => { try { live.send("x") } catch (e) { return String(e) } })()`); got != "InvalidStateError: realtime: no open WebSocket" {
			t.Errorf("send over an event stream throws %q", got)
		}

		tab.tells("open")
		eval[chromedp.Void](tab, `live.close(); live.close(); live.reconnect()`)
		tab.tells("open", "close 1000 final")
		if got := eval[string](tab, `live.state`); got != "closed" {
			t.Errorf("after close the state is %q", got)
		}
		err := <-left
		if transport == "websocket" && websocket.CloseStatus(err) != websocket.StatusNormalClosure {
			t.Errorf("the client left with %v, want 1000", err)
		}
		site.publish("prices", "price", "too late")
		if got := eval[string](tab, `(() => { try { live.send("x") } catch (e) { return e.name } })()`); got != "InvalidStateError" {
			t.Errorf("send after close throws %q", got)
		}
		late := eval[[]string](tab, `calls`)
		if slices.ContainsFunc(late, func(s string) bool { return strings.Contains(s, "too late") }) || len(site.asked()) != 1 {
			t.Errorf("after close there were calls %q, and %d requests in all", late, len(site.asked()))
		}
	})
}

func TestScriptBadOptions(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL)
	tab.run(`globalThis.connect = (await import("/realtime.js")).connect`)
	for bad, want := range map[string]string{
		`"/live", {topics: "prices"}`:    `TypeError: realtime: bad options {"topics":"prices"}`,
		`"/live", {transports: ["sse"]}`: `TypeError: realtime: bad options {"transports":["sse"]}`,
		`"/live", {transports: []}`:      `TypeError: realtime: bad options {"transports":[]}`,
		`"/live", {transports: "sse"}`:   `TypeError: realtime: bad options {"transports":"sse"}`,
		`"https://"`:                     `TypeError: Failed to construct 'URL': Invalid URL`,
	} {
		if got := eval[string](tab, `(() => { try { connect(`+bad+`) } catch (e) { return String(e) } })()`); got != want {
			t.Errorf("connect(%s) throws %q, want %q", bad, got, want)
		}
	}
}

// TestScriptOnConnect checks that OnConnect decides on the topics.
func TestScriptOnConnect(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
				for _, topic := range r.URL.Query()["topic"] {
					if topic != "secret" {
						c.Subscribe(topic)
					}
				}
				return nil
			}
		})
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(site.server.URL, options(transport, `topics: ["news", "secret"]`))
		site.publish("secret", "", "secret")
		site.publish("news", "", "news")
		tab.until(`got.length > 0`)
		if got := eval[string](tab, `got.join()`); got != "news" {
			t.Errorf("got %q, want the news alone", got)
		}
	})
}

// TestScriptFallback checks that a page gets its events behind a proxy without
// WebSockets.
func TestScriptFallback(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	site.answer(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			http.Error(w, "what is a WebSocket?", http.StatusBadRequest)
			return
		}
		site.hub.ServeHTTP(w, r)
	})
	tab := newTab(t, newBrowser(t), "Ann")
	tab.expectOutage(true)
	tab.connect(site.server.URL, `{topics: ["news"]}`)
	if got := eval[string](tab, `live.transport`); got != "eventsource" {
		t.Errorf("the page is connected over %q", got)
	}
	site.publish("news", "", "news")
	tab.until(`got.join() === "news"`)
	tab.tells("open")
	var upgrades int
	for _, r := range site.asked() {
		if r.Header.Get("Upgrade") != "" {
			upgrades++
		}
	}
	if upgrades != 2 {
		t.Errorf("the page tried a WebSocket %d times, want 2", upgrades)
	}
}

// TestScriptForbidden checks that an attempt fails, and no more, if a constructor
// throws. Firefox and WebKit do that where a page's policy forbids a connection. In
// WebKit 'self' once didn't allow WebSockets.
func TestScriptForbidden(t *testing.T) {
	t.Parallel()
	browser := newBrowser(t)
	for _, url := range []string{`"/live"`, `() => "/live"`} {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		tab := newTab(t, browser, url)
		tab.open(site.server.URL)
		tab.run(`
			const works = EventSource;
			const {connect} = await import("/realtime.js");
			globalThis.tries = [];
			for (const name of ["WebSocket", "EventSource"]) globalThis[name] = class {
				constructor() {
					if (tries.push(name) === 4) globalThis.EventSource = works;
					throw new DOMException("The operation is insecure.", "SecurityError");
				}
			};
			globalThis.live = connect(` + url + `, {backoff: {min: 1, max: 2}});` + watch)
		tab.until(`live.state === "open"`)
		if got := eval[string](tab, `tries.join() + " " + live.transport`); got != "WebSocket,WebSocket,EventSource,EventSource,WebSocket,WebSocket eventsource" {
			t.Errorf("the page tried %s", got)
		}
		tab.tells("open")
	}
}

// TestScriptClosedOnTheWay checks that only the hub can end a connection for good: a
// proxy that closes what is idle, or restarts, closes with the codes that it likes.
func TestScriptClosedOnTheWay(t *testing.T) {
	t.Parallel()
	codes := make(chan websocket.StatusCode, 2)
	codes <- websocket.StatusNormalClosure
	codes <- websocket.StatusPolicyViolation
	close(codes)
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	site.answer(func(w http.ResponseWriter, r *http.Request) {
		code, ok := <-codes
		if !ok {
			site.hub.ServeHTTP(w, r)
			return
		}
		conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{realtime.Subprotocol}})
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.CloseNow()
		conn.Write(t.Context(), websocket.MessageText, []byte(`{"client":"1"}`))
		conn.Close(code, "idle")
	})
	tab := newTab(t, newBrowser(t), "Ann")
	tab.connect(site.server.URL, options("websocket", ""))
	tab.tells("open", "close 1000", "open", "reset", "close 1008", "open", "reset")
}

// TestScriptCuts cuts the page's connections again and again, at any byte, while
// publishers go on. The page must get every event once, and each publisher's
// events in order.
func TestScriptCuts(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(proxy.url, options(transport, `topics: ["a", "b"]`))
		tab.until(`live.lastEventId !== ""`)
		tab.expectOutage(true)

		cuts := 60
		if transport == "eventsource" {
			cuts = 6 // the browser reconnects after 1 to 5 s, which the hub sets
		}
		stop := make(chan struct{})
		counts := make([]int, 4)
		var publishers sync.WaitGroup
		for i := range counts {
			topic := []string{"a", "b", "c", ""}[i] // the page doesn't have c
			publishers.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(rand.IntN(8)) * time.Millisecond):
					}
					data := fmt.Sprintf("%d %d %s", i, counts[i], strings.Repeat("é", rand.IntN(300)))
					if err := publishTo(site.hub, topic, realtime.Event{Name: "n", Data: []byte(data)}); err != nil {
						t.Error(err)
						return
					}
					counts[i]++
				}
			})
		}
		// Some connections get no byte at all, as while a proxy restarts.
		proxy.setLimit(func() int { return max(0, rand.IntN(70_000)-10_000) })
		proxy.cut()
		for deadline := time.Now().Add(patience); proxy.killed() < cuts; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("only %d connections have been killed", proxy.killed())
				break
			}
		}
		close(stop)
		publishers.Wait()
		proxy.setLimit(nil)
		proxy.cut()

		want := counts[0] + counts[1] + counts[3]
		tab.until(fmt.Sprintf(`got.length >= %d`, want))
		site.publish("a", "", "end") // comes after any event that came twice
		tab.until(`got.at(-1) === "end"`)
		next := make([]int, len(counts))
		for _, data := range eval[[]string](tab, `got.slice(0, -1)`) {
			var i, n int
			fmt.Sscan(data, &i, &n)
			if n != next[i] {
				t.Fatalf("publisher %d: got event %d, want %d", i, n, next[i])
			}
			next[i]++
		}
		if counts[2] = 0; !slices.Equal(next, counts) {
			t.Errorf("got %v events of the publishers, want %v", next, counts)
		}
		told := eval[[]string](tab, `told`)
		if slices.Contains(told, "reset") {
			t.Error("the page got a reset")
		}
		stats := site.hub.Stats()
		t.Logf("%d events, %d connections killed, %d requests, %d entries in told, %d resumed", want, proxy.killed(), len(site.asked()), len(told), stats.Resumed)
	})
}

func publishTo(hub *realtime.Hub, topic string, e realtime.Event) error {
	if topic == "" {
		return hub.PublishAll(context.Background(), e)
	}
	return hub.Publish(context.Background(), topic, e)
}

// TestScriptRestart restarts a page's server. The new hub knows nothing of the
// old one's events.
func TestScriptRestart(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		setup := func(hub *realtime.Hub) { hub.History = keep }
		site := newSite(t, "", setup)
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(site.server.URL, options(transport, `topics: ["a"]`))
		site.publish("a", "", "before")
		tab.until(`got.join() === "before"`)
		id := eval[string](tab, `live.lastEventId`)

		tab.expectOutage(true)
		site.stop()
		tab.tells("open", "close 1001")
		site = newSite(t, site.addr(), setup)
		site.publishEvent("a", realtime.Event{Key: "latest", Data: []byte("latest")})
		tab.tells("open", "close 1001", "open", "reset")
		site.publish("a", "", "after")
		tab.until(`got.at(-1) === "after"`)
		if got := eval[string](tab, `got.join()`); got != "before,latest,after" {
			t.Errorf("the page got %s", got)
		}
		if got := eval[string](tab, `live.lastEventId`); got == id || got == "" {
			t.Errorf("the page's last id is %q, want another than %q", got, id)
		}
	})
}

// TestScriptWithoutHistory checks that a page that reconnects gets a reset if the
// hub has no History.
func TestScriptWithoutHistory(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", nil)
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.connect(proxy.url, options(transport, ""))
		tab.tells("open")
		tab.expectOutage(true)
		proxy.cut()
		tab.tells("open", "close 1006", "open", "reset")
		site.publish("", "", "after")
		tab.until(`got.join() === "after"`)
	})
}

// TestScriptIDWhileConnecting checks that a page has no id while it isn't connected.
func TestScriptIDWhileConnecting(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.expectOutage(true)
		tab.connect(proxy.url, options(transport, ""))
		tab.run(`
			globalThis.ids = [live.id];
			live.addEventListener("close", () => ids.push(live.id));
			live.addEventListener("open", () => ids.push(live.id));`)
		proxy.cut()
		tab.until(`ids.length === 3`)
		if ids := eval[[]string](tab, `ids`); ids[0] == "" || ids[1] != "" || ids[2] == "" || ids[2] == ids[0] {
			t.Errorf("the page has the ids %q, want one, none and another one", ids)
		}
	})
}

// TestScriptRefusedStream checks that the module reconnects and resumes after an
// answer other than 200, when a browser gives an event stream up.
func TestScriptRefusedStream(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	proxy := newProxy(t, site.addr())
	tab := newTab(t, newBrowser(t), "Ann")
	tab.connect(proxy.url, options("eventsource", `topics: ["a"]`))
	site.publish("a", "", "1")
	tab.until(`got.join() === "1"`)
	id := eval[string](tab, `live.lastEventId`)

	tab.expectOutage(true)
	const down = 4
	site.answer(func(w http.ResponseWriter, r *http.Request) {
		if len(site.asked()) <= 1+down {
			http.Error(w, "the server is down", http.StatusBadGateway)
			return
		}
		site.hub.ServeHTTP(w, r)
	})
	proxy.cut()
	site.publish("a", "", "2")
	tab.until(`got.join() === "1,2"`)
	tab.tells("open", "close 1006", "open")
	for i, r := range site.asked() {
		header, query := r.Header.Get("Last-Event-ID"), r.URL.Query().Get("lastEventId")
		switch {
		case i == 0 && header+query != "",
			i == 1 && header != id, // the browser, after the hub's retry
			i > 1 && query != id:   // the module
			t.Errorf("request %d has the id %q in its header and %q in its query, the page's last id was %q", i, header, query, id)
		}
	}
}

// TestScriptCloseCodes checks how long a page waits after the server has closed
// its WebSocket, or that it doesn't reconnect.
func TestScriptCloseCodes(t *testing.T) {
	t.Parallel()
	clients := make(chan *realtime.Client, 1)
	site := newSite(t, "", func(hub *realtime.Hub) {
		hub.PingInterval = -1 // the page sets no timer for heartbeats
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			clients <- c
			return nil
		}
	})
	tab := newTab(t, newBrowser(t), "Ann")
	for _, tt := range []struct {
		code     websocket.StatusCode
		from, to float64 // milliseconds to the first attempt; zero: there is none
	}{
		{websocket.StatusNormalClosure, 0, 0},
		{websocket.StatusPolicyViolation, 0, 0},
		{websocket.StatusGoingAway, 500, 5000},
		{websocket.StatusServiceRestart, 500, 5000},
		{websocket.StatusTryAgainLater, 5000, 10_000},
		{websocket.StatusInternalError, 500, 2000},
		{4000, 500, 2000},
	} {
		for chance, want := range []float64{tt.from, tt.to} {
			tab.connect(site.server.URL, `{transports: ["websocket"]}`)
			eval[chromedp.Void](tab, fmt.Sprintf(`{
				Math.random = () => %d;
				globalThis.setTimeout = (f, ms) => { delays.push(ms); };
			}; undefined`, chance))
			(<-clients).Close(tt.code, "because")
			final := ""
			if tt.to == 0 {
				final = " final"
			}
			tab.tells("open", fmt.Sprintf("close %d%s", tt.code, final))
			got := eval[[]float64](tab, `delays`)
			if tt.to == 0 && len(got) > 0 || tt.to > 0 && !slices.Equal(got, []float64{want}) {
				t.Errorf("after %d the page waits for %v ms with chance %d, want %v", tt.code, got, chance, want)
			}
		}
	}
}

// TestScriptBackoff checks that a page without a server waits longer and longer
// between its attempts, and that it tries the transports in turn.
func TestScriptBackoff(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL)
	for chance, want := range []string{"500,500,500,500,500,500,500,500,500,500", "2000,4000,8000,16000,30000,30000,30000,30000,30000,30000"} {
		tab.run(fmt.Sprintf(`
			globalThis.delays = [];
			globalThis.tried = "";
			globalThis.WebSocket = class {
				constructor() { tried += "W"; queueMicrotask(() => this.onclose({code: 1006, reason: ""})); }
				close() {}
			};
			globalThis.EventSource = class {
				constructor() { tried += "E"; queueMicrotask(() => this.onerror()); }
				close() {}
			};
			globalThis.setTimeout = (f, ms) => {
				if (ms === 15_000) return; // the time for an answer
				delays.push(ms);
				if (delays.length < 10) queueMicrotask(f);
			};
			Math.random = () => %d;
			const {connect} = await import("/realtime.js");
			globalThis.live = connect("/live");
		`, chance))
		tab.until(`delays.length === 10`)
		if got := eval[string](tab, `delays.join()`); got != want {
			t.Errorf("with chance %d the page waits for %s ms, want %s", chance, got, want)
		}
		if got := eval[string](tab, `tried`); got != "WWEEWWEEWW" {
			t.Errorf("the page tries %s", got)
		}
		if eval[bool](tab, `live.close(); live.state !== "closed"`) {
			t.Error("the connection isn't closed")
		}
	}
}

// TestPlainClients checks that pages need no module. A browser's own EventSource
// and WebSocket work, with the topics in the URL. An EventSource also resumes
// without a loss.
func TestPlainClients(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	proxy := newProxy(t, site.addr())
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(proxy.url)
	eval[chromedp.Void](tab, `
		globalThis.got = [];
		globalThis.source = new EventSource("/live?topic=news&topic=prices");
		source.onmessage = (e) => got.push("message " + e.data);
		source.addEventListener("price", (e) => got.push("price " + e.data));
		globalThis.texts = [];
		globalThis.socket = new WebSocket("/live?topic=news");
		socket.onmessage = (e) => texts.push(e.data);
		undefined`)
	tab.until(`source.readyState === EventSource.OPEN && socket.readyState === WebSocket.OPEN`)
	site.publish("news", "", "1")
	site.publish("prices", "price", "2")
	site.publish("others", "", "no")
	site.publish("", "", "3")
	tab.until(`got.length === 3 && texts.length === 2`)
	tab.expectOutage(true)
	proxy.cut()
	site.publish("prices", "price", "4")
	site.publish("news", "", "5")
	tab.until(`got.length === 5`)
	site.publish("news", "", "6")
	tab.until(`got.length === 6`)
	if got, want := eval[string](tab, `got.join()`), "message 1,price 2,message 3,price 4,message 5,message 6"; got != want {
		t.Errorf("the EventSource got %s, want %s", got, want)
	}
	if got := eval[string](tab, `texts.join()`); got != "1,3" {
		t.Errorf("the WebSocket got %s, want 1,3", got)
	}
	eval[chromedp.Void](tab, `source.close()`)
}

// TestScriptWakes checks that a page gets what it missed as soon as its computer
// wakes from sleep or changes networks. Its old connection still looks alive
// then.
func TestScriptWakes(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		for name, wake := range map[string]string{
			"network": `dispatchEvent(new Event("online"))`,
			"sleep": `{
				const now = Date.now;
				Date.now = () => now() + 3_600_000;
				document.dispatchEvent(new Event("visibilitychange"));
				Date.now = now;
			}`,
		} {
			t.Run(name, func(t *testing.T) {
				site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
				proxy := newProxy(t, site.addr())
				tab := newTab(t, browser, "Ann-"+transport)
				tab.connect(proxy.url, options(transport, `topics: ["a"]`))
				site.publish("a", "", "1")
				tab.until(`got.join() === "1"`)
				proxy.unplug()
				site.publish("a", "", "2")
				site.publish("a", "", "3")
				time.Sleep(100 * time.Millisecond) // enough for them to come if they could
				if got := eval[string](tab, `got.join() + live.state`); got != "1open" {
					t.Errorf("the unplugged page has %q, want 1open", got)
				}
				eval[chromedp.Void](tab, wake+"; undefined")
				tab.until(`got.length >= 3`)
				if got := eval[string](tab, `got.join()`); got != "1,2,3" {
					t.Errorf("got %s, want 1,2,3", got)
				}
				tab.tells("open", "close 1006", "open")
			})
		}
	})
}

// TestScriptSilence checks that a page notices a path that swallows bytes and
// stays open, and that it then gets what it missed. With a hub that sends no
// heartbeats it can't.
func TestScriptSilence(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		for _, history := range []bool{true, false} {
			t.Run(fmt.Sprint("history ", history), func(t *testing.T) {
				site := newSite(t, "", func(hub *realtime.Hub) {
					hub.PingInterval = time.Second
					if history {
						hub.History = keep
					}
				})
				proxy := newProxy(t, site.addr())
				tab := newTab(t, browser, fmt.Sprint("Ann-", transport, history))
				tab.connect(proxy.url, options(transport, `topics: ["a"]`))
				site.publish("a", "", "1")
				tab.until(`got.join() === "1"`)
				time.Sleep(5 * time.Second) // of heartbeats, which tell the page to stay
				tab.tells("open")
				proxy.unplug()
				site.publish("a", "", "2")
				if history {
					tab.until(`got.join() === "1,2"`)
					tab.tells("open", "close 1006", "open")
				} else {
					tab.tells("open", "close 1006", "open", "reset")
				}
			})
		}
	})
}

// TestScriptLateTimers checks that a page whose timers are late, because it is
// throttled or was frozen, stays connected as long as messages come.
func TestScriptLateTimers(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", func(hub *realtime.Hub) { hub.PingInterval = -1 })
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL)
	tab.run(`
		globalThis.WebSocket = class {
			constructor() { globalThis.socket = this; queueMicrotask(() => this.onmessage({data: '{"client":"c"}'})); }
			close() {}
		};
		globalThis.timers = [];
		globalThis.clearTimeout = (id) => { if (id) timers[id - 1] = null; };
		globalThis.setTimeout = (f, ms) => timers.push({f, ms}); // returns an id, which counts from 1
		globalThis.waits = () => timers.filter((t) => t).map((t) => t.ms).join();
		globalThis.tick = () => { const due = timers; timers = []; for (const t of due) t?.f(); };
		const {connect} = await import("/realtime.js");
		globalThis.live = connect("/live", {transports: ["websocket"]});` + watch)
	tab.until(`live.state === "open"`)
	for i, step := range []struct{ js, delays, state string }{
		{`socket.onmessage({data: '{"data":"an old hub"}'})`, "", "open"},
		{`socket.onmessage({data: '{"interval":54000}'})`, "54000", "open"},
		{`tick()`, "54000", "open"},
		{`tick()`, "5000", "open"}, // the last look
		{`socket.onmessage({data: '{"id":"x-1"}'})`, "5000", "open"},
		{`tick()`, "54000", "open"}, // it was waiting for the page
		{`socket.onmessage({data: '{"interval":54000}'})`, "54000", "open"},
		{`tick(); tick()`, "5000", "open"},
	} {
		eval[chromedp.Void](tab, step.js+"; undefined")
		if delays, state := eval[string](tab, `waits()`), eval[string](tab, `live.state`); delays != step.delays || state != step.state {
			t.Errorf("step %d, %s: waits for %q and is %s, want %q and %s", i, step.js, delays, state, step.delays, step.state)
		}
	}
	eval[chromedp.Void](tab, `tick(); undefined`)
	tab.tells("open", "close 1006")
	// It then waits for longer, in case that a large message is on its way.
	eval[chromedp.Void](tab, `tick(); undefined`)
	tab.until(`live.state === "open"`)
	eval[chromedp.Void](tab, `socket.onmessage({data: '{"interval":54000}'}); tick(); tick(); undefined`)
	if got := eval[string](tab, `waits()`); got != "54000" {
		t.Errorf("after two silent intervals it waits for %q, want 54000 again", got)
	}
	eval[chromedp.Void](tab, `live.close()`)

	// A listener may close the Connection while its first object is handled.
	tab.run(`
		const {connect} = await import("/realtime.js");
		timers = [];
		globalThis.live = connect("/live", {transports: ["websocket"]});
		live.addEventListener("open", () => live.close());
		socket.onmessage({data: '{"client":"c","interval":54000}'});`)
	if got := eval[string](tab, `live.state + waits()`); got != "closed" {
		t.Errorf("a Connection that was closed at once waits, and is %s", got)
	}
}

// TestScriptSendBetweenLinks sends while the page is open and makes another
// connection, because it has left a topic and joined it again.
func TestScriptSendBetweenLinks(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", nil)
	tab := newTab(t, newBrowser(t), "Ann")
	tab.feign(site.server.URL, ``, `{transports: ["websocket"]}`)
	tab.hears(`{"client":"c"}`, `{"id":"x-1"}`)
	tab.run(joined + `join("b");`)
	tab.until(`links[0].sent.length === 1`)
	tab.hears(`{"subscribed":["b"]}`)
	tab.run(`stops.b(); join("b");`)
	tab.until(`links.length === 2 && live.state === "open"`)
	eval[chromedp.Void](tab, `live.send("Hello!")`)
	tab.hears(`{"client":"d"}`)
	if got := eval[string](tab, `links[1].sent.join()`); got != "Hello!" {
		t.Errorf("the page sent %q, want Hello!", got)
	}
}
