package realtime_test

import (
	"context"
	"encoding/json"
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

// A resumer is a client that knows ids, over either transport.
type resumer interface {
	// event returns the next event or reset.
	event() (heard, error)
	// last returns the id to come back with.
	last() string
	cut()
}

func (l *listener) last() string { return l.lastID }

// An enveloped client speaks realtime.v1 over WebSocket.
type enveloped struct {
	conn   *websocket.Conn
	lastID string
}

type envelope struct {
	ID, Topic, Event, Encoding string
	Data                       *string
	Reset                      bool
}

func (c *enveloped) event() (heard, error) {
	for {
		_, b, err := c.conn.Read(context.Background())
		if err != nil {
			return heard{}, err
		}
		var e envelope
		if err := json.Unmarshal(b, &e); err != nil {
			return heard{}, fmt.Errorf("%q: %w", b, err)
		}
		if e.ID != "" {
			c.lastID = e.ID
		}
		if e.Data != nil {
			return heard{id: e.ID, name: e.Event, data: *e.Data}, nil
		}
	}
}

func (c *enveloped) last() string { return c.lastID }
func (c *enveloped) cut()         { c.conn.CloseNow() }

// transports are the ways to be a client that resumes.
var transports = map[string]func(s *site, query string) resumer{
	"WebSocket":    func(s *site, query string) resumer { return &enveloped{conn: s.connectAs(query, realtime.Subprotocol)} },
	"event stream": func(s *site, query string) resumer { return s.listen(query) },
	"event stream of envelopes": func(s *site, query string) resumer {
		return &envelopedStream{listener: s.listen(query + "&protocol=" + realtime.Subprotocol)}
	},
}

// An envelopedStream speaks realtime.v1 over an event stream.
type envelopedStream struct{ *listener }

func (l *envelopedStream) event() (heard, error) {
	for {
		ev, err := l.listener.event()
		if err != nil {
			return ev, err
		}
		var e envelope
		if err := json.Unmarshal([]byte(ev.data), &e); err != nil {
			return heard{}, fmt.Errorf("%q: %w", ev.data, err)
		}
		if e.Data != nil {
			return heard{id: e.ID, name: e.Event, data: *e.Data}, nil
		}
	}
}

// back joins a client that has seen everything up to id.
func back(s *site, join func(*site, string) resumer, query, id string) resumer {
	return join(s, query+"&lastEventId="+url.QueryEscape(id))
}

// expect wants the next events to have the given data, or name where they have
// none.
func expect(t *testing.T, c resumer, want ...string) {
	t.Helper()
	for i, w := range want {
		ev, err := c.event()
		if got := ev.data + ev.name; err != nil || got != w {
			t.Fatalf("event %d is %q, %v; want %q", i, got, err, w)
		}
	}
}

// finalID waits until the client's last id is final, and returns it. The client is
// to be cut then: it still waits for an event.
func finalID(t *testing.T, c resumer) string {
	t.Helper()
	go c.event() // there is none, but a position
	time.Sleep(11 * time.Second)
	synctest.Wait()
	id := c.last()
	if strings.HasSuffix(id, "~") {
		t.Fatalf("the last id is %q", id)
	}
	return id
}

// eachTransport runs test in a bubble for each of them.
func eachTransport(t *testing.T, test func(t *testing.T, join func(*site, string) resumer)) {
	for name, join := range transports {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, join) })
		})
	}
}

func TestResume(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 10}
		s := newPipeSite(t, hub)
		c := join(s, "topic=a&topic=b")
		publish(t, hub, "a", "1")
		expect(t, c, "1")
		id := c.last()
		c.cut()
		synctest.Wait()
		publish(t, hub, "b", "2")
		publish(t, hub, "other", "not for it")
		hub.Broadcast <- []byte("3")
		publish(t, hub, "a", "4")
		c = back(s, join, "topic=a&topic=b", id)
		publish(t, hub, "b", "5")
		expect(t, c, "2", "3", "4", "5")
		id = c.last()
		c.cut()
		// Somebody else, with other topics, and nothing missed.
		c = back(s, join, "topic=other", id)
		publish(t, hub, "other", "6")
		expect(t, c, "6")
		if st := hub.Stats(); st.Resumed != 2 || st.Resets != 0 {
			t.Errorf("Stats() = %+v, want 2 resumed", st)
		}
	})
}

