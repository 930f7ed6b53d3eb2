package redisbroker_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// An event above a limit of Redis is refused, and no other event is lost for it.
func TestLimits(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		args    []string
		history bool
		size    int
	}{
		{"proto-max-bulk-len", []string{"--proto-max-bulk-len", "1mb"}, false, 1 << 20},
		{"client-query-buffer-limit", []string{"--client-query-buffer-limit", "1mb"}, false, 1 << 20},
		{"client-output-buffer-limit", []string{"--client-output-buffer-limit", "pubsub 2mb 0 0"}, false, 1 << 20},
		{"history", []string{"--proto-max-bulk-len", "1mb"}, true, 1 << 20},
		{"history and query buffer", []string{"--client-query-buffer-limit", "1mb"}, true, 1 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t, tt.args...)
			broker := func() realtime.Broker {
				if tt.history {
					return newHistory(r.addr)
				}
				return newBroker(r.addr)
			}
			near, _ := startHub(t, broker())
			far, url := startHub(t, broker())
			next, _ := listen(t, url+"/?topic=a", "")
			publish := func(text string) error {
				return near.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)})
			}
			eventually(t, "a Publish that succeeds", func() bool { return publish("begin") == nil })
			for got := ""; got != "begin"; {
				got = next()
			}
			gaps := far.Stats().Gaps
			const events, refused = 100, 20
			for i := range events {
				if i%(events/refused) == 0 {
					size := tt.size * (1 + i%2*2)
					if err := publish(strings.Repeat(".", size)); !errors.Is(err, realtime.ErrEventTooLarge) {
						t.Errorf("Publish of %d bytes: %v, want ErrEventTooLarge", size, err)
					}
				}
				if err := publish(fmt.Sprint(i)); err != nil {
					t.Errorf("Publish of a small event: %v", err)
				}
			}
			for i := range events {
				if got := next(); got != fmt.Sprint(i) {
					t.Fatalf("got %.100q, want %d", got, i)
				}
			}
			// The events that were refused are the far node's only gaps.
			if got := far.Stats().Gaps - gaps; got > refused {
				t.Errorf("%d gaps were counted, want at most %d", got, refused)
			}
		})
	}
}

// MaxMessageBytes is zero until it is known. Where Redis doesn't tell its limits
// it is the default. A limit that an administrator changes is learned when it has
// cost a connection.
func TestMaxMessageBytes(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	b := newBroker(r.addr)
	if got := b.MaxMessageBytes(); got != 0 {
		t.Errorf("MaxMessageBytes() = %d before Start, want 0", got)
	}
	n := newNode(t, b)
	n.join("x")
	if got := b.MaxMessageBytes(); got != 16<<20 {
		t.Errorf("MaxMessageBytes() = %d, want 16 MiB", got)
	}
	if err := n.publish("x", strings.Repeat(".", 16<<20)); err != nil {
		t.Errorf("Publish of the limit: %v", err)
	}
	n.await("x: " + strings.Repeat(".", 100))
	if err := n.publish("x", strings.Repeat(".", 40<<20)); !errors.Is(err, realtime.ErrEventTooLarge) { // costs each subscriber its connection
		t.Errorf("Publish of 40 MiB: %v, want ErrEventTooLarge", err)
	}
	r.do("CONFIG", "SET", "proto-max-bulk-len", "1mb")
	eventually(t, "ErrEventTooLarge", func() bool {
		return errors.Is(n.publish("x", strings.Repeat(".", 2<<20)), realtime.ErrEventTooLarge)
	})
	n.say("x", "after")
	n.await("x: after")
	if got := n.gaps(); got != 0 {
		t.Errorf("%d gaps were told, want none: the subscriptions are on another connection", got)
	}

	r.do("ACL", "SETUSER", "plain", "on", ">secret", "resetchannels", "&realtime:*", "nocommands", "+ping", "+subscribe", "+unsubscribe", "+publish")
	plain := redisbroker.Connect("realtime", rueidis.ClientOption{InitAddress: []string{r.addr}, Username: "plain", Password: "secret"})
	m := newNode(t, plain)
	m.say("x", "hello")
	n.await("x: hello")
	if got := plain.MaxMessageBytes(); got != 512<<20 {
		t.Errorf("MaxMessageBytes() = %d without a permission, want 512 MiB", got)
	}
	history := newHistory(r.addr)
	newFollower(t, history).add("1")
	if got := history.MaxMessageBytes(); got != 1<<20 {
		t.Errorf("MaxMessageBytes() = %d with a history, want 1 MiB", got)
	}
}

// A limit is lowered while a node is connected. What is too large then is refused,
// and a node that starts reads no more at a time than Redis lets it wait for.
func TestHistoryLimitLowered(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	a.add("1", strings.Repeat("2", 2<<20))
	r.do("CONFIG", "SET", "proto-max-bulk-len", "1mb")
	eventually(t, "ErrEventTooLarge", func() bool {
		return errors.Is(a.try(strings.Repeat("3", 2<<20), patience), realtime.ErrEventTooLarge)
	})
	r.do("DEL", "{realtime:log}", "{realtime:log}:head")
	r.do("CONFIG", "SET", "client-output-buffer-limit", "normal 1mb 0 0")
	const records = 100
	for range records {
		a.add(strings.Repeat("4", 200<<10))
	}
	late := newFollower(t, newHistory(r.addr))
	current := fmt.Sprint("current A-", records)
	eventually(t, current, func() bool { return slices.Contains(late.lines(), current) })
	if lines := late.lines(); len(lines) != records+1 {
		t.Errorf("a node that starts got %d records, and %d other calls, want %d records once", strings.Count(strings.Join(lines, ";"), " 4"), len(lines), records)
	}
}
