package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// publish publishes text to a topic, or fails the test.
func publish(t testing.TB, hub *realtime.Hub, topic, text string) {
	t.Helper()
	if err := hub.Publish(context.Background(), topic, realtime.Event{Data: []byte(text)}); err != nil {
		t.Fatal(err)
	}
}

// byName lets OnConnect subscribe a client to the topics of its URL and
// collects clients under its name.
func byName(hub *realtime.Hub) func(name string) *realtime.Client {
	var clients sync.Map
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		clients.Store(r.URL.Query().Get("name"), c)
		return c.Subscribe(r.URL.Query()["topic"]...)
	}
	return func(name string) *realtime.Client {
		c, ok := clients.Load(name)
		if !ok {
			return nil
		}
		return c.(*realtime.Client)
	}
}

// connectAs joins a WebSocket client with a query and subprotocols.
func (s *site) connectAs(query string, protocols ...string) *websocket.Conn {
	s.t.Helper()
	conn, _, err := websocket.Dial(context.Background(), s.url+"?"+query, &websocket.DialOptions{HTTPClient: s.httpClient(), Subprotocols: protocols})
	if err != nil {
		s.t.Fatalf("dial: %v", err)
	}
	conn.SetReadLimit(-1)
	s.t.Cleanup(func() { conn.CloseNow() })
	return conn
}

func TestTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		s := newPipeSite(t, hub)
		ws, sse := s.connectAs("name=ws&topic=a&topic=b"), s.listen("name=sse&topic=b&topic=c")
		expect := func(wantWS, wantSSE string) {
			t.Helper()
			if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("end")}); err != nil {
				t.Fatal(err)
			}
			var gotWS, gotSSE []string
			for m := read(t, ws); m != "end"; m = read(t, ws) {
				gotWS = append(gotWS, m)
			}
			for m := sse.next(); m != "end"; m = sse.next() {
				gotSSE = append(gotSSE, m)
			}
			if fmt.Sprint(gotWS) != wantWS || fmt.Sprint(gotSSE) != wantSSE {
				t.Errorf("WebSocket got %v, want %s; event stream got %v, want %s", gotWS, wantWS, gotSSE, wantSSE)
			}
		}
		all := func() {
			for _, topic := range []string{"a", "b", "c", "nobody's"} {
				publish(t, hub, topic, topic)
			}
		}
		all()
		expect("[a b]", "[b c]")

		client("ws").Unsubscribe("a", "never had")
		if err := client("ws").Subscribe("c", "c", "b"); err != nil {
			t.Error(err)
		}
		client("sse").Unsubscribe("b", "c")
		all()
		expect("[b c]", "[]")

		if got := client("ws").Topics(); !slices.Equal(got, []string{"b", "c"}) {
			t.Errorf("Topics() = %q, want b and c", got)
		}
		if got := client("sse").Topics(); len(got) != 0 {
			t.Errorf("Topics() = %q, want none", got)
		}
	})
}

func TestBadTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		s := newPipeSite(t, hub)
		s.listen("name=x")
		for name, topic := range map[string]string{"empty": "", "not UTF-8": "\xff", "too long": strings.Repeat("x", 1025)} {
			if err := client("x").Subscribe("good", topic); err == nil || !strings.Contains(err.Error(), "topic") {
				t.Errorf("Subscribe to one that is %s: %v, want an error", name, err)
			}
			if err := hub.Publish(t.Context(), topic, realtime.Event{}); err == nil || !strings.Contains(err.Error(), "topic") {
				t.Errorf("Publish to one that is %s: %v, want an error", name, err)
			}
		}
		if got := client("x").Topics(); len(got) != 0 {
			t.Errorf("Topics() = %q after errors, want none", got)
		}
		if err := client("x").Subscribe(strings.Repeat("x", 1024), " ", "\n\x00", "*", "a/b#?"); err != nil {
			t.Error(err)
		}
	})
}

