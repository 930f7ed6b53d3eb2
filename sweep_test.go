package realtime_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// left records what OnDisconnect is told.
type left struct {
	err error
	at  time.Duration // since the test's start
	n   int
}

func recordLeft(hub *realtime.Hub) *left {
	l, start := new(left), time.Now()
	hub.OnDisconnect = func(_ *realtime.Client, err error) {
		l.err, l.at, l.n = err, time.Since(start), l.n+1
	}
	return l
}

// within reports whether got is at want, at most a second late.
func within(got, want time.Duration) bool {
	return got >= want && got <= want+time.Second
}

// inTime reports whether got is at want or as much before it as the hub allows.
func inTime(got, want time.Duration) bool {
	return got <= want && got >= want-1100*time.Millisecond
}

// ExpireAt closes a client at its time, on either transport, whenever and however
// often it is called. Not for a moment does it touch one whose time is another.
func TestExpireAt(t *testing.T) {
	type call struct{ at, until time.Duration } // since the test's start
	const never, farAway = time.Duration(math.MinInt64), time.Duration(math.MaxInt64)
	times := func(start time.Time, until time.Duration) time.Time {
		switch until {
		case never:
			return time.Time{}
		case farAway:
			return time.Date(123456, 1, 1, 0, 0, 0, 0, time.UTC)
		}
		return start.Add(until)
	}
	tests := []struct {
		name  string
		calls []call
		want  time.Duration
	}{
		{"once", []call{{0, time.Minute}}, time.Minute},
		{"within a second", []call{{0, 300 * time.Millisecond}}, 300 * time.Millisecond},
		{"now", []call{{0, 1}}, 0},
		{"in the past", []call{{0, -time.Hour}}, 0},
		{"before 1970", []call{{0, -200 * 365 * 24 * time.Hour}}, 0},
		{"later", []call{{time.Minute, 2 * time.Minute}}, 2 * time.Minute},
		{"later, in the past", []call{{time.Minute, 30 * time.Second}}, time.Minute},
		{"put off again and again", []call{{0, time.Minute}, {50 * time.Second, 2 * time.Minute}, {110 * time.Second, 3 * time.Minute}}, 3 * time.Minute},
		{"brought forward", []call{{0, time.Hour}, {time.Minute, 70 * time.Second}}, 70 * time.Second},
		{"taken back", []call{{0, time.Minute}, {50 * time.Second, never}}, never},
		{"taken back and set", []call{{0, time.Minute}, {50 * time.Second, never}, {2 * time.Minute, 3 * time.Minute}}, 3 * time.Minute},
		{"never set", []call{{0, never}}, never},
		{"far away", []call{{0, farAway}}, never}, // later than any Duration
	}
	want := map[realtime.Transport]websocket.CloseError{
		realtime.WebSocket:   {Code: 3000, Reason: "credentials have expired"},
		realtime.EventStream: {Reason: "EOF"},
	}
	for transport := range want {
		for _, tt := range tests {
			t.Run(string(transport)+"/"+tt.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					hub := realtime.NewHub()
					l := recordLeft(hub)
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
						for _, call := range tt.calls {
							if call.at == 0 {
								c.ExpireAt(times(start, call.until))
							} else {
								time.AfterFunc(call.at, func() { c.ExpireAt(times(start, call.until)) })
							}
						}
						return nil
					}
					s := newPipeSite(t, hub)
					ended := make(chan websocket.CloseError, 1)
					if transport == realtime.WebSocket {
						conn := s.connect()
						go func() { ended <- closeStatus(conn) }()
					} else {
						stream := s.listen("")
						go func() {
							_, err := stream.event()
							ended <- websocket.CloseError{Reason: err.Error()}
						}()
					}
					if tt.want == never {
						time.Sleep(time.Hour)
						if l.n != 0 || hub.ClientCount() != 1 {
							t.Fatalf("left %d times, %v, want it to stay", l.n, l.err)
						}
						return
					}
					var status websocket.CloseError
					select {
					case status = <-ended:
						synctest.Wait()
					case <-time.After(time.Hour):
						t.Fatal("it stays for ever")
					}
					if status != want[transport] {
						t.Errorf("ended by %v, want %v", status, want[transport])
					}
					if l.n != 1 || !within(l.at, tt.want) {
						t.Errorf("left %d times, at %v, want once, at %v", l.n, l.at, tt.want)
					}
					if !errors.Is(l.err, realtime.ErrClientClosed) || websocket.CloseStatus(l.err) != 3000 {
						t.Errorf("OnDisconnect: %v", l.err)
					}
				})
			})
		}
	}
}

