package realtime_test

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// What is published to a topic reaches whoever has it, over whichever
// transport. OnConnect decides who may have what.
func ExampleHub_Publish() {
	hub := realtime.NewHub()
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		return c.Subscribe("match/" + r.URL.Query().Get("match"))
	}
	server := httptest.NewServer(hub) // both transports at one URL
	defer server.Close()
	defer hub.Shutdown(context.Background())

	phone := dial(server.URL + "?match=42") // new WebSocket(…)
	defer phone.CloseNow()
	laptop := eventSource(server.URL+"?match=42", "") // new EventSource(…)
	defer laptop.Close()

	ctx := context.Background()
	hub.Publish(ctx, "match/7", realtime.Event{Name: "goal", Data: []byte("0:1")})
	hub.Publish(ctx, "match/42", realtime.Event{Name: "goal", Data: []byte("1:0")})

	fmt.Println("WebSocket:", receive(phone))
	fmt.Println("event stream:", laptop.next())
	// Output:
	// WebSocket: 1:0
	// event stream: event: goal, data: 1:0
}

// An event with a value as JSON.
func ExampleJSON() {
	hub := realtime.NewHub()
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := eventSource(server.URL+"?topic=prices", "")
	defer browser.Close()
	e, err := realtime.JSON("price", map[string]float64{"ACME": 103.5})
	if err != nil {
		fmt.Println(err) // a value that JSON can't express, as a channel
		return
	}
	e.Key = "ACME" // only the latest counts
	hub.Publish(context.Background(), "prices", e)
	fmt.Println(browser.next())
	// Output: event: price, data: {"ACME":103.5}
}

// A user who logs out is disconnected everywhere: on each device, in each tab,
// and on each node.
func ExampleHub_Disconnect() {
	hub := realtime.NewHub()
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		user := r.URL.Query().Get("user") // or of a session: see SECURITY.md
		return c.Subscribe("user/" + user)
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	phone, laptop := dial(server.URL+"?user=ada"), dial(server.URL+"?user=ada")
	defer phone.CloseNow()
	defer laptop.CloseNow()
	bob := dial(server.URL + "?user=bob")
	defer bob.CloseNow()

	ctx := context.Background()
	hub.Disconnect(ctx, "user/ada", 3000, "logged out")

	for _, conn := range []*websocket.Conn{phone, laptop} {
		_, _, err := conn.Read(ctx)
		fmt.Printf("Ada: %d\n", websocket.CloseStatus(err))
	}
	hub.Broadcast <- []byte("hello")
	fmt.Println("Bob:", receive(bob))
	// Output:
	// Ada: 3000
	// Ada: 3000
	// Bob: hello
}

// A cache that has to be told, without a client: it hears what any node
// publishes, from the moment Listen has returned.
func ExampleHub_Listen() {
	hub := realtime.NewHub()
	defer hub.Shutdown(context.Background())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	changes := hub.Listen(ctx, "prices")
	hub.Publish(ctx, "prices", realtime.Event{Key: "tea", Data: []byte("2.80")})
	hub.Publish(ctx, "prices", realtime.Event{Key: "milk", Data: []byte("1.20")})

	cache := make(map[string]string)
	for ev, err := range changes {
		if err != nil {
			fmt.Println(err) // the cache is out of date: listen again
			break
		}
		cache[ev.Key] = string(ev.Data)
		if len(cache) == 2 {
			break
		}
	}
	fmt.Println(cache)
	// Output: map[milk:1.20 tea:2.80]
}

// An event stream of a hub by a handler of one line. The browser's EventSource
// reads it and comes back by itself.
func ExampleHub_ServeSSE() {
	hub := realtime.NewHub()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /events", hub.ServeSSE)
	server := httptest.NewServer(mux)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := eventSource(server.URL+"/events", "")
	defer browser.Close()
	hub.Broadcast <- []byte("hello")
	fmt.Println(browser.next())
	// Output: data: hello
}

