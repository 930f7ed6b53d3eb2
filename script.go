package realtime

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for realtime.js
	"encoding/hex"
	"net/http"
	"sync"
	"time"
)

// script is loaded by each page, so it is at most 5 KB when compressed. How it
// works stands here instead. Its times are in milliseconds.
//
// A Connection has one link at a time: a WebSocket, an EventSource, or what stands
// for another tab's. What comes from an older link is ignored. The link is open
// when its first object has come, because a refused page gets another one first,
// and because some proxies answer and then hold everything back. A listener may
// close or reconnect, so the code that calls listeners comes last, or looks whether
// the link is still the same. Without an id the hub can't know that a client
// reconnects, so the page itself tells a reset.
//
//	connecting ──the first object──▶ open ──lost──▶ connecting
//	     │                             │
//	     └───────a final goodbye, or close()──────▶ closed
//
// Attempts. Delays are random, so that clients that lost a server together don't
// reconnect together. After 1001 and 1012, which mean that the server stops or
// restarts, all its clients reconnect, so the first delay is longer. The hub may
// tell a time before which no attempt is welcome. Two failed attempts change the
// transport. One that has worked gets six, as probably the server is down. The
// function for the URL is no transport's fault. A constructor that throws is a failed
// attempt: in WebKit and Firefox it may, where a policy of the page forbids the
// connection. Only an object of the hub ends the connection for good. Some proxies
// close what is idle with 1000.
//
// An EventSource reconnects by itself, after the time that the server set with
// "retry". The page can't read that time, so the browser gets one attempt. Then the
// EventSource is replaced: it gives up after an answer other than 200, and never
// waits longer however often it fails. If a function gives the URL, the browser gets
// no attempt: the token that it would send again may be used or expired.
//
// Losses that a browser doesn't report. Some paths swallow bytes and stay open, so
// the page reconnects when a hub that sends something at each interval is silent
// for two. It counts its own ticks, because those of a throttled or frozen page are
// late, but don't add up. The last one lets messages be delivered that wait for such
// a page. A message that takes longer is no reason to reconnect again and again, so
// each time the patience doubles. After a computer's sleep, and when the network is
// back, the old connection may be dead, which a browser would notice much later.
// With an id, to reconnect loses nothing. A browser keeps a page that its user
// leaves only if that has no connection. So the page gives its own up, and has a new
// one when it is shown again.
//
// A page in the background may be suspended for less than such a sleep, and most
// connections survive that. So the page doesn't reconnect when it is shown again, but
// asks: it leaves a topic that can't be, and the hub answers. Anything that comes in
// time will do. It asks only if its timers were late. Otherwise an OnMessage that
// takes long, which holds the answer back, would cost the connection whenever the
// user looks elsewhere and comes back.
//
// Topics. The page's last id stands for its topics, but for those that are fresh.
// A fresh topic was subscribed later, and the hub hasn't said yet that the page has
// all that it begins with. Its link asked for it, by a message or as new in the URL.
// A fresh topic whose link is lost begins again, whatever the id. So it can't lose
// anything, but what has come of it would come twice. Therefore a reset comes first.
// If a topic is left and joined again before the hub has said "unsubscribed", its
// last events could pass for those of the new beginning, so the page makes another
// link.
//
// A topic that is refused for now is asked for again after a while, unless a newer
// link has asked for it.
//
//	subscribe ──▶ fresh ──"subscribed"──▶ known by the id
//	                ▲                             │
//	                └───────refused for now───────┘
//
// Events of a topic that the page has left, or that another tab has, are dropped. So
// are those of a fresh topic until a link is asked for it.
// What the server has subscribed by itself isn't known as such a topic. An event
// stream whose URL names topics as new is never left to the browser to reconnect:
// they would begin again each time.
//
// Tabs that share a connection have a Web Lock and a BroadcastChannel. Firefox denies
// both to a page that may keep nothing, which then has its own connection. The tab that
// holds the lock leads: it has a link for the topics of all tabs, and posts each
// object that comes. The others follow. The browser gives the lock to another tab
// when its holder is gone, however that happened. If the leader is frozen, the
// followers notice the silence like that of a hub, and one steals the lock. So does
// one if the leader says that its link is lost and has no other for 15 to 30 s: a
// frozen tab may still answer, while its timers stand still. If the hub has told a
// time before which no attempt is welcome, they count from then on.
//
//	who   from a follower   is there a leader?
//	want  from a follower   continue from my id, on my topics too
//	open  from the leader   what I post continues from this id, on these topics; some are fresh
//	lost  from the leader   the link is lost, and there is no other for a time
//	text  from the leader   an object, and the id that came before it
//	send  from a follower   a message for the hub, to the leader that it follows
//	bye   from any          this tab is gone
//
// Nothing is lost or doubled because each tab knows by the ids what it has had. A
// history's ids have a number that grows, so they can be compared. A tab follows
// only from an id that it has reached itself. If the leader has other topics, the
// tab wants more, and the leader makes another link. A tab that follows and has
// lost its place, as one that was frozen, joins again. The leader doesn't go back
// for it: if the hub doesn't keep all that it lacks, all tabs would get a reset. So
// it doesn't matter in which order the posts of an old and a new leader come, or
// whether a browser loses some.
//
// While a hub's engine is away, ids resume nowhere, and contain "local". What comes
// from the engine keeps its number, and can be compared. What the engine lacks has
// none: it is equal to itself alone, and a tab that has lost its place joins again.
// The leader continues from no such id, as all tabs would get a reset.
//
// What a hub tells a newcomer (the latest values, or what was missed since an id of
// the page's own) is that tab's alone. So a new tab, or one that comes back, first
// joins: it has a link of its own, until it has an id from which the leader can
// continue. If the leader is past that id by then, it makes another link, which
// begins there, and the others skip what they have had. One tab joins at a time, so
// two connections are enough. Without a History there are no ids, and all tabs stay
// at that.
//
// A hub refuses a link with more than 100 topics. So the leader doesn't accept a tab
// with which there would be more, and that tab keeps its own link. A tab that hears of
// a leader that has no room for it joins again. A leader that subscribes one too many
// gives the lead away.
//
// A follower that subscribes a topic joins again, because its beginning is for that
// tab alone. A leader makes another link, unless one of the others has the topic:
// they would get it from the beginning as well, and lose events. So the leader
// gives the lead away, and joins as any tab does. It promises nobody a topic that is
// fresh. Topics that no tab wants any more end with the leader's next link.
//
//go:embed realtime.js
var script []byte

