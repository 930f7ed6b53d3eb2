package realtime

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"
)

// ServeHTTP makes the request a client, or answers it with an error. A request
// that accepts an event stream (see [Hub.ServeSSE]) and asks for no upgrade
// becomes one. Any other becomes a WebSocket (see [Upgrade]). The answer to one
// that asks for neither says which header a stream needs.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !hasToken(r.Header["Upgrade"], "websocket") && (acceptsStream(r) || r.Method == http.MethodOptions) {
		h.ServeSSE(w, r)
		return
	}
	h.admit(w, r, webSocket{orStream: true})
}

// admit makes the request a client, or answers it and returns why not. It
// blocks the HTTP handler's goroutine while OnConnect does, and with an event
// stream that is answered through w until the client is gone.
func (h *Hub) admit(w http.ResponseWriter, r *http.Request, t transport) error {
	if err := h.usable(); err != nil {
		http.Error(w, http.StatusText(http.StatusInternalServerError), http.StatusInternalServerError)
		err = fmt.Errorf("realtime: upgrade: %w", err)
		slog.Error(err.Error()) // few read what Upgrade returns
		return err
	}
	h.start()
	h.settle()
	if err := t.prepare(h, w, r); err != nil {
		return h.refuse(w, r, t, err)
	}
	c := newClient(h, t)
	if err := h.add(c); err != nil {
		return h.refuse(w, r, t, notNow(err))
	}
	connected, dismissed := false, false
	defer func() {
		switch {
		case connected:
		case dismissed:
			c.end(ErrClientClosed)
			go c.gone() // Shutdown waits for its end
		default: // also where OnConnect has ended the goroutine
			c.abort(ErrClientClosed)
			c.gone()
		}
	}()
	if answer := c.introduce(r); answer != nil {
		if dismissed = t.dismiss(c, w, r, answer); dismissed {
			return h.refused(answer)
		}
		return h.refuse(w, r, t, answer)
	}
	stay, err := t.connect(c, w, r)
	if err != nil {
		err = h.refuse(w, r, t, err)
		c.end(err)
		return err
	}
	connected = true
	if stay != nil {
		stay()
	} else if !c.park() {
		go c.serve() // Shutdown waits for its end
	}
	return nil
}

// introduce asks OnConnect about a client. Then it gives the client its replay
// and opens it. It returns a refusal if the client can't stay.
func (c *Client) introduce(r *http.Request) *refusal {
	h := c.hub
	last := claimedEventID(r)
	h.order.await(last) // before OnConnect: what was published before must not find the topics that it subscribes
	asked, err := c.asks(r)
	if err == nil {
		err = c.onConnect(r)
		c.admitted = err == nil && c.screened
	}
	var refused []topicRefusal
	if err == nil {
		refused, err = c.joinAsked(asked)
	}
	if err != nil {
		why := c.why()
		_, closed := errors.AsType[*closedError](why)
		switch {
		case !errors.Is(err, ErrClientClosed): // else it isn't a handler that refuses
		case errors.Is(why, ErrHubClosed), errors.Is(why, ErrSlowClient):
			return notNow(why)
		case closed: // what waits for it ends with the reason
			c.opened = true
			return nil
		}
		return c.refusalBy("client refused by OnConnect", err, "remote", r.RemoteAddr)
	}
	c.catchUp(last)
	if asked.envelopes {
		c.reply(asked.fresh, refused)
	}
	c.open()
	var why error
	switch {
	case h.closing() || errors.Is(c.why(), ErrHubClosed): // the latter when its turn came in a drain
		why = ErrHubClosed
	case c.out.hasFailed(): // too much came for it while OnConnect ran
		why = cmp.Or(c.why(), error(ErrSlowClient))
	default:
		return nil
	}
	c.end(why)
	return notNow(why)
}

func (c *Client) onConnect(r *http.Request) (err error) {
	if c.hub.OnConnect == nil {
		return nil
	}
	c.screened = true
	defer c.hub.catch("OnConnect", c, func(panicked error) { err = bluntly(http.StatusInternalServerError, panicked) })
	return c.hub.OnConnect(c, r)
}

// A refusal is an HTTP answer to somebody who doesn't become a client.
type refusal struct {
	status int           // zero: the request may succeed within seconds
	reason string        // told to the stranger
	cause  error         // told to Upgrade's caller; nil: reason is
	after  time.Duration // until when another request is pointless; zero: not known
}

func (e *refusal) Error() string {
	return fmt.Sprintf("refused with %d %s: %s", e.status, http.StatusText(e.status), e.reason)
}

