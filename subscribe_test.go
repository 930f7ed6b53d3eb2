package realtime_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// A page is a client of realtime.v1, over either transport.
type page struct {
	t    *testing.T
	conn *websocket.Conn // nil: an event stream
	l    *listener
	last string // its last id
}

// pages are the ways to be one.
var pages = map[string]func(t *testing.T, s *site, query string) *page{
	"WebSocket": func(t *testing.T, s *site, query string) *page {
		return &page{t: t, conn: s.connectAs(query, realtime.Subprotocol)}
	},
	"event stream": func(t *testing.T, s *site, query string) *page {
		return &page{t: t, l: s.listen(query + "&protocol=" + realtime.Subprotocol)}
	},
}

// eachPage runs test in a bubble for each of them.
func eachPage(t *testing.T, test func(t *testing.T, join func(t *testing.T, s *site, query string) *page)) {
	for name, join := range pages {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, join) })
		})
	}
}

// next returns the next object that isn't a heartbeat or a position, as text.
func (p *page) next() string {
	p.t.Helper()
	for {
		var data []byte
		var err error
		if p.conn != nil {
			ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
			_, data, err = p.conn.Read(ctx)
			cancel()
		} else {
			p.l.conn.SetReadDeadline(time.Now().Add(time.Minute))
			var ev heard
			ev, err = p.l.event()
			data = []byte(ev.data)
		}
		if err != nil {
			return fmt.Sprint("end ", websocket.CloseStatus(err))
		}
		var o struct {
			ID, Topic                string
			Data                     *string
			Reset                    bool
			Subscribed, Unsubscribed []string
			Refused                  *struct {
				Code   int
				Reason string
				Final  bool
				Retry  int
			}
		}
		if err := json.Unmarshal(data, &o); err != nil {
			p.t.Fatalf("%s: %v", data, err)
		}
		if o.ID != "" {
			p.last = o.ID
		}
		switch {
		case o.Reset:
			return strings.TrimSpace("reset " + o.Topic)
		case o.Subscribed != nil:
			return "subscribed " + strings.Join(o.Subscribed, ",")
		case o.Unsubscribed != nil:
			return "unsubscribed " + strings.Join(o.Unsubscribed, ",")
		case o.Refused != nil:
			text := fmt.Sprint("refused ", o.Topic, " ", o.Refused.Code, " ", o.Refused.Reason)
			if o.Refused.Final {
				text += " final"
			}
			if o.Refused.Retry > 0 {
				text += " later"
			}
			return text
		case o.Data != nil:
			return o.Topic + ":" + *o.Data
		}
	}
}

func (p *page) expect(want ...string) {
	p.t.Helper()
	for i, w := range want {
		if got := p.next(); got != w {
			p.t.Fatalf("object %d is %q, want %q", i, got, w)
		}
	}
}

// ask sends a control message.
func (p *page) ask(verb string, topics ...string) {
	p.t.Helper()
	write(p.t, p.conn, fmt.Sprintf(`{"realtime":{%q:[%s]}}`, verb, quoted(topics)))
}

func quoted(topics []string) string {
	var all []string
	for _, topic := range topics {
		all = append(all, fmt.Sprintf("%q", topic))
	}
	return strings.Join(all, ",")
}

func (p *page) cut() {
	if p.conn != nil {
		p.conn.CloseNow()
	} else {
		p.l.cut()
	}
	synctest.Wait()
}

// returns joins the page again: with its last id, with the topics that it has, and
// with those that are new to it.
func (p *page) returns(join func(t *testing.T, s *site, query string) *page, s *site, topics, fresh []string) *page {
	query := url.Values{"topic": slices.Concat(topics, fresh), "new": fresh}
	if p.last != "" {
		query.Set("lastEventId", p.last)
	}
	q := join(p.t, s, query.Encode())
	q.last = p.last
	return q
}

