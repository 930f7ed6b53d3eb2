package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A peer is a client that others have written. A program in testdata/clients
// drives it.
type peer struct {
	name       string
	program    string // "node", "python" or "chromium"
	isStream   bool   // it is an event stream, and no WebSocket
	refusal    string // what it tells of a 403
	reconnects bool   // by itself
	deflates   bool   // what it sends over a WebSocket
}

var peers = []peer{
	{name: "EventSource", program: "chromium", isStream: true, reconnects: true},
	{name: "eventsource", program: "node", isStream: true, refusal: "403", reconnects: true},
	{name: "undici EventSource", program: "node", isStream: true, reconnects: true},
	{name: "fetch-event-source", program: "node", isStream: true, refusal: "403", reconnects: true},
	{name: "httpx", program: "python", isStream: true, refusal: "403 Forbidden"},
	{name: "aiohttp", program: "python", isStream: true, refusal: "403, message='Forbidden'"},
	{name: "curl", program: "python", isStream: true, refusal: "exit status 22"}, // "400 or above"

	{name: "WebSocket", program: "chromium", deflates: true},
	{name: "ws", program: "node", refusal: "403", deflates: true},
	{name: "undici WebSocket", program: "node"},
	{name: "reconnecting-websocket", program: "node", reconnects: true, deflates: true},
	{name: "websockets", program: "python", refusal: "HTTP 403", deflates: true},
	{name: "aiohttp WebSocket", program: "python", refusal: "403", deflates: true},
}

// TestClients checks that known clients get on with a hub. They get what is
// published, resume after cuts, and learn why they are refused or closed.
func TestClients(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"npm", "node", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			lacks(t, program)
		}
	}
	const python = "/usr/bin/python3" // Debian's has Debian's packages
	if err := exec.CommandContext(t.Context(), python, "-c", "import aiohttp, httpx, websockets").Run(); err != nil {
		lacks(t, "python3-aiohttp python3-httpx python3-websockets")
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/clients")); err != nil {
		t.Fatal(err)
	}
	npm(t, dir, "install", "--no-audit", "--no-fund")
	commands := map[string][]string{"node": {"node", filepath.Join(dir, "peers.mjs")}, "python": {python, filepath.Join(dir, "peers.py")}}
	browser := newBrowser(t)

	// Each waits for its peer most of the time, so -parallel doesn't bound them.
	var running sync.WaitGroup
	defer running.Wait() // before the browser ends
	for _, p := range peers {
		running.Go(func() {
			t.Run(p.name, func(t *testing.T) {
				d := newDriven(t, p)
				if p.program == "chromium" {
					d.inTab(newTab(t, browser, p.name))
				} else {
					d.run(append(commands[p.program], p.name)...)
				}
				if p.isStream {
					d.checkStream()
				} else {
					d.checkSocket()
				}
			})
		})
	}
}

// lacks ends a test that needs packages. In CI nothing may be skipped.
func lacks(t *testing.T, packages string) {
	t.Helper()
	how := "this test needs: apt-get install " + packages
	if os.Getenv("CI") != "" {
		t.Fatal(how)
	}
	t.Skip(how)
}

// A command tells a peer's program what to do.
type command struct {
	Do        string   `json:"do"` // "connect", instead of an earlier connection, or "send"
	URL       string   `json:"url,omitempty"`
	LastID    string   `json:"lastID"`
	Names     []string `json:"names,omitempty"` // of the events to listen for
	Protocols []string `json:"protocols,omitempty"`
	Data      string   `json:"data"`
	Binary    bool     `json:"binary"` // Data is base64
}

// A line is what a peer's program tells.
type line struct {
	Kind string // "open", "event", or "end" of a connection or an attempt

	Protocol string // of an open

	Name, ID, Data string // of an event
	Binary         bool   // Data is base64

	Code   websocket.StatusCode // of an end, as what follows
	Reason string
	Error  string
	Final  bool // it won't reconnect
}

// A driven peer is connected to a site through a proxy.
type driven struct {
	*testing.T
	peer
	site  *site
	proxy *proxy
	heard chan realtime.Message // what the hub got

	do   func(command)
	read func() line // waits

	url       string
	protocols []string
	lastID    string

	mu   sync.Mutex   // guards the fields below
	down bytes.Buffer // what has come from the hub
	up   int          // the bytes that went to it
}