// Topics that are added and removed one by one, or many at once, are those that
// were named.
func TestManyTopics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		newPipeSite(t, hub).connectAs("name=a")
		c := client("a")
		var want []string
		random := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			var named []string
			for range 1 + random.IntN(2)*random.IntN(1000) {
				named = append(named, fmt.Sprintf("topic %03d", random.IntN(1000))) // some twice, some unknown
			}
			if random.IntN(2) == 0 {
				c.Unsubscribe(named...)
				want = slices.DeleteFunc(want, func(topic string) bool { return slices.Contains(named, topic) })
			} else {
				if err := c.Subscribe(named...); err != nil {
					t.Fatal(err)
				}
				want = slices.Compact(slices.Sorted(slices.Values(append(want, named...))))
			}
			if got := c.Topics(); !slices.Equal(got, want) {
				t.Fatalf("%d topics, want %d", len(got), len(want))
			}
		}
	})
}

// Subscribe and Unsubscribe of a client that is gone, at any stage of its
// hub's end.
func TestSubscribeAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		hub.OnDisconnect = func(c *realtime.Client, _ error) {
			if err := c.Subscribe("late"); !errors.Is(err, realtime.ErrClientClosed) {
				t.Errorf("Subscribe in OnDisconnect: %v, want ErrClientClosed", err)
			}
			if got := c.Topics(); !slices.Equal(got, []string{"a"}) {
				t.Errorf("Topics() in OnDisconnect = %q, want a", got)
			}
		}
		s := newPipeSite(t, hub)
		conn := s.connectAs("name=x&topic=a")
		conn.CloseNow()
		synctest.Wait()
		c := client("x")
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := c.Subscribe("late"); !errors.Is(err, realtime.ErrClientClosed) {
			t.Errorf("Subscribe after Shutdown: %v, want ErrClientClosed", err)
		}
		c.Unsubscribe("a")
		for range hub.Subscribers("a") {
			t.Error("the topic has a client after Shutdown")
		}
		if err := hub.Publish(t.Context(), "a", realtime.Event{}); !errors.Is(err, realtime.ErrHubClosed) {
			t.Errorf("Publish after Shutdown: %v, want ErrHubClosed", err)
		}
	})
}

// After Subscribe returns, every later event arrives; after Unsubscribe
// returns, none does: whatever else goes on.
func TestSubscribeWhilePublishing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		s := newPipeSite(t, hub)
		ctx, stop := context.WithCancel(t.Context())
		var noise sync.WaitGroup
		for range 2 {
			noise.Go(func() {
				for ctx.Err() == nil {
					publish(t, hub, "topic", "noise")
					publish(t, hub, "other", "noise")
					time.Sleep(time.Microsecond)
				}
			})
		}
		var clients sync.WaitGroup
		for n := range 4 {
			conn := s.connectAs(fmt.Sprint("name=", n))
			clients.Go(func() {
				c := client(fmt.Sprint(n))
				for round := range 50 {
					if err := c.Subscribe("topic"); err != nil {
						t.Error(err)
					}
					in := fmt.Sprint("in ", n, " ", round)
					publish(t, hub, "topic", in)
					c.Unsubscribe("topic")
					out := fmt.Sprint("out ", n, " ", round)
					publish(t, hub, "topic", out)
					done := fmt.Sprint("done ", n, " ", round)
					hub.PublishAll(ctx, realtime.Event{Data: []byte(done)})
					seen := false
					for m := read(t, conn); m != done; m = read(t, conn) {
						seen = seen || m == in
						if m == out {
							t.Errorf("got %q, published after Unsubscribe", m)
						}
					}
					if !seen {
						t.Errorf("did not get %q, published after Subscribe", in)
					}
				}
			})
		}
		clients.Wait()
		stop()
		noise.Wait()
	})
}