// A client that was cut off before its first event resumes as well.
func TestResumeBeforeTheFirstEvent(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := newPipeSite(t, hub)
		publish(t, hub, "a", "before it came")
		c := join(s, "topic=a")
		go c.event() // takes the position, in which there is no event
		synctest.Wait()
		id := c.last()
		c.cut()
		publish(t, hub, "a", "1")
		expect(t, back(s, join, "topic=a", id), "1")
	})
}

// A hub that has published nothing yet has a position too. A client gets it
// behind a reset, and behind what OnConnect sends.
func TestPositionOfAnUnusedHub(t *testing.T) {
	for name, tt := range map[string]struct {
		id    string
		first []string
	}{
		"newcomer":       {"", []string{"hello"}},
		"with an old id": {"old-7", []string{"reset", "hello"}},
	} {
		t.Run(name, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				hub := realtime.NewHub()
				hub.History.Events = 10
				hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
					c.Send([]byte("hello"))
					return c.Subscribe("a")
				}
				s := newPipeSite(t, hub)
				c := back(s, join, "", tt.id)
				expect(t, c, tt.first...)
				go c.event() // there is none, but a position
				synctest.Wait()
				id := c.last()
				if !strings.HasSuffix(id, "-0~") {
					t.Errorf("the last id is %q", id)
				}
				c.cut()
				synctest.Wait()
				publish(t, hub, "a", "1")
				c = back(s, join, "", id)
				publish(t, hub, "a", "2")
				expect(t, c, "hello", "1", "2")
			})
		})
	}
}

// What can't be resumed is told.
func TestReset(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 3, Age: time.Minute}
		s := newPipeSite(t, hub)
		other := realtime.NewHub()
		other.History = hub.History
		c := join(newPipeSite(t, other), "topic=a")
		publish(t, other, "a", "of another hub")
		expect(t, c, "of another hub")
		foreign := c.last()

		c = join(s, "topic=a&topic=quiet")
		publish(t, hub, "a", "0")
		expect(t, c, "0")
		id := c.last()
		epoch, _, _ := strings.Cut(id, "-")
		for _, id := range []string{foreign, "x", epoch, epoch + "-", epoch + "-9999", epoch + "--1", epoch + "-99999999999999999999", "0"} {
			c := back(s, join, "topic=a", id)
			publish(t, hub, "other", "advances")
			hub.Broadcast <- []byte("live " + id)
			expect(t, c, "reset", "live "+id)
			if c.last() == id {
				t.Errorf("the last id is still %q", id)
			}
			c.cut()
		}
	})
}

// A reset has the id from which its client resumes, unless latest values are
// still to come: a client that is cut off before them gets another reset.
func TestResetWithAnID(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := newPipeSite(t, hub)
		if err := hub.Publish(t.Context(), "a", realtime.Event{Key: "k", Data: []byte("latest")}); err != nil {
			t.Fatal(err)
		}
		c := back(s, join, "topic=b", "old-7")
		expect(t, c, "reset")
		id := c.last()
		c.cut()
		publish(t, hub, "b", "1")
		c = back(s, join, "topic=b", id)
		publish(t, hub, "b", "2")
		expect(t, c, "1", "2")
		c.cut()

		c = back(s, join, "topic=a", "old-7")
		expect(t, c, "reset")
		if got := c.last(); got != "" {
			t.Errorf("a reset before a latest value has the id %q", got)
		}
		expect(t, c, "latest")
		go c.event() // there is none, but a position
		synctest.Wait()
		if got := c.last(); !strings.HasSuffix(got, "-3~") {
			t.Errorf("the last id is %q", got)
		}
		c.cut()
		if st := hub.Stats(); st.Resets != 2 || st.Resumed != 1 {
			t.Errorf("Stats() = %+v, want 2 resets and one resumed", st)
		}
	})
}

func TestResetByNumberAndAge(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 3, Age: time.Minute}
		s := newPipeSite(t, hub)
		c := join(s, "topic=a&topic=quiet")
		publish(t, hub, "a", "0")
		expect(t, c, "0")
		id := c.last()
		c.cut()
		for i := range 3 {
			publish(t, hub, "a", fmt.Sprint(i))
		}
		expect(t, back(s, join, "topic=a", id), "0", "1", "2") // just so
		publish(t, hub, "a", "3")
		c = back(s, join, "topic=a", id)
		publish(t, hub, "a", "4")
		expect(t, c, "reset", "4")
		back(s, join, "topic=quiet", id).cut() // nothing of that is lost

		c = join(s, "topic=b")
		publish(t, hub, "b", "1")
		expect(t, c, "1")
		id = c.last()
		c.cut()
		publish(t, hub, "b", "2")
		time.Sleep(59 * time.Second)
		expect(t, back(s, join, "topic=b", id), "2")
		time.Sleep(3 * time.Second)
		c = back(s, join, "topic=b", id)
		publish(t, hub, "b", "3")
		expect(t, c, "reset", "3")
		if st := hub.Stats(); st.Resets != 2 {
			t.Errorf("Resets = %d, want 2", st.Resets)
		}
	})
}

