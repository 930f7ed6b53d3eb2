package realtime_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

const codeOut = 4001 // with which these tests disconnect

func disconnect(t testing.TB, hub *realtime.Hub, topic string) {
	t.Helper()
	if err := hub.Disconnect(context.Background(), topic, codeOut, "log out"); err != nil {
		t.Errorf("Disconnect(%q): %v", topic, err)
	}
}

// A plainSocket is a WebSocket without ids.
type plainSocket struct{ conn *websocket.Conn }

func (c plainSocket) event() (heard, error) {
	_, data, err := c.conn.Read(context.Background())
	return heard{data: string(data)}, err
}

func (c plainSocket) last() string { return "" }
func (c plainSocket) cut()         { c.conn.CloseNow() }

// everyClient has the transports, and plain WebSockets.
func everyClient(t *testing.T, test func(t *testing.T, join func(*site, string) resumer)) {
	eachTransport(t, test)
	t.Run("plain WebSocket", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			test(t, func(s *site, query string) resumer { return plainSocket{s.connectAs(query)} })
		})
	})
}

// expectOut wants the next events, and then the end that Disconnect makes.
func expectOut(t *testing.T, c resumer, want ...string) {
	t.Helper()
	expect(t, c, want...)
	switch ev, err := c.event(); {
	case err == nil:
		t.Errorf("got %q behind a disconnect", ev.data)
	case websocket.CloseStatus(err) == codeOut && strings.Contains(err.Error(), "log out"):
	case websocket.CloseStatus(err) == -1 && errors.Is(err, io.EOF):
	default:
		t.Errorf("ended by %v", err)
	}
}

// All that was published before reaches a client, nothing that is published
// afterwards, and clients without the topic notice nothing.
func TestDisconnect(t *testing.T) {
	everyClient(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.Compression = true
		hub.OnDisconnect = func(c *realtime.Client, err error) {
			is := errors.Is(err, realtime.ErrClientClosed) && websocket.CloseStatus(err) == codeOut
			if is != slices.Contains(c.Topics(), "user/42") {
				t.Errorf("OnDisconnect got %v", err)
			}
		}
		s := newPipeSite(t, hub)
		var out []resumer
		for range 5 { // in several shards
			out = append(out, join(s, "topic=user/42&topic=room"))
		}
		other := join(s, "topic=user/43&topic=room")
		synctest.Wait()
		var first *realtime.Client
		for first = range hub.Subscribers("user/42") {
			break
		}
		ctx := t.Context()
		long := strings.Repeat("long ", 100)

		release := realtime.HoldShards(hub) // so that all are in one batch
		publish(t, hub, "room", "1")
		hub.Publish(ctx, "user/42", realtime.Event{Key: "k", Data: []byte("replaced")})
		hub.Publish(ctx, "user/42", realtime.Event{Key: "k", Data: []byte("2")})
		hub.PublishAll(ctx, realtime.Event{Data: []byte(long)})
		hub.Publish(ctx, "room", realtime.Event{Data: []byte("not for one"), Except: first.ID()})
		hub.Broadcast <- []byte("3")
		disconnect(t, hub, "user/42")
		publish(t, hub, "user/42", "late")
		hub.Broadcast <- []byte("4")
		publish(t, hub, "room", "5")
		release()
		synctest.Wait()
		if n := hub.ClientCount(); n != 1 {
			t.Errorf("%d clients are left, want 1", n)
		}
		excepted := 0
		for _, c := range out {
			expect(t, c, "1", "2", long)
			ev, err := c.event()
			if err != nil {
				t.Fatal(err)
			}
			if ev.data == "3" {
				excepted++
				expectOut(t, c)
			} else {
				expectOut(t, c, "3")
			}
		}
		if excepted != 1 {
			t.Errorf("%d clients were excepted, want 1", excepted)
		}
		expect(t, other, "1", long, "not for one", "3", "4", "5")
		other.cut()
		if n := hub.Stats().Published; n != 8+1 {
			t.Errorf("Stats().Published is %d, want the 9 events", n)
		}
	})
}

func TestDisconnectNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		disconnect(t, hub, "user/42") // starts the hub
		s := newPipeSite(t, hub)
		c := s.listen("topic=user/42")
		disconnect(t, hub, "user/43")
		publish(t, hub, "user/42", "hello")
		expect(t, c, "hello")
	})
}

