package redisbroker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// A keeper is a Redis that loses nothing when it is killed.
type keeper struct{ *redis }

func startKeeper(t testing.TB) keeper {
	return keeper{startRedis(t, "--appendonly", "yes", "--appendfsync", "always")}
}

func (k keeper) HistoryBroker() realtime.HistoryBroker { return newHistory(k.addr) }
func (k keeper) Broker() realtime.Broker               { return newHistory(k.addr) }

// A freezer is a keeper that Stop freezes instead of killing it.
type freezer struct{ keeper }

func (f freezer) Stop() error {
	f.freeze()
	return nil
}

func (f freezer) Start() error {
	f.thaw()
	return nil
}

func newHistory(addrs ...string) *redisbroker.HistoryBroker {
	return newBroker(addrs...).WithHistory()
}

func TestHistorySuite(t *testing.T) {
	t.Parallel()
	brokertest.RunHistory(t, func(t *testing.T) brokertest.HistoryEngine { return startKeeper(t) })
}

func TestHistorySuiteFrozen(t *testing.T) {
	t.Parallel()
	brokertest.RunHistory(t, func(t *testing.T) brokertest.HistoryEngine { return freezer{startKeeper(t)} })
}

// A HistoryBroker also is a Broker.
func TestHistoryBrokerSuite(t *testing.T) {
	t.Parallel()
	brokertest.Run(t, func(t *testing.T) brokertest.Engine { return startKeeper(t) })
}

// A follower is a broker whose handler keeps a log of its calls.
type follower struct {
	*redisbroker.HistoryBroker
	t     testing.TB
	block chan struct{} // Record waits until this is closed
	begun atomic.Int64  // calls of Record

	mu    sync.Mutex // guards the fields below
	log   []string   // "epoch-number text", "current epoch-number" or "away"
	names map[string]string
}

// newFollower starts a broker. It is closed when the test ends.
func newFollower(t testing.TB, b *redisbroker.HistoryBroker) *follower {
	t.Helper()
	f := &follower{HistoryBroker: b, t: t, block: make(chan struct{}), names: make(map[string]string)}
	close(f.block)
	f.start()
	return f
}

func (f *follower) start() {
	f.t.Helper()
	if err := f.Start(handler{&node{t: f.t, block: f.block}}); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { f.Close() })
	if err := f.Follow(f); err != nil {
		f.t.Fatal(err)
	}
}

func (f *follower) Record(epoch string, seq uint64, record []byte) {
	f.begun.Add(1)
	<-f.block
	f.note(fmt.Sprintf("%s-%d %s", f.name(epoch), seq, record[:min(len(record), 100)]))
}

func (f *follower) Current(epoch string, last uint64) {
	f.note(fmt.Sprintf("current %s-%d", f.name(epoch), last))
}

func (f *follower) Away(error) { f.note("away") }

// name returns A for the first epoch that the handler got, B for the second one.
func (f *follower) name(epoch string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.names[epoch] == "" {
		f.names[epoch] = string(rune('A' + len(f.names)))
	}
	return f.names[epoch]
}

func (f *follower) note(line string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, line)
}

// lines returns the log since the last forget.
func (f *follower) lines() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.log...)
}

// forget empties the log.
func (f *follower) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

// expect waits for the lines, and wants no others. It empties the log.
func (f *follower) expect(want ...string) {
	f.t.Helper()
	deadline := time.Now().Add(patience)
	for len(f.lines()) < len(want) && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	got := f.lines()
	if strings.Join(got, "; ") != strings.Join(want, "; ") {
		f.t.Fatalf("got %q, want %q", got, want)
	}
	f.forget()
}

func (f *follower) try(record string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return f.Append(ctx, []byte(record))
}

// add appends, and tries again until that succeeds.
func (f *follower) add(records ...string) {
	f.t.Helper()
	for _, record := range records {
		eventually(f.t, "an Append that succeeds", func() bool { return f.try(record, patience) == nil })
	}
}

// trim calls Trim, with the epoch that the handler got as A, B or so.
func (f *follower) trim(name string, before uint64) {
	f.t.Helper()
	if err := f.Trim(f.t.Context(), f.epoch(name), before); err != nil {
		f.t.Fatal(err)
	}
}

// epoch is the reverse of name.
func (f *follower) epoch(name string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	for epoch, n := range f.names {
		if n == name {
			return epoch
		}
	}
	f.t.Fatalf("there is no epoch %s", name)
	return ""
}