// While OnConnect runs time passes as well. The client joins, gets what was sent
// to it, and is closed.
func TestExpireAtInALongOnConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			c.ExpireAt(time.Now().Add(time.Second))
			c.Send([]byte("hello"))
			time.Sleep(7 * time.Second)
			return nil
		}
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		conn := s.connect()
		if got := read(t, conn); got != "hello" {
			t.Errorf("got %q", got)
		}
		if got := closeStatus(conn); got.Code != 3000 {
			t.Errorf("closed with %v, want 3000", got)
		}
		synctest.Wait()
		if l.n != 1 || l.at != 7*time.Second || hub.ClientCount() != 0 {
			t.Errorf("left %d times, at %v, want once, at 7s", l.n, l.at)
		}
	})
}

// A client that is closing or gone keeps its cause.
func TestExpireAtOfAClosingClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		for client := range hub.Clients() {
			client.Close(4000, "bye")
			client.ExpireAt(time.Now())
			defer func() { client.ExpireAt(time.Now()) }() // it is gone
		}
		if got := c.expectClose(4000); got != "bye" {
			t.Errorf("closed with %q", got)
		}
		c.expectEnd()
		if websocket.CloseStatus(l.err) != 4000 || !within(l.at, 5*time.Second) { // it didn't answer
			t.Errorf("left at %v: %v", l.at, l.err)
		}
	})
}

func TestPingAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		last := time.Now()
		for i := range 5 {
			first, payload, err := c.readFrame()
			if err != nil {
				t.Fatal(err)
			}
			if first != 0x89 {
				t.Fatalf("frame %#x, want a ping", first)
			}
			if got := time.Since(last); !inTime(got, 54*time.Second) {
				t.Errorf("ping %d after %v of silence, want 54 s or up to 1.1 s less", i, got)
			}
			// A pong, or anything else, is a sign of life.
			if i%2 == 0 {
				c.send(frame(0x8A, payload))
			} else {
				c.send(frame(0x81, []byte("hi")))
			}
			last = time.Now()
		}
		if got := hub.ClientCount(); got != 1 {
			t.Errorf("ClientCount() = %d, want 1", got)
		}
	})
}

// A client that sends something as the process runs on after a stall is pinged
// as usual: its reader must not take a time to come for that of the message.
func TestPingAfterAStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		time.Sleep(10 * time.Second)
		realtime.Stall(hub, 8*time.Hour)
		c.send(frame(0x8A, nil))
		start := time.Now()
		first, _, err := c.readFrame()
		if d := time.Since(start); first != 0x89 || d < 53*time.Second || d > 56*time.Second {
			t.Errorf("got frame %#x, %v after %v; want a ping after 53 s and at most 3 s", first, err, d)
		}
	})
}

// PingInterval counts from a connection's opening, however young its hub is, and
// is never exceeded: a proxy with a limit of its own cuts what is silent.
func TestNoSilenceAbovePingInterval(t *testing.T) {
	for _, age := range []time.Duration{0, 300 * time.Millisecond, 20 * time.Second, 53900 * time.Millisecond, 5 * time.Minute} {
		for _, interval := range []time.Duration{time.Millisecond, time.Second, 2500 * time.Millisecond, 54 * time.Second} {
			t.Run(fmt.Sprintf("hub %v old, interval %v", age, interval), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					hub.PingInterval = interval
					s := newPipeSite(t, hub)
					s.listen("") // lets the hub's time pass
					time.Sleep(age)
					longest := max(interval, time.Second) // the sweeper comes once a second
					check := func(what string, i int, last *time.Time) {
						got := time.Since(*last)
						*last = time.Now()
						if got > longest || got < longest-1100*time.Millisecond {
							t.Errorf("%s %d after %v of silence, want %v or up to 1.1 s less", what, i, got, longest)
						}
					}
					var both sync.WaitGroup
					both.Go(func() {
						l := s.listen("")
						last := time.Now()
						for i := range 5 {
							for line := ""; line != ":\n"; {
								var err error
								if line, err = l.br.ReadString('\n'); err != nil {
									t.Errorf("comment %d: %v", i, err)
									return
								}
							}
							check("comment", i, &last)
						}
						l.cut()
					})
					both.Go(func() {
						c := s.raw()
						last := time.Now()
						for i := range 5 {
							if first, _, err := c.readFrame(); first != 0x89 {
								t.Errorf("frame %#x, %v; want a ping", first, err)
							}
							check("ping", i, &last)
							c.send(frame(0x8A, nil))
						}
						c.conn.Close()
					})
					both.Wait()
				})
			})
		}
	}
}