// A client that stays connected doesn't lose the thread, however long nothing
// was published for it while much was for others.
func TestResumeAfterALongSilence(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Age: 2 * time.Minute}
		s := newPipeSite(t, hub)
		c := join(s, "topic=quiet")
		ids := make(chan string)
		go func() {
			c.event()
			ids <- c.last()
		}()
		for i := range 1200 {
			publish(t, hub, fmt.Sprint("busy", i%10), "x")
			time.Sleep(time.Second)
		}
		c.cut()
		id := <-ids
		publish(t, hub, "quiet", "1")
		expect(t, back(s, join, "topic=quiet", id), "1")
	})
}

// A hub without history says so to a client that comes back, and gives it no id.
func TestResetWithoutHistory(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := back(s, join, "topic=a", "abc-1")
		publish(t, hub, "a", "1")
		expect(t, c, "reset", "1")
		if id := c.last(); id != "" {
			t.Errorf("the client has got the id %q", id)
		}
		c = back(s, join, "topic=a", realtime.Oldest)
		publish(t, hub, "a", "2")
		expect(t, c, "2")
		if st := hub.Stats(); st.Resets != 1 {
			t.Errorf("%d resets, want 1", st.Resets)
		}
	})
}

// A plain WebSocket client resumes with an id that it has from elsewhere, and
// gets nothing but data.
func TestResumePlain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := newPipeSite(t, hub)
		l := s.listen("topic=a")
		publish(t, hub, "a", "1")
		expect(t, l, "1")
		publish(t, hub, "a", "2")
		publish(t, hub, "a", "3")
		conn := s.connectAs("topic=a&lastEventId=" + l.last())
		if got := read(t, conn) + read(t, conn); got != "23" {
			t.Errorf("got %q, want 2 and 3", got)
		}
		conn = s.connectAs("topic=a&lastEventId=nonsense")
		publish(t, hub, "a", "4")
		if got := read(t, conn); got != "4" {
			t.Errorf("got %q, want 4", got)
		}
		if st := hub.Stats(); st.Resumed != 1 || st.Resets != 1 {
			t.Errorf("Stats() = %+v, want one resumed and one reset", st)
		}
	})
}

// Events that are published while OnConnect takes its time are in the replay
// as well, and arrive once; so do those that OnConnect sends.
func TestResumeDuringOnConnect(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 3
		id := ""
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			c.Send([]byte("hello"))
			c.Subscribe("a")
			if r.URL.Query().Get("lastEventId") != "" {
				for i := range 6 { // more than the history keeps
					publish(t, hub, []string{"a", "b"}[i%2], fmt.Sprint("during ", i))
					c.Subscribe("b")
				}
				c.Send([]byte("welcome"))
			}
			return nil
		}
		s := newPipeSite(t, hub)
		c := join(s, "")
		publish(t, hub, "a", "1")
		expect(t, c, "hello", "1")
		id = c.last()
		c.cut()
		c = back(s, join, "", id)
		publish(t, hub, "a", "after")
		expect(t, c, "hello", "welcome", "during 0", "during 1", "during 2", "during 3", "during 4", "during 5", "after")
	})
}

// A client that OnConnect closes may have a live event already. What it missed
// before that must come first: its next id would say that it has it.
func TestCloseInOnConnect(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 100}
		during := func(*realtime.Client) {}
		hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
			err := c.Subscribe("a")
			during(c)
			return err
		}
		s := newPipeSite(t, hub)
		c := join(s, "")
		publish(t, hub, "a", "1")
		expect(t, c, "1")
		id := c.last()
		c.cut()
		synctest.Wait()
		publish(t, hub, "a", "2")
		during = func(client *realtime.Client) {
			publish(t, hub, "a", "3")
			synctest.Wait()
			client.Close(4000, "")
			publish(t, hub, "a", "4")
		}
		c = back(s, join, "", id)
		expect(t, c, "2", "3")
		if ev, err := c.event(); err == nil {
			t.Errorf("got %q behind the close", ev.data)
		}
		id = c.last()
		c.cut()
		synctest.Wait()
		during = func(*realtime.Client) {}
		expect(t, back(s, join, "", id), "4")
	})
}