// When Redis has lost everything another log begins. All nodes notice it without
// an Append.
func TestHistoryLost(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		lose func(r *redis)
		away bool     // the nodes lose the connection as well
		left []string // of the former log, for new nodes
	}{
		{"restarted empty", func(r *redis) {
			r.Stop()
			r.Start()
		}, true, nil},
		{"FLUSHALL", func(r *redis) { r.do("FLUSHALL") }, false, nil},
		{"hash deleted", func(r *redis) { r.do("DEL", "{realtime:log}:head") }, false, []string{"A-1 1", "A-2 2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t)
			a, b := newFollower(t, newHistory(r.addr)), newFollower(t, newHistory(r.addr))
			a.expect("current A-0")
			b.expect("current A-0")
			a.add("1", "2")
			a.expect("A-1 1", "A-2 2")
			b.expect("A-1 1", "A-2 2")
			// The clock is set back in the meantime.
			r.do("XADD", "{realtime:log}", "99999999999999-0", "epoch", "?", "number", "0", "record", "")
			time.Sleep(100 * time.Millisecond)
			tt.lose(r)
			want := []string{"current B-0"} // they have had what is left
			if tt.away {
				want = []string{"away", "current B-0"}
			}
			a.expect(want...)
			b.expect(want...)
			b.add("3")
			a.expect("B-1 3")
			b.expect("B-1 3")
			start := time.Now()
			for range 20 { // if each waited for another record it took 40 s
				late := newFollower(t, newHistory(r.addr))
				if tt.left == nil {
					late.expect("A-1 3", "current A-1")
				} else {
					late.expect(append(slices.Clone(tt.left), "B-1 3", "current B-1")...)
				}
				late.Close()
			}
			if d := time.Since(start); d > atOnce {
				t.Errorf("20 new nodes had the log after %v, want each to have it at once", d)
			}
		})
	}
}

// Another log also begins with the first Append after a loss, of a node that has
// not noticed the loss.
func TestHistoryLostAppend(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	a.expect("current A-0")
	a.add("1", "2")
	a.expect("A-1 1", "A-2 2")
	for round := range 3 {
		a.expect()
		r.do("FLUSHALL")
		a.add("3")
		epoch := string(rune('B' + round))
		want := epoch + "-1 3"
		eventually(t, "the record", func() bool { return slices.Contains(a.lines(), want) })
		// The follower may also have opened the log in between.
		if got := strings.Join(a.lines(), "; "); got != want && got != "current "+epoch+"-0; "+want {
			t.Errorf("got %q, want %q", got, want)
		}
		a.forget()
	}
}

// After an outage records go on where they stopped, and the last one comes again.
func TestHistoryAgain(t *testing.T) {
	t.Parallel()
	r := startKeeper(t)
	p := startProxy(t, r.addr)
	a, b := newFollower(t, newHistory(p.addr())), newFollower(t, newHistory(r.addr))
	a.expect("current A-0")
	p.cut()
	a.expect("away", "current A-0") // there is no last one
	b.add("1", "2")
	a.expect("A-1 1", "A-2 2")
	for range 2 {
		p.cut()
		a.expect("away", "A-2 2", "current A-2")
	}
	p.set(true, true)
	b.add("3", "4")
	a.expect("away")
	p.set(false, false)
	a.expect("A-2 2", "A-3 3", "A-4 4", "current A-4")
	b.add("5")
	a.expect("A-5 5")
}