// A client that comes back gets what it has missed: a browser's EventSource
// sends the id of the last event it saw.
func ExampleHistory() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 1000} // of each topic, for 5 minutes
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := eventSource(server.URL, "")
	hub.Broadcast <- []byte("one")
	fmt.Println(browser.next())
	browser.Close() // a tunnel

	hub.Broadcast <- []byte("two")
	hub.Broadcast <- []byte("three")

	browser = eventSource(server.URL, browser.lastEventID)
	defer browser.Close()
	fmt.Println(browser.next())
	fmt.Println(browser.next())
	// Output:
	// data: one
	// data: two
	// data: three
}

// A dashboard wants the latest value, not each of them: it gets it first, and a
// newer one takes the place of an older one that still waits.
func ExampleEvent_key() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	ctx := context.Background()
	for _, price := range []string{"101", "102", "103"} {
		hub.Publish(ctx, "prices", realtime.Event{Name: "ACME", Key: "ACME", Data: []byte(price)})
	}
	browser := eventSource(server.URL+"?topic=prices", "") // there is no OnConnect to object
	defer browser.Close()
	fmt.Println(browser.next())
	// Output: event: ACME, data: 103
}

// A page gets its state from a handler, and connects with the position that came
// with it. What is published in between is not lost.
func ExampleHub_Position() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	var score atomic.Int64
	mux := http.NewServeMux()
	mux.Handle("GET /live", hub)
	mux.HandleFunc("GET /match", func(w http.ResponseWriter, r *http.Request) {
		position := hub.Position() // before the state is loaded
		fmt.Fprintln(w, position, score.Load())
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	goal := func() {
		n := score.Add(1) // before it is published
		hub.Publish(context.Background(), "match", realtime.Event{Data: fmt.Append(nil, n)})
	}
	goal()
	resp, err := http.Get(server.URL + "/match")
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	var position string
	var shown int
	fmt.Fscan(resp.Body, &position, &shown)
	fmt.Println("the page shows", shown)
	goal() // before the page connects

	browser := eventSource(server.URL+"/live?topic=match&lastEventId="+position, "")
	defer browser.Close()
	fmt.Println(browser.next())
	// Output:
	// the page shows 1
	// data: 2
}

// A page that opens a chat room gets the last messages of the room, and then the
// new ones.
func ExampleClient_SubscribeFrom() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 50} // of each room
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		room := "room/" + r.URL.Query().Get("room")
		if realtime.LastEventID(r) != "" {
			return c.Subscribe(room) // it reconnects, and has the messages before
		}
		return c.SubscribeFrom(realtime.Oldest, room)
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	ctx := context.Background()
	hub.Publish(ctx, "room/go", realtime.Event{Data: []byte("hello")})
	hub.Publish(ctx, "room/go", realtime.Event{Data: []byte("hello yourself")})
	browser := eventSource(server.URL+"?room=go", "")
	defer browser.Close()
	fmt.Println(browser.next())
	fmt.Println(browser.next())
	// Output:
	// data: hello
	// data: hello yourself
}

// A page opens and closes chat rooms while it is connected, and OnSubscribe knows
// who may read which. In the page that is live.subscribe("room/go", …).
func ExampleHub_OnSubscribe() {
	hub := realtime.NewHub()
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		c.Set("user", r.URL.Query().Get("user")) // in earnest from the session
		return nil
	}
	hub.OnSubscribe = func(c *realtime.Client, topic string) error {
		if user, _ := c.Get("user"); topic == "room/staff" && user != "Ann" {
			return realtime.Refuse(http.StatusForbidden, "for the staff")
		}
		return nil
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	// What realtime.js sends and gets.
	ctx := context.Background()
	page, _, err := websocket.Dial(ctx, server.URL+"?user=Bob", &websocket.DialOptions{Subprotocols: []string{realtime.Subprotocol}})
	if err != nil {
		panic(err)
	}
	defer page.CloseNow()
	page.Read(ctx) // its id
	page.Write(ctx, websocket.MessageText, []byte(`{"realtime":{"subscribe":["room/go","room/staff"]}}`))
	for range 2 {
		_, data, _ := page.Read(ctx)
		fmt.Println(string(data))
	}
	hub.Publish(ctx, "room/go", realtime.Event{Data: []byte("hello")})
	_, data, _ := page.Read(ctx)
	fmt.Println(string(data))
	// Output:
	// {"topic":"room/staff","refused":{"code":4403,"reason":"for the staff","final":true}}
	// {"subscribed":["room/go"]}
	// {"topic":"room/go","data":"hello"}
}