// value publishes the latest value of a key.
func value(t *testing.T, hub *realtime.Hub, topic, key, data string) {
	t.Helper()
	if err := hub.Publish(t.Context(), topic, realtime.Event{Key: key, Data: []byte(data)}); err != nil {
		t.Fatal(err)
	}
}

// hubs are the ways to keep the order of events, and what was before.
var hubs = map[string]func(hub *realtime.Hub){
	"no history": func(*realtime.Hub) {},
	"history":    func(hub *realtime.Hub) { hub.History = realtime.History{Events: 100} },
	"broker": func(hub *realtime.Hub) {
		hub.History, hub.Broker = realtime.History{Events: 100}, brokertest.NewMemory().Broker()
	},
	"history broker": func(hub *realtime.Hub) {
		hub.History, hub.Broker = realtime.History{Events: 100}, brokertest.NewMemory().HistoryBroker()
	},
}

// A page subscribes topics over its WebSocket and leaves them. Each begins as for a
// new client.
func TestSubscribeByMessage(t *testing.T) {
	for name, setup := range hubs {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				setup(hub)
				hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return c.Subscribe("own") }
				var asked []string
				hub.OnSubscribe = func(c *realtime.Client, topic string) error {
					asked = append(asked, topic)
					return nil
				}
				s := newPipeSite(t, hub)
				p := pages["WebSocket"](t, s, "")
				synctest.Wait()
				value(t, hub, "a", "k", "1")
				synctest.Wait() // with a HistoryBroker it comes from there
				p.ask("subscribe", "a", "own", "a", "b")
				if name != "no history" {
					p.expect("a:1")
				}
				p.expect("subscribed a,b,own")
				if !slices.Equal(asked, []string{"a", "b"}) {
					t.Errorf("OnSubscribe was asked about %q, want a and b", asked)
				}
				publish(t, hub, "a", "2")
				publish(t, hub, "own", "3")
				p.expect("a:2", "own:3")

				publish(t, hub, "a", "last")
				synctest.Wait()
				p.ask("unsubscribe", "a", "own", "never had")
				p.expect("a:last", "unsubscribed a,own,never had")
				publish(t, hub, "a", "4")
				publish(t, hub, "own", "5") // it is OnConnect's
				p.expect("own:5")

				p.ask("subscribe", "a")
				if name != "no history" {
					p.expect("a:1")
				}
				p.expect("subscribed a")
				p.ask("subscribe", "a") // it begins again
				if name != "no history" {
					p.expect("a:1")
				}
				p.expect("subscribed a")
				publish(t, hub, "a", "6")
				p.expect("a:6")
				for c := range hub.Clients() {
					if got := c.Topics(); !slices.Equal(got, []string{"a", "b", "own"}) {
						t.Errorf("the client has %q", got)
					}
				}
			})
		})
	}
}