// A burst over mixed audiences reaches each client in order, and nobody else.
func TestMixedAudiences(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		s := newPipeSite(t, hub)
		topics := []string{"a", "b", "c", "d"}
		const clients, events = 12, 4000
		var conns []*websocket.Conn
		var has [clients]map[string]bool
		for n := range clients {
			has[n] = map[string]bool{"": true}
			query := url.Values{"name": {fmt.Sprint(n)}}
			for _, topic := range topics {
				if rand.IntN(2) == 0 {
					has[n][topic] = true
					query.Add("topic", topic)
				}
			}
			conns = append(conns, s.connectAs(query.Encode()))
		}
		want := make([][]string, clients)
		type published struct {
			topic, data, except string
		}
		var all []published
		for i := range events {
			p := published{data: fmt.Sprint(i)}
			if rand.IntN(5) > 0 {
				p.topic = topics[rand.IntN(len(topics))]
			}
			if rand.IntN(3) == 0 {
				p.except = client(fmt.Sprint(rand.IntN(clients))).ID()
			}
			for n := range clients {
				if has[n][p.topic] && p.except != client(fmt.Sprint(n)).ID() {
					want[n] = append(want[n], p.data)
				}
			}
			all = append(all, p)
		}
		var readers sync.WaitGroup
		for n, conn := range conns {
			readers.Go(func() {
				for i, w := range want[n] {
					_, data, err := conn.Read(context.Background())
					if err != nil || string(data) != w {
						t.Errorf("client %d: message %d is %q, %v; want %q", n, i, data, err, w)
						return
					}
				}
			})
		}
		for _, p := range all {
			e := realtime.Event{Data: []byte(p.data), Except: p.except}
			err := error(nil)
			if p.topic == "" {
				err = hub.PublishAll(t.Context(), e)
			} else {
				err = hub.Publish(t.Context(), p.topic, e)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		readers.Wait()
		synctest.Wait()
		var delivered int
		for _, w := range want {
			delivered += len(w)
		}
		if got := hub.Stats().Delivered; got != int64(delivered) {
			t.Errorf("Delivered = %d, want %d", got, delivered)
		}
	})
}

func TestSubscribers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		byName(hub)
		for range hub.Subscribers("a") {
			t.Error("a hub that has not started has a client")
		}
		s := newPipeSite(t, hub)
		for n := range 10 {
			s.listen(fmt.Sprintf("name=%d&topic=%d", n, n%3))
		}
		var got []string
		for c := range hub.Subscribers("1") {
			got = append(got, c.Topics()...)
		}
		if !slices.Equal(got, []string{"1", "1", "1"}) {
			t.Errorf("clients of topic 1 have %q", got)
		}
		for range hub.Subscribers("1") {
			break
		}
		for range hub.Subscribers("3") {
			t.Error("a topic that nobody has has a client")
		}
	})
}

// A client has the topics of its URL where nobody else decides.
func TestTopicsOfTheURL(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		conn, l := s.connectAs("topic=a&topic=a&topic=b"), s.listen("topic=a")
		publish(t, hub, "b", "to b")
		publish(t, hub, "a", "to a")
		if got := read(t, conn) + read(t, conn); got != "to bto a" {
			t.Errorf("WebSocket got %q", got)
		}
		if got := l.next(); got != "to a" {
			t.Errorf("event stream got %q", got)
		}
		for query, status := range map[string]int{strings.Repeat("topic=x&", 101): 400, "topic=": 400, "topic=%ff": 400} {
			if got := s.request("GET", query, "Accept: text/event-stream").resp.StatusCode; got != status {
				t.Errorf("%.20s answered %d, want %d", query, got, status)
			}
		}
		s.listen(strings.Repeat("topic=x&", 100))

		strict := realtime.NewHub()
		strict.OnConnect = func(*realtime.Client, *http.Request) error { return nil }
		l = newPipeSite(t, strict).listen("topic=secret")
		publish(t, strict, "secret", "secret")
		strict.Broadcast <- []byte("open")
		if got := l.next(); got != "open" {
			t.Errorf("got %q, though OnConnect did not subscribe it", got)
		}
	})
}