// A client may take and leave topics at any time.
func ExampleClient_Subscribe() {
	hub := realtime.NewHub()
	done := make(chan struct{})
	hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) {
		switch verb, topic, _ := strings.Cut(string(msg.Data), " "); verb {
		case "join":
			msg.Client.Subscribe(topic)
		case "leave":
			msg.Client.Unsubscribe(topic)
		}
		fmt.Println(msg.Client.Topics())
		done <- struct{}{}
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := dial(server.URL)
	defer browser.CloseNow()
	for _, text := range []string{"join news", "join sports", "leave news"} {
		send(browser, text)
		<-done
	}
	fmt.Println(len(slices.Collect(hub.Subscribers("sports"))), "for sports")
	// Output:
	// [news]
	// [news sports]
	// [sports]
	// 1 for sports
}

// An event passes its sender over, who knows already.
func ExampleEvent_except() {
	hub := realtime.NewHub()
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		hub.PublishAll(msg.Client.Context(), realtime.Event{Data: msg.Data, Except: msg.Client.ID()})
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	ada, bob := dial(server.URL), dial(server.URL)
	defer ada.CloseNow()
	defer bob.CloseNow()
	send(ada, "hello")
	fmt.Println("Bob got", receive(bob))
	send(bob, "hello yourself")
	fmt.Println("Ada got", receive(ada))
	// Output:
	// Bob got hello
	// Ada got hello yourself
}

// A source stands for a browser's EventSource.
type source struct {
	resp        *http.Response
	lines       *bufio.Scanner
	lastEventID string
}

func eventSource(url, lastEventID string) *source {
	req, _ := http.NewRequest("GET", url, nil)
	req.Header.Set("Accept", "text/event-stream")
	if lastEventID != "" {
		req.Header.Set("Last-Event-ID", lastEventID)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		panic(err)
	}
	return &source{resp: resp, lines: bufio.NewScanner(resp.Body)}
}

func (s *source) Close() { s.resp.Body.Close() }

// next returns the next event that a page listens for, but for its id.
func (s *source) next() string {
	var fields []string
	for s.lines.Scan() {
		switch field, value, _ := strings.Cut(s.lines.Text(), ": "); field {
		case "":
			if len(fields) > 0 && fields[0] != "event: realtime.position" {
				return strings.Join(fields, ", ")
			}
			fields = nil
		case "id":
			s.lastEventID = value
		case "event", "data":
			fields = append(fields, s.lines.Text())
		}
	}
	return "the end"
}

// The newest event of each Key stays, so a page has the whole board at once. An
// event that is Gone takes a value away.
func ExampleHub_Latest() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	defer hub.Shutdown(context.Background())

	ctx := context.Background()
	hub.Publish(ctx, "stocks", realtime.Event{Key: "ACME", Data: []byte("10.00")})
	hub.Publish(ctx, "stocks", realtime.Event{Key: "XYZ", Data: []byte("7.00")})
	hub.Publish(ctx, "stocks", realtime.Event{Key: "ACME", Data: []byte("10.50")})
	hub.Publish(ctx, "stocks", realtime.Event{Key: "XYZ", Gone: true})

	for e := range hub.Latest("stocks") {
		fmt.Println(e.Key, string(e.Data))
	}
	// Output: ACME 10.50
}

// A page shows who is in a room: each user once, however many tabs are open.
// The room's clients get an event for each change, and the whole list when they
// come.
func ExampleClient_Appear() {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		if err := c.Subscribe("room/7"); err != nil {
			return err
		}
		return c.Appear("room/7", r.URL.Query().Get("user"), map[string]string{"status": "here"})
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	tab := eventSource(server.URL+"/?user=ann", "")
	defer tab.Close()
	another := eventSource(server.URL+"/?user=ann", "")
	defer another.Close()
	fmt.Println(tab.next())
	for m := range hub.Members("room/7") {
		fmt.Println("member:", m.Key, string(m.Data))
	}
	// Output:
	// event: presence, data: {"key":"ann","data":{"status":"here"}}
	// member: ann {"status":"here"}
}