// Clients of realtime.v1 see the heartbeats that others don't: pages see neither
// pings nor comments. The first object of all tells how often one comes. None
// waits behind what a client is slow to read.
func TestVisibleHeartbeats(t *testing.T) {
	for name, set := range map[string]func(*realtime.Hub) string{
		"default":            func(hub *realtime.Hub) string { return "54000" },
		"a short History":    func(hub *realtime.Hub) string { hub.History.Age = time.Minute; return "20000" },
		"a short interval":   func(hub *realtime.Hub) string { hub.PingInterval = time.Millisecond; return "1000" },
		"never":              func(hub *realtime.Hub) string { hub.PingInterval = -1; return "" },
		"never, and History": func(hub *realtime.Hub) string { hub.PingInterval, hub.History.Age = -1, time.Minute; return "" },
	} {
		for transport, join := range map[string]func(*site) func() string{
			"WebSocket": func(s *site) func() string {
				conn := s.connectAs("", realtime.Subprotocol)
				return func() string { return read(s.t.(*testing.T), conn) }
			},
			"event stream": func(s *site) func() string { return s.listen("protocol=" + realtime.Subprotocol).next },
		} {
			t.Run(name+", "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					interval := set(hub)
					var client *realtime.Client
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
						client = c
						return c.Send([]byte("hello"))
					}
					next := join(newPipeSite(t, hub))
					beat := `{"interval":` + interval + `}`
					hello := `{"client":"` + client.ID() + `"}`
					if interval != "" {
						hello = strings.TrimSuffix(hello, "}") + "," + beat[1:]
					}
					if got := next(); got != hello {
						t.Errorf("the first object is %s, want %s", got, hello)
					}
					if got := next(); got != `{"data":"hello"}` {
						t.Errorf("got %s, want hello", got)
					}
					last := time.Now()
					if hub.History.Age > 0 {
						for _, is := range []string{"provisional", "final"} {
							if got := next(); !strings.HasPrefix(got, `{"id":`) || strings.Contains(got, "~") != (is == "provisional") {
								t.Errorf("got %s, want the position, %s", got, is)
							}
						}
					}
					if interval == "" {
						time.Sleep(2 * time.Hour)
						client.Send([]byte("end"))
						if got := next(); got != `{"data":"end"}` {
							t.Errorf("got %s, want nothing but the end", got)
						}
						return
					}
					ms, _ := strconv.Atoi(interval)
					for i := range 3 {
						got := next()
						if strings.HasPrefix(got, `{"id":`) {
							got = beat // a position is as good
						}
						d := time.Since(last)
						last = time.Now()
						if got != beat || !inTime(d, time.Duration(ms)*time.Millisecond) {
							t.Errorf("object %d is %s after %v, want %s", i, got, d, beat)
						}
					}
					hub.PublishAll(t.Context(), realtime.Event{Data: []byte("1")})
					if got := next(); !strings.Contains(got, `"data":"1"`) {
						t.Errorf("got %s, want the event", got)
					}
				})
			})
		}
	}
}