// A page that comes back resumes on the topics that it has, whether its id is
// final or not. Those that are new to it begin as for a new client, also if
// OnConnect subscribes them.
func TestSubscribedTopicsResume(t *testing.T) {
	for name, setup := range hubs {
		if name == "no history" {
			continue
		}
		for _, decides := range []string{"OnSubscribe", "OnConnect", "nobody"} {
			for _, settled := range []bool{false, true} {
				t.Run(fmt.Sprint(name, ", ", decides, " decides, final id ", settled), func(t *testing.T) {
					eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
						hub := realtime.NewHub()
						setup(hub)
						switch decides {
						case "OnSubscribe":
							hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return nil }
							hub.OnSubscribe = func(*realtime.Client, string) error { return nil }
						case "OnConnect":
							byName(hub)
						}
						s := newPipeSite(t, hub)
						p := join(t, s, "topic=a")
						synctest.Wait()
						publish(t, hub, "a", "1")
						p.expect("a:1")
						publish(t, hub, "b", "before")
						value(t, hub, "b", "k", "2")
						value(t, hub, "b", "k", "3")
						publish(t, hub, "a", "4")
						p.expect("a:4")

						if p.conn != nil && decides != "OnConnect" {
							p.ask("subscribe", "b")
						} else {
							p.cut()
							publish(t, hub, "a", "meanwhile")
							synctest.Wait() // with a HistoryBroker it comes from there
							p = p.returns(join, s, []string{"a"}, []string{"b"})
						}
						p.expect("b:3")
						if p.conn == nil || decides == "OnConnect" {
							p.expect("a:meanwhile")
						}
						p.expect("subscribed b")
						if settled {
							time.Sleep(15 * time.Second)
							publish(t, hub, "b", "5")
							p.expect("b:5")
						}
						if strings.HasSuffix(p.last, "~") == settled {
							t.Errorf("the id at last is %q", p.last)
						}
						p.cut()
						publish(t, hub, "b", "6")
						publish(t, hub, "a", "7")
						value(t, hub, "b", "k", "8")
						p = p.returns(join, s, []string{"a", "b"}, nil)
						p.expect("b:6", "a:7", "b:8")

						// It hasn't been told, so it says that the topic is new.
						p.cut()
						p = p.returns(join, s, []string{"a"}, []string{"b"})
						p.expect("b:8", "subscribed b")
						if st := hub.Stats(); st.Resets != 0 {
							t.Errorf("there were %d resets", st.Resets)
						}
					})
				})
			}
		}
	}
}

// A page is told that it has a topic when it has all of it, and of those replays
// that the topic's waits for.
func TestSubscribedComesBehindReplay(t *testing.T) {
	eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 1000}
		realtime.StartWithParts(hub, 3)
		s := newPipeSite(t, hub)
		p := join(t, s, "topic=a")
		synctest.Wait()
		publish(t, hub, "a", "first")
		p.expect("a:first")
		p.cut()
		var want []string
		for i := range 20 {
			value(t, hub, "b", fmt.Sprint(i), fmt.Sprint(i))
			want = append(want, fmt.Sprint("b:", i))
		}
		for i := range 20 {
			publish(t, hub, "a", fmt.Sprint(i))
			want = append(want, fmt.Sprint("a:", i))
		}
		p = p.returns(join, s, []string{"a"}, []string{"b"})
		p.expect(append(want, "subscribed b")...)

		if p.conn == nil {
			return
		}
		before := p.last
		p.ask("subscribe", "c", "b")
		synctest.Wait() // its replay waits for the page
		publish(t, hub, "b", "live")
		p.expect(want[:20]...)
		p.expect("b:live", "subscribed b,c")
		if p.last == before {
			t.Error("the id at which the topic was complete wasn't told")
		}
	})
}

// A page that is cut off within the replay of a topic that it subscribed says that
// it is new, and gets all of it again.
func TestSubscribeCutOff(t *testing.T) {
	eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 1000}
		realtime.StartWithParts(hub, 2)
		s := newPipeSite(t, hub)
		p := join(t, s, "topic=a")
		synctest.Wait()
		publish(t, hub, "a", "1")
		p.expect("a:1")
		p.cut()
		var want []string
		for i := range 9 {
			value(t, hub, "b", fmt.Sprint(i), fmt.Sprint(i))
			want = append(want, fmt.Sprint("b:", i))
		}
		for seen := range want {
			p = p.returns(join, s, []string{"a"}, []string{"b"})
			p.expect(want[:seen]...)
			publish(t, hub, "a", fmt.Sprint("live ", seen))
			p.cut()
		}
		p = p.returns(join, s, []string{"a"}, []string{"b"})
		p.expect(want...)
		for seen := range want {
			p.expect(fmt.Sprint("a:live ", seen))
		}
		p.expect("subscribed b")
	})
}