// Who comes back often, while publishers go on, gets each event once, in order.
func TestExactlyOnce(t *testing.T) {
	t.Parallel()
	const publishers, events, clients = 3, 400, 4
	test := func(t *testing.T, s *site, join func(*site, string) resumer) {
		hub := s.hub
		var publishing, reading sync.WaitGroup
		start := make(chan struct{})
		for p := range publishers {
			publishing.Go(func() {
				<-start
				for i := range events {
					data := fmt.Sprintf("%d %d", p, i)
					if i%4 == 0 {
						hub.Broadcast <- []byte(data)
						hub.PublishAll(context.Background(), realtime.Event{Data: []byte("flush"), Except: "nobody"})
					} else {
						publish(t, hub, fmt.Sprint("topic", i%4), data)
					}
					if rand.IntN(4) == 0 {
						time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
					}
				}
			})
		}
		var joined sync.WaitGroup
		joined.Add(clients)
		for range clients {
			reading.Go(func() {
				const query = "topic=topic1&topic=topic2&topic=topic3"
				c := join(s, query)
				for c.last() == "" { // the position, or an event, whichever comes first
					if ev, err := c.event(); err != nil || ev.data != "first" {
						t.Errorf("first event: %v, %v", ev, err)
						joined.Done()
						return
					}
				}
				joined.Done()
				var next [publishers]int
				for left := publishers * events; left > 0; {
					if rand.IntN(40) == 0 {
						id := c.last()
						c.cut()
						c = back(s, join, query, id)
					}
					ev, err := c.event()
					if err != nil || ev.name == "reset" {
						t.Errorf("%v, %v", ev, err)
						return
					}
					who, i, ok := strings.Cut(ev.data, " ")
					if !ok {
						continue
					}
					p, _ := strconv.Atoi(who)
					if n, _ := strconv.Atoi(i); n != next[p] {
						t.Errorf("got %d of publisher %d, want %d", n, p, next[p])
						return
					}
					next[p]++
					left--
				}
				c.cut()
			})
		}
		go func() {
			joined.Wait()
			close(start)
		}()
		for waiting := true; waiting; { // whoever has joined gets the next
			hub.Broadcast <- []byte("first")
			select {
			case <-start:
				waiting = false
			case <-time.After(50 * time.Millisecond):
			}
		}
		publishing.Wait()
		reading.Wait()
	}
	for name, join := range transports {
		t.Run(name+" over pipes", func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.History = realtime.History{Events: publishers * events * 2}
				test(t, newPipeSite(t, hub), join)
			})
		})
		t.Run(name+" over TCP", func(t *testing.T) {
			t.Parallel()
			hub := realtime.NewHub()
			hub.SlowAfter = time.Minute // nobody is, but on a busy machine
			hub.History = realtime.History{Events: publishers * events * 2}
			test(t, newTCPSite(t, hub), join)
		})
	}
}

// A replay that is longer than SendBuffer doesn't make its client slow.
func TestLongReplay(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.SendBuffer = 4
		hub.History = realtime.History{Events: 1000} // more than 64 times SendBuffer
		s := newPipeSite(t, hub)
		c := join(s, "topic=a")
		publish(t, hub, "a", "first")
		expect(t, c, "first")
		id := c.last()
		c.cut()
		synctest.Wait()
		for i := range 1000 {
			publish(t, hub, "a", fmt.Sprint(i))
		}
		c = back(s, join, "topic=a", id)
		time.Sleep(5 * time.Second) // of a reader that is slow indeed
		for i := range 4 {
			publish(t, hub, "a", fmt.Sprint("live ", i))
		}
		for i := range 1000 {
			expect(t, c, fmt.Sprint(i))
			if i%100 == 0 {
				time.Sleep(300 * time.Millisecond)
			}
		}
		expect(t, c, "live 0", "live 1", "live 2", "live 3")
		if st := hub.Stats(); st.SlowClients != 0 {
			t.Errorf("Stats() = %+v, want no slow client", st)
		}
	})
}

