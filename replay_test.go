package realtime_test

import (
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// heapAndStacks returns how much memory is in use.
func heapAndStacks() int {
	var m runtime.MemStats
	for range 2 { // what pools hold outlives one collection
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// wantGrown waits until no more than most bytes are in use above before: what
// still goes on makes garbage.
func wantGrown(t *testing.T, before, most int) {
	t.Helper()
	grown := 0
	for range 100 {
		if grown = heapAndStacks() - before; grown <= most {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Errorf("%d KB are in use, want at most %d", grown>>10, most>>10)
}

// settle waits until the hub has so many clients, and delivers nothing more.
func settle(t *testing.T, hub *realtime.Hub, clients int) {
	t.Helper()
	last := int64(-1)
	for range 600 {
		now := hub.Stats().Delivered
		if now == last && hub.ClientCount() == clients {
			return
		}
		last = now
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%d clients, %d messages delivered, and no end", hub.ClientCount(), last)
}

// Clients that come with an old id and read nothing leave their events in the
// history: each has less than 64 KB of its own.
func TestStalledReplaysAreSmall(t *testing.T) {
	const topics, each, size, stalled = 100, 100, 2 << 10, 20
	for name, header := range map[string]string{
		"event stream": "Accept: text/event-stream\r\n",
		"WebSocket":    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: realtime.v1\r\n",
	} {
		for _, keyed := range []bool{false, true} { // resumed events, or the newest of each Key
			t.Run(fmt.Sprintf("%s, keyed %t", name, keyed), func(t *testing.T) {
				hub := realtime.NewHub()
				hub.History.Events = each
				hub.WriteTimeout = time.Hour
				s := newTCPSite(t, hub)
				query := url.Values{}
				for i := range topics {
					query.Add("topic", fmt.Sprint(i))
				}
				first := s.listen("topic=0")
				publish(t, hub, "0", "first")
				expect(t, first, "first")
				id := first.last()
				first.cut()
				for i := range topics * each {
					e := realtime.Event{Data: []byte(strings.Repeat("x", size))}
					if i%topics == 0 && i/topics == each-1 {
						break // "first" stays
					}
					if keyed {
						e.Key = fmt.Sprint(i / topics)
					}
					if err := hub.Publish(t.Context(), fmt.Sprint(i%topics), e); err != nil {
						t.Fatal(err)
					}
				}
				if keyed {
					id = ""
				}
				query.Set("lastEventId", id)
				settle(t, hub, 0)
				before := heapAndStacks()
				for range stalled {
					conn := s.connection()
					conn.(*net.TCPConn).SetReadBuffer(4 << 10)
					fmt.Fprintf(conn, "GET /ws?%s HTTP/1.1\r\nHost: a\r\n%s\r\n", query.Encode(), header)
				}
				settle(t, hub, stalled)
				wantGrown(t, before, stalled*64<<10)
			})
		}
	}
}

// What a history keeps doesn't grow with the formats in which clients got it.
func TestHistoryKeepsNoEncodings(t *testing.T) {
	hub := realtime.NewHub()
	hub.History.Events = 10_000
	hub.Compression = true
	s := newTCPSite(t, hub)
	for _, stream := range []string{"", "&protocol=" + realtime.Subprotocol} {
		go io.Copy(io.Discard, s.listen("topic=a"+stream).conn)
	}
	for _, protocol := range []string{"", realtime.Subprotocol} {
		conn := s.connectAs("topic=a", protocol)
		go func() {
			for {
				if _, _, err := conn.Read(t.Context()); err != nil {
					return
				}
			}
		}()
	}
	before := heapAndStacks()
	const events, size = 5000, 2 << 10
	for range events {
		data := make([]byte, size)
		for i := range data {
			data[i] = 'a' + byte(rand.IntN(16))
		}
		if err := hub.Publish(t.Context(), "a", realtime.Event{Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, hub, 4)
	wantGrown(t, before, events*size*14/10)
}

// A client that reconnects and subscribes a topic while it still gets its replay
// gets all that was published to the topic since it was there, once.
func TestSubscribeDuringReplay(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 1000
		client := byName(hub)
		s := newPipeSite(t, hub)
		c := join(s, "name=c&topic=a")
		publish(t, hub, "a", "first")
		expect(t, c, "first")
		id := finalID(t, c)
		c.cut()
		synctest.Wait()
		const past = 600 // several parts
		for i := range past {
			publish(t, hub, "a", fmt.Sprint("a", i))
		}
		publish(t, hub, "b", "old")
		c = back(s, join, "name=c&topic=a", id)
		if err := client("c").Subscribe("b"); err != nil {
			t.Fatal(err)
		}
		publish(t, hub, "b", "new")
		publish(t, hub, "a", "last")
		var got []string
		for len(got) == 0 || got[len(got)-1] != "last" {
			ev, err := c.event()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ev.data)
		}
		old := slices.Index(got, "old")
		if old < 0 {
			t.Fatalf("got %.300q, want what is old", got)
		}
		got = slices.Delete(got, old, old+1)
		if len(got) != past+2 || got[0] != "a0" || got[past-1] != fmt.Sprint("a", past-1) || got[past] != "new" {
			t.Errorf("got %.300q, want the past of a, then what is new", got)
		}
	})
}

// No id comes before all that precedes it: the client could be cut right then.
func TestNoPositionDuringReplay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.History.Events = 1000
		hub.PingInterval = time.Second // positions come with it
		client := byName(hub)
		s := newPipeSite(t, hub)
		c := s.listen("topic=a")
		publish(t, hub, "a", "first")
		expect(t, c, "first")
		id := c.last()
		c.cut()
		synctest.Wait()
		for i := range 600 {
			publish(t, hub, "a", fmt.Sprint("a", i))
		}
		conn := s.connectAs("name=c&topic=a&lastEventId="+id, realtime.Subprotocol)
		if err := client("c").Subscribe("b"); err != nil {
			t.Fatal(err)
		}
		number := -1
		for {
			if number%100 == 0 {
				time.Sleep(2 * time.Second)
			}
			_, b, err := conn.Read(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var e envelope
			if err := json.Unmarshal(b, &e); err != nil {
				t.Fatal(err)
			}
			now := number
			if _, n, ok := strings.Cut(e.ID, "-"); ok {
				now, _ = strconv.Atoi(strings.TrimSuffix(n, "~"))
			}
			if now < number {
				t.Fatalf("%s comes behind %d", b, number)
			}
			if number = now; e.Data != nil && *e.Data == "a599" {
				return
			}
		}
	})
}
