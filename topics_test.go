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

// Topics that are removed one by one, or many at once, are those that were named.
func TestUnsubscribeMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		newPipeSite(t, hub).connectAs("name=a")
		c := client("a")
		var want []string
		for i := range 1000 {
			want = append(want, fmt.Sprintf("topic %03d", i))
		}
		if err := c.Subscribe(want...); err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(1, 2))
		for len(want) > 0 {
			var gone []string
			for range 1 + random.IntN(1+random.IntN(2*len(want))) {
				gone = append(gone, fmt.Sprintf("topic %03d", random.IntN(1100))) // some twice, some unknown
			}
			c.Unsubscribe(gone...)
			want = slices.DeleteFunc(want, func(topic string) bool { return slices.Contains(gone, topic) })
			if got := c.Topics(); !slices.Equal(got, want) {
				t.Fatalf("%d topics are left, want %d", len(got), len(want))
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

// A page that connects with a position gets what was published since, and not
// what was before.
func TestPosition(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := newPipeSite(t, hub)
		first := hub.Position() // nobody has used the hub yet
		publish(t, hub, "a", "1")
		publish(t, hub, "b", "2")
		second := hub.Position()
		publish(t, hub, "b", "3")
		publish(t, hub, "a", "4")
		expect(t, back(s, join, "topic=a&topic=b", first), "1", "2", "3", "4")
		expect(t, back(s, join, "topic=a&topic=b", second), "3", "4")
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