// What a newer event replaces doesn't reach a client that was not reading, nor
// make it slow; all else does, in order.
func TestKey(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{"pipe": newPipeSite, "TCP": newTCPSite} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test := func(t *testing.T) {
				hub := realtime.NewHub()
				hub.WriteTimeout = time.Hour // it does not read while all is published
				s := serve(t, hub)
				conn := s.connectAs("topic=a&topic=b")
				padding := strings.Repeat(".", 4000)
				const events = 5000 // 20 MB: more than the kernel takes
				ctx := t.Context()
				for i := range events {
					topic := []string{"a", "b"}[i%2]
					key := fmt.Sprint(i % 6)
					if i%1000 == 999 {
						key = "" // each of these is wanted
					}
					e := realtime.Event{Data: fmt.Appendf(nil, "%d %s", i, padding), Key: key}
					if err := hub.Publish(ctx, topic, e); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(3 * time.Second) // longer than SlowAfter
				if n := hub.ClientCount(); n != 1 {
					t.Fatalf("%d clients are left, want 1", n)
				}
				last, kept := -1, 0
				seen := make(map[int]bool)
				for last < events-1 {
					var i int
					fmt.Sscan(read(t, conn), &i)
					if i <= last {
						t.Fatalf("got %d after %d", i, last)
					}
					last = i
					seen[i] = true
					kept++
				}
				for i := range events {
					if wanted := i%1000 == 999 || i >= events-6; wanted && !seen[i] {
						t.Errorf("event %d is missing", i)
					}
				}
				// In a bubble only time tells when its last write is counted.
				for deadline := time.Now().Add(time.Minute); hub.Stats().Queued != 0 && time.Now().Before(deadline); {
					time.Sleep(time.Millisecond)
				}
				if st := hub.Stats(); st.Queued != 0 || st.Delivered != int64(kept) || st.Delivered+st.Replaced != events || st.Dropped != 0 {
					t.Errorf("Stats() = %+v after %d messages of %d events", st, kept, events)
				}
				if name == "pipe" && kept > 50 {
					t.Errorf("got %d messages, want the newest of each Key", kept)
				}
			}
			if name == "pipe" {
				synctest.Test(t, test)
			} else {
				test(t)
			}
		})
	}
}

// subscribe subscribes a client to topics, or fails the test.
func subscribe(t *testing.T, c *realtime.Client, topics ...string) {
	t.Helper()
	if err := c.Subscribe(topics...); err != nil {
		t.Fatal(err)
	}
}

// lateSite returns a site whose clients have names, and the final id of a client
// that has had the topics a and b and is cut off.
func lateSite(t *testing.T, join func(*site, string) resumer, events int) (s *site, client func(name string) *realtime.Client, id string) {
	t.Helper()
	hub := realtime.NewHub()
	hub.History.Events = events
	client = byName(hub)
	s = newPipeSite(t, hub)
	c := join(s, "name=c&topic=a")
	subscribe(t, client("c"), "b")
	publish(t, hub, "b", "first")
	expect(t, c, "first")
	id = finalID(t, c)
	c.cut()
	synctest.Wait()
	return s, client, id
}

// A topic that a client subscribes after it has reconnected is replayed since the
// id with which it came. What is replayed has no id.
func TestSubscribeAfterReconnecting(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		s, client, id := lateSite(t, join, 10)
		for i := range 3 {
			publish(t, s.hub, "b", fmt.Sprint("b", i))
			publish(t, s.hub, "a", fmt.Sprint("a", i))
		}
		c := back(s, join, "name=c&topic=a", id)
		expect(t, c, "a0", "a1", "a2")
		subscribe(t, client("c"), "b")
		publish(t, s.hub, "b", "live")
		for _, want := range []string{"b0", "b1", "b2"} {
			ev, err := c.event()
			if _, isStream := c.(*listener); err != nil || ev.data != want || !isStream && ev.id != "" {
				t.Errorf("got %+v, %v; want %s without an id", ev, err, want)
			}
		}
		expect(t, c, "live")

		// A topic that it leaves and takes again isn't replayed again.
		client("c").Unsubscribe("b")
		publish(t, s.hub, "b", "missed")
		subscribe(t, client("c"), "b")
		publish(t, s.hub, "b", "again")
		expect(t, c, "again")
		if st := s.hub.Stats(); st.Resumed != 2 || st.Resets != 0 {
			t.Errorf("Stats() = %+v, want 2 replays resumed", st)
		}
	})
}

