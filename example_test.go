package realtime_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A client joins by a handler of one line. It counts as soon as its handshake
// is answered.
func ExampleUpgrade() {
	hub := realtime.NewHub()
	go hub.Run()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ws", func(w http.ResponseWriter, r *http.Request) {
		realtime.Upgrade(w, r, hub)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := dial(server.URL + "/ws")
	defer browser.CloseNow()
	fmt.Println(hub.ClientCount(), "client")
	// Output: 1 client
}

// Broadcast is a channel: send to it from anywhere.
func ExampleHub_broadcast() {
	hub := realtime.NewHub()
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	ada, bob := dial(server.URL), dial(server.URL)
	defer ada.CloseNow()
	defer bob.CloseNow()

	hub.Broadcast <- []byte(`{"type":"update","data":"live score changed"}`)

	fmt.Println("Ada got", receive(ada))
	fmt.Println("Bob got", receive(bob))
	// Output:
	// Ada got {"type":"update","data":"live score changed"}
	// Bob got {"type":"update","data":"live score changed"}
}

// PublishAll is Broadcast with an answer: it can be cut short by its context,
// and it tells when the hub is shut down.
func ExampleHub_PublishAll() {
	hub := realtime.NewHub()
	server := httptest.NewServer(hub)
	defer server.Close()
	browser := dial(server.URL)

	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := hub.PublishAll(ctx, realtime.Event{Data: []byte("hello")})
	fmt.Println(receive(browser), err)

	browser.CloseNow()
	hub.Shutdown(ctx)
	err = hub.PublishAll(ctx, realtime.Event{Data: []byte("anybody?")})
	fmt.Println(errors.Is(err, realtime.ErrHubClosed))
	// Output:
	// hello <nil>
	// true
}

// OnMessage may do anything with a message: broadcast it, or answer its sender
// alone.
func ExampleHub_onMessage() {
	hub := realtime.NewHub()
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		hub.Broadcast <- msg.Data
		msg.Client.Send([]byte(`{"type":"ack"}`))
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	ada, bob := dial(server.URL), dial(server.URL)
	defer ada.CloseNow()
	defer bob.CloseNow()

	ada.Write(context.Background(), websocket.MessageText, []byte("hello"))

	fmt.Println("Bob got", receive(bob))
	answers := []string{receive(ada), receive(ada)} // in no particular order
	fmt.Println("Ada got", len(answers), "messages")
	// Output:
	// Bob got hello
	// Ada got 2 messages
}