// When Redis starts from an older snapshot no number is given twice, whichever
// node appends first, also when it starts so a second time.
func TestHistorySnapshot(t *testing.T) {
	t.Parallel()
	for _, first := range []string{"nobody", "one that knows", "one that has appended", "one that doesn't", "a new one"} {
		t.Run(first, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t)
			snapshot := filepath.Join(r.dir, "dump.rdb")
			a := newFollower(t, newHistory(r.addr))
			a.expect("current A-0")
			a.add("1", "2")
			a.expect("A-1 1", "A-2 2")
			r.do("SAVE")
			saved, err := os.ReadFile(snapshot)
			if err != nil {
				t.Fatal(err)
			}
			restart := func() {
				r.Stop()
				if err := os.WriteFile(snapshot, saved, 0o600); err != nil {
					t.Fatal(err)
				}
				if err := r.Start(); err != nil {
					t.Fatal(err)
				}
			}
			hold := func() {
				a.block = make(chan struct{})
				a.add("5")
				eventually(t, "a Record that blocks", func() bool { return a.begun.Load() == 5 })
			}
			a.add("3", "4")
			a.expect("A-3 3", "A-4 4")
			switch first {
			case "nobody":
				restart()
				a.expect("away", "A-1 1", "A-2 2", "current B-0")
			case "one that knows":
				// The node appends before it has opened the log again.
				hold()
				restart()
				a.add("6")
				close(a.block)
				a.expect("A-5 5", "away", "A-1 1", "A-2 2", "B-1 6", "current B-1")
			case "one that has appended":
				// The hub has not had the last one that is there, nor the one
				// after that, which its node has appended.
				a.block = make(chan struct{})
				a.add("5")
				eventually(t, "a Record that blocks", func() bool { return a.begun.Load() == 5 })
				r.do("SAVE")
				if saved, err = os.ReadFile(snapshot); err != nil {
					t.Fatal(err)
				}
				a.add("6")
				restart()
				close(a.block)
				a.expect("A-5 5", "away", "A-1 1", "A-2 2", "A-3 3", "A-4 4", "A-5 5", "current B-0")
				return
			case "a new one":
				hold()
				restart()
				other := newFollower(t, newHistory(r.addr))
				other.expect("A-1 1", "A-2 2", "current B-0")
				other.add("3'")
				other.expect("B-1 3'")
				close(a.block)
				a.expect("A-5 5", "away", "A-1 1", "A-2 2", "B-1 3'", "current B-1")
				other.Close()
			case "one that doesn't":
				// a reconnects only when another node has given its numbers
				// again. That isn't told that Redis was started anew.
				hold()
				restart()
				r.do("HDEL", "{realtime:log}:head", "run")
				other := newFollower(t, newHistory(r.addr))
				other.expect("A-1 1", "A-2 2", "current A-2")
				other.add("3'", "4'", "5'", "6'")
				other.expect("A-3 3'", "A-4 4'", "A-5 5'", "A-6 6'")
				close(a.block)
				// a hands the records over that the hub can tell from its own.
				again := []string{"A-1 1", "A-2 2", "A-3 3'", "A-4 4'", "A-5 5'", "A-6 6'", "current B-0"}
				a.expect(append([]string{"A-5 5", "away"}, again...)...)
				other.expect("current B-0") // it has had them all
				other.Close()
			}
			a.add("8")
			eventually(t, "the record", func() bool { return len(a.lines()) > 0 })
			a.forget()
			restart() // from a snapshot of an epoch that has ended
			a.expect("away", "current C-0")
			a.add("9")
			a.expect("C-1 9")
			late := newFollower(t, newHistory(r.addr))
			late.expect("A-1 1", "A-2 2", "B-1 9", "current B-1") // its A is the A of a, its B the C of a
		})
	}
}

// Records above MaxRecords are dropped.
func TestHistoryMaxRecords(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	b := newHistory(r.addr)
	b.MaxRecords = 50
	a := newFollower(t, b)
	for range 1000 {
		a.add("x")
	}
	n, err := r.do("XLEN", "{realtime:log}").AsInt64()
	if err != nil || n < 50 || n > 200 {
		t.Errorf("%d, %v records are kept, want 50 and a little", n, err)
	}
	late := newFollower(t, newHistory(r.addr))
	eventually(t, "the rest", func() bool { return len(late.lines()) == int(n)+1 })
	lines := late.lines()
	if lines[0] != fmt.Sprintf("A-%d x", 1001-n) || lines[n] != "current A-1000" {
		t.Errorf("got %q to %q, want the last %d", lines[0], lines[n], n)
	}
}

// The keys don't expire. Trim takes away the expiry that an earlier version of this
// package has set.
func TestHistoryStays(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	a.expect("current A-0")
	a.add("1")
	a.expect("A-1 1")
	keys := []string{"{realtime:log}", "{realtime:log}:head"}
	expire := func(key string) int64 {
		ttl, err := r.do("PTTL", key).AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		return ttl
	}
	for _, key := range keys {
		if ttl := expire(key); ttl != -1 {
			t.Errorf("%s expires in %d ms", key, ttl)
		}
		r.do("PEXPIRE", key, "20000000")
	}
	a.trim("A", 2)
	for _, key := range keys {
		if ttl := expire(key); ttl != -1 {
			t.Errorf("%s expires in %d ms after Trim", key, ttl)
		}
	}
}

