package redisbroker_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A store is the way in which a Redis keeps its data, and loses some of it.
type store struct {
	name string
	args []string
	safe bool                            // what Redis has answered is on its disk
	save func(r *redis) (putBack func()) // putBack is called while Redis is stopped
}

var stores = []store{
	{"snapshot", []string{"--save", "3600 1000000"}, false, func(r *redis) func() {
		r.do("SAVE")
		return r.copyDir()
	}},
	{"append-only file", []string{"--appendonly", "yes", "--appendfsync", "always"}, true, (*redis).copyDir},
	{"truncated append-only file", []string{"--appendonly", "yes", "--appendfsync", "no"}, false, func(r *redis) func() {
		file := ""
		filepath.WalkDir(r.dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".aof") && !strings.HasSuffix(path, ".base.aof") {
				file = path
			}
			return nil
		})
		info, err := os.Stat(file)
		if err != nil {
			r.t.Fatal(err)
		}
		return func() {
			if err := os.Truncate(file, info.Size()+30); err != nil { // in the middle of a command
				r.t.Fatal(err)
			}
		}
	}},
}

// copyDir copies the directory of the server's data. putBack replaces it by the
// copy.
func (r *redis) copyDir() (putBack func()) {
	r.t.Helper()
	saved := filepath.Join(r.t.(*testing.T).TempDir(), "saved")
	if err := os.CopyFS(saved, os.DirFS(r.dir)); err != nil {
		r.t.Fatal(err)
	}
	return func() {
		if err := os.RemoveAll(r.dir); err != nil {
			r.t.Fatal(err)
		}
		if err := os.CopyFS(r.dir, os.DirFS(saved)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// Redis is put back to an older state, and what was lost is written again, with
// the numbers that other records had. A client with the id of one of those gets a
// reset, also if all hubs are new. A hub that has read them tells its clients.
func TestHistoryPutBack(t *testing.T) {
	t.Parallel()
	for _, store := range stores {
		for _, survives := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/survives=%v", store.name, survives), func(t *testing.T) {
				t.Parallel()
				r := startRedis(t, store.args...)
				way := startProxy(t, r.addr)
				old, oldURL := startHub(t, newHistory(way.addr()))
				c := openStream(t, oldURL+"/?topic=a", "")
				publish := func(hub *realtime.Hub, texts ...string) {
					t.Helper()
					for _, text := range texts {
						eventually(t, "a Publish that succeeds", func() bool {
							return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)}) == nil
						})
					}
				}
				comes := func(c *stream, text string) {
					t.Helper()
					eventually(t, text, func() bool { return c.has(text) })
				}
				publish(old, "1", "2", "3", "4", "5")
				comes(c, "5")
				kept := c.lastID()
				putBack := store.save(r)
				publish(old, "6", "7", "8", "9", "10")
				comes(c, "10")
				lost := c.lastID()

				way.set(true, true) // the old hub appends nothing until the numbers are given again
				way.cut()
				r.Stop()
				putBack()
				if err := r.Start(); err != nil {
					t.Fatal(err)
				}
				fresh, freshURL := startHub(t, newHistory(r.addr))
				publish(fresh, "6'", "7'", "8'", "9'", "10'", "11'", "12'")
				resumes := func(url, id string, want ...string) {
					t.Helper()
					c := openStream(t, url+"/?topic=a", id)
					eventually(t, "what a client gets", func() bool { return len(c.lines()) >= len(want) })
					if got := c.lines(); !slices.Equal(got[:len(want)], want) {
						t.Errorf("a client with the id %s got %q first, want %q", id, got, want)
					}
				}
				resumes(freshURL, lost, "reset")
				resumes(freshURL, kept, "reset") // it has not had 6 to 10, which were published
				if !survives {
					return
				}
				way.set(false, false)
				comes(c, "reset")
				publish(fresh, "13'")
				comes(c, "13'")
				lines := c.lines()
				if at := slices.Index(lines, "10"); lines[at+1] != "reset" {
					t.Errorf("the hub's client got %q, want a reset before anything new", lines)
				}
				resumes(oldURL, lost, "reset")
				publish(old, "14'")
				comes(c, "14'")
				resumes(freshURL, c.lastID())
			})
		}
	}
}

