package redisbroker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

// restart kills the server and starts it, or shuts it down in order.
func (r *redis) restart(inOrder bool) {
	r.t.Helper()
	if inOrder {
		r.try("SHUTDOWN") // ends the connection
		r.cmd.Wait()
	}
	r.Stop()
	if err := r.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// A Redis that doesn't wait for its disk dies together with the node that has
// published an event, before another node has it. Nobody is left that knows of the
// event, and the clients of another node get a reset.
func TestHistoryLosesWithPublisher(t *testing.T) {
	t.Parallel()
	for _, store := range stores {
		if store.safe {
			continue
		}
		t.Run(store.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t, store.args...)
			way := startProxy(t, r.addr)
			near, _ := startHub(t, newHistory(r.addr))
			far, url := startHub(t, newHistory(way.addr()))
			c := openStream(t, url+"/?topic=a", "")
			publish := func(hub *realtime.Hub, text string) {
				t.Helper()
				eventually(t, "a Publish that succeeds", func() bool {
					return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)}) == nil
				})
			}
			publish(near, "1")
			eventually(t, "the event", func() bool { return c.has("1") })
			kept := c.lastID()
			putBack := store.save(r)
			way.set(true, true)
			publish(near, "lost")
			if err := near.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			r.Stop()
			putBack()
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
			way.cut()
			way.set(false, false)
			eventually(t, "a reset for a client that stayed", func() bool { return c.has("reset") })
			if n := far.Stats().Gaps; n != 1 {
				t.Errorf("%d gaps were counted, want 1", n)
			}
			publish(far, "2")
			eventually(t, "the next event", func() bool { return c.has("2") })
			c = openStream(t, url+"/?topic=a", kept)
			eventually(t, "what a client gets", func() bool { return len(c.lines()) > 0 })
			if got := c.lines()[0]; got != "reset" {
				t.Errorf("a client that reconnects got %q first, want a reset", got)
			}
		})
	}
}

// A new server begins one epoch, however many nodes come. A Redis that waits for
// its disk begins none, where one of them has had its log.
func TestHistoryRestart(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		args    []string
		inOrder bool
		same    bool // the epoch stays
	}{
		{"killed, always", []string{"--appendonly", "yes", "--appendfsync", "always"}, false, true},
		{"in order, always", []string{"--appendonly", "yes", "--appendfsync", "always"}, true, true},
		{"killed, no", []string{"--appendonly", "yes", "--appendfsync", "no"}, false, false},
		{"in order, everysec", []string{"--appendonly", "yes", "--appendfsync", "everysec"}, true, false},
		{"in order, snapshot", []string{"--save", "3600 1000000"}, true, false},
		{"not on rewrite", []string{"--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "yes"}, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t, tt.args...)
			var all []*follower
			for range 5 {
				f := newFollower(t, newHistory(r.addr))
				f.expect("current A-0")
				all = append(all, f)
			}
			number, epoch := 0, 'A'
			for round := range 2 {
				text := fmt.Sprint("round ", round)
				all[round].add(text)
				number++
				record := fmt.Sprintf("%c-%d %s", epoch, number, text)
				for _, f := range all {
					f.await(record)
				}
				r.restart(tt.inOrder)
				current := fmt.Sprintf("current %c-%d", epoch, number)
				if !tt.same {
					epoch, number = epoch+1, 0
					current = fmt.Sprintf("current %c-0", epoch)
				}
				for _, f := range all {
					f.await("away", record, current)
				}
			}
			time.Sleep(3 * time.Second) // so that all look at the log again
			for _, f := range all {
				f.mu.Lock()
				if n, want := len(f.names), 1+int(epoch-'A'); n != want {
					t.Errorf("a node got %d epochs, want %d: %q", n, want, f.log)
				}
				f.mu.Unlock()
			}
		})
	}
}

// await waits for lines, with others between them, and forgets the log up to the
// last one.
func (f *follower) await(want ...string) {
	f.t.Helper()
	for _, want := range want {
		eventually(f.t, want, func() bool {
			f.mu.Lock()
			defer f.mu.Unlock()
			i := slices.Index(f.log, want)
			f.log = f.log[i+1:]
			return i >= 0
		})
	}
}

