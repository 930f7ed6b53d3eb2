package realtime

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
)

// ServeHTTP makes the request a client, or answers it with an error. A request
// that accepts an event stream (see [Hub.ServeSSE]) and asks for no upgrade
// becomes one. Any other becomes a WebSocket (see [Upgrade]).
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !hasToken(r.Header["Upgrade"], "websocket") && (acceptsStream(r) || r.Method == http.MethodOptions) {
		h.ServeSSE(w, r)
		return
	}
	Upgrade(w, r, h)
}

// admit makes the request a client, or answers it and returns why not. It
// blocks the HTTP handler's goroutine while OnConnect does, and with an event
// stream that is answered through w until the client is gone.
func (h *Hub) admit(w http.ResponseWriter, r *http.Request, t transport) error {
	h.start()
	h.settle()
	if err := t.prepare(h, w, r); err != nil {
		return err
	}
	if h.closing() {
		return h.refuseForNow(w, t, ErrHubClosed)
	}
	c := newClient(h, t)
	if err := h.add(c); err != nil {
		return h.refuseForNow(w, t, err)
	}
	connected := false
	defer func() {
		if !connected { // also where OnConnect has ended the goroutine
			c.abort(ErrClientClosed)
			c.gone()
		}
	}()
	if err := c.introduce(w, r); err != nil {
		return err
	}
	if err := c.unwelcome(); err != nil {
		c.end(err)
		return h.refuseForNow(w, t, err)
	}
	stay, err := t.connect(c, w, r)
	if err != nil {
		c.end(err)
		return err
	}
	connected = true
	if stay != nil {
		stay()
	}
	return nil
}

// introduce asks OnConnect about a client and answers its refusal. Otherwise it
// gives the client its replay and opens it.
func (c *Client) introduce(w http.ResponseWriter, r *http.Request) error {
	if err := c.onConnect(r); err != nil {
		h, t := c.hub, c.transport
		switch why := c.why(); {
		case errors.Is(err, ErrClientClosed) && (errors.Is(why, ErrHubClosed) || errors.Is(why, ErrSlowClient)):
			return h.refuseForNow(w, t, why) // it isn't OnConnect that refuses
		case errors.Is(err, ErrBrokerUnavailable):
			return h.refuseForNow(w, t, err)
		default:
			return h.refuseAs(w, r, err)
		}
	}
	c.catchUp(claimedEventID(r))
	c.open()
	return nil
}

// unwelcome returns why a client that OnConnect accepted can't stay, or nil.
func (c *Client) unwelcome() error {
	switch {
	case c.hub.closing():
		return ErrHubClosed
	case c.out.hasFailed(): // too much came for it while OnConnect ran
		return cmp.Or(c.why(), error(ErrSlowClient))
	}
	return nil
}

// onConnect calls OnConnect, or if that is nil subscribes the URL's topics.
func (c *Client) onConnect(r *http.Request) (err error) {
	if c.hub.OnConnect == nil {
		return c.askedTopics(r)
	}
	defer func() {
		if v := recover(); v != nil {
			err = &refusal{http.StatusInternalServerError, http.StatusText(http.StatusInternalServerError), c.hub.panicked("OnConnect", v, c)}
		}
	}()
	return c.hub.OnConnect(c, r)
}

const maxAskedTopics = 100 // in a URL, for hubs without OnConnect

// askedTopics subscribes the client to the topics of its URL.
func (c *Client) askedTopics(r *http.Request) error {
	topics := r.URL.Query()["topic"]
	if len(topics) == 0 {
		return nil
	}
	err := error(nil)
	if len(topics) > maxAskedTopics {
		err = fmt.Errorf("the request asks for %d topics, at most %d are allowed", len(topics), maxAskedTopics)
	} else if err = c.Subscribe(topics...); err == nil || err == ErrBrokerUnavailable { // which is temporary
		return nil
	} else if err == ErrClientClosed {
		return err
	}
	return &refusal{http.StatusBadRequest, err.Error(), err}
}