// One sweeper looks after all clients. It goes with the last of them, and
// comes again.
func TestOneSweeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		for range 2 {
			var clients []*rawClient
			for range 5 {
				clients = append(clients, s.raw())
			}
			synctest.Wait()
			if n := running("(*Hub).sweep"); n != 1 {
				t.Errorf("%d sweepers for 5 clients, want 1", n)
			}
			start := time.Now()
			if first, _, err := clients[0].readFrame(); first != 0x89 || !inTime(time.Since(start), 54*time.Second) {
				t.Errorf("got frame %#x, %v after %v; want a ping after 54 s", first, err, time.Since(start))
			}
			for _, c := range clients {
				c.conn.Close()
			}
			time.Sleep(2 * time.Second)
			synctest.Wait()
			if n := running("(*Hub).sweep"); n != 0 {
				t.Errorf("%d sweepers for nobody", n)
			}
		}
	})
}

func TestTalkingClientIsNotPinged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		for range 20 {
			time.Sleep(50 * time.Second)
			c.send(frame(0x81, []byte("hi")))
		}
		time.Sleep(3 * time.Second)
		hub.Broadcast <- []byte("first")
		if first, payload, err := c.readFrame(); err != nil || first != 0x81 {
			t.Errorf("got frame %#x %q, %v; want the broadcast and no ping before it", first, payload, err)
		}
	})
}

func TestPingIntervalNegativeNeverPings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.PingInterval = -1
		s := newPipeSite(t, hub)
		c := s.raw()
		time.Sleep(2 * time.Hour)
		hub.Broadcast <- []byte("first")
		if first, _, err := c.readFrame(); err != nil || first != 0x81 {
			t.Errorf("got frame %#x, %v; want the broadcast", first, err)
		}
	})
}

func TestUnansweredPingDisconnects(t *testing.T) {
	for name, said := range map[string][]byte{"silent from the start": nil, "silent after a message": frame(0x81, []byte("hi"))} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				hub.OnMessage = func(*realtime.Hub, realtime.Message) {}
				s := newPipeSite(t, hub)
				c := s.raw(said...)
				io.Copy(io.Discard, c.br) // takes the ping, answers nothing, until the server hangs up
				synctest.Wait()
				if l.n != 1 || l.err == nil || !strings.Contains(l.err.Error(), "ping unanswered for Hub.PongTimeout") {
					t.Errorf("OnDisconnect: %d times, last with %v; want once, for the ping", l.n, l.err)
				}
				if !within(l.at, 113*time.Second) {
					t.Errorf("gone after %v, want 113 s (the ping, and PongTimeout) and at most one more", l.at)
				}
			})
		})
	}
}

// A client that answers pings and says nothing else lives on, as one does
// that pings itself: a control frame is no message that has begun.
func TestControlFramesAlone(t *testing.T) {
	for name, alive := range map[string]byte{"pong": 0x8A, "ping": 0x89} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				c := s.raw()
				c.send(frame(0x81, []byte("a message before")))
				go io.Copy(io.Discard, c.br)
				for range 3 {
					c.send(frame(alive, []byte("alive")))
					time.Sleep(110 * time.Second) // an unanswered ping falls into it
				}
				if l.n != 0 {
					t.Errorf("gone after %v: %v", l.at, l.err)
				}
			})
		})
	}
}

func TestTimeInOnMessageIsNotSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
			time.Sleep(10 * time.Minute)
			msg.Client.Send(msg.Data)
		}
		s := newPipeSite(t, hub)
		c := s.raw()
		// The second message has begun when the handler gets the first.
		two := append(frame(0x81, []byte("one")), frame(0x81, []byte("two"))...)
		go func() {
			c.send(two[:len(two)-1])
			time.Sleep(11 * time.Minute)
			c.send(two[len(two)-1:])
		}()
		var got []string
		for len(got) < 2 {
			first, payload, err := c.readFrame()
			if err != nil {
				t.Fatalf("after %q: %v (%v)", got, err, l.err)
			}
			if first == 0x81 {
				got = append(got, string(payload))
			}
		}
	})
}