// Records leave the log when they are older than the Age of the hub's History. The
// newest one with events stays, and the hub's own record behind it.
func TestHistoryIsTrimmed(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	hub, _ := startHub(t, newHistory(r.addr), func(h *realtime.Hub) { h.History.Age = time.Second })
	for range 5 {
		eventually(t, "a Publish that succeeds", func() bool {
			return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte("x")}) == nil
		})
	}
	eventually(t, "a log without old records", func() bool {
		n, err := r.do("XLEN", "{realtime:log}").AsInt64()
		return err == nil && n <= 2
	})
}

// Trim finds the first record that stays among records of one millisecond, and of
// many, and behind those of earlier epochs. What no node has made stays.
func TestHistoryTrim(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	a.expect("current A-0")
	a.add("1", "2")
	r.do("DEL", "{realtime:log}:head") // so that another epoch begins
	a.add("1", "2")
	eventually(t, "the records", func() bool { return slices.Contains(a.lines(), "B-2 2") })
	rest := func() (numbers string) {
		entries, err := r.do("XRANGE", "{realtime:log}", "-", "+").AsXRangeSlices()
		if err != nil {
			t.Fatal(err)
		}
		for _, entry := range entries {
			number := "?"
			if len(entry.FieldValues) == 3 {
				number = entry.FieldValues[1].Value
			}
			numbers += " " + number
		}
		return numbers
	}
	if got := rest(); got != " 1 2 1 2" {
		t.Fatalf("the log has%s, want two records of each epoch", got)
	}
	a.trim("A", 100)
	if got := rest(); got != " 1 2 1 2" {
		t.Errorf("after a Trim of an epoch that has ended the log has%s, want all", got)
	}
	a.trim("B", 1)
	if got := rest(); got != " 1 2" {
		t.Errorf("after a Trim of the epoch the log has%s, want its two records", got)
	}
	now := time.Now().UnixMilli() + 10_000
	last := 2
	r.do("HSET", "{realtime:log}:head", "last", "180") // before the records, because those above it would look like a loss
	for _, n := range []int{1, 100, 1, 1, 2, 3, 70} {  // so many in a millisecond
		for range n {
			last++
			if err := r.do("XADD", "{realtime:log}", fmt.Sprintf("%d-*", now), "epoch", a.epoch("B"), "number", fmt.Sprint(last), "record", "x").Error(); err != nil {
				t.Fatal(err)
			}
		}
		now += int64(n * n)
	}
	for before := 1; before <= last+3; before++ {
		a.trim("B", uint64(before))
		var want strings.Builder
		for n := min(before, last); n <= last; n++ {
			want.WriteString(fmt.Sprint(" ", n))
		}
		if got := rest(); got != want.String() {
			t.Fatalf("after Trim(%d) the log has%s, want%s", before, got, want.String())
		}
	}
	if err := r.do("XADD", "{realtime:log}", "*", "some", "thing").Error(); err != nil {
		t.Fatal(err)
	}
	a.trim("B", uint64(last)+10)
	if got, want := rest(), fmt.Sprintf(" %d ?", last); got != want {
		t.Errorf("the log has%s, want%s", got, want)
	}
}

// aclUser returns the command for a user with the permissions that the
// documentation names, and no others.
func aclUser(keys, channels string) []string {
	return []string{"ACL", "SETUSER", "app", "on", ">secret", "resetkeys", "~" + keys, "resetchannels", "&" + channels, "nocommands",
		"+ping", "+publish", "+subscribe", "+unsubscribe",
		"+eval", "+evalsha", "+hmget", "+hset", "+xadd", "+xtrim", "+xread", "+xrange", "+xrevrange", "+time", "+pttl", "+persist", "+info", "+config|get"}
}

// The permissions that the documentation names are enough.
func TestHistoryPermission(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	r.do(aclUser("{realtime:log}*", "realtime:*")...)
	broker := func(user string) *redisbroker.HistoryBroker {
		return redisbroker.Connect("realtime", rueidis.ClientOption{InitAddress: []string{r.addr}, Username: user, Password: "secret"}).WithHistory()
	}
	a := newFollower(t, broker("app"))
	a.expect("current A-0")
	a.add("1")
	a.expect("A-1 1")
	a.trim("A", 2)
	r.do("FLUSHALL")
	a.expect("current B-0")
	n := &node{Broker: a, t: t}
	n.say("nodes", "hello")
	n.join("nodes")

	r.do("ACL", "SETUSER", "plain", "on", ">secret", "resetchannels", "&realtime:*", "nocommands", "+ping", "+subscribe", "+unsubscribe", "+publish")
	plain := newFollower(t, broker("plain"))
	plain.expect("away")
	if err := plain.try("x", patience); err == nil || !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("Append: %v, want NOPERM", err)
	}
	plain.expect()

	// Without these permissions the error of Trim says so, and all else works.
	r.do("ACL", "SETUSER", "app", "-xrange", "-xtrim", "-persist")
	a.add("2")
	if err := a.Trim(t.Context(), a.epoch("B"), 2); err == nil || !strings.Contains(err.Error(), "persist") {
		t.Errorf("Trim: %v, want one that names the permissions", err)
	}
	a.add("3")
	a.expect("B-1 2", "B-2 3")
}