// scriptTag is the ETag: the same on every server that has the same script.
var scriptTag = sync.OnceValue(func() string {
	sum := sha256.Sum256(script)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
})

// Script returns a handler that serves realtime.js, an ES module for web pages.
// The module connects to a hub's ServeHTTP: over a WebSocket or, where none
// gets through, an event stream. It reconnects, resumes, and says when events
// may be lost, or why the hub refuses the page. All tabs of a site can share one
// connection. realtime.d.ts in this directory tells what it offers. Both files are
// also the npm package @kashvi/realtime, for pages that are bundled.
//
//	mux.Handle("/live", hub)
//	mux.Handle("/realtime.js", realtime.Script())
//
// Browsers keep it, but ask by its ETag each time, so page and hub don't differ
// in version for long. Pages of other sites may import it: it has no secret.
// Methods other than GET and HEAD get 405. It is safe for concurrent use.
func Script() http.Handler { return http.HandlerFunc(serveScript) }

func serveScript(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "the script is for GET, not for "+r.Method, http.StatusMethodNotAllowed)
		return
	}
	header.Set("Content-Type", "text/javascript; charset=utf-8") // RFC 9239 §6
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-cache") // to be kept, but asked about each time (RFC 9111 §5.2.2.4)
	header.Set("ETag", scriptTag())
	header.Set("Access-Control-Allow-Origin", "*") // modules are loaded with CORS
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(script))
}