func TestDisconnectErrors(t *testing.T) {
	hub := realtime.NewHub()
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	for _, test := range []struct {
		hub    *realtime.Hub
		ctx    context.Context
		topic  string
		code   websocket.StatusCode
		reason string
		want   string
	}{
		{hub, t.Context(), "", codeOut, "", "not a topic"},
		{hub, t.Context(), strings.Repeat("x", 1025), codeOut, "", "more than 1024"},
		{hub, t.Context(), "a", 1005, "", "close code 1005"},
		{hub, t.Context(), "a", 0, "", "close code 0"},
		{hub, canceled, "a", codeOut, "", context.Canceled.Error()},
		{nil, t.Context(), "a", codeOut, "", "hub is nil"},
		{new(realtime.Hub), t.Context(), "a", codeOut, "", "NewHub"},
	} {
		if err := test.hub.Disconnect(test.ctx, test.topic, test.code, test.reason); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("Disconnect(%.20q, %d, %q) = %v, want an error with %q", test.topic, test.code, test.reason, err, test.want)
		}
	}
	hub.Shutdown(t.Context())
	if err := hub.Disconnect(t.Context(), "a", codeOut, ""); err != realtime.ErrHubClosed {
		t.Errorf("after Shutdown: %v", err)
	}
}

// A reason that is too long must not keep anybody from being banned.
func TestDisconnectCutsTheReason(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		c := s.connectAs("topic=a")
		if err := hub.Disconnect(t.Context(), "a", codeOut, strings.Repeat("é", 100)); err != nil {
			t.Error(err)
		}
		if got, want := closeStatus(c), (websocket.CloseError{Code: codeOut, Reason: strings.Repeat("é", 61)}); got != want {
			t.Errorf("closed with %v, want %v", got, want)
		}
	})
}

// A client that doesn't read is cut off after 5 s. One that reads until then
// gets what waits, and its close frame.
func TestDisconnectBlockedClient(t *testing.T) {
	everyClient(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		slow := join(s, "topic=a")
		join(s, "topic=a") // reads nothing
		for i := range 100 {
			publish(t, hub, "a", fmt.Sprint(i))
		}
		disconnect(t, hub, "a")
		synctest.Wait()
		if n := hub.ClientCount(); n != 0 {
			t.Errorf("%d clients count, want none", n)
		}
		time.Sleep(3 * time.Second)
		for i := range 100 {
			expect(t, slow, fmt.Sprint(i))
		}
		expectOut(t, slow)
		slow.cut()
		synctest.Wait()
		if n := realtime.Joined(hub); n != 1 {
			t.Errorf("after 3 s %d clients are left, want the blocked one", n)
		}
		time.Sleep(3*time.Second + 100*time.Millisecond)
		synctest.Wait()
		if n := realtime.Joined(hub); n != 0 {
			t.Errorf("after 6 s %d clients are left, want none", n)
		}
	})
}

// A client that is still in OnConnect is disconnected too, once it is
// connected. It gets what it missed, so that it resumes behind that.
func TestDisconnectWhileJoining(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				hub := realtime.NewHub()
				if history {
					hub.History = realtime.History{Events: 100}
				}
				var during func()
				hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
					err := c.Subscribe("a")
					during()
					return err
				}
				left := recordLeft(hub)
				s := newPipeSite(t, hub)
				during = func() {}
				c := join(s, "")
				publish(t, hub, "a", "1")
				expect(t, c, "1")
				id := c.last()
				c.cut()
				synctest.Wait()
				publish(t, hub, "a", "2")
				during = func() {
					publish(t, hub, "a", "3")
					disconnect(t, hub, "a")
					publish(t, hub, "a", "4")
					synctest.Wait()
				}
				c = back(s, join, "", id)
				if history {
					expectOut(t, c, "2", "3")
				} else {
					expectOut(t, c, "3")
				}
				id = c.last()
				c.cut()
				synctest.Wait()
				if n := hub.ClientCount(); n != 0 || left.n != 2 || !errors.Is(left.err, realtime.ErrClientClosed) {
					t.Errorf("%d clients count, OnDisconnect was called %d times, last with %v", n, left.n, left.err)
				}
				if history {
					during = func() {}
					expect(t, back(s, join, "", id), "4")
				}
			})
		})
	}
}

// Subscribe and Unsubscribe that have returned count.
func TestDisconnectAndSubscribe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		client := byName(hub)
		s := newPipeSite(t, hub)
		a, b := s.connectAs("name=a"), s.connectAs("name=b")
		client("b").Subscribe("x")
		client("b").Unsubscribe("x")
		client("a").Subscribe("x")
		disconnect(t, hub, "x")
		if err := client("b").Subscribe("x"); err != nil {
			t.Error(err)
		}
		if got := closeStatus(a).Code; got != codeOut {
			t.Errorf("a was closed with %d", got)
		}
		publish(t, hub, "x", "hello")
		if got := read(t, b); got != "hello" {
			t.Errorf("b got %q", got)
		}
	})
}