// A silent network is noticed within seconds, by Append as well. After that
// records continue where they stopped.
func TestHistoryBlackHole(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name     string
		to, from bool
	}{{"both ways", true, true}, {"answers", false, true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startKeeper(t)
			p := startProxy(t, r.addr)
			near, far := newFollower(t, newHistory(r.addr)), newFollower(t, newHistory(p.addr()))
			far.expect("current A-0")
			near.add("1")
			far.expect("A-1 1")
			p.set(tt.to, tt.from)
			start := time.Now()
			if err := far.try("lost", 100*time.Millisecond); err == nil || time.Since(start) > 3*time.Second {
				t.Errorf("Append: %v after %v, want an error when its context ends", err, time.Since(start))
			}
			failsAtOnce(t, "Append", func() error { return far.try("lost", patience) })
			far.expect("away")
			failsAtOnce(t, "Append", func() error { return far.try("lost", patience) })
			near.add("2", "3")
			p.set(false, false)
			eventually(t, "the log", func() bool {
				lines := far.lines()
				return len(lines) > 0 && strings.HasPrefix(lines[len(lines)-1], "current ")
			})
			next := 2
			for _, line := range far.lines() { // "lost" may be in the log as well
				if line == fmt.Sprintf("A-%d %d", next, next) || strings.HasSuffix(line, fmt.Sprint(" ", next)) {
					next++
				}
			}
			if next != 4 {
				t.Errorf("got %q, want the records that were appended in the meantime", far.lines())
			}
			far.add("4")
		})
	}
}

// A record that Redis never accepts is told from an outage.
func TestHistoryTooLarge(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	a.expect("current A-0")
	if err := a.Append(t.Context(), make([]byte, 512<<20+1)); !errors.Is(err, realtime.ErrEventTooLarge) {
		t.Errorf("Append: %v", err)
	}
	if err := a.try("1", patience); err != nil {
		t.Errorf("Append after that: %v", err)
	}
	a.expect("A-1 1")
}

// A record that Redis refuses gets no number.
func TestHistoryRefused(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	a.expect("current A-0")
	for i, tt := range []struct {
		want      string
		hurt, end [][]string
	}{
		{"OOM", [][]string{{"CONFIG", "SET", "maxmemory", "1"}}, [][]string{{"CONFIG", "SET", "maxmemory", "0"}}},
		{"WRONGTYPE", [][]string{{"DEL", "{realtime:log}"}, {"SET", "{realtime:log}", "x"}}, [][]string{{"DEL", "{realtime:log}"}}},
	} {
		for _, cmd := range tt.hurt {
			r.do(cmd...)
		}
		if err := a.try("refused", patience); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Append: %v, want %s", err, tt.want)
		}
		for _, cmd := range tt.end {
			r.do(cmd...)
		}
		a.add("taken")
		want := fmt.Sprintf("A-%d taken", i+1)
		eventually(t, want, func() bool { return strings.Contains(strings.Join(a.lines(), "; "), want) })
	}
}

func TestHistoryMisuse(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	a := newFollower(t, newHistory(r.addr))
	if err := a.Follow(a); err == nil {
		t.Error("Follow succeeds twice")
	}
	// Entries of other programs in the stream aren't handed to the hub.
	a.expect("current A-0")
	a.add("1")
	r.do("XADD", "{realtime:log}", "*", "some", "thing")
	r.do("XADD", "{realtime:log}", "*", "epoch", "x", "number", "y", "record", "z")
	a.add("2")
	a.expect("A-1 1", "A-2 2")
	none := newFollower(t, newHistory("127.0.0.1:1"))
	none.expect("away")
	time.Sleep(500 * time.Millisecond)
	none.expect() // Away is called once
	if err := none.Close(); err != nil {
		t.Errorf("Close of a broker that never connected: %v", err)
	}
}