// OnConnect decides who may come in, and gives a client its values and its
// first message.
func ExampleHub_onConnect() {
	hub := realtime.NewHub()
	hub.CheckOrigin = realtime.SameOrigin // the user is told by a cookie
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		session, err := r.Cookie("session")
		if err != nil {
			return realtime.Refuse(http.StatusUnauthorized, "sign in first")
		}
		name := strings.ToUpper(session.Value) // look the user up, in real life
		c.Set("name", name)
		return c.Send([]byte("welcome, " + name))
	}
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		name, _ := msg.Client.Get("name")
		hub.Broadcast <- fmt.Appendf(nil, "%v says %s", name, msg.Data)
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	_, resp, err := websocket.Dial(context.Background(), server.URL, nil)
	fmt.Println(resp.StatusCode, err != nil)

	ada, _, err := websocket.Dial(context.Background(), server.URL, &websocket.DialOptions{
		HTTPHeader: http.Header{"Cookie": {"session=ada"}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer ada.CloseNow()
	ada.Write(context.Background(), websocket.MessageText, []byte("hello"))
	fmt.Println(receive(ada))
	fmt.Println(receive(ada))
	// Output:
	// 401 true
	// welcome, ADA
	// ADA says hello
}

// The error of OnDisconnect tells why a client left: its own close has a
// status, and this side's reasons are errors of the package.
func ExampleHub_onDisconnect() {
	hub := realtime.NewHub()
	gone := make(chan string)
	hub.OnDisconnect = func(c *realtime.Client, err error) {
		switch {
		case errors.Is(err, realtime.ErrSlowClient):
			gone <- "was too slow"
		case errors.Is(err, realtime.ErrHubClosed):
			gone <- "was sent away"
		case websocket.CloseStatus(err) == websocket.StatusGoingAway:
			gone <- "closed the page"
		default:
			gone <- "vanished"
		}
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := dial(server.URL)
	go browser.Close(websocket.StatusGoingAway, "")
	fmt.Println(<-gone)
	// Output: closed the page
}

// Refuse chooses the HTTP answer. Any other error would answer 403 and keep
// its text to the log.
func ExampleRefuse() {
	hub := realtime.NewHub()
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		if hub.ClientCount() >= 1 {
			return realtime.Refuse(http.StatusServiceUnavailable, "the room is full")
		}
		return nil
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	first := dial(server.URL)
	defer first.CloseNow()
	_, resp, _ := websocket.Dial(context.Background(), server.URL, nil)
	fmt.Println(resp.Status)
	// Output: 503 Service Unavailable
}

// A client that asks too often is told when to come back, a page by its
// connection, any other by Retry-After.
func ExampleRefuseFor() {
	hub := realtime.NewHub()
	allowed := func(r *http.Request) bool { return false } // a limit for each user
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		if !allowed(r) {
			return realtime.RefuseFor(30*time.Second, http.StatusTooManyRequests, "too many connections")
		}
		return nil
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	_, resp, _ := websocket.Dial(context.Background(), server.URL, nil)
	fmt.Println(resp.Status, resp.Header.Get("Retry-After"))
	// Output: 429 Too Many Requests 30
}

// A client's context ends with the client: work done for it alone should use
// it.
func ExampleClient_Context() {
	hub := realtime.NewHub()
	stopped := make(chan error)
	hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
		go func() {
			<-c.Context().Done()
			stopped <- context.Cause(c.Context())
		}()
		return nil
	}
	server := httptest.NewServer(hub)
	defer server.Close()

	browser := dial(server.URL)
	go browser.Read(context.Background()) // answers the close frame
	hub.Shutdown(context.Background())
	fmt.Println(errors.Is(<-stopped, realtime.ErrHubClosed))
	// Output: true
}

// Close sends a close frame behind what waits for the client.
func ExampleClient_Close() {
	hub := realtime.NewHub()
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	browser := dial(server.URL)

	for c := range hub.Clients() {
		c.SendEvent(realtime.Event{Data: []byte("somebody else has signed in")})
		c.Close(4001, "replaced")
	}

	defer browser.CloseNow()
	fmt.Println(receive(browser))
	_, _, err := browser.Read(context.Background())
	fmt.Println(websocket.CloseStatus(err))
	// Output:
	// somebody else has signed in
	// StatusCode(4001)
}

// ExpireAt bounds how long a client may stay by the credentials that it has shown.
func ExampleClient_ExpireAt() {
	hub := realtime.NewHub()
	hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
		until := time.Now() // in production that of the session or token in r
		c.ExpireAt(until)
		return nil
	}
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	browser := dial(server.URL)
	defer browser.CloseNow()
	_, _, err := browser.Read(context.Background())
	status, _ := errors.AsType[websocket.CloseError](err)
	fmt.Println(int(status.Code), status.Reason)
	// Output: 3000 credentials have expired
}

// The server and the hub are shut down together: the server's Shutdown begins
// the hub's, which it doesn't wait for, and main waits for both.
func ExampleHub_Shutdown() {
	hub := realtime.NewHub()
	hub.DrainOver = 4 * time.Second // the next process gets the clients one after another
	server := &http.Server{Addr: "localhost:0", Handler: hub}
	server.RegisterOnShutdown(func() { hub.Shutdown(context.Background()) })
	served := make(chan error)
	go func() { served <- server.ListenAndServe() }()

	interrupted, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	select {
	case <-interrupted.Done():
	case <-time.After(10 * time.Millisecond): // so that the example ends
	}

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	fmt.Println("server:", server.Shutdown(ctx))
	fmt.Println("hub:", hub.Shutdown(ctx))
	fmt.Println(<-served)
	// Output:
	// server: <nil>
	// hub: <nil>
	// http: Server closed
}

// Stats is for a metrics page.
func ExampleHub_Stats() {
	hub := realtime.NewHub()
	server := httptest.NewServer(hub)
	defer server.Close()
	browser := dial(server.URL)
	hub.Broadcast <- []byte("hello")
	receive(browser)
	browser.Close(websocket.StatusNormalClosure, "")
	hub.Shutdown(context.Background())

	stats := hub.Stats()
	fmt.Println(stats.Published, "published,", stats.Delivered, "delivered,", stats.Dropped, "dropped")
	fmt.Println(stats.Left.Closed, "client has closed,", stats.Left.Slow, "were too slow")
	// Output:
	// 1 published, 1 delivered, 0 dropped
	// 1 client has closed, 0 were too slow
}

// Code that may outlive the hub selects on Done, where a plain send to
// Broadcast would block in the end.
func ExampleHub_Done() {
	hub := realtime.NewHub()
	hub.Shutdown(context.Background())
	for range 1000 {
		select {
		case hub.Broadcast <- []byte("tick"):
		case <-hub.Done():
		}
	}
	fmt.Println("the publisher isn't stuck")
	// Output: the publisher isn't stuck
}

// How to test one's own OnMessage: a hub is an http.Handler, and a client of
// coder/websocket does what a browser would. In a test, t.Context() stands for
// context.Background(), and a comparison for the last line.
func Example_testing() {
	shout := func(hub *realtime.Hub, msg realtime.Message) { // what is to be tested
		hub.Broadcast <- []byte(strings.ToUpper(string(msg.Data)))
	}

	hub := realtime.NewHub()
	hub.OnMessage = shout
	server := httptest.NewServer(hub)
	defer server.Close()
	defer hub.Shutdown(context.Background())

	conn, _, err := websocket.Dial(context.Background(), server.URL, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.CloseNow()
	err = conn.Write(context.Background(), websocket.MessageText, []byte("hello"))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, got, err := conn.Read(context.Background())
	fmt.Printf("%s, %v", got, err)
	// Output: HELLO, <nil>
}

// dial connects as a browser does.
func dial(url string) *websocket.Conn {
	conn, _, err := websocket.Dial(context.Background(), url, nil)
	if err != nil {
		panic(err)
	}
	return conn
}

// receive returns the next message.
func receive(conn *websocket.Conn) string {
	_, data, err := conn.Read(context.Background())
	if err != nil {
		panic(err)
	}
	return string(data)
}

// send sends a text message.
func send(conn *websocket.Conn, text string) {
	if err := conn.Write(context.Background(), websocket.MessageText, []byte(text)); err != nil {
		panic(err)
	}
}