// Where the events of a later topic are no longer kept, or nobody knows what the
// client has of them, it gets a reset for that topic alone.
func TestResetOfOneTopic(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T, s *site, join func(*site, string) resumer, id string) string{
		"forgotten": func(t *testing.T, s *site, _ func(*site, string) resumer, id string) string {
			for i := range 20 {
				publish(t, s.hub, "b", fmt.Sprint(i))
			}
			return id
		},
		"cut off before it was subscribed": func(t *testing.T, s *site, join func(*site, string) resumer, id string) string {
			publish(t, s.hub, "b", "missed")
			publish(t, s.hub, "a", "1")
			c := back(s, join, "topic=a", id)
			expect(t, c, "1")
			c.cut()
			return c.last()
		},
	} {
		t.Run(name, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				s, client, id := lateSite(t, join, 10)
				if err := s.hub.Publish(t.Context(), "b", realtime.Event{Key: "k", Data: []byte("value")}); err != nil {
					t.Fatal(err)
				}
				id = lose(t, s, join, id)
				if err := s.hub.Publish(t.Context(), "b", realtime.Event{Key: "k", Data: []byte("newest")}); err != nil {
					t.Fatal(err)
				}
				c := back(s, join, "name=c&topic=a", id)
				subscribe(t, client("c"), "b")
				publish(t, s.hub, "b", "live")
				expect(t, c, "breset", "newest", "live") // its data is the topic
				publish(t, s.hub, "a", "a")
				expect(t, c, "a")
				if got := s.hub.Stats().Resets; got != 1 {
					t.Errorf("Resets = %d, want 1", got)
				}
			})
		})
	}
}

// A client that is cut off while a later topic is replayed doesn't lose the rest,
// whatever id it had before.
func TestCutOffDuringALateReplay(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		s, client, id := lateSite(t, join, 1000)
		for i := range 600 {
			publish(t, s.hub, "b", fmt.Sprint("b", i))
		}
		c := back(s, join, "name=c&topic=a", id)
		publish(t, s.hub, "a", "a")
		expect(t, c, "a")
		time.Sleep(11 * time.Second) // its ids are final
		subscribe(t, client("c"), "b")
		expect(t, c, "b0", "b1")
		c.cut()
		c = back(s, join, "name=c&topic=a", c.last())
		subscribe(t, client("c"), "b")
		publish(t, s.hub, "b", "live")
		expect(t, c, "breset", "live")
	})
}

// The replay of a later topic waits in the history, not in the outbox of a client
// that doesn't read.
func TestLateReplayIsSmall(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		s, client, id := lateSite(t, join, 1000)
		for i := range 900 {
			publish(t, s.hub, "b", fmt.Sprint("b", i))
		}
		c := back(s, join, "name=c&topic=a", id)
		subscribe(t, client("c"), "b")
		synctest.Wait()
		if n := s.hub.Stats().Queued; n > 300 {
			t.Errorf("%d messages wait, want no more than a part", n)
		}
		for i := range 900 {
			expect(t, c, fmt.Sprint("b", i))
		}
	})
}