func TestHistoryCloseWhileRecordBlocks(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	for _, forGood := range []bool{false, true} {
		name := fmt.Sprint("forGood=", forGood)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := redisbroker.Connect(name, rueidis.ClientOption{InitAddress: []string{r.addr}}).WithHistory()
			a := newFollower(t, b)
			a.expect("current A-0")
			a.block = make(chan struct{})
			a.add("1", "2")
			eventually(t, "a Record that blocks", func() bool { return a.begun.Load() == 1 })
			closeWhile(t, a.Close, a.block, forGood)
			a.expect("A-1 1")
			time.Sleep(100 * time.Millisecond)
			a.expect()
		})
	}
}

// Close doesn't wait for a follower that waits for Redis.
func TestHistoryCloseWhileIdle(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	var took time.Duration
	const nodes = 20 // if each waited for its read it took 40 s
	for range nodes {
		a := newFollower(t, newHistory(r.addr))
		a.expect("current A-0")
		start := time.Now()
		if err := a.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		took += time.Since(start)
	}
	if took > atOnce {
		t.Errorf("Close of %d nodes took %v, want each to return at once", nodes, took)
	}
}

// A log is on one master of a cluster. It continues on the replica that takes the
// master's place, with another epoch.
func TestHistoryCluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	name := "" // whose log is on the master with the replica
	for i := 0; name == ""; i++ {
		p := fmt.Sprint("p", i)
		slot, err := c.nodes[0].do("CLUSTER", "KEYSLOT", "{"+p+":log}").AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		if slot < 16384/masters {
			name = p
		}
	}
	for _, r := range c.nodes { // the permissions that the documentation names
		r.do(append(aclUser("{"+name+":log}*", name+":*"), "+cluster|slots", "+cluster|shards", "+spublish", "+ssubscribe", "+sunsubscribe")...)
	}
	broker := func() *redisbroker.HistoryBroker {
		options := rueidis.ClientOption{InitAddress: []string{c.nodes[1].addr}, Username: "app", Password: "secret"}
		return redisbroker.Connect(name, options).WithHistory()
	}
	a, b := newFollower(t, broker()), newFollower(t, broker())
	a.expect("current A-0")
	b.expect("current A-0")
	a.add("1")
	b.add("2")
	a.expect("A-1 1", "A-2 2")
	b.expect("A-1 1", "A-2 2")
	n := &node{Broker: a, t: t}
	n.say("nodes", "hello")
	n.join("nodes")
	c.nodes[0].do("WAIT", "1", "5000")
	eventually(t, "a replica that has it", func() bool {
		master, replica := c.nodes[0].text("INFO", "replication"), c.nodes[masters].text("INFO", "replication")
		_, offset, _ := strings.Cut(master, "master_repl_offset:")
		offset, _, _ = strings.Cut(offset, "\r")
		return strings.Contains(replica, "master_repl_offset:"+offset)
	})
	c.nodes[0].Stop()
	a.add("3") // succeeds when there is another master
	b.add("4")
	for _, f := range []*follower{a, b} {
		has := func(text string) bool { return strings.Contains(strings.Join(f.lines(), "; ")+";", text) }
		eventually(t, "the log", func() bool { return has(" 3;") && has(" 4;") && has("current B-") })
		if got := f.lines(); got[0] != "away" || has("C-") {
			t.Errorf("got %q", got)
		}
	}
}

// The nodes have the log of the master that the sentinels choose, also if it is
// another log.
func TestHistorySentinel(t *testing.T) {
	t.Parallel()
	w := startWatched(t)
	var all []*follower
	for range 2 {
		f := newFollower(t, redisbroker.Connect("realtime", w.options()).WithHistory())
		f.expect("current A-0")
		all = append(all, f)
	}
	say := func(text, want string) {
		t.Helper()
		// A record is lost that a former master accepts before it knows that it
		// is one.
		eventually(t, want, func() bool {
			all[0].add(text)
			time.Sleep(50 * time.Millisecond)
			return strings.Contains(strings.Join(all[1].lines(), "; "), want)
		})
		eventually(t, want, func() bool { return strings.Contains(strings.Join(all[0].lines(), "; "), want) })
		time.Sleep(200 * time.Millisecond)
		for _, f := range all {
			f.forget()
		}
	}
	say("first", "A-1 first")
	for round, change := range w.changes() {
		if round == 0 {
			eventually(t, "a replica that has it", func() bool {
				last, err := w.nodes[1].ask("HGET", "{realtime:log}:head", "last").ToString()
				return err == nil && last != "0"
			})
		}
		old := w.master()
		change()
		eventually(t, "another master", func() bool { return w.master() != old })
		for _, f := range all {
			eventually(t, "a log again", func() bool {
				lines := f.lines()
				return len(lines) > 1 && lines[0] == "away" && strings.Contains(strings.Join(lines, "; "), "current")
			})
			f.forget()
		}
		switch round {
		case 0:
			say("again", "again")
		case 2:
			say("new log", "new log")
			if n := len(all[0].names); n < 2 {
				t.Errorf("%d epochs have come, want another one for the master that has no log", n)
			}
		}
	}
}