func TestMessageThatNeverEnds(t *testing.T) {
	tests := map[string][]byte{
		"one byte of a header":   {0x81},
		"half a header":          {0x81, 0xFE, 0x01},
		"no mask":                {0x81, 0x85, 1, 2},
		"half a payload":         frame(0x81, []byte("hello"))[:8],
		"fragment without a fin": frame(0x01, []byte("hello")),
		"message, then a header": append(frame(0x81, []byte("whole")), 0x81),
		"lie about the length":   {0x82, 0xFF, 0, 0, 0, 0x10, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6},
	}
	for name, b := range tests {
		never := func(t *testing.T, together bool) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				start := time.Now()
				var c *rawClient
				if together {
					c = s.raw(b...)
				} else {
					c = s.raw()
					c.send(b)
				}
				c.expectClose(1008)
				if got := time.Since(start); !within(got, 60*time.Second) {
					t.Errorf("close frame after %v, want 60 s and at most one more", got)
				}
				c.expectEnd()
				synctest.Wait()
				if l.n != 1 || !strings.Contains(l.err.Error(), "incomplete") {
					t.Errorf("OnDisconnect: %d times, last with %v; want once, for an incomplete message", l.n, l.err)
				}
			})
		}
		t.Run(name, func(t *testing.T) { never(t, false) })
		t.Run(name+", in the packet of the handshake", func(t *testing.T) { never(t, true) })
	}
}

// Pings inside a fragmented message are answered, but don't prolong it.
func TestPingsDoNotProlongAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.raw()
		start := time.Now()
		var pinging sync.WaitGroup
		defer pinging.Wait()
		pinging.Go(func() {
			c.send(frame(0x01, []byte("hel")))
			for c.send(frame(0x89, []byte("are you there"))) == nil {
				time.Sleep(10 * time.Second)
			}
		})
		if first, payload, err := c.readFrame(); first != 0x8A || string(payload) != "are you there" {
			t.Errorf("got frame %#x %q, %v; want the pong", first, payload, err)
		}
		c.expectClose(1008)
		if got := time.Since(start); !within(got, 60*time.Second) {
			t.Errorf("close frame after %v, want 60 s and at most one more", got)
		}
		c.expectEnd()
	})
}

// A control frame that does not end is the library's to notice.
func TestStallInsideAControlFrame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		c.send(frame(0x89, []byte("hello"))[:7])
		io.Copy(io.Discard, c.br)
		synctest.Wait()
		if l.n != 1 || l.at != 5*time.Second || !strings.Contains(l.err.Error(), "control frame") {
			t.Errorf("OnDisconnect: %d times, last with %v after %v; want once, for the control frame, after 5 s", l.n, l.err, l.at)
		}
	})
}

// After such a stall the connection is closed even if the peer then neither
// reads nor hangs up: over TCP, where the server waits for that.
func TestLingeringIsBounded(t *testing.T) {
	t.Parallel()
	hub := realtime.NewHub()
	gone := make(chan error, 1)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
	s := newTCPSite(t, hub)
	c := s.raw()
	c.send(frame(0x89, []byte("hello"))[:7])
	if err := <-gone; !strings.Contains(err.Error(), "control frame") {
		t.Errorf("OnDisconnect got %v", err)
	}
	down := make(chan error, 1)
	go func() { down <- hub.Shutdown(context.Background()) }()
	select {
	case err := <-down:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the connection was not closed within a minute after the client's end, want 5 s")
	}
}

// Clients that came at once are not all pinged at once.
func TestPingsAreSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		at := make(chan time.Time)
		const clients = 64
		for range clients {
			c := s.raw()
			go func() {
				c.readFrame()
				at <- time.Now()
				c.send(frame(0x88, nil))
			}()
		}
		pings := make(map[time.Time]int)
		for range clients {
			pings[<-at]++
		}
		for moment, n := range pings {
			if n > clients/8 {
				t.Errorf("%d of %d clients were pinged at %v", n, clients, moment)
			}
		}
	})
}

func TestSlowClientIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		s.raw() // never reads
		healthy := s.connect()
		got := 0
		done := make(chan struct{})
		go func() {
			defer close(done)
			for got < 300 {
				if _, _, err := healthy.Read(context.Background()); err != nil {
					return
				}
				got++
			}
		}()
		for range 300 {
			hub.Broadcast <- []byte("x")
		}
		<-done
		if got != 300 {
			t.Errorf("the client that reads got %d of 300", got)
		}
		if hub.ClientCount() != 2 {
			t.Errorf("ClientCount() = %d before SlowAfter, want 2", hub.ClientCount())
		}
		time.Sleep(2 * time.Second) // nothing more is published: the sweeper sees it
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, realtime.ErrSlowClient) || !within(l.at, time.Second) {
			t.Errorf("OnDisconnect: %d times, last with %v after %v; want ErrSlowClient once, after 1 s", l.n, l.err, l.at)
		}
		st := hub.Stats()
		if st.Clients != 1 || st.SlowClients != 1 || st.Queued != 0 || st.Delivered+st.Dropped != 600 {
			t.Errorf("Stats() = %+v", st)
		}
	})
}