// A node that starts together with Redis waits for one that has had the log. Where
// none comes another epoch begins, because the data may have been put back.
func TestHistoryRestartAndNode(t *testing.T) {
	t.Parallel()
	r := startKeeper(t)
	way := startProxy(t, r.addr)
	old := newFollower(t, newHistory(way.addr()))
	old.expect("current A-0")
	old.add("1")
	old.await("A-1 1")
	inTime := false
	for round := 0; !inTime; round++ { // only a busy machine needs another one
		if round == 20 {
			t.Fatal("the machine is too busy")
		}
		way.set(true, true)
		way.cut()
		eventually(t, "a node that is away", func() bool { return slices.Contains(old.lines(), "away") })
		r.restart(false)
		begin := time.Now()
		var fresh []*follower
		for range 3 {
			fresh = append(fresh, newFollower(t, newHistory(r.addr)))
		}
		eventually(t, "a node that waits", func() bool { return strings.Contains(r.text("INFO", "errorstats"), "errorstat_UNSURE") })
		way.set(false, false)
		for _, f := range append(fresh, old) {
			eventually(t, "a node that has the log", func() bool { return strings.Contains(strings.Join(f.lines(), " "), "current") })
		}
		if inTime = time.Since(begin) < 3*time.Second; inTime {
			old.await("away", "A-1 1", "current A-1")
			for _, f := range fresh {
				f.expect("A-1 1", "current A-1")
			}
		}
		for _, f := range fresh {
			f.Close()
		}
	}
	if err := old.Close(); err != nil {
		t.Error(err)
	}
	r.restart(false)
	var fresh []*follower
	for range 5 {
		fresh = append(fresh, newFollower(t, newHistory(r.addr)))
	}
	for _, f := range fresh {
		eventually(t, "a node that has the log", func() bool { return slices.Contains(f.lines(), "current B-0") })
	}
	time.Sleep(3 * time.Second) // so that all look at the log again
	for _, f := range fresh {
		f.expect("A-1 1", "current B-0")
	}
}

// A node that has yet to read the end of the log doesn't count as one that has had
// it, where an older copy of the data is put back.
func TestHistoryRestartWhileReading(t *testing.T) {
	t.Parallel()
	r := startKeeper(t)
	a := newFollower(t, newHistory(r.addr))
	a.add("1", "2")
	putBack := r.copyDir()
	a.add("3")
	a.Close()
	f := &follower{HistoryBroker: newHistory(r.addr), t: t, block: make(chan struct{}), names: make(map[string]string)}
	f.start()
	eventually(t, "a Record that blocks", func() bool { return f.begun.Load() == 1 })
	r.Stop()
	putBack()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	close(f.block)
	f.expect("A-1 1", "away", "A-1 1", "A-2 2", "current B-0")
}

// Where the user has no permission for INFO a new server isn't noticed, and the
// nodes look for what they know alone. Without CONFIG GET no Redis counts as one
// that waits for its disk.
func TestHistoryRestartPermission(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, missing, fsync string
		same                 bool
	}{
		{"INFO", "-info", "no", true},
		{"CONFIG GET", "-config|get", "always", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := startRedis(t, "--appendonly", "yes", "--appendfsync", tt.fsync)
			newNode := func() *follower {
				options := rueidis.ClientOption{InitAddress: []string{r.addr}, Username: "app", Password: "secret"}
				return newFollower(t, redisbroker.Connect("realtime", options).WithHistory())
			}
			allow := func() { r.do(append(aclUser("{realtime:log}*", "realtime:*"), tt.missing)...) }
			allow()
			a := newNode()
			a.expect("current A-0")
			a.add("1")
			a.await("A-1 1")
			r.restart(false)
			allow()
			current := "current B-0"
			if tt.same {
				current = "current A-1"
			}
			a.await("away", "A-1 1", current)
			fresh := newNode()
			fresh.expect("A-1 1", current)
		})
	}
}

// A Redis that waits for its disk ends when that is full. Once there is room again,
// and it is started, its log is whole: a client gets all that Publish has accepted.
func TestHistoryFullDisk(t *testing.T) {
	t.Parallel()
	dir, mounted := smallDisk(t)
	if !mounted {
		t.Skip("no disk can be mounted")
	}
	r := startRedis(t, "--appendonly", "yes", "--appendfsync", "always", "--dir", dir)
	near, _ := startHub(t, newHistory(r.addr))
	_, url := startHub(t, newHistory(r.addr))
	c := openStream(t, url+"/?topic=a", "")
	var accepted []string
	publish := func(text string) error {
		err := near.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)})
		if err == nil {
			accepted = append(accepted, text)
		}
		return err
	}
	eventually(t, "a Publish that succeeds", func() bool { return publish("begin") == nil })
	eventually(t, "the event", func() bool { return c.has("begin") })
	ballast := filepath.Join(dir, "ballast")
	if os.WriteFile(ballast, make([]byte, diskBytes), 0o600) == nil {
		t.Fatal("the disk isn't full")
	}
	for i := 0; publish(fmt.Sprint(i)) == nil; i++ { // some fit into the last page
		if i == 100_000 {
			t.Fatal("Publish succeeds with a full disk")
		}
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	r.Stop() // it has ended
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a Publish that succeeds", func() bool { return publish("end") == nil })
	eventually(t, "the last event", func() bool { return c.has("end") })
	for _, text := range accepted {
		if !c.has(text) {
			t.Errorf("the client has not had %q", text)
		}
	}
	if c.has("reset") {
		t.Error("the client got a reset, want none: nothing was lost")
	}
}