// A replica takes over that was behind, and connections to the former master stay
// open. What it doesn't have is lost, and told.
func TestHistoryBehind(t *testing.T) {
	t.Parallel()
	p := startPair(t)
	var hubs []*realtime.Hub
	var clients []*stream
	var urls []string
	for range 2 {
		hub, url := startHub(t, newHistory(p.way.addr()))
		hubs, urls, clients = append(hubs, hub), append(urls, url), append(clients, openStream(t, url+"/?topic=a", ""))
	}
	publish := func(text string) {
		t.Helper()
		eventually(t, "a Publish that succeeds", func() bool {
			return hubs[0].Publish(t.Context(), "a", realtime.Event{Data: []byte(text)}) == nil
		})
	}
	comes := func(text string) {
		t.Helper()
		for _, c := range clients {
			eventually(t, text, func() bool { return c.has(text) })
		}
	}
	for i := range 5 {
		publish(fmt.Sprint(i))
	}
	p.master.do("WAIT", "1", "10000")
	p.replica.do("REPLICAOF", "NO", "ONE") // it hears no more
	for i := range 5 {
		publish(fmt.Sprint("lost ", i))
	}
	comes("lost 4")
	lost := clients[1].lastID()
	p.swap()
	comes("reset") // a Publish that fails in the meantime would reach the hub's own client
	for i := range 7 {
		publish(fmt.Sprint("new ", i))
	}
	comes("new 6")
	for _, c := range clients {
		lines := c.lines()
		if at := slices.Index(lines, "lost 4"); lines[at+1] != "reset" {
			t.Errorf("a client got %q, want a reset before anything new", lines)
		}
	}
	for _, url := range urls {
		c := openStream(t, url+"/?topic=a", lost)
		eventually(t, "what a client gets", func() bool { return len(c.lines()) > 0 })
		if got := c.lines()[0]; got != "reset" {
			t.Errorf("a client with the id %s got %q first, want a reset", lost, got)
		}
	}
}

// The same where no hub is left that knows what the former master had, also if
// that waited for its disk. A hub that survives has not had what was lost.
func TestHistoryBehindAlone(t *testing.T) {
	t.Parallel()
	for _, survives := range []bool{false, true} {
		t.Run(fmt.Sprint("survives=", survives), func(t *testing.T) {
			t.Parallel()
			p := startPair(t, "--appendonly", "yes", "--appendfsync", "always")
			publish := func(hub *realtime.Hub, text string) {
				t.Helper()
				eventually(t, "a Publish that succeeds", func() bool {
					return hub.Publish(t.Context(), "a", realtime.Event{Data: []byte(text)}) == nil
				})
			}
			hub, url := startHub(t, newHistory(p.way.addr()))
			way := startProxy(t, p.master.addr)
			if survives {
				_, url = startHub(t, newHistory(way.addr()))
			}
			c := openStream(t, url+"/?topic=a", "")
			publish(hub, "1")
			eventually(t, "the event", func() bool { return c.has("1") })
			kept := c.lastID()
			p.master.do("WAIT", "1", "10000")
			p.replica.do("REPLICAOF", "NO", "ONE")
			way.set(true, true)
			publish(hub, "lost")
			if err := hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
			p.swap()
			way.lead(p.master.addr)
			way.cut()
			way.set(false, false)
			if survives {
				eventually(t, "a reset", func() bool { return c.has("reset") })
			} else {
				var fresh *realtime.Hub
				fresh, url = startHub(t, newHistory(p.way.addr()))
				publish(fresh, "2")
			}
			c = openStream(t, url+"/?topic=a", kept)
			eventually(t, "what a client gets", func() bool { return len(c.lines()) > 0 })
			if got := c.lines()[0]; got != "reset" {
				t.Errorf("a client that has not had what was lost got %q first, want a reset", got)
			}
		})
	}
}