func newDriven(t *testing.T, p peer) *driven {
	d := &driven{T: t, peer: p, heard: make(chan realtime.Message, 10)}
	d.site = newSite(t, "", func(hub *realtime.Hub) {
		hub.History = keep
		hub.Compression = true
		hub.PingInterval = time.Second
		hub.MaxMessageBytes = 256 << 10
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			if r.URL.Query().Has("refuse") {
				return realtime.Refuse(http.StatusForbidden, "not you")
			}
			return c.Subscribe("news")
		}
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { d.heard <- msg }
	})
	d.proxy = newProxy(t, d.site.addr())
	d.proxy.setTap(func(down bool, b []byte) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if down {
			d.down.Write(b)
		} else {
			d.up += len(b)
		}
	})
	return d
}

// run starts the program of a peer.
func (d *driven) run(args ...string) {
	program := exec.Command(args[0], args[1:]...)
	var complaints bytes.Buffer
	program.Stderr = &complaints
	stdin, err := program.StdinPipe()
	if err != nil {
		d.Fatal(err)
	}
	stdout, err := program.StdoutPipe()
	if err != nil {
		d.Fatal(err)
	}
	if err := program.Start(); err != nil {
		d.Fatal(err)
	}
	lines := make(chan line, 1000)
	go func() {
		defer close(lines)
		for r := json.NewDecoder(stdout); ; {
			var l line
			if err := r.Decode(&l); err != nil {
				return
			}
			lines <- l
		}
	}()
	d.Cleanup(func() {
		stdin.Close()
		kill := time.AfterFunc(patience, func() { program.Process.Kill() })
		for range lines {
		}
		program.Wait()
		kill.Stop()
		if s := complaints.String(); s != "" {
			d.Logf("it says: %s", s)
		}
	})
	in := json.NewEncoder(stdin)
	d.do = func(c command) {
		if err := in.Encode(c); err != nil {
			d.Fatal(err)
		}
	}
	d.read = func() line {
		d.Helper()
		select {
		case l, ok := <-lines:
			if !ok {
				d.Fatalf("the program has ended")
			}
			return l
		case <-time.After(patience):
			d.Fatal("timed out waiting for the peer")
			return line{}
		}
	}
}

// inTab drives what the browser has itself.
func (d *driven) inTab(tab *tab) {
	drive := "sockets"
	if d.isStream {
		drive = "streams"
	}
	d.site.server.Config.Handler.(*http.ServeMux).Handle("/peer.mjs", http.FileServer(http.Dir("testdata/clients")))
	tab.expectOutage(true)
	tab.open(d.proxy.url)
	tab.run(fmt.Sprintf(`
		globalThis.lines = [];
		const peers = await import("/peer.mjs");
		globalThis.peer = peers[%q](%s, (line) => lines.push(line));`, drive, d.name))
	d.do = func(c command) {
		text, _ := json.Marshal(c)
		tab.run(fmt.Sprintf("peer[%q](%s)", c.Do, text))
	}
	d.read = func() line {
		d.Helper()
		tab.until("lines.length > 0")
		var l line
		if err := json.Unmarshal([]byte(eval[string](tab, "JSON.stringify(lines.shift())")), &l); err != nil {
			d.Fatal(err)
		}
		return l
	}
}

// connect connects the peer as a new client.
func (d *driven) connect(query string, protocols ...string) {
	d.url, d.protocols, d.lastID = d.proxy.url+"/live?"+query, protocols, ""
	if !d.isStream {
		d.url = strings.Replace(d.url, "http", "ws", 1)
	}
	d.reconnect()
}

// reconnect connects a peer again that doesn't do so itself.
func (d *driven) reconnect() {
	d.do(command{Do: "connect", URL: d.url, LastID: d.lastID, Protocols: d.protocols, Names: []string{
		"message", "reset", "realtime.position", "update", "größe", "last"}})
}

