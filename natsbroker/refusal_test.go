package natsbroker_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// A guarded server has two users: "a", whose rules change, and "b". It is a process
// of its own, because reloading its options races with its clients, by the race
// detector.
type guarded struct {
	*serverProcess
	t *testing.T
}

func newGuarded(t *testing.T) *guarded {
	g := &guarded{newServerProcess(t, serverConfig{Port: freePort(t), Dir: t.TempDir(), Guarded: true}), t}
	g.reload(rules{}) // which waits until it is ready
	return g
}

// rules are what a guarded server refuses.
type rules struct {
	DenyPublish, DenySubscribe []string // to user "a"
	NoUser                     bool     // "a" doesn't exist
	MaxPayload                 int32    // zero: the default
}

func (r rules) apply(o *server.Options) {
	o.MaxPayload = r.MaxPayload
	o.Users = []*server.User{{Username: "b", Password: "p"}}
	if !r.NoUser {
		o.Users = append(o.Users, &server.User{Username: "a", Password: "p", Permissions: &server.Permissions{
			Publish:   &server.SubjectPermission{Deny: r.DenyPublish},
			Subscribe: &server.SubjectPermission{Deny: r.DenySubscribe},
		}})
	}
}

// An order changes a guarded server while it runs.
type order struct {
	Rules      rules
	Disconnect string // a user, whose connections are ended; empty: the rules are changed
}

// obey carries the order out, on a server that was started with options.
func (o order) obey(s *server.Server, options server.Options) error {
	if o.Disconnect == "" {
		o.Rules.apply(&options)
		return s.ReloadOptions(&options)
	}
	conns, err := s.Connz(&server.ConnzOptions{Username: true, User: o.Disconnect})
	if err != nil {
		return err
	}
	if len(conns.Conns) == 0 {
		return errors.New("the user has no connection")
	}
	for _, c := range conns.Conns {
		if err := s.DisconnectClientByID(c.Cid); err != nil {
			return err
		}
	}
	return nil
}

// order gives an order, and waits until it is carried out.
func (g *guarded) order(what order) error {
	if err := json.NewEncoder(g.in).Encode(what); err != nil {
		return err
	}
	var answer string
	if err := g.out.Decode(&answer); err != nil || answer != "" {
		return cmp.Or(err, errors.New(answer))
	}
	return nil
}

func (g *guarded) reload(r rules) {
	g.t.Helper()
	if err := g.order(order{Rules: r}); err != nil {
		g.t.Fatal(err)
	}
}

