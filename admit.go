package realtime

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"runtime/debug"
	"strconv"
)

// ServeHTTP makes the request a client: an event stream where it accepts one
// (see [Hub.ServeSSE]) and doesn't ask for an upgrade, and otherwise a WebSocket
// (see [Upgrade], whose error has been answered).
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !hasToken(r.Header["Upgrade"], "websocket") && (acceptsStream(r) || r.Method == http.MethodOptions) {
		h.ServeSSE(w, r)
		return
	}
	Upgrade(w, r, h)
}

// refuse answers a request that doesn't become a client and returns err as
// Upgrade does.
func (h *Hub) refuse(w http.ResponseWriter, status int, text string, err error) error {
	if status == http.StatusNoContent || status == http.StatusNotModified {
		w.WriteHeader(status) // these have no body
	} else {
		http.Error(w, text, status)
	}
	return h.refused(err)
}

// refused counts a refusal.
func (h *Hub) refused(err error) error {
	h.shared.refused.Add(1)
	return fmt.Errorf("realtime: upgrade: %w", err)
}

// refuseSetup answers a request that can't become a client for what is
// between it and the hub.
func (h *Hub) refuseSetup(w http.ResponseWriter, err error) error {
	h.log.error(logSetup, "client refused: "+err.Error())
	return h.refuse(w, http.StatusNotImplemented, http.StatusText(http.StatusNotImplemented), err)
}

// refuseForNow answers a request that may have better luck within seconds: after
// Shutdown had begun another process may be up then. Not all shall come at once.
// An event stream ends right after it has begun, because an error would stop a
// browser's EventSource for good.
func (h *Hub) refuseForNow(w http.ResponseWriter, stream bool, err error) error {
	if stream {
		streamHeaders(w.Header())
		w.WriteHeader(http.StatusOK)
		w.Write(retryNotice().b)
		return h.refused(err)
	}
	w.Header().Set("Retry-After", strconv.Itoa(1+rand.IntN(5)))
	text := "try again later"
	if errors.Is(err, ErrHubClosed) {
		text = "shutting down"
	}
	return h.refuse(w, http.StatusServiceUnavailable, text, err)
}

// refuseAs answers a request that OnConnect has refused by err.
func (h *Hub) refuseAs(w http.ResponseWriter, r *http.Request, err error) error {
	if answer, ok := errors.AsType[*refusal](err); ok {
		return h.refuse(w, answer.status, answer.reason, err)
	}
	h.log.warn(logRefused, "client refused by OnConnect", "err", err, "remote", r.RemoteAddr)
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
	h.log.warn(logRefused, "origin refused: see Hub.CheckOrigin and realtime.AllowOrigins", "origin", origin, "host", host)
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

// panicked logs and counts a handler's panic and returns it as an error. It
// is to be called by the deferred function that has recovered v.
func (h *Hub) panicked(handler string, v any, c *Client) error {
	h.shared.panics.Add(1)
	args := []any{"panic", fmt.Sprint(v), "stack", string(debug.Stack())}
	if c != nil {
		args = append(args, "client", c.ID())
	}
	h.log.error(logPanic, handler+" panicked", args...)
	return fmt.Errorf("realtime: %s panicked: %v", handler, v)
}

// connect asks OnConnect, and answers its refusal; then it gives the client what
// it has missed.
func (c *Client) connect(w http.ResponseWriter, r *http.Request) (err error) {
	if c.hub.OnConnect != nil {
		defer func() {
			if v := recover(); v != nil {
				err = c.hub.panicked("OnConnect", v, c)
				c.hub.refuse(w, http.StatusInternalServerError, http.StatusText(http.StatusInternalServerError), err)
			}
		}()
		if err := c.hub.OnConnect(c, r); err != nil {
			if errors.Is(err, ErrClientClosed) && c.endedByHub() {
				return c.hub.refuseForNow(w, c.stream, c.left()) // it isn't OnConnect that refuses
			}
			if errors.Is(err, ErrBrokerUnavailable) {
				return c.hub.refuseForNow(w, c.stream, err)
			}
			return c.hub.refuseAs(w, r, err)
		}
	} else if err := c.askedTopics(r); err != nil {
		if c.endedByHub() {
			return c.hub.refuseForNow(w, c.stream, c.left())
		}
		return c.hub.refuse(w, http.StatusBadRequest, err.Error(), err)
	}
	c.catchUp(claimedEventID(r))
	c.join()
	return nil
}

// endedByHub reports whether the hub ended the client while it was joining.
func (c *Client) endedByHub() bool {
	cause := c.left()
	return errors.Is(cause, ErrHubClosed) || errors.Is(cause, ErrSlowClient)
}

// maxAskedTopics is how many topics a client can ask for where nobody else
// chooses them.
const maxAskedTopics = 100

// askedTopics subscribes the client to the topics of its URL. It is for hubs
// without OnConnect, whose clients may have whatever they want.
func (c *Client) askedTopics(r *http.Request) error {
	topics := r.URL.Query()["topic"]
	if len(topics) > maxAskedTopics {
		return fmt.Errorf("the request asks for %d topics, %d are allowed", len(topics), maxAskedTopics)
	}
	if len(topics) == 0 {
		return nil
	}
	if err := c.Subscribe(topics...); err != ErrBrokerUnavailable { // which passes
		return err
	}
	return nil
}

// Refuse returns an error for [Hub.OnConnect] to return: it answers the
// client's request with the given HTTP status and with reason as the text of
// the answer, where any other error answers 403 and a fixed text. A status
// that is not in 200..599 becomes 403. An answer of 204 tells a browser's
// EventSource not to come back (WHATWG HTML §9.2.3).
func Refuse(status int, reason string) error {
	if status < 200 || status > 599 {
		status = http.StatusForbidden
	}
	return &refusal{status, reason}
}

// A refusal is an HTTP answer to somebody who doesn't become a client.
type refusal struct {
	status int
	reason string // told to the stranger
}
