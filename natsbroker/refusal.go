package natsbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// A server that refuses a message or a subscription says so later, and to the
// connection's ErrorHandler alone. The call that it refuses has returned nil by
// then. So a broker listens there:
//
//	all is well ──a publish is refused──▶ sure: each Publish waits for the server's word
//	     ▲                                      │
//	     └────────no refusal for sureFor────────┘
//
//	all is well ──the subscription is refused──▶ deaf: Publish and Subscribe fail
//	     ▲                                         │
//	     └──────a new subscription is allowed──────┘
//
// The server drops a subscription that it refuses. It doesn't make it again when
// the permission comes back.

const (
	sureFor   = 10 * time.Second       // longer than between two heartbeats of a hub
	lookEvery = 500 * time.Millisecond // between two tries to subscribe again
	forceWait = 2 * time.Second        // between two reconnects that the broker asks for
)

// A refusal is what a server doesn't allow.
type refusal struct {
	err error
	at  time.Time
}

// violation finds the act and the subject in the text of a refusal.
var violation = regexp.MustCompile(`(?i)permissions violation for (publish|subscription) to "([^"]+)"`)

// hear is called for each error of the connection, on a goroutine of nats.go. It
// returns the error, with the cure for a refusal that concerns the broker.
func (b *Broker) hear(conn *nats.Conn, err error) error {
	if conn != b.conn.Load() || !errors.Is(err, nats.ErrPermissionViolation) {
		return err
	}
	m := violation.FindStringSubmatch(err.Error())
	if m == nil {
		return err
	}
	inbox := cmp.Or(conn.Opts.InboxPrefix, "_INBOX")
	publish, subject := strings.EqualFold(m[1], "publish"), m[2]
	token, ours := strings.CutPrefix(subject, b.prefix)
	r := &refusal{at: time.Now()}
	switch {
	case publish && (ours || strings.HasPrefix(subject, "$JS.")):
		cure := "$JS.>"
		if ours {
			cure = b.prefix + ">"
		}
		r.err = fmt.Errorf("%w: give the connection's user the permission to publish to %q", err, cure)
		if ours && !strings.Contains(token, ".") {
			b.muted.Store(r)
		}
	case ours && token == "*":
		r.err = fmt.Errorf("%w: give the connection's user the permission to subscribe to %q", err, subject)
		b.deaf.Store(r)
	case !publish && strings.HasPrefix(subject, inbox+"."):
		r.err = fmt.Errorf("%w: give the connection's user the permission to subscribe to %q", err, inbox+".>")
		if strings.HasSuffix(subject, ".*") && b.asks.Load() {
			b.unanswered.Store(r)
		}
	default:
		return err // the user's
	}
	b.refused.Store(r)
	select {
	case b.heard <- struct{}{}:
	default:
	}
	return r.err
}

// because returns a refusal that came since, which says more than a call that got
// no answer, or err.
func (b *Broker) because(err error, since time.Time) error {
	if r := b.refused.Load(); err != nil && r != nil && !r.at.Before(since) {
		return r.err
	}
	return err
}

// listen has hear called for the errors of a connection, beside the handler that
// it has. It does nothing where it is in place already.
func (b *Broker) listen(conn *nats.Conn) {
	before := conn.ErrorHandler()
	if isListener(before) {
		return
	}
	b.theirs = before
	conn.SetErrorHandler((&listener{b, before}).handle)
}

// unlisten gives the connection its own handler back.
func (b *Broker) unlisten(conn *nats.Conn) {
	if isListener(conn.ErrorHandler()) { // and not one that was set since
		conn.SetErrorHandler(b.theirs)
	}
}

// A listener is the handler of a connection's errors, in front of the one that the
// connection had.
type listener struct {
	broker *Broker
	next   nats.ErrHandler
}

func (l *listener) handle(conn *nats.Conn, sub *nats.Subscription, err error) {
	l.broker.hear(conn, err)
	if l.next != nil {
		l.next(conn, sub, err)
	}
}

// isListener reports whether a handler is the method of a listener. All of those
// have the same code. Closures would not: where a function that makes one is
// inlined, its closure is compiled once more.
func isListener(h nats.ErrHandler) bool {
	return h != nil && reflect.ValueOf(h).Pointer() == listenerCode
}

var listenerCode = reflect.ValueOf((*listener)(nil).handle).Pointer()

// isMuted reports whether a publish was refused a short while ago.
func (b *Broker) isMuted() bool {
	r := b.muted.Load()
	return r != nil && time.Since(r.at) < sureFor
}

// confirm waits until the server has seen what was published, and returns its
// refusal if there is one. before was the connection's last error before that.
func (b *Broker) confirm(ctx context.Context, conn *nats.Conn, subject string, before error) error {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := conn.FlushWithContext(ctx); err != nil {
		return err
	}
	if err := conn.LastError(); err != before && refuses(err, "publish", subject) {
		return b.hear(conn, err)
	}
	return nil
}

// refuses reports whether an error of a connection is the refusal of a subject.
func refuses(err error, act, subject string) bool {
	return errors.Is(err, nats.ErrPermissionViolation) &&
		strings.Contains(strings.ToLower(err.Error()), "violation for "+act) &&
		strings.Contains(err.Error(), strconv.Quote(subject))
}

// isClosedByServer reports whether a server has closed the connection for an
// error after which nats.go doesn't connect again. An event is the cause that was
// larger than a max_payload that was lowered: nats.go knows the former one.
func isClosedByServer(conn *nats.Conn) bool {
	err := conn.LastError()
	return conn.IsClosed() && err != nil && strings.Contains(strings.ToLower(err.Error()), "maximum payload violation")
}