// next returns the next line of the given kind, and keeps its id. Another event is
// an error. A peer whose connection ends meanwhile is reconnected.
func (d *driven) next(kind string) line {
	d.Helper()
	for range 100 { // far more than any test needs
		l := d.read()
		if l.Kind == "event" && d.protocols != nil {
			var e struct {
				ID, Event, Encoding string
				Data                *string
			}
			if err := json.Unmarshal([]byte(l.Data), &e); err != nil {
				d.Fatalf("%v: %q", err, l.Data)
			}
			l = line{Kind: "position", ID: e.ID}
			if e.Data != nil {
				l = line{Kind: "event", Name: e.Event, ID: e.ID, Data: *e.Data, Binary: e.Encoding == "base64"}
			}
		}
		if l.Name == "realtime.position" {
			l.Kind = "position"
		}
		if l.ID != "" {
			if l.Kind == "event" && l.ID == d.lastID {
				d.Errorf("two events have the id %q", l.ID)
			}
			d.lastID = l.ID
		}
		switch {
		case l.Kind == kind:
			return l
		case l.Kind == "event" || l.Final:
			d.Fatalf("got %.500v, want the next %s", l, kind)
		case l.Kind == "end" && !d.reconnects:
			d.reconnect()
		}
	}
	d.Fatalf("it connects again and again without the next %s", kind)
	return line{}
}

// gets wants the peer to get what was published, each event once and in order.
func (d *driven) gets(events ...realtime.Event) {
	d.Helper()
	for i, e := range events {
		got, want := d.next("event"), line{Kind: "event", Name: e.Name, Data: string(e.Data)}
		if d.isStream || d.protocols != nil {
			want.ID = d.lastID
			if want.ID == "" {
				d.Errorf("event %d has no id", i)
			}
		}
		if e.Binary {
			want.Data, want.Binary = base64.StdEncoding.EncodeToString(e.Data), !d.isStream
		}
		switch {
		case d.isStream:
			want.Name = cmp.Or(e.Name, "message")
			want.Data = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(want.Data)
		case d.protocols == nil:
			want.Name = ""
		}
		if got != want {
			d.Errorf("event %d: got %.100q, want %.100q", i, fmt.Sprint(got), fmt.Sprint(want))
		}
	}
}

func (d *driven) publish(events ...realtime.Event) {
	d.Helper()
	for _, e := range events {
		d.site.publishEvent("news", e)
	}
}

// refused wants the peer to be refused as it tells it.
func (d *driven) refused() {
	d.Helper()
	d.connect("refuse")
	l := d.read()
	if l.Kind != "end" || !strings.Contains(l.Error, d.refusal) || l.Final != (d.isStream && d.reconnects) {
		d.Errorf("refused with 403 it tells %+v, want %q", l, d.refusal)
	}
}

// resumes publishes events while the peer is cut off, and cuts it off again in the
// middle of one. The peer gets each once and in order.
func (d *driven) resumes() {
	d.Helper()
	limit := 40_000
	d.proxy.setLimit(func() int { defer func() { limit = -1 }(); return limit })
	told := d.fields("retry")
	before := time.Now()
	d.proxy.cut()
	events := []realtime.Event{text("", "while away"), text("update", noise), text("", "the end")}
	d.publish(events...)
	d.gets(events[0])
	if d.isStream && d.reconnects {
		retry, err := time.ParseDuration(told[len(told)-1] + "ms")
		if waited := time.Since(before); err != nil || waited < retry-50*time.Millisecond {
			d.Errorf("it reconnected after %v, told to wait for %v", waited, retry)
		}
	}
	d.gets(events[1:]...)
	d.proxy.setLimit(nil)
	if limit != -1 {
		d.Error("it didn't reconnect through the proxy")
	}
}

// fields returns the values of a field of the event streams so far. The empty name
// is that of comments.
func (d *driven) fields(name string) (values []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for l := range strings.Lines(d.down.String()) {
		if value, ok := strings.CutPrefix(l, name+":"); ok {
			values = append(values, strings.TrimSpace(value))
		}
	}
	return values
}

// passed returns how many bytes have passed, from the hub and to it.
func (d *driven) passed() (down, up int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.down.Len(), d.up
}

// until waits for a condition.
func (d *driven) until(what string, condition func() bool) {
	d.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			d.Fatalf("timed out waiting for %s", what)
		}
	}
}

func text(name, data string) realtime.Event { return realtime.Event{Name: name, Data: []byte(data)} }

// noise is 100 KB of text that can't be compressed by much.
var noise = func() string {
	b := make([]byte, 100_000)
	r := rand.New(rand.NewPCG(1, 2))
	for i := range b {
		b[i] = byte(' ' + r.IntN('~'-' '+1))
	}
	return string(b)
}()