// While clients of the topic come, go and get events, each connection gets all
// before its disconnect, and none is left over.
func TestDisconnectStress(t *testing.T) {
	hub := realtime.NewHub()
	s := newTCPSite(t, hub)
	const rounds = 100
	var clients sync.WaitGroup
	over := make(chan struct{})
	var ended atomic.Int64
	for range 8 {
		clients.Go(func() {
			for {
				l := s.listen("topic=a")
				select {
				case <-over:
					l.cut()
					return
				default:
				}
				last := ""
				for {
					ev, err := l.event()
					if err != nil {
						break
					}
					last = ev.data
				}
				if last != "" && last != "end" {
					t.Errorf("the last event was %q", last)
				}
				ended.Add(1)
				l.cut()
			}
		})
	}
	for range rounds {
		publish(t, hub, "a", "begin")
		publish(t, hub, "a", "end")
		disconnect(t, hub, "a")
	}
	close(over)
	for open := true; open; time.Sleep(time.Millisecond) {
		disconnect(t, hub, "a")
		open = hub.ClientCount() > 0
	}
	clients.Wait()
	t.Logf("%d connections were closed", ended.Load())
}

// On all nodes, in order with the events of the same publisher.
func TestClusterDisconnect(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			everyClient(t, func(t *testing.T, join func(*site, string) resumer) {
				engine := brokertest.NewMemory()
				sites := newNodes(t, engine, 3)
				if !history {
					sites = nodes(t, engine, 3, nil)
				}
				var out, others []resumer
				for _, s := range sites {
					out = append(out, join(s, "topic=a&topic=b"))
					others = append(others, join(s, "topic=b"))
				}
				publish(t, sites[0].hub, "a", "1")
				disconnect(t, sites[0].hub, "a")
				publish(t, sites[0].hub, "a", "2")
				publish(t, sites[0].hub, "b", "3")
				synctest.Wait()
				for _, s := range sites {
					if n := s.hub.ClientCount(); n != 1 {
						t.Errorf("a node has %d clients, want 1", n)
					}
				}
				for i := range sites {
					expectOut(t, out[i], "1")
					expect(t, others[i], "3")
				}
			})
		})
	}
}

// Without the engine the node's own clients are closed, and the error says that
// others may not be.
func TestClusterDisconnectDuringAnOutage(t *testing.T) {
	for _, history := range []bool{false, true} {
		t.Run(fmt.Sprint("history=", history), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				engine := brokertest.NewMemory()
				sites := newNodes(t, engine, 2)
				if !history {
					sites = nodes(t, engine, 2, nil)
				}
				here, there := join(sites[0], "topic=a"), join(sites[1], "topic=a")
				time.Sleep(time.Second)
				engine.Stop()
				began := time.Now()
				// The first message that fails tells that the engine is away: this
				// one. Publish would return nil.
				if err := sites[0].hub.Disconnect(t.Context(), "a", codeOut, "log out"); !errors.Is(err, realtime.ErrBrokerUnavailable) {
					t.Errorf("Disconnect = %v", err)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
				expectOut(t, here)
				engine.Start()
				time.Sleep(5 * time.Second)
				if !history { // the other node learns of it now
					expectOut(t, there)
					return
				}
				publish(t, sites[0].hub, "a", "hello")
				for {
					ev, err := there.event()
					if err != nil {
						t.Fatalf("the other node's client: %v", err)
					}
					if ev.data == "hello" {
						break
					}
				}
			})
		})
	}
}

