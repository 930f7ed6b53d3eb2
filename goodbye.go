package realtime

import (
	"cmp"
	"errors"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
)

// A goodbye is the last thing that a client hears: why it is closed or refused,
// and when it may connect again.
type goodbye struct {
	code   websocket.StatusCode
	reason string        // fit for a close frame
	retry  time.Duration // the least time before the next attempt; zero: the client decides
}

// newGoodbye returns that of a client that this side closes for cause.
func newGoodbye(status websocket.CloseError, cause error) goodbye {
	g := goodbye{code: status.Code, reason: status.Reason}
	switch {
	case errors.Is(cause, ErrHubClosed):
		g.retry = spread(time.Second)
	case errors.Is(cause, ErrSlowClient):
		g.retry = spread(5 * time.Second)
	}
	return g
}

// goodbye returns that of a client that is refused. A close code of 4000 and
// more is the application's (RFC 6455 §7.4.2), so an HTTP status fits in there.
func (e *refusal) goodbye() goodbye {
	status := cmp.Or(e.status, http.StatusServiceUnavailable)
	g := goodbye{code: 4000 + websocket.StatusCode(status), reason: fitReason(e.reason)}
	switch {
	case g.isFinal(): // whatever RefuseFor says: there is no next attempt
	case e.after > 0:
		g.retry = spread(e.after)
	case e.status == 0:
		g.retry = spread(time.Second)
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		g.retry = spread(5 * time.Second)
	}
	return g
}

// spread returns least and up to 4 s more at random, so that clients don't all
// reconnect together. It leaves room below maxRetry for the half minute that the tabs
// of realtime.js add.
func spread(least time.Duration) time.Duration {
	return min(least, maxRetry-time.Minute) + rand.N(4*time.Second)
}

// isFinal reports whether a client that is closed with code shouldn't connect
// again. The table is in the documentation of Subprotocol.
func (g goodbye) isFinal() bool {
	switch g.code {
	case websocket.StatusNormalClosure, websocket.StatusPolicyViolation:
		return true
	case 4000 + http.StatusRequestTimeout, 4000 + http.StatusTooEarly, 4000 + http.StatusTooManyRequests:
		return false
	}
	return g.code >= 4200 && g.code < 4500
}

// in returns g in an encoding. A client of realtime.v1 gets an object before the
// end, because a page can't see the end of an event stream, and because a close
// frame has no room for more than a code and a reason.
func (g goodbye) in(enc encoding) *buffer {
	var b []byte
	switch enc {
	case envelopeFrame:
		b = appendFrame(nil, opText, g.object())
		fallthrough
	case plainFrame:
		return &buffer{b: append(b, closeFrame(g.code, g.reason).b...)}
	}
	if g.retry > 0 {
		b = appendRetryField(b, g.retry)
	}
	if enc == envelopeStream {
		b, _ = appendEvent(b, &Event{Data: g.object()}) // JSON has no line breaks
	}
	return &buffer{b: b}
}

func (g goodbye) object() []byte {
	return encodeJSON(map[string]farewell{"close": g.farewell()})
}

// A farewell is a goodbye as JSON, or that of a topic.
type farewell struct {
	Code   websocket.StatusCode `json:"code"`
	Reason string               `json:"reason,omitempty"`
	Final  bool                 `json:"final,omitempty"`
	Retry  int64                `json:"retry,omitempty"` // in milliseconds
}

func (g goodbye) farewell() farewell {
	return farewell{g.code, g.reason, g.isFinal(), g.retry.Milliseconds()}
}

// fitReason returns what a close frame can carry of a reason: UTF-8 of at most
// maxCloseReason bytes.
func fitReason(reason string) string {
	if len(reason) > 2*maxCloseReason {
		reason = reason[:2*maxCloseReason] // a cut character is behind what is kept
	}
	reason = strings.ToValidUTF8(reason, "\uFFFD")
	if len(reason) > maxCloseReason {
		reason = strings.ToValidUTF8(reason[:maxCloseReason], "") // without a cut character
	}
	return reason
}