// samples are events that are hard to bring over in one piece.
func samples() []realtime.Event {
	every := make([]byte, 256)
	for i := range every {
		every[i] = byte(i)
	}
	return []realtime.Event{
		text("update", `{"a": 1}`),
		text("", "lines\nof\r\nevery\rkind\n\n end\n"),
		text("update", ""),
		text("größe", " Grüße, 世界 🎉 \u2028\u2029\u0085\v\f\x1c\x00 "),
		text("", ": no comment\nid: 1\nevent: x\nretry: 1"),
		text("", noise),
		{Data: every, Binary: true},
		{Binary: true},
		text("last", "😀"),
	}
}

func (d *driven) checkStream() {
	d.refused()
	d.connect("")
	d.next("open")
	d.publish(samples()...)
	d.gets(samples()...)

	comments := len(d.fields(""))
	d.until("a comment", func() bool { return len(d.fields("")) > comments })
	d.publish(text("", "after a comment"))
	d.gets(text("", "after a comment"))

	d.resumes()
	for c := range d.site.hub.Clients() {
		c.Close(websocket.StatusNormalClosure, "")
	}
	d.publish(samples()...)
	d.gets(samples()...)
}

func (d *driven) checkSocket() {
	d.refused()
	d.connect("plain")
	if l := d.next("open"); l.Protocol != "" {
		d.Errorf("the subprotocol is %q, want none", l.Protocol)
	}
	d.publish(samples()...)
	d.gets(samples()...)

	const compressed = 10_000 // bytes, at most
	long := strings.Repeat("compress me ", 10_000)
	before, _ := d.passed()
	d.publish(text("", long))
	d.gets(text("", long))
	if after, _ := d.passed(); after-before > compressed {
		d.Errorf("%d bytes came in %d: they are not compressed", len(long), after-before)
	}

	_, before = d.passed()
	d.sends(long, false)
	if _, after := d.passed(); (after-before < compressed) != d.deflates {
		d.Errorf("%d bytes went out in %d, want them compressed: %t", len(long), after-before, d.deflates)
	}
	d.sends(" Grüße, 世界 🎉\r\n\x00", false)
	d.sends("", false)
	d.sends("\x00\x80\xff", true)

	for range 2 { // while it is silent
		_, before = d.passed()
		d.until("a pong", func() bool { _, up := d.passed(); return up > before })
	}
	d.do(command{Do: "send", Data: strings.Repeat(long, 3)})
	if l := d.next("end"); l.Code != websocket.StatusMessageTooBig {
		d.Errorf("a message of %d bytes: got close code %d, want %d", 3*len(long), l.Code, websocket.StatusMessageTooBig)
	}

	d.connect("enveloped", "chat", realtime.Subprotocol)
	if l := d.next("open"); l.Protocol != realtime.Subprotocol {
		d.Errorf("the subprotocol is %q, want %q", l.Protocol, realtime.Subprotocol)
	}
	d.publish(samples()...)
	d.gets(samples()...)
	d.resumes()
	for c := range d.site.hub.Clients() {
		c.Close(4001, "bye, 世界")
	}
	if l := d.next("end"); l.Code != 4001 || l.Reason != "bye, 世界" {
		d.Errorf("closed with 4001: got %d %q", l.Code, l.Reason)
	}
	d.publish(samples()...)
	if !d.reconnects {
		d.reconnect()
	}
	d.gets(samples()...)

	shut := make(chan error, 1)
	go func() { shut <- d.site.hub.Shutdown(context.Background()) }()
	if l := d.next("end"); l.Code != websocket.StatusGoingAway {
		d.Errorf("at Shutdown: got close code %d, want %d", l.Code, websocket.StatusGoingAway)
	}
	if err := <-shut; err != nil {
		d.Errorf("Shutdown: %v", err)
	}
}

// sends wants the hub to get what the peer sends.
func (d *driven) sends(data string, binary bool) {
	d.Helper()
	c := command{Do: "send", Data: data, Binary: binary}
	if binary {
		c.Data = base64.StdEncoding.EncodeToString([]byte(data))
	}
	d.do(c)
	select {
	case msg := <-d.heard:
		if string(msg.Data) != data || msg.Binary != binary {
			d.Errorf("the hub got %.100q, binary: %t, want %.100q, %t", msg.Data, msg.Binary, data, binary)
		}
	case <-time.After(patience):
		d.Fatalf("timed out waiting for the message %.100q", data)
	}
}