// A client resumes at another node, also if Redis was killed and started in the
// meantime. If Redis has lost the log the client gets a reset.
func TestHistoryHubs(t *testing.T) {
	t.Parallel()
	r := startKeeper(t)
	var hubs []*realtime.Hub
	var urls []string
	for range 2 {
		hub, url := startHub(t, newHistory(r.addr))
		hubs, urls = append(hubs, hub), append(urls, url)
	}
	publish := func(hub *realtime.Hub, text string) {
		t.Helper()
		eventually(t, "a Publish that succeeds", func() bool {
			return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)}) == nil
		})
	}
	expect := func(next reader, want ...string) {
		t.Helper()
		for _, want := range want {
			if got := next(); got != want {
				t.Fatalf("got %q, want %q", got, want)
			}
		}
	}
	first, id := listen(t, urls[0]+"/?topic=a", "")
	publish(hubs[0], "1")
	publish(hubs[1], "2")
	expect(first, "1", "2")
	seen := id()
	publish(hubs[0], "3")
	expect(first, "3")

	r.Stop()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	second, _ := listen(t, urls[1]+"/?topic=a", seen)
	expect(second, "3")
	publish(hubs[0], "4")
	expect(first, "4")
	expect(second, "4")
	third, thirdID := listen(t, urls[1]+"/?topic=a", seen)
	expect(third, "3", "4")

	// A node that starts late also has the history.
	_, url := startHub(t, newHistory(r.addr))
	fourth, _ := listen(t, url+"/?topic=a", seen)
	expect(fourth, "3", "4")

	seen = thirdID()
	gaps := hubs[0].Stats().Gaps
	r.do("FLUSHALL")
	eventually(t, "a gap", func() bool { return hubs[0].Stats().Gaps > gaps })
	fifth, _ := listen(t, urls[0]+"/?topic=a", seen)
	expect(fifth, "reset")
	publish(hubs[1], "5")
	expect(fifth, "5")
	expect(first, "reset", "5")
}

// What another program has in the keys of the history isn't changed. The error
// says what to do. Once the keys are free the history begins.
func TestHistoryForeign(t *testing.T) {
	t.Parallel()
	const log, head = "{realtime:log}", "{realtime:log}:head"
	for _, tt := range []struct {
		name string
		cmds [][]string
	}{
		{"text", [][]string{{"SET", log, "x"}}},
		{"list", [][]string{{"RPUSH", log, "x"}}},
		{"stream", [][]string{{"XADD", log, "*", "some", "thing"}}},
		{"stream with a record's first field", [][]string{{"XADD", log, "*", "epoch", "1"}}},
		{"text in the place of the hash", [][]string{{"SET", head, "x"}}},
		{"hash", [][]string{{"HSET", head, "some", "thing"}}},
		{"hash with an epoch", [][]string{{"HSET", head, "epoch", "2026"}}},
		{"hash with an epoch of its own", [][]string{{"HSET", head, "epoch", "18 BC", "last", "4"}}},
		{"both", [][]string{{"ZADD", log, "1", "x"}, {"HSET", head, "last", "today"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t)
			for _, cmd := range tt.cmds {
				r.do(cmd...)
			}
			state := func() (s string) {
				for _, key := range []string{log, head} {
					dump, err := r.ask("DUMP", key).ToString()
					ttl, _ := r.do("PTTL", key).AsInt64()
					s += fmt.Sprintf("%q %v %d; ", dump, err, ttl)
				}
				return s
			}
			before := state()
			a := newFollower(t, newHistory(r.addr))
			a.expect("away")
			for range 3 {
				if err := a.try("x", patience); err == nil || !strings.Contains(err.Error(), "give the broker a name") {
					t.Errorf("Append: %v, want an error that says what to do", err)
				}
			}
			time.Sleep(500 * time.Millisecond) // in which the follower tries again
			if after := state(); after != before {
				t.Errorf("the keys have become %s, want them as before: %s", after, before)
			}
			r.do("DEL", log, head)
			a.add("1")
			eventually(t, "the record", func() bool { return slices.Contains(a.lines(), "A-1 1") })
		})
	}
}