// SendBuffer is exact: so many messages may wait for as long as WriteTimeout
// allows, one more may not.
func TestSendBufferIsExact(t *testing.T) {
	for _, tt := range []struct {
		waiting int
		slow    bool
	}{{256, false}, {257, true}} {
		t.Run(fmt.Sprint(tt.waiting), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				c := s.raw()
				for range tt.waiting {
					hub.Broadcast <- []byte("x")
				}
				synctest.Wait()
				if got := hub.Stats().Queued; got != int64(tt.waiting) {
					t.Errorf("Queued = %d, want %d", got, tt.waiting)
				}
				time.Sleep(9 * time.Second)
				synctest.Wait()
				if slow := errors.Is(l.err, realtime.ErrSlowClient); slow != tt.slow {
					t.Errorf("OnDisconnect got %v, want ErrSlowClient: %v", l.err, tt.slow)
				}
				for i := 0; i < tt.waiting && !tt.slow; i++ {
					if _, _, err := c.readFrame(); err != nil {
						t.Fatalf("frame %d: %v (%v)", i, err, l.err)
					}
				}
			})
		})
	}
}

// A client that catches up with a burst is given its time, one that falls
// behind isn't.
func TestCatchingUpIsNotSlow(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		rate int // messages that the client takes in a tenth of a second
		slow bool
	}{{600, false}, {100, false}, {30, false}, {20, true}} {
		t.Run(fmt.Sprint(tt.rate), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				c := s.raw()
				const events = 2000
				big := []byte(strings.Repeat("x", 8<<10)) // a few in a write
				for range events {
					hub.Broadcast <- big
				}
				for i := range events {
					if i%tt.rate == 0 {
						time.Sleep(100 * time.Millisecond)
					}
					if _, _, err := c.readFrame(); err != nil {
						break
					}
				}
				synctest.Wait()
				if slow := errors.Is(l.err, realtime.ErrSlowClient); slow != tt.slow {
					t.Errorf("OnDisconnect got %v after %v, want ErrSlowClient: %v", l.err, l.at, tt.slow)
				}
			})
		})
	}
}

// A client that reads, but too slowly, is told: it gets all that its connection
// had accepted, and then is asked to reconnect later. On a busy machine it may
// look stuck, and is cut off: then it tries again.
func TestSlowClientIsTold(t *testing.T) {
	for name, join := range map[string]func(s *site) (next func() (string, error), told func() bool){
		"WebSocket": func(s *site) (func() (string, error), func() bool) {
			c, reason := s.raw(), ""
			return func() (string, error) {
					first, payload, err := c.readFrame()
					if first == 0x88 {
						reason, err = string(payload), io.EOF
						c.send(frame(0x88, payload[:2]))
					}
					return string(payload), err
				}, func() bool {
					return reason == "\x03\xf5client reads too slowly" // 1013
				}
		},
		"event stream": func(s *site) (func() (string, error), func() bool) {
			l := s.listen("")
			return func() (string, error) {
					ev, err := l.event()
					return ev.data, err
				}, func() bool {
					l.cut()
					ms, _ := strconv.Atoi(l.retry)
					return ms >= 5000 && ms < 9000
				}
		},
	} {
		for over, secure := range map[string]bool{"TCP": false, "TLS": true} {
			t.Run(name+" over "+over, func(t *testing.T) {
				t.Parallel()
				for range 5 {
					if isSlowClientTold(t, secure, join) {
						return
					}
				}
				t.Error("five times it was cut off instead")
			})
		}
	}
}