// A node of a Broker that nothing reaches gets a disconnect when it is back, once,
// and until then the error says so. One that is silent for a minute counts as dead.
func TestDisconnectOnANodeThatIsCutOff(t *testing.T) {
	for _, test := range []struct {
		silent time.Duration // when Disconnect is called
		want   error
	}{{0, realtime.ErrBrokerUnavailable}, {30 * time.Second, realtime.ErrBrokerUnavailable}, {2 * time.Minute, nil}} {
		t.Run(fmt.Sprint(test.silent), func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				engine := brokertest.NewMemory()
				a := nodes(t, engine, 1, nil)[0]
				cut := atomic.Bool{}
				hub := realtime.NewHub()
				hub.Broker = tampered{cutBroker{engine.Broker(), &cut}, func(h realtime.BrokerHandler, topic string, msg []byte) {
					if !cut.Load() {
						h.Deliver(topic, msg)
					}
				}}
				b := newPipeSite(t, hub)
				join(a, "") // starts the node
				old, ended := join(b, "topic=user/42"), make(chan time.Time)
				go func() {
					expectOut(t, old)
					ended <- time.Now()
				}()
				time.Sleep(5 * time.Second) // for a heartbeat
				cut.Store(true)
				time.Sleep(test.silent)
				began := time.Now()
				if err := a.hub.Disconnect(t.Context(), "user/42", codeOut, "log out"); !errors.Is(err, test.want) {
					t.Errorf("Disconnect = %v, want %v", err, test.want)
				}
				if took := time.Since(began); took > 3*time.Second {
					t.Errorf("it took %v", took)
				}
				time.Sleep(time.Minute)
				cut.Store(false)
				back := time.Now()
				if at := <-ended; at.Before(back) || at.Sub(back) > 5*time.Second {
					t.Errorf("the client ended %v after its node was back", at.Sub(back))
				}
				again := join(b, "topic=user/42")
				time.Sleep(6 * time.Second)
				publish(t, a.hub, "user/42", "hello")
				expect(t, again, "hello")
			})
		})
	}
}

// A node that counts as dead doesn't make Disconnect wait or fail beside one that
// answers.
func TestDisconnectBesideADeadNode(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		sites, node := nodes(t, engine, 2, nil), new(crashing)
		hub := realtime.NewHub()
		hub.Broker = crashingBroker{engine.Broker(), node}
		join(sites[0], "") // starts the node
		join(newPipeSite(t, hub), "")
		c := join(sites[1], "topic=user/42")
		time.Sleep(5 * time.Second)
		node.crash()
		time.Sleep(2 * time.Minute)
		began := time.Now()
		disconnect(t, sites[0].hub, "user/42")
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		expectOut(t, c)
	})
}

// A node that doesn't answer and then leaves has no clients any more.
func TestDisconnectWhileANodeLeaves(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		a := nodes(t, engine, 1, nil)[0]
		deaf := atomic.Bool{}
		hub := realtime.NewHub()
		hub.Broker = tampered{engine.Broker(), func(h realtime.BrokerHandler, topic string, msg []byte) {
			if !deaf.Load() {
				h.Deliver(topic, msg)
			}
		}}
		join(a, "") // starts the node
		drained(join(newPipeSite(t, hub), "topic=user/42"))
		time.Sleep(5 * time.Second)
		deaf.Store(true)
		time.AfterFunc(time.Second, func() { hub.Shutdown(context.Background()) })
		began := time.Now()
		disconnect(t, a.hub, "user/42")
		if took := time.Since(began); took > 1500*time.Millisecond {
			t.Errorf("it took %v", took)
		}
	})
}

// A Broker may deliver one topic later than another, as Redis Cluster does. The
// repetition of a disconnect still comes behind the events of its topic.
func TestDisconnectOnATopicThatIsSlow(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		a := nodes(t, engine, 1, nil)[0]
		hub := realtime.NewHub()
		hub.Broker = tampered{engine.Broker(), func(h realtime.BrokerHandler, topic string, msg []byte) {
			if topic == "nodes" {
				h.Deliver(topic, msg)
				return
			}
			msg = bytes.Clone(msg)
			time.AfterFunc(100*time.Millisecond, func() { h.Deliver(topic, msg) })
			time.Sleep(time.Nanosecond) // so that no two come at one time
		}}
		b := newPipeSite(t, hub)
		join(a, "") // starts the node
		c := join(b, "topic=user/42")
		time.Sleep(5 * time.Second)
		publish(t, a.hub, "user/42", "1")
		began := time.Now()
		disconnect(t, a.hub, "user/42")
		if took := time.Since(began); took > time.Second {
			t.Errorf("it took %v", took)
		}
		expectOut(t, c, "1")
	})
}

// A cutBroker drops what its node publishes.
type cutBroker struct {
	realtime.Broker
	cut *atomic.Bool
}

func (b cutBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	if b.cut.Load() {
		return nil
	}
	return b.Broker.Publish(ctx, topic, msg)
}