// Nodes of one history keep different numbers of records. Those that keep fewer
// don't drop what others keep.
func TestHistoryHighestRules(t *testing.T) {
	t.Parallel()
	r := startRedis(t, "--stream-node-max-entries", "10")
	newNode := func(records int) *follower {
		b := newHistory(r.addr)
		b.MaxRecords = records
		return newFollower(t, b)
	}
	many, least := newNode(5000), newNode(10)
	for _, f := range []*follower{many, least} {
		f.expect("current A-0")
	}
	kept := func() int64 {
		n, err := r.do("XLEN", "{realtime:log}").AsInt64()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range 100 {
		least.add("x")
		many.add("x")
	}
	for range 1000 {
		least.add("x")
	}
	if n := kept(); n != 1200 {
		t.Errorf("%d records are kept, want all 1200", n)
	}

	// When the other has gone, for some time, its own number rules.
	many.Close()
	least.add("x")
	if n := kept(); n != 1201 {
		t.Errorf("%d records are kept, want all 1201", n)
	}
	r.do("HSET", "{realtime:log}:head", "maxAt", fmt.Sprint(time.Now().Add(-10*time.Minute).UnixMilli()))
	for range 20 {
		least.add("x")
	}
	if n := kept(); n > 30 {
		t.Errorf("%d records are kept, want 10 and a little", n)
	}
}

// A node that starts while the log is large is no outage. Records come for
// seconds before it has all of them.
func TestHistoryLarge(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	publish := func(hub *realtime.Hub, text string) error {
		return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)})
	}
	first, _ := startHub(t, newHistory(r.addr))
	eventually(t, "a Publish that succeeds", func() bool { return publish(first, "begin") == nil })
	if err := first.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	const records = 200_000 // all as the hub has made the first one
	for range 10 {
		r.do("EVAL", `
			local entry = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][2]
			local last = tonumber(redis.call('HGET', KEYS[2], 'last'))
			for i = 1, ARGV[1] do
				last = last + 1
				redis.call('XADD', KEYS[1], '*', 'epoch', entry[2], 'number', last, 'record', entry[6])
			end
			return redis.call('HSET', KEYS[2], 'last', last)
		`, "2", "{realtime:log}", "{realtime:log}:head", fmt.Sprint(records/10))
	}
	near, url := startHub(t, newHistory(r.addr))
	c := openStream(t, url+"/?topic=a", "")
	published := 0
	say := func() {
		if err := publish(near, fmt.Sprint(published)); err != nil {
			t.Errorf("Publish: %v", err)
		}
		published++
	}
	say()
	eventually(t, "the event", func() bool { return c.has("0") })
	seen := c.lastID()

	start := time.Now()
	late, lateURL := startHub(t, newHistory(r.addr))
	current := make(chan struct{})
	go func() {
		defer close(current)
		if err := publish(late, "late"); err != nil {
			t.Errorf("Publish on the new node: %v", err)
		}
	}()
	other := openStream(t, lateURL+"/?topic=a", seen)
	for done := false; !done; time.Sleep(time.Millisecond) {
		say()
		select {
		case <-current:
			done = true
		default:
		}
	}
	t.Logf("the new node had %d records after %v", records, time.Since(start))
	say()
	for _, c := range []*stream{c, other} {
		eventually(t, "all events", func() bool { return c.has("late") && c.has(fmt.Sprint(published-1)) })
		next := 0
		if c == other {
			next = 1
		}
		for _, text := range c.lines() {
			switch text {
			case "late":
			case fmt.Sprint(next):
				next++
			default:
				t.Fatalf("a client got %q, want %d", text, next)
			}
		}
	}
	for _, hub := range []*realtime.Hub{near, late} {
		if st := hub.Stats(); st.Gaps != 0 || st.Unsent != 0 || st.Resets != 0 || st.BrokerDown {
			t.Errorf("%+v, want no gap and no reset", st)
		}
	}
}