func isSlowClientTold(t *testing.T, secure bool, join func(s *site) (next func() (string, error), told func() bool)) bool {
	hub := realtime.NewHub()
	hub.SendBuffer = 16
	gone := make(chan error, 1)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { gone <- err }
	var client *realtime.Client
	hub.OnConnect = keep(&client)
	next, told := join(newTightSite(t, hub, secure))
	cut := client.Context().Done()
	turn := make(chan struct{}) // the client reads an event of every four
	padding := strings.Repeat("x", 32<<10)
	published := 0
	var publishing sync.WaitGroup
	publishing.Go(func() {
		defer close(turn)
		for client.Context().Err() == nil {
			if err := hub.PublishAll(t.Context(), realtime.Event{Data: fmt.Append(nil, published, " ", padding)}); err != nil {
				t.Error(err)
				return
			}
			if published++; published%4 == 0 {
				select {
				case turn <- struct{}{}:
				case <-cut:
				}
			}
		}
	})
	got := 0
	for {
		<-turn
		data, err := next()
		if err != nil {
			break
		}
		if want := fmt.Sprint(got, " ", padding); data != want {
			t.Fatalf("event %d is %.20q", got, data)
		}
		got++
	}
	ok := told()
	publishing.Wait()
	if err := <-gone; !errors.Is(err, realtime.ErrSlowClient) {
		t.Errorf("OnDisconnect got %v, want ErrSlowClient", err)
	}
	if st := hub.Stats(); st.SlowClients != 1 || ok && st.Delivered != int64(got) || st.Delivered+st.Dropped > int64(published) {
		t.Errorf("got %d of %d, Stats() = %+v", got, published, st)
	}
	return ok
}

// newTightSite serves the hub on loopback, with little room in the kernel.
func newTightSite(t testing.TB, hub *realtime.Hub, secure bool) *site {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := net.Listener(tightListener{tcp})
	if secure {
		l = tls.NewListener(l, serverTLS())
	}
	return serveSite(t, hub, l, "ws://"+l.Addr().String()+"/ws", func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		conn.(*net.TCPConn).SetReadBuffer(64 << 10)
		if secure {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		}
		return conn, nil
	})
}

type tightListener struct{ net.Listener }

func (l tightListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err == nil {
		conn.(*net.TCPConn).SetWriteBuffer(64 << 10)
	}
	return conn, err
}

func TestSlowAfterNegativeDisconnectsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.SlowAfter, hub.SendBuffer = -1, 4
		l := recordLeft(hub)
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		var lines safeBuffer
		hub.Logger = textLogger(&lines)
		s := newPipeSite(t, hub)
		s.raw()
		for range 4 {
			hub.Broadcast <- []byte("x")
		}
		synctest.Wait()
		if l.n != 0 {
			t.Fatalf("disconnected by 4 messages: %v", l.err)
		}
		hub.Broadcast <- []byte("x")
		synctest.Wait()
		if l.n != 1 || !errors.Is(l.err, realtime.ErrSlowClient) || l.at != 0 {
			t.Errorf("OnDisconnect: %d times, last with %v after %v; want ErrSlowClient at once", l.n, l.err, l.at)
		}
		if got := lines.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "client="+client.ID()) {
			t.Errorf("logged %q, want a line with client=%s", got, client.ID())
		}
	})
}

// Send tells its caller that the client is too slow, and that it is gone.
func TestSendToASlowClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.SendBuffer = 2
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		s.raw()
		for i := range 2 * 64 {
			if err := client.Send([]byte("x")); err != nil {
				t.Fatalf("Send %d: %v", i, err)
			}
		}
		if err := client.Send([]byte("x")); !errors.Is(err, realtime.ErrSlowClient) {
			t.Errorf("Send above 64 × SendBuffer: %v, want ErrSlowClient", err)
		}
		if err := client.Send([]byte("x")); !errors.Is(err, realtime.ErrClientClosed) {
			t.Errorf("Send to a client that was cut: %v, want ErrClientClosed", err)
		}
		if cause := context.Cause(client.Context()); !errors.Is(cause, realtime.ErrSlowClient) {
			t.Errorf("Cause = %v, want ErrSlowClient", cause)
		}
	})
}