// A disconnect that is lost on its way is repeated at once. One that comes twice,
// or behind its repetition, counts once.
func TestDisconnectIsLostOrComesTwice(t *testing.T) {
	for _, test := range []string{"lost", "twice", "late"} {
		t.Run(test, func(t *testing.T) {
			eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
				engine := brokertest.NewMemory()
				a := nodes(t, engine, 1, nil)[0]
				hub := realtime.NewHub()
				armed := atomic.Bool{}
				hub.Broker = tampered{engine.Broker(), func(h realtime.BrokerHandler, topic string, msg []byte) {
					if topic != "topic/user/42" || !armed.CompareAndSwap(true, false) {
						h.Deliver(topic, msg)
						return
					}
					switch test {
					case "twice":
						h.Deliver(topic, bytes.Clone(msg))
						h.Deliver(topic, bytes.Clone(msg))
					case "late":
						msg = bytes.Clone(msg)
						time.AfterFunc(time.Second, func() { h.Deliver(topic, msg) })
					}
				}}
				b := newPipeSite(t, hub)
				join(a, "") // starts the node
				old := join(b, "topic=user/42")
				time.Sleep(5 * time.Second)
				armed.Store(true)
				began := time.Now()
				disconnect(t, a.hub, "user/42")
				if took := time.Since(began); took > time.Second {
					t.Errorf("it took %v", took)
				}
				expectOut(t, old)
				again := join(b, "topic=user/42")
				time.Sleep(5 * time.Second)
				publish(t, a.hub, "user/42", "hello")
				expect(t, again, "hello")
			})
		})
	}
}

// A node that gets the records late closes its clients then. A client that comes
// with an id from behind the disconnect has joined after it, and stays.
func TestDisconnectOnANodeThatIsBehind(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		a := newNodes(t, engine, 1)[0]
		b, lag := newNode(t, engine)
		old, watcher := join(b, "topic=user/42"), join(a, "topic=news")
		synctest.Wait()
		lag.deaf.Store(true)
		publish(t, a.hub, "user/42", "1")
		disconnect(t, a.hub, "user/42")
		publish(t, a.hub, "news", "2")
		expect(t, watcher, "2")
		time.AfterFunc(time.Second, func() { lag.deaf.Store(false) })
		again := back(b, join, "topic=user/42&topic=news", watcher.last())
		expectOut(t, old, "1")
		publish(t, a.hub, "user/42", "3")
		expect(t, again, "3")
	})
}

// A node that starts reads old disconnects. They are not for the clients that
// come then, nor for those whose Subscribe waits until the node has read the log.
func TestDisconnectBeforeANodeHasRead(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		for _, waits := range []bool{false, true} {
			engine := brokertest.NewMemory()
			a := newNodes(t, engine, 1)[0]
			disconnect(t, a.hub, "user/42")
			lag := &flaky{HistoryBroker: engine.HistoryBroker()}
			lag.deaf.Store(waits)
			hub := realtime.NewHub()
			hub.History = realtime.History{Events: 1000, Age: time.Hour}
			hub.Broker = lag
			b := newPipeSite(t, hub)
			began := time.Now()
			time.AfterFunc(time.Second, func() {
				disconnect(t, a.hub, "user/42")
				lag.deaf.Store(false)
			})
			c := join(b, "topic=user/42")
			if waited := time.Since(began) >= time.Second; waited != waits {
				t.Fatalf("the client waited: %v", waited)
			}
			publish(t, a.hub, "user/42", "hello")
			expect(t, c, "hello")
			if !waits {
				expectOut(t, c)
			}
		}
	})
}

// A node that started without the engine reads the disconnects late. Its clients
// didn't wait so long, and are closed by them.
func TestDisconnectOnANodeThatStartsSlowly(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		a := newNodes(t, engine, 1)[0]
		publish(t, a.hub, "a", "old")
		b, lag := newNode(t, engine)
		lag.deaf.Store(true)
		began := time.Now()
		c := join(b, "topic=a")
		if time.Since(began) < 5*time.Second {
			t.Error("the client didn't wait for the log")
		}
		disconnect(t, a.hub, "a")
		lag.deaf.Store(false)
		expectOut(t, c)
	})
}

// An id stays valid where nothing is published but disconnects.
func TestDisconnectMovesThePosition(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		engine := brokertest.NewMemory()
		sites := newNodes(t, engine, 2)
		c := join(sites[0], "topic=a")
		publish(t, sites[0].hub, "a", "1")
		expect(t, c, "1")
		before := c.last()
		disconnect(t, sites[0].hub, "b")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.event()
		}()
		time.Sleep(time.Minute)
		c.cut()
		<-ended
		if c.last() == before {
			t.Error("the client was not told of the new position")
		}
		c = back(sites[1], join, "topic=a", c.last())
		publish(t, sites[0].hub, "a", "2")
		expect(t, c, "2")
		stats(t, sites[1], func(st realtime.Stats) bool { return st.Resumed == 1 && st.Resets == 0 })
	})
}