// Who subscribes gets the newest of each Key first.
func TestLatestValues(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 100
		client := byName(hub)
		s := newPipeSite(t, hub)
		set := func(topic, key, data string) {
			t.Helper()
			if err := hub.Publish(t.Context(), topic, realtime.Event{Key: key, Data: []byte(data)}); err != nil {
				t.Fatal(err)
			}
		}
		set("a", "x", "x1")
		set("a", "y", "y1")
		set("a", "", "news")
		set("b", "x", "other x1")
		set("a", "x", "x2")
		c := join(s, "name=c&topic=a")
		expect(t, c, "y1", "x2")
		set("a", "y", "y2")
		expect(t, c, "y2")

		// Also of topics that come later, whose ids are older than what it saw.
		id := c.last()
		if err := client("c").Subscribe("b", "a"); err != nil {
			t.Error(err)
		}
		expect(t, c, "other x1")
		if c.last() != id {
			t.Errorf("the last id went from %s to %s", id, c.last())
		}

		// Who comes back has them, and gets what it has missed instead.
		c.cut()
		set("a", "x", "x3")
		set("a", "x", "x4")
		set("a", "", "more news")
		c = back(s, join, "name=c&topic=a", id)
		set("a", "x", "x5")
		var got []string
		for len(got) == 0 || got[len(got)-1] != "x5" {
			ev, err := c.event()
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, ev.data)
		}
		if s := fmt.Sprint(got); s != "[x4 more news x5]" && s != "[more news x5]" {
			t.Errorf("got %s", s)
		}

		// Who has lost the thread starts anew.
		c = back(s, join, "name=c&topic=a", "lost")
		expect(t, c, "reset", "y2", "x5")
	})
}

// A page never starts older than what is live.
func TestLatestValueIsNotOlderThanLive(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		s := newPipeSite(t, hub)
		ctx, stop := context.WithCancel(t.Context())
		hub.Publish(ctx, "a", realtime.Event{Key: "k", Data: []byte("0")})
		var publishing sync.WaitGroup
		defer publishing.Wait()
		defer stop()
		publishing.Go(func() {
			for i := 1; ctx.Err() == nil; i++ {
				hub.Publish(ctx, "a", realtime.Event{Key: "k", Data: fmt.Append(nil, i)})
				time.Sleep(time.Microsecond)
			}
		})
		for range 50 {
			c := join(s, "topic=a")
			last := -1
			for range 20 {
				ev, err := c.event()
				n, _ := strconv.Atoi(ev.data)
				if err != nil || n <= last {
					t.Fatalf("got %q, %v after %d", ev.data, err, last)
				}
				last = n
			}
			c.cut()
		}
	})
}

// Clients of quiet topics are not reset because others are forgotten, however
// rare pings are and however soon it is.
func TestNoFalseReset(t *testing.T) {
	for name, set := range map[string]func(*realtime.Hub){
		"without pings":  func(hub *realtime.Hub) { hub.PingInterval, hub.History.Events = -1, 100 },
		"short memories": func(hub *realtime.Hub) { hub.History.Age = 30 * time.Second },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				set(hub)
				s := newPipeSite(t, hub)
				l := s.listen("topic=quiet")
				go l.event()
				for i := range 470 {
					publish(t, hub, fmt.Sprint(i), "x")
					time.Sleep(time.Second)
				}
				synctest.Wait()
				l.cut()
				publish(t, hub, "quiet", "missed")
				expect(t, s.listen("topic=quiet&lastEventId="+l.lastID), "missed")
			})
		})
	}
}

// A hub that shuts down, or floods a client, while OnConnect subscribes it
// doesn't answer as if OnConnect had refused it: a browser would give up.
func TestSubscribeInOnConnectDuringShutdown(t *testing.T) {
	t.Run("subscribes", func(t *testing.T) {
		testOnConnectDuringShutdown(t, func(c *realtime.Client) error { return c.Subscribe("a") })
	})
	t.Run("lets it in", func(t *testing.T) {
		testOnConnectDuringShutdown(t, func(*realtime.Client) error { return nil })
	})
}

func testOnConnectDuringShutdown(t *testing.T, late func(c *realtime.Client) error) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.History.Events = 10
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			<-c.Context().Done()
			return late(c)
		}
		s := newPipeSite(t, hub)
		go func() {
			time.Sleep(time.Second)
			hub.Shutdown(context.Background())
		}()
		answers := make(chan string, 2)
		go func() {
			l := s.request("GET", "", "Accept: text/event-stream")
			answers <- l.resp.Status
		}()
		go func() {
			_, resp, _ := websocket.Dial(context.Background(), s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
			answers <- resp.Status
		}()
		got := []string{<-answers, <-answers}
		slices.Sort(got)
		if want := []string{"200 OK", "503 Service Unavailable"}; !slices.Equal(got, want) {
			t.Errorf("answered %q, want %q", got, want)
		}
	})
}