// Each error of OnSubscribe refuses its topic alone.
func TestSubscribeRefused(t *testing.T) {
	var logged safeBuffer
	answers := map[string]error{
		"a": nil,
		"b": errors.New("secret"),
		"c": realtime.Refuse(401, "sign in first"),
		"d": realtime.Refuse(503, "busy"),
		"e": realtime.RefuseFor(time.Minute, 429, ""),
		"f": fmt.Errorf("secret: %w", realtime.ErrBrokerUnavailable),
	}
	eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
		hub := realtime.NewHub()
		hub.Logger = textLogger(&logged)
		hub.OnSubscribe = func(_ *realtime.Client, topic string) error { return answers[topic] }
		s := newPipeSite(t, hub)
		p := join(t, s, "topic=&topic="+strings.Join(slices.Collect(maps.Keys(answers)), "&topic="))
		check := func(more ...string) {
			t.Helper()
			want := append(more, "refused b 4403 Forbidden final", "refused c 4401 sign in first final", "refused d 4503 busy later",
				"refused e 4429  later", "refused f 4503 try again later later",
				"refused  4400 realtime: the empty string is not a topic: PublishAll publishes to all clients final")
			var got []string
			for range want {
				got = append(got, p.next())
			}
			slices.Sort(got)
			if slices.Sort(want); !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
		check()
		publish(t, hub, "b", "no")
		publish(t, hub, "a", "yes")
		p.expect("a:yes")
		if p.conn != nil {
			p.ask("subscribe", "a", "b", "c", "d", "e", "f", "")
			check("subscribed a")
			publish(t, hub, "a", "still")
			p.expect("a:still")
		}
		if st := hub.Stats(); st.Clients != 1 || st.Refused != 0 {
			t.Errorf("Stats() = %+v, want one client and none refused", st)
		}
		hub.Shutdown(t.Context())
		if got := logged.String(); !strings.Contains(got, "topic refused by OnSubscribe") || !strings.Contains(got, "secret") || strings.Contains(got, "sign in") {
			t.Errorf("the log has %q", got)
		}

		// A client that can't be told about a topic is refused as a whole.
		hub = realtime.NewHub()
		hub.OnSubscribe = func(_ *realtime.Client, topic string) error { return answers[topic] }
		s = newPipeSite(t, hub)
		for query, status := range map[string]int{"topic=a": 200, "topic=a&topic=b": 403, "topic=c&topic=a": 401, "topic=e": 429} {
			if got := s.request("GET", query, "Accept: text/event-stream").resp.StatusCode; got != status {
				t.Errorf("%s answered %d, want %d", query, got, status)
			}
		}
	})
}

// Where OnConnect alone decides, a page gets no topic by itself.
func TestSubscribeUninvited(t *testing.T) {
	eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return c.Subscribe("own") }
		s := newPipeSite(t, hub)
		p := join(t, s, "topic=secret&topic=own&new=own&new=secret")
		p.expect("refused secret 4403 Forbidden final", "subscribed own")
		if p.conn != nil {
			p.ask("subscribe", "secret", "own")
			p.expect("refused secret 4403 Forbidden final", "subscribed own")
		}
		publish(t, hub, "secret", "1")
		publish(t, hub, "own", "2")
		p.expect("own:2")
	})
}

// OnSubscribe may subscribe the topic itself, and show the client there.
func TestSubscribeAndAppear(t *testing.T) {
	eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 100}
		hub.OnSubscribe = func(c *realtime.Client, topic string) error {
			return errors.Join(c.Subscribe(topic), c.Appear(topic, "Ann", nil))
		}
		s := newPipeSite(t, hub)
		p := join(t, s, "topic=a")
		p.expect(`a:{"key":"Ann"}`)
		if p.conn == nil {
			return
		}
		p.ask("subscribe", "b")
		got := []string{p.next(), p.next()} // who is there is announced by another goroutine
		if slices.Sort(got); !slices.Equal(got, []string{`b:{"key":"Ann"}`, "subscribed b"}) {
			t.Errorf("got %q", got)
		}
		p.ask("unsubscribe", "b")
		time.Sleep(time.Minute)
		for m := range hub.Members("b") {
			t.Errorf("%s is still there", m.Key)
		}
	})
}