func (g *guarded) broker(user string, history bool) (realtime.Broker, *nats.Conn) {
	conn := connect(g.t, g.url(), nats.UserInfo(user, "p"), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	b := natsbroker.New("realtime", conn)
	if history {
		return b.WithHistory(), conn
	}
	return b, conn
}

// A server takes something from a node and gives it back. The node's hub says that
// it is down, in the log by the name of the subject, and counts a gap. When it has
// everything back it works again, in both directions.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		history bool
		take    rules
		want    string // in the log
	}{
		{"Publish", false, rules{DenyPublish: []string{"realtime.>"}}, `publish to \"realtime.>\"`},
		{"Subscribe", false, rules{DenySubscribe: []string{"realtime.>"}}, `subscribe to \"realtime.*\"`},
		{"Both", false, rules{DenyPublish: []string{"realtime.>"}, DenySubscribe: []string{"realtime.>"}}, `\"realtime.`},
		{"HistoryPublish", true, rules{DenyPublish: []string{"realtime.>"}}, `publish to \"realtime.>\"`},
		{"HistoryAPI", true, rules{DenyPublish: []string{"$JS.>", "realtime.>"}}, `give the connection's user`},
		{"HistoryInbox", true, rules{DenySubscribe: []string{"_INBOX.>"}}, `subscribe to \"_INBOX.>\"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // the test mostly waits
			g := newGuarded(t)
			first, _ := g.broker("a", test.history)
			second, _ := g.broker("b", test.history)
			var logged buffer
			a := newSite(t, first, func(h *realtime.Hub) { h.Logger = slog.New(slog.NewTextHandler(&logged, nil)) })
			b := newSite(t, second)
			both := func(when string) {
				t.Helper()
				for i, from := range []*site{a, b} {
					for j, to := range []*site{a, b} {
						to.expectAny(t, fmt.Sprintf("event of %d at %d %s", i, j, when), from)
					}
				}
			}
			both("at first")
			before := a.Stats().Gaps
			g.reload(test.take)
			eventually(t, "outage", func() bool {
				a.Publish(t.Context(), "x", realtime.Event{Data: []byte("nobody gets it")})
				return a.Stats().BrokerDown && strings.Contains(logged.String(), test.want)
			})
			if !test.history {
				eventually(t, "error of Publish", func() bool {
					return errors.Is(a.Publish(t.Context(), "x", realtime.Event{Data: []byte("nobody gets it")}), realtime.ErrBrokerUnavailable)
				})
			}
			g.reload(rules{})
			given := time.Now()
			both("at last")
			eventually(t, "working hub", func() bool { return !a.Stats().BrokerDown })
			if took := time.Since(given); took > 10*time.Second {
				t.Logf("it took %v until all was well", took) // on a busy machine
			}
			eventually(t, "clients of both nodes", func() bool { return a.Stats().ClusterClients == 2 && b.Stats().ClusterClients == 2 })
			if n := a.Stats().Gaps; n == before && !test.history {
				t.Errorf("the node has noticed no gap")
			}
		})
	}
}

// The user may not purge the stream. The log says so once, by the name of the
// subject, and all else works. When it may, old records go.
func TestPurgeIsRefused(t *testing.T) {
	t.Parallel() // the test mostly waits
	g := newGuarded(t)
	g.reload(rules{DenyPublish: []string{"$JS.API.STREAM.PURGE.>"}})
	first, _ := g.broker("a", true)
	var logged buffer
	a := newSite(t, first, func(h *realtime.Hub) {
		h.History.Age = time.Second
		h.Logger = slog.New(slog.NewTextHandler(&logged, nil))
	})
	a.expectAny(t, "1", a)
	a.expectAny(t, "2", a)
	const lost = "bound of the broker history lost"
	eventually(t, "line that names it", func() bool {
		return strings.Contains(logged.String(), lost) && strings.Contains(logged.String(), `$JS.API.STREAM.PURGE.realtime`)
	})
	a.expectAny(t, "3", a)
	if n := strings.Count(logged.String(), lost); n != 1 || a.Stats().BrokerDown {
		t.Errorf("%d lines say it, and BrokerDown is %v; want 1 and false:\n%s", n, a.Stats().BrokerDown, logged.String())
	}
	g.reload(rules{})
	eventually(t, "line that it is over", func() bool { return strings.Contains(logged.String(), "bound of the broker history is back") })
}

// A max_payload is lowered while a server runs. It closes the connection of a node
// that publishes more, for good as nats.go sees it. The broker makes another.
func TestPayloadIsLowered(t *testing.T) {
	t.Parallel()
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			g := newGuarded(t)
			first, conn := g.broker("a", history)
			second, _ := g.broker("b", history)
			a, b := newSite(t, first), newSite(t, second)
			b.expectAny(t, "event", a)
			a.expectAny(t, "event", b)
			g.reload(rules{MaxPayload: 50_000})
			large := realtime.Event{Data: make([]byte, 100_000)}
			a.Publish(t.Context(), "x", large)
			eventually(t, "end of the connection", conn.IsClosed)
			b.expectAny(t, "event behind it", a)
			a.expectAny(t, "event behind it", b)
			eventually(t, "refusal of the large event", func() bool {
				return errors.Is(a.Publish(t.Context(), "x", large), realtime.ErrEventTooLarge)
			})
			if a.Stats().Gaps == 0 && !history {
				t.Error("the node has noticed no gap")
			}
		})
	}
}

// The connection has its own ErrorHandler back after Close. Until then both are
// called.
func TestErrorHandlerIsGivenBack(t *testing.T) {
	t.Parallel() // the test mostly waits
	g := newGuarded(t)
	heard := make(chan error, 100)
	handler := func(_ *nats.Conn, _ *nats.Subscription, err error) { heard <- err }
	conn := connect(t, g.url(), nats.UserInfo("a", "p"), nats.ErrorHandler(handler))
	deny := func() {
		g.reload(rules{DenyPublish: []string{"mine"}})
		conn.Publish("mine", nil)
		if err := <-heard; !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("the handler got %v", err)
		}
	}
	b := natsbroker.New("realtime", conn)
	start(t, b, new(log))
	deny()
	second := func(_ *nats.Conn, _ *nats.Subscription, err error) { heard <- fmt.Errorf("second: %w", err) }
	conn.SetErrorHandler(second)
	time.Sleep(time.Second) // for the broker to notice it
	deny()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if reflect.ValueOf(conn.ErrorHandler()).Pointer() != reflect.ValueOf(second).Pointer() {
		t.Error("the connection has another handler than the second one")
	}
}