// refuse answers a request that doesn't become a client; see refused.
func (h *Hub) refuse(w http.ResponseWriter, status int, text string, err error) error {
	if status == http.StatusNoContent || status == http.StatusNotModified {
		w.WriteHeader(status) // these have no body
	} else {
		http.Error(w, text, status)
	}
	return h.refused(err)
}

// refused counts a refusal and returns err as Upgrade does.
func (h *Hub) refused(err error) error {
	h.shared.refused.Add(1)
	return fmt.Errorf("realtime: upgrade: %w", err)
}

// refuseSetup refuses a request that server or middleware can't let through.
func (h *Hub) refuseSetup(w http.ResponseWriter, err error) error {
	h.shared.log.error(logSetup, "client refused: "+err.Error())
	return h.refuse(w, http.StatusNotImplemented, http.StatusText(http.StatusNotImplemented), err)
}

// refuseForNow answers a request that may succeed within seconds. After
// Shutdown another process may be up then.
func (h *Hub) refuseForNow(w http.ResponseWriter, t transport, err error) error {
	reason := "try again later"
	switch {
	case errors.Is(err, ErrHubClosed):
		reason = "shutting down"
	case errors.Is(err, ErrSlowClient):
		reason = "too many messages while connecting"
	}
	t.refuseForNow(w, reason)
	return h.refused(err)
}

// refuseAs answers a request that OnConnect has refused by err.
func (h *Hub) refuseAs(w http.ResponseWriter, r *http.Request, err error) error {
	if answer, ok := errors.AsType[*refusal](err); ok {
		return h.refuse(w, answer.status, answer.reason, cmp.Or(answer.cause, err))
	}
	h.shared.log.warn(logRefused, "client refused by OnConnect", "err", err, "remote", r.RemoteAddr)
	return h.refuse(w, http.StatusForbidden, http.StatusText(http.StatusForbidden), err)
}

// admitOrigin asks the origin check, and answers its refusal.
func (h *Hub) admitOrigin(w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = h.panicked("CheckOrigin", v, nil)
			h.refuse(w, http.StatusInternalServerError, http.StatusText(http.StatusInternalServerError), err)
		}
	}()
	check := originCheck(h.CheckOrigin)
	if check == nil || check(r) {
		return nil
	}
	origin, host := clip(r.Header.Get("Origin")), clip(r.Host)
	h.shared.log.warn(logRefused, "origin refused: see Hub.CheckOrigin and realtime.AllowOrigins", "origin", origin, "host", host)
	return h.refuse(w, http.StatusForbidden, "origin not allowed", fmt.Errorf("origin %q is not allowed for host %q", origin, host))
}

// clip bounds what a stranger can put into a log.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

// panicked logs and counts a handler's panic and returns it as an error. The
// deferred function that has recovered v calls it, for the stack.
func (h *Hub) panicked(handler string, v any, c *Client) error {
	h.shared.panics.Add(1)
	args := []any{"panic", fmt.Sprint(v), "stack", string(debug.Stack())}
	if c != nil {
		args = append(args, "client", c.ID())
	}
	h.shared.log.error(logPanic, handler+" panicked", args...)
	return fmt.Errorf("realtime: %s panicked: %v", handler, v)
}

// Refuse returns an error with which [Hub.OnConnect] refuses a client. The
// answer has the given HTTP status, and reason as its text. A status outside
// 200..599 becomes 403. A 204 tells a browser's EventSource not to reconnect
// (WHATWG HTML §9.2.3).
func Refuse(status int, reason string) error {
	if status < 200 || status > 599 {
		status = http.StatusForbidden
	}
	return &refusal{status: status, reason: reason}
}

// A refusal is an HTTP answer to somebody who doesn't become a client.
type refusal struct {
	status int
	reason string // told to the stranger
	cause  error  // told to Upgrade's caller; nil: reason is
}