// A stranger can't have more topics, or ask for more, than the hub allows.
func TestSubscribeLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return c.Subscribe("own") }
		asked := 0
		hub.OnSubscribe = func(*realtime.Client, string) error { asked++; return nil }
		s := newPipeSite(t, hub)
		p := pages["WebSocket"](t, s, "")
		for i := range 99 {
			p.ask("subscribe", fmt.Sprintf("%02d", i))
			p.expect(fmt.Sprintf("subscribed %02d", i))
		}
		p.ask("subscribe", "own", "x", "y", strings.Repeat("z", 1025))
		got := []string{p.next(), p.next(), p.next()}
		slices.Sort(got)
		if got[0] != "refused y 4400 more than 100 topics final" || !strings.HasPrefix(got[1], "refused zzz") || got[2] != "subscribed own,x" {
			t.Errorf("got %q", got)
		}
		p.ask("unsubscribe", "x")
		p.expect("unsubscribed x")
		p.ask("subscribe", "y")
		p.expect("subscribed y")
		if asked != 101 {
			t.Errorf("OnSubscribe was asked %d times, want 101", asked)
		}
		var many []string
		for i := range 101 {
			many = append(many, fmt.Sprint(i))
		}
		for _, query := range []string{"topic=", "topic=a&new="} {
			if got := s.request("GET", query+strings.Join(many, "&"+query), "Accept: text/event-stream").resp.StatusCode; got != 400 {
				t.Errorf("101 times %s: answered %d, want 400", query, got)
			}
		}
	})
}

// A page that asks again and again, and doesn't read the answers, is too slow.
func TestSubscribeRepliesWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 100}
		left := recordLeft(hub)
		s := newPipeSite(t, hub)
		for i := range 100 {
			value(t, hub, "a", fmt.Sprint(i), strings.Repeat("x", 10_000))
		}
		p := pages["WebSocket"](t, s, "topic=b")
		for range 2000 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			err := p.conn.Write(ctx, websocket.MessageText, []byte(`{"realtime":{"subscribe":["a"]}}`))
			cancel()
			if err != nil {
				break
			}
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if left.n != 1 || !errors.Is(left.err, realtime.ErrSlowClient) {
			t.Errorf("OnDisconnect: %d times, with %v; want once, with ErrSlowClient", left.n, left.err)
		}
	})
}

// What begins as a control message but is none closes the page: nobody would
// handle it.
func TestBadControlMessages(t *testing.T) {
	for _, bad := range []string{
		`{"realtime":`, `{"realtime":"subscribe"}`, `{"realtime":{"subscribe":"a"}}`, `{"realtime":{"subscribe":[1]}}`,
		`{"realtime":{"subscribe":["a"]}} x`, `{"realtime":{"unsubscribe":["a"` + strings.Repeat(`,"a"`, 1000) + `]}}`,
	} {
		t.Run(bad[:min(len(bad), 40)], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { t.Errorf("OnMessage got %s", msg.Data) }
				left := recordLeft(hub)
				p := pages["WebSocket"](t, newPipeSite(t, hub), "")
				write(t, p.conn, bad)
				p.expect(fmt.Sprint("end ", websocket.StatusPolicyViolation))
				synctest.Wait()
				if st := hub.Stats(); left.n != 1 || st.Left.Protocol != 1 {
					t.Errorf("OnDisconnect: %d times; Left = %v, want a fault of the protocol", left.n, st.Left)
				}
			})
		})
	}
}