// Refuse returns an error with which [Hub.OnConnect] refuses a client, and
// [Hub.OnSubscribe] a topic. The answer to a client has the given HTTP status, and
// reason as its text. A status outside 200..599 becomes 403. A 204 tells a browser's
// EventSource not to reconnect (WHATWG HTML §9.2.3).
//
// A client of the [Subprotocol] is accepted, told and closed at once, with the
// close code 4000 plus status, because a page sees no HTTP status. [Subprotocol]
// says which statuses are final.
func Refuse(status int, reason string) error { return RefuseFor(0, status, reason) }

// RefuseFor is [Refuse] for a client that should connect again, but not before
// wait is over: with 429 (Too Many Requests) or 503 (Service Unavailable). The
// answer has it as Retry-After, in seconds. A client of the [Subprotocol] is told
// a random time up to 4 s longer, so that those who were refused together don't
// reconnect together. Zero and negative tell no time, and a status that is final
// tells such a client none; see [Subprotocol].
func RefuseFor(wait time.Duration, status int, reason string) error {
	if status < 200 || status > 599 {
		status = http.StatusForbidden
	}
	return &refusal{status: status, reason: reason, after: max(wait, 0)}
}

// openly returns a refusal that tells the stranger its cause.
func openly(status int, cause error) *refusal {
	return &refusal{status: status, reason: cause.Error(), cause: cause}
}

// bluntly returns a refusal that tells the stranger no more than the status.
func bluntly(status int, cause error) *refusal {
	return &refusal{status: status, reason: http.StatusText(status), cause: cause}
}

// notNow returns the refusal of a request that may succeed within seconds.
// After Shutdown another process may be up then.
func notNow(cause error) *refusal {
	reason := "try again later"
	switch {
	case errors.Is(cause, ErrHubClosed):
		reason = "shutting down"
	case errors.Is(cause, ErrSlowClient):
		reason = "too many messages while connecting"
	}
	return &refusal{reason: reason, cause: cause}
}

// wrongSetup logs and refuses what server or middleware can't let through.
func (h *Hub) wrongSetup(cause error) error {
	h.shared.log.error(logSetup, "client refused: "+cause.Error())
	return bluntly(http.StatusNotImplemented, cause)
}

// refuse answers a request by HTTP if err is a refusal of it: other errors come
// when it can't be answered any more. It counts err and returns it as Upgrade
// does.
func (h *Hub) refuse(w http.ResponseWriter, r *http.Request, t transport, err error) error {
	if err == errAnswered {
		return err
	}
	if answer, ok := errors.AsType[*refusal](err); ok {
		w.Header().Set("Cache-Control", forOneClient)
		if answer.after > 0 {
			w.Header().Set("Retry-After", strconv.FormatInt(int64((answer.after-1)/time.Second)+1, 10))
		}
		switch answer.status {
		case 0:
			t.refuseForNow(w, r, answer)
		case http.StatusNoContent, http.StatusNotModified:
			w.WriteHeader(answer.status) // these have no body
		default:
			http.Error(w, answer.reason, answer.status)
		}
	}
	return h.refused(err)
}

// refused counts err and returns it as Upgrade does.
func (h *Hub) refused(err error) error {
	if answer, ok := errors.AsType[*refusal](err); ok && answer.cause != nil {
		err = answer.cause
	}
	h.shared.refused.Add(1)
	return fmt.Errorf("realtime: upgrade: %w", err)
}

// admitOrigin asks the origin check, and returns its refusal.
func (h *Hub) admitOrigin(r *http.Request) (err error) {
	defer h.catch("CheckOrigin", nil, func(panicked error) { err = bluntly(http.StatusInternalServerError, panicked) })
	check := originCheck(h.CheckOrigin)
	if check == nil || check(r) {
		return nil
	}
	origin, host := clip(r.Header.Get("Origin")), clip(r.Host)
	h.shared.log.warn(logRefused, "origin refused: see Hub.CheckOrigin and realtime.AllowOrigins", "origin", origin, "host", host)
	cause := fmt.Errorf("origin %q is not allowed for host %q", origin, host)
	return &refusal{status: http.StatusForbidden, reason: "origin not allowed", cause: cause}
}

// clip bounds what a stranger can put into a log or an answer.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// catch is deferred around a handler. It recovers from its panic, logs and
// counts that, and calls then with it as an error.
func (h *Hub) catch(handler string, c *Client, then func(panicked error)) {
	v := recover()
	if v == nil {
		return
	}
	h.shared.panics.Add(1)
	args := []any{"panic", fmt.Sprint(v), "stack", string(debug.Stack())}
	if c != nil {
		args = append(args, "client", c.ID())
	}
	h.shared.log.error(logPanic, handler+" panicked", args...)
	then(fmt.Errorf("realtime: %s %w: %v", handler, errPanicked, v))
}