// SubscribeFrom brings a topic's events since an id, all that is kept, or the
// newest of each Key, in OnConnect and later.
func TestSubscribeFrom(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(fmt.Sprintf("in OnConnect %v", early), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				hub := realtime.NewHub()
				hub.History.Events = 10
				position := hub.Position()
				from := func(c *realtime.Client) {
					for topic, id := range map[string]string{"since": position, "oldest": realtime.Oldest, "new": "", "lost": "nonsense"} {
						if err := c.SubscribeFrom(id, topic); err != nil {
							t.Error(err)
						}
					}
				}
				var client *realtime.Client
				hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
					if client = c; early {
						from(c)
					}
					return c.Subscribe("a")
				}
				s := newPipeSite(t, hub)
				for i := range 12 {
					publish(t, hub, "oldest", fmt.Sprint("oldest", i))
				}
				for i := range 3 {
					publish(t, hub, "since", fmt.Sprint("since", i))
					for _, topic := range []string{"new", "lost", "a"} {
						if err := hub.Publish(t.Context(), topic, realtime.Event{Key: "k", Data: fmt.Append(nil, topic, i)}); err != nil {
							t.Fatal(err)
						}
					}
				}
				c := join(s, "")
				if !early {
					from(client)
				}
				hub.Broadcast <- []byte("end")
				got := make(map[string][]string)
				for len(got["end"]) == 0 {
					ev, err := c.event()
					if err != nil {
						t.Fatal(err)
					}
					topic := strings.TrimRight(ev.data, "0123456789")
					got[topic] = append(got[topic], ev.data+ev.name)
				}
				want := map[string][]string{
					"since": {"since0", "since1", "since2"}, "new": {"new2"}, "lost": {"lostreset", "lost2"}, "a": {"a2"}, "end": {"end"},
				}
				for i := range 10 {
					want["oldest"] = append(want["oldest"], fmt.Sprint("oldest", i+2))
				}
				for topic, events := range want {
					if !slices.Equal(got[topic], events) {
						t.Errorf("of %s it got %q, want %q", topic, got[topic], events)
					}
				}
				if st := hub.Stats(); st.Resumed != 1 || st.Resets != 1 {
					t.Errorf("Stats() = %+v, want one resumed and one reset", st)
				}
			})
		})
	}
}

// A client that gets a reset when it reconnects still gets what SubscribeFrom asks
// for.
func TestSubscribeFromBehindAReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return c.SubscribeFrom(realtime.Oldest, "a") }
		s := newPipeSite(t, hub)
		publish(t, hub, "a", "1")
		publish(t, hub, "a", "2")
		c := back(s, join, "", "stale-1")
		publish(t, hub, "a", "3")
		expect(t, c, "reset", "1", "2", "3")
	})
}

// A topic that OnConnect subscribes and leaves again brings nothing of its past.
func TestSubscribeFromAndLeave(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			err := c.SubscribeFrom(realtime.Oldest, "a", "b")
			c.Unsubscribe("a")
			return err
		}
		s := newPipeSite(t, hub)
		publish(t, hub, "a", "not for it")
		publish(t, hub, "b", "1")
		c := join(s, "")
		publish(t, hub, "b", "2")
		expect(t, c, "1", "2")
	})
}

// SubscribeFrom on a hub without History resets what it can't replay.
func TestSubscribeFromWithoutHistory(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		client := byName(hub)
		s := newPipeSite(t, hub)
		c := join(s, "name=c")
		for id, topic := range map[string]string{"": "new", realtime.Oldest: "oldest", "x-1": "lost"} {
			if err := client("c").SubscribeFrom(id, topic); err != nil {
				t.Error(err)
			}
		}
		publish(t, hub, "lost", "1")
		expect(t, c, "lostreset", "1")
	})
}

// A client that comes with Oldest gets all that is kept, with ids, and so do
// topics that it subscribes later.
func TestOldest(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		client := byName(hub)
		s := newPipeSite(t, hub)
		for i := range 15 {
			publish(t, hub, "a", fmt.Sprint("a", i))
			publish(t, hub, "b", fmt.Sprint("b", i))
		}
		c := back(s, join, "name=c&topic=a", realtime.Oldest)
		for i := range 10 {
			ev, err := c.event()
			if want := fmt.Sprint("a", i+5); err != nil || ev.data != want || ev.id == "" {
				t.Errorf("got %+v, %v; want %s with an id", ev, err, want)
			}
		}
		subscribe(t, client("c"), "b")
		for i := range 10 {
			expect(t, c, fmt.Sprint("b", i+5))
		}
		if st := hub.Stats(); st.Resumed != 0 || st.Resets != 0 {
			t.Errorf("Stats() = %+v, want nothing resumed and no reset", st)
		}
	})
}