// Control messages are text of realtime.v1, of exactly that form. All else is
// OnMessage's.
func TestControlMessagesAreReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const control = `{"realtime":{"subscribe":["a"]}}`
		hub := realtime.NewHub()
		heard := make(chan string, 3)
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { heard <- string(msg.Data) }
		hub.OnSubscribe = func(_ *realtime.Client, topic string) error {
			t.Errorf("OnSubscribe was asked about %s", topic)
			return nil
		}
		s := newPipeSite(t, hub)
		plain := s.connect()
		write(t, plain, control)
		v1 := s.connectAs("", realtime.Subprotocol)
		if err := v1.Write(t.Context(), websocket.MessageBinary, []byte(control)); err != nil {
			t.Fatal(err)
		}
		spaced := strings.Replace(control, ":", " :", 1)
		write(t, v1, spaced)
		got := []string{<-heard, <-heard, <-heard}
		slices.Sort(got)
		if want := []string{spaced, control, control}; !slices.Equal(got, want) {
			t.Errorf("OnMessage got %q, want %q", got, want)
		}
	})
}

// A panic in OnSubscribe ends its client, and nobody else.
func TestOnSubscribePanics(t *testing.T) {
	eachPage(t, func(t *testing.T, join func(t *testing.T, s *site, query string) *page) {
		hub := realtime.NewHub()
		hub.OnSubscribe = func(_ *realtime.Client, topic string) error {
			if topic == "bad" {
				panic("oops")
			}
			return nil
		}
		s := newPipeSite(t, hub)
		healthy := s.listen("topic=good")
		p := join(t, s, "topic=bad")
		if got := p.next(); p.conn != nil && got != "end StatusCode(4500)" {
			t.Errorf("got %q", got)
		}
		panics := int64(1)
		if p.conn != nil {
			p = join(t, s, "topic=good")
			p.ask("subscribe", "bad")
			p.expect(fmt.Sprint("end ", websocket.StatusInternalError))
			panics++
		}
		synctest.Wait()
		if st := hub.Stats(); st.Panics != panics || st.Clients != 1 {
			t.Errorf("%d panics and %d clients, want %d and 1", st.Panics, st.Clients, panics)
		}
		publish(t, hub, "good", "still here")
		if got := healthy.next(); got != "still here" {
			t.Errorf("another client got %q", got)
		}
	})
}

// OnSubscribe may close its client.
func TestOnSubscribeCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnSubscribe = func(c *realtime.Client, topic string) error { return c.Close(4000, topic) }
		s := newPipeSite(t, hub)
		p := pages["WebSocket"](t, s, "")
		p.ask("subscribe", "a")
		p.expect("end StatusCode(4000)")
		p = pages["WebSocket"](t, s, "topic=a")
		if got := p.next(); !strings.HasPrefix(got, "end ") {
			t.Errorf("got %q, want the end", got)
		}
	})
}

// While the broker is away a page still gets its topics. The messages behind it
// wait, but not for ever.
func TestSubscribeWithoutBroker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		hub := realtime.NewHub()
		hub.Broker = engine.Broker()
		var heard []string
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { heard = append(heard, string(msg.Data)) }
		s := newPipeSite(t, hub)
		p := pages["WebSocket"](t, s, "")
		synctest.Wait()
		engine.Stop()
		began := time.Now()
		p.ask("subscribe", "a", "b")
		write(t, p.conn, "behind")
		p.expect("subscribed a,b")
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it took %v", took)
		}
		synctest.Wait()
		if !slices.Equal(heard, []string{"behind"}) {
			t.Errorf("OnMessage got %q", heard)
		}
		hub.Publish(t.Context(), "a", realtime.Event{Data: []byte("here")}) // other nodes don't get it
		p.expect("a:here")
	})
}

// A page is told that it has left a topic behind the topic's last events.
func TestUnsubscribedComesLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		p := pages["WebSocket"](t, newPipeSite(t, hub), "topic=a")
		synctest.Wait()
		release := realtime.HoldShards(hub)
		publish(t, hub, "a", "last")
		p.ask("unsubscribe", "a")
		synctest.Wait()
		release()
		p.expect("a:last", "unsubscribed a")
	})
}