// Who was closed by Close is not a slow client, however slowly it takes what
// waits.
func TestClosedClientIsNotSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		var client *realtime.Client
		hub.OnConnect = keep(&client)
		s := newPipeSite(t, hub)
		s.raw() // never reads
		for range 300 {
			client.Send([]byte("x"))
		}
		client.Close(4000, "")
		time.Sleep(7 * time.Second)
		synctest.Wait()
		if websocket.CloseStatus(l.err) != 4000 || hub.Stats().SlowClients != 0 {
			t.Errorf("OnDisconnect got %v, SlowClients = %d; want 4000 and 0", l.err, hub.Stats().SlowClients)
		}
	})
}

func TestWriteTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		s.raw() // never reads
		hub.Broadcast <- []byte("x")
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if l.n != 1 || !within(l.at, 10*time.Second) || !strings.Contains(l.err.Error(), "WriteTimeout") {
			t.Errorf("OnDisconnect: %d times, last with %v after %v; want once, for WriteTimeout, after 10 s", l.n, l.err, l.at)
		}
	})
}

// WriteTimeout begins with what waits, not with what was written last.
func TestWriteTimeoutBeginsWithTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.PingInterval = -1
		l := recordLeft(hub)
		s := newPipeSite(t, hub)
		c := s.raw()
		for range 2 {
			time.Sleep(time.Minute)
			hub.Broadcast <- []byte("x")
			time.Sleep(9 * time.Second)
			if _, payload, err := c.readFrame(); string(payload) != "x" {
				t.Fatalf("got %q, %v (%v)", payload, err, l.err)
			}
		}
	})
}

// A slow but steady reader makes progress: WriteTimeout is no bound on how
// long a large message takes.
func TestSteadyReaderIsNotTimedOut(t *testing.T) {
	for name, tt := range map[string]struct{ size, step int }{
		"16 KB a second, with pings that wait behind a message": {4 << 20, 16 << 10},
		"4 KB a second": {256 << 10, 4 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				l := recordLeft(hub)
				s := newPipeSite(t, hub)
				c := s.raw()
				hub.Broadcast <- []byte(strings.Repeat("x", tt.size))
				buf := make([]byte, tt.step)
				for total := 0; total < tt.size; {
					time.Sleep(time.Second)
					n, err := c.br.Read(buf)
					if err != nil {
						t.Fatalf("after %d bytes: %v (%v)", total, err, l.err)
					}
					total += n
				}
			})
		})
	}
}

// Nor is one over TCP, where a blocked write goes on only when a third of what
// the kernel has is gone.
func TestSteadyReaderOverTCPIsNotTimedOut(t *testing.T) {
	t.Parallel()
	hub := realtime.NewHub()
	left := make(chan error, 1)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { left <- err }
	s := newTCPSite(t, hub)
	c := s.raw()
	for range 200 { // 13 MB
		hub.Broadcast <- []byte(strings.Repeat("x", 64<<10))
	}
	buf := make([]byte, 32<<10)
	for start := time.Now(); time.Since(start) < 16*time.Second; { // WriteTimeout and more
		time.Sleep(500 * time.Millisecond) // 64 KB/s
		if _, err := io.ReadFull(c.br, buf); err != nil {
			t.Fatalf("after %v: %v (%v)", time.Since(start), err, <-left)
		}
	}
	c.conn.Close()
}

// keep makes an OnConnect that keeps its client.
func keep(into **realtime.Client) func(*realtime.Client, *http.Request) error {
	return func(c *realtime.Client, _ *http.Request) error {
		*into = c
		return nil
	}
}

func TestMessageTooBig(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		l := recordLeft(hub)
		var got int
		hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = len(msg.Data) }
		s := newPipeSite(t, hub)
		conn := s.connect()
		exact := strings.Repeat("x", 512<<10)
		write(t, conn, exact)
		go conn.Write(context.Background(), websocket.MessageText, []byte(exact+"x"))
		if status := closeStatus(conn); status.Code != websocket.StatusMessageTooBig {
			t.Errorf("closed with %v, want 1009", status)
		}
		synctest.Wait()
		if got != 512<<10 {
			t.Errorf("OnMessage got %d bytes, want 512 KiB and no more", got)
		}
		if l.n != 1 || !errors.Is(l.err, websocket.ErrMessageTooBig) {
			t.Errorf("OnDisconnect: %d times, last with %v; want ErrMessageTooBig once", l.n, l.err)
		}
	})
}