// A topic that a client subscribes after it has reconnected may be new to its
// page. So the latest values from before the id come before the events since, and
// no event comes twice.
func TestValuesBeforeALaterTopic(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 5
		client := byName(hub)
		s := newPipeSite(t, hub)
		set := func(key, value string) {
			t.Helper()
			if err := hub.Publish(t.Context(), "b", realtime.Event{Key: key, Data: []byte(value), Gone: value == "gone"}); err != nil {
				t.Fatal(err)
			}
		}
		set("stays", "old")
		set("replaced", "0")
		set("gone", "0")
		for i := range 5 {
			publish(t, hub, "b", fmt.Sprint("forgotten", i))
		}
		set("recent", "1")
		id := hub.Position()
		set("replaced", "2")
		set("gone", "gone")
		publish(t, hub, "b", "3")
		c := back(s, join, "name=c", id)
		subscribe(t, client("c"), "b")
		expect(t, c, "old", "1", "2", "gone", "3")
		publish(t, hub, "b", "live")
		expect(t, c, "live")

		c = back(s, join, "name=d", "")
		if err := client("d").SubscribeFrom(id, "b"); err != nil { // it has what the id stands for
			t.Fatal(err)
		}
		expect(t, c, "2", "gone", "3", "live")
		for i, query := range []string{"name=e&topic=b", "name=f"} {
			c = back(s, join, query, realtime.Oldest)
			if i == 1 {
				subscribe(t, client("f"), "b")
			}
			expect(t, c, "old", "1", "2", "gone", "3", "live")
		}
		if st := hub.Stats(); st.Resets != 0 {
			t.Errorf("Stats() = %+v, want no reset", st)
		}
	})
}

// Oldest brings a long past in parts, in order, though some topics have forgotten
// more than others.
func TestOldestInParts(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 400
		s := newPipeSite(t, hub)
		for i := range 300 {
			publish(t, hub, "quiet", fmt.Sprint(i))
		}
		for i := range 900 {
			publish(t, hub, "busy", fmt.Sprint(i))
		}
		c := back(s, join, "topic=quiet&topic=busy", realtime.Oldest)
		for i := range 300 {
			expect(t, c, fmt.Sprint(i))
		}
		for i := range 400 {
			expect(t, c, fmt.Sprint(500+i))
		}
		publish(t, hub, "busy", "live")
		expect(t, c, "live")
	})
}

// A page that connects with a position gets what was published since, and not
// what was before.
func TestPosition(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		client := byName(hub)
		s := newPipeSite(t, hub)
		first := hub.Position() // nobody has used the hub yet
		publish(t, hub, "a", "1")
		publish(t, hub, "b", "2")
		second := hub.Position()
		publish(t, hub, "b", "3")
		publish(t, hub, "a", "4")
		expect(t, back(s, join, "topic=a&topic=b", first), "1", "2", "3", "4")
		c := back(s, join, "topic=a&name=c", second)
		expect(t, c, "4")
		subscribe(t, client("c"), "b")
		expect(t, c, "3")
		if st := hub.Stats(); st.Resets != 0 {
			t.Errorf("Stats() = %+v, want no reset", st)
		}
		if got := realtime.NewHub().Position(); got != "" {
			t.Errorf("without a History the position is %q", got)
		}
		if got := new(realtime.Hub).Position(); got != "" {
			t.Errorf("of no hub the position is %q", got)
		}
	})
}

// A position is never older than an event for which Publish has returned.
func TestPositionIsNotOlderThanWhatIsPublished(t *testing.T) {
	hub := realtime.NewHub()
	hub.History.Events = 10
	s := newTCPSite(t, hub)
	var publishing sync.WaitGroup
	for range 4 {
		publishing.Go(func() {
			for i := range 200 {
				publish(t, hub, "a", fmt.Sprint(i))
				_, number, _ := strings.Cut(hub.Position(), "-")
				n, err := strconv.Atoi(number)
				if err != nil || n < i+1 {
					t.Errorf("the position is %s, %v; want %d at least", number, err, i+1)
				}
			}
		})
	}
	publishing.Wait()
	c := s.listen("topic=a&lastEventId=" + hub.Position())
	publish(t, hub, "a", "next")
	expect(t, c, "next")
}
