package realtime

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A recorder is a connection that keeps written bytes. Write waits for its
// gate. On an error from there, it reports half of the bytes as written.
type recorder struct {
	net.Conn
	gate chan error
	room func() int // bytes that try accepts; nil: none

	writing atomic.Bool
	mu      sync.Mutex
	got     []byte
	writes  int
	most    int // bytes in one write
}

// try stands in for the kernel.
func (r *recorder) try(p []byte) (int, error) {
	if r.writing.Load() {
		panic("tried to write during a write")
	}
	if r.room == nil {
		return 0, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(p), r.room())
	r.got = append(r.got, p[:n]...)
	return n, nil
}

func (r *recorder) Write(p []byte) (int, error) {
	if r.writing.Swap(true) {
		panic("two writes at once")
	}
	defer r.writing.Store(false)
	if r.gate != nil {
		if err := <-r.gate; err != nil {
			return len(p) / 2, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, p...)
	r.writes++
	r.most = max(r.most, len(p))
	return len(p), nil
}

func newShared() *shared {
	s := &shared{sendBuffer: 256, slowAfter: time.Second, writeTimeout: 10 * time.Second}
	s.clock.start = time.Now()
	s.clock.until.Store(math.MaxInt64) // there is no sweeper to wind it
	return s
}

// endings is an outboxOwner that keeps what it is told.
type endings struct {
	mu       sync.Mutex
	failed   []error
	finished int
}

func (e *endings) outboxFailed(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.failed = append(e.failed, err)
}

func (e *endings) outboxFinished() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.finished++
}

func (e *endings) outboxEmpty(*replay) bool { return false }

// want checks what the owner was told.
func (e *endings) want(t *testing.T, finished int, failed ...error) {
	t.Helper()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.finished != finished || !slices.Equal(e.failed, failed) {
		t.Errorf("the outbox told of %d ends and of %v, want %d and %v", e.finished, e.failed, finished, failed)
	}
}

func newOutbox() *outbox { return &outbox{shared: newShared(), owner: new(endings)} }

// ends returns what o has told its owner.
func (o *outbox) ends() *endings { return o.owner.(*endings) }

// closeWith closes o with its last bytes.
func (o *outbox) closeWith(last *buffer) bool { return o.close(just(last), func() {}) }

// just returns last as the last bytes in any encoding.
func just(last *buffer) lastBytes { return func(encoding) *buffer { return last } }

func runOf(payloads ...string) *run {
	r := new(run)
	for _, p := range payloads {
		r.add(&event{Event: Event{Data: []byte(p)}})
	}
	return r
}

func frames(op byte, payloads ...string) (b []byte) {
	for _, p := range payloads {
		b = appendFrame(b, op, []byte(p))
	}
	return b
}

// Waiting messages go out in order, in few writes of bounded size.
func TestOutboxGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := newOutbox()
		o.open(conn, conn.try, format{})
		var want []byte
		for i := range 3000 {
			p := fmt.Sprint(i, string(make([]byte, i%100)))
			want = append(want, frames(opText, p)...)
			if err := o.push(runOf(p)); err != nil {
				t.Fatalf("push %d: %v", i, err)
			}
			if i == 0 {
				synctest.Wait() // the first one is being written
			}
		}
		if o.backlog.messages != 3000 || o.shared.queued.Load() != 3000 {
			t.Errorf("%d waiting, %d queued, want 3000", o.backlog.messages, o.shared.queued.Load())
		}
		close(conn.gate)
		synctest.Wait()
		if !bytes.Equal(conn.got, want) {
			t.Errorf("wrote %d bytes that are not the %d that were pushed", len(conn.got), len(want))
		}
		if conn.writes > 13 || conn.most > blindWrite {
			t.Errorf("%d bytes in %d writes, the largest of %d bytes", len(want), conn.writes, conn.most)
		}
		if o.backlog.messages != 0 || o.shared.delivered.Load() != 3000 || o.writing || o.queue != nil {
			t.Errorf("%d waiting, %d delivered, writing %v", o.backlog.messages, o.shared.delivered.Load(), o.writing)
		}
	})
}

// A pong overtakes waiting messages, but no frame that has begun. The newest
// sixteen are sent, and none after a close frame.
func TestOutboxPong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := newOutbox()
		o.open(conn, nil, format{})
		large := string(bytes.Repeat([]byte("x"), 3*maxWrite))
		o.push(runOf(large))
		synctest.Wait() // the first piece of it is being written
		o.push(runOf("later"))
		for i := range 100 {
			o.answer(controlFrame(opPong, fmt.Append(nil, i)))
		}
		o.closeWith(closeFrame(1000, ""))
		o.answer(controlFrame(opPong, []byte("too late")))
		o.control(pingFrame)
		o.ends().want(t, 0)
		close(conn.gate)
		synctest.Wait()
		o.ends().want(t, 1)
		want := frames(opText, large)
		for i := 84; i < 100; i++ {
			want = append(want, frames(opPong, fmt.Sprint(i))...)
		}
		want = append(append(want, frames(opText, "later")...), closeFrame(1000, "").b...)
		if !bytes.Equal(conn.got, want) {
			t.Errorf("wrote %d bytes, want %d: the large message, sixteen pongs, the later one, the close frame", len(conn.got), len(want))
		}
	})
}

// Pongs have the order of their pings, also if the kernel accepts nothing of the
// first one, or only its beginning.
func TestPongsKeepTheirOrder(t *testing.T) {
	for room := range 4 {
		synctest.Test(t, func(t *testing.T) {
			for range 100 { // the goroutine that drains may win once
				conn := &recorder{room: func() int { return room }}
				o := newOutbox()
				o.open(conn, conn.try, format{})
				var want []byte
				for i := range 10 {
					o.answer(controlFrame(opPong, fmt.Append(nil, i)))
					want = append(want, frames(opPong, fmt.Sprint(i))...)
				}
				synctest.Wait()
				if !bytes.Equal(conn.got, want) {
					t.Fatalf("with room for %d bytes: wrote %q, want %q", room, conn.got, want)
				}
			}
		})
	}
}

// If nothing waits, bytes that the kernel accepts need no goroutine. The rest
// of a frame goes first.
func TestOutboxWritesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := 1 << 20
		conn := &recorder{gate: make(chan error), room: func() int { return room }}
		o := newOutbox()
		o.open(conn, conn.try, format{})
		if err := o.push(runOf("a", "b")); o.isWriting() || err != nil {
			t.Errorf("push: goroutine %v, %v; want neither", o.isWriting(), err)
		}
		if o.control(pingFrame); o.isWriting() {
			t.Error("a ping that the kernel takes starts a goroutine")
		}
		if o.answer(controlFrame(opPong, nil)); o.isWriting() {
			t.Error("a pong that the kernel takes starts a goroutine")
		}
		room = 5
		if err := o.push(runOf("c", "torn", "d")); !o.isWriting() || err != nil || o.backlog.messages != 2 {
			t.Errorf("push: goroutine %v, %v, %d waiting; want one for 2", o.isWriting(), err, o.backlog.messages)
		}
		room = 1 << 20
		if err := o.push(runOf("e")); err != nil {
			t.Errorf("push: %v", err)
		}
		close(conn.gate)
		synctest.Wait()
		want := append(append(frames(opText, "a", "b"), pingFrame.b...), frames(opPong, "")...)
		want = append(want, frames(opText, "c", "torn", "d", "e")...)
		if !bytes.Equal(conn.got, want) {
			t.Errorf("wrote %q, want %q", conn.got, want)
		}
		if n := o.shared.delivered.Load(); n != 6 {
			t.Errorf("%d delivered, want 6", n)
		}
		if err := o.push(runOf("f")); o.isWriting() || err != nil {
			t.Errorf("push: goroutine %v, %v; want neither once all is written", o.isWriting(), err)
		}
	})
}

// A failed write ends the outbox and counts the delivered and lost messages.
func TestOutboxWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := newOutbox()
		o.open(conn, nil, format{})
		o.push(runOf("a", "b", "c", "d"))
		reset := errors.New("reset")
		conn.gate <- reset
		synctest.Wait()
		o.ends().want(t, 0, reset)
		if err := o.push(runOf("e")); err != ErrClientClosed {
			t.Errorf("push: %v, want ErrClientClosed", err)
		}
		if w, d, q := o.shared.delivered.Load(), o.shared.dropped.Load(), o.shared.queued.Load(); w != 2 || d != 2 || q != 0 {
			t.Errorf("%d delivered, %d dropped, %d queued; want 2, 2 and 0", w, d, q)
		}
	})
}

// A write that fails at once fails the Send, the client and all later sends.
// The connection has 5 s to end.
func TestWriteFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.start()
		hub.settle()
		c := newClient(hub, webSocket{})
		if err := hub.add(c); err != nil {
			t.Fatal(err)
		}
		c.open()
		c.wire.heard.Store(1) // as attach does
		tries, reset := 0, errors.New("reset")
		c.out.open(new(recorder), func(b []byte) (int, error) {
			if tries++; tries > 1 {
				return 0, reset
			}
			return len(b), nil
		}, format{})
		r := runOf(strings.Repeat("x", maxJoinBytes), "y") // two buffers
		if err := c.out.push(r); err != ErrClientClosed {
			t.Errorf("push: %v, want ErrClientClosed", err)
		}
		if err := c.Send([]byte("x")); err != ErrClientClosed || tries != 2 {
			t.Errorf("Send: %v after %d tries, want ErrClientClosed without a third", err, tries)
		}
		if !errors.Is(c.why(), reset) || hub.ClientCount() != 0 || c.closeBy.Load() == 0 {
			t.Errorf("it left with %v, %d clients, to be closed by %d", c.why(), hub.ClientCount(), c.closeBy.Load())
		}
		if st := hub.Stats(); st.Queued != 0 || st.Delivered+st.Dropped != 2 {
			t.Errorf("Stats() = %+v, want nothing queued, 2 accounted for", st)
		}
		c.gone()
		if err := hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}

// An outbox that has failed accepts and writes nothing more.
func TestOutboxHasFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		conn := new(recorder)
		o.writing = true // the goroutine has not begun
		o.open(conn, nil, format{})
		o.push(runOf("x", "y"))
		o.answer(controlFrame(opPong, nil))
		o.fail()
		o.fail()
		o.drain()
		o.try = conn.try
		conn.room = func() int { return 1 << 20 }
		if err := o.push(runOf("z")); err != ErrClientClosed {
			t.Errorf("push: %v, want ErrClientClosed", err)
		}
		o.control(pingFrame)
		o.answer(controlFrame(opPong, nil))
		if o.closeWith(closeFrame(1000, "")) {
			t.Error("it can be closed")
		}
		o.open(conn, conn.try, format{})
		o.ends().want(t, 0)
		if err := o.overdue(time.Hour); err != nil {
			t.Errorf("overdue: %v", err)
		}
		<-o.flushed()
		if len(conn.got) != 0 || o.shared.dropped.Load() != 2 || o.shared.queued.Load() != 0 {
			t.Errorf("wrote %q, %d dropped, %d queued; want nothing, 2 and 0", conn.got, o.shared.dropped.Load(), o.shared.queued.Load())
		}
	})
}

// An outbox that has failed before its connection comes doesn't greet the client.
// Its drain goroutine would never end: it takes nothing from the queue.
func TestFailedOutboxDoesNotGreet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, direct := range []bool{false, true} {
			o := newOutbox()
			conn := &recorder{gate: make(chan error), room: func() int { return 1 << 20 }}
			try := conn.try
			if !direct {
				try = nil
			}
			o.fail()
			o.open(conn, try, format{encoding: envelopeFrame}, o.shared.newHello("id"))
			synctest.Wait()
			if o.isWriting() || len(conn.got) > 0 {
				t.Errorf("a failed outbox writes; direct: %v", direct)
			}
			o.fail() // drops what is being written, so that the goroutine ends
			close(conn.gate)
			<-o.flushed()
		}
	})
}

// Heartbeats don't pile up behind what waits.
func TestOutboxBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := newOutbox()
		beat := newHeartbeat(54 * time.Second)
		o.beat(beat) // held
		o.open(conn, nil, format{encoding: envelopeFrame})
		o.push(runOf("x"))
		synctest.Wait()
		o.beat(beat)
		close(conn.gate)
		synctest.Wait()
		o.beat(beat)
		synctest.Wait()
		if want := frames(opText, `{"data":"x"}`, `{"interval":54000}`); !bytes.Equal(conn.got, want) {
			t.Errorf("wrote %q, want %q", conn.got, want)
		}
		if o.shared.delivered.Load() != 1 {
			t.Error("a heartbeat counts as a message")
		}
	})
}

// A held outbox keeps events and the close frame, but no control frames.
func TestOutboxHeld(t *testing.T) {
	o := newOutbox()
	o.push(runOf("early"))
	o.control(pingFrame)
	o.answer(controlFrame(opPong, nil))
	o.closeWith(closeFrame(1000, ""))
	o.ends().want(t, 0)
	conn := &recorder{room: func() int { return 1 << 20 }}
	o.open(conn, conn.try, format{})
	o.ends().want(t, 1)
	if want := append(frames(opText, "early"), closeFrame(1000, "").b...); !bytes.Equal(conn.got, want) {
		t.Errorf("wrote %q, want %q", conn.got, want)
	}
	if o.held != nil {
		t.Error("it keeps what it has handed on")
	}
}

// A push that makes its client slow tells the owner. Its cut fails an outbox
// whose peer accepts nothing.
func TestOutboxSlowPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		defer close(conn.gate)
		o := newOutbox()
		o.shared.sendBuffer, o.shared.slowAfter = 1, -1
		o.open(conn, nil, format{})
		if err := o.push(runOf("x", "y")); err != ErrSlowClient {
			t.Errorf("push: %v, want ErrSlowClient", err)
		}
		o.ends().want(t, 0, ErrSlowClient)
		if o.cut(just(closeFrame(1013, "")), func() { t.Error("it is said to be closed") }) || !o.hasFailed() {
			t.Error("cut has not failed the outbox")
		}
		if got := o.shared.dropped.Load(); got != 2 {
			t.Errorf("%d messages are dropped, want 2", got)
		}
	})
}

// A cut lets what is being written end, where the peer accepts it, and puts the
// last bytes behind that. Nothing is torn, and all else is dropped.
func TestOutboxCut(t *testing.T) {
	large := string(make([]byte, 2*blindWrite))
	for _, tt := range []struct {
		name    string
		before  []string // pushed one by one
		writes  int      // that end
		pause   time.Duration
		want    []string
		dropped int64
	}{
		{"nothing is written", []string{"a", "b"}, 0, 0, nil, 4},
		{"several are being written", []string{"a", "b", "c"}, 1, time.Second - 1, []string{"a", "b", "c"}, 2},
		{"a large one is partly written", []string{large, "b"}, 1, 0, []string{large}, 3},
		{"all was written just before", []string{"a", "b"}, 2, 0, []string{"a", "b", "d"}, 1},
		{"nothing is written any more", []string{"a", "b", "c"}, 1, time.Second + 1, nil, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				conn := &recorder{gate: make(chan error)}
				o := newOutbox()
				o.open(conn, nil, format{})
				for _, p := range tt.before {
					o.push(runOf(p))
					synctest.Wait()
				}
				for range tt.writes {
					conn.gate <- nil
					synctest.Wait()
				}
				o.push(runOf("d"))
				synctest.Wait()
				o.push(runOf("e"))
				time.Sleep(tt.pause)
				closed := 0
				last := closeFrame(1013, "later")
				told := o.cut(just(last), func() { closed++ })
				if err := o.push(runOf("f")); err != ErrClientClosed {
					t.Errorf("push after the cut: %v", err)
				}
				if again := o.cut(just(last), func() { closed++ }); again != told {
					t.Errorf("a second cut returns %v, the first returned %v", again, told)
				}
				close(conn.gate)
				synctest.Wait()
				if tt.want == nil {
					if told || closed != 0 || !o.hasFailed() || bytes.Contains(conn.got, last.b) {
						t.Errorf("told %v, closed %d times, wrote %.100q; want it failed", told, closed, conn.got)
					}
					o.ends().want(t, 0)
				} else {
					if want := append(frames(opText, tt.want...), last.b...); !told || closed != 1 || !bytes.Equal(conn.got, want) {
						t.Errorf("told %v, closed %d times, wrote %.100q, want %.100q", told, closed, conn.got, want)
					}
					o.ends().want(t, 1)
				}
				if s := o.shared; s.dropped.Load() != tt.dropped || s.queued.Load() != 0 {
					t.Errorf("%d messages are dropped, %d queued; want %d and 0", s.dropped.Load(), s.queued.Load(), tt.dropped)
				}
			})
		})
	}
}

// A cut may find a full queue, of which most is replaced and all is being
// written. Making room for the last bytes must not need what the cut has dropped.
func TestCutWithAFullQueue(t *testing.T) {
	o := stuck(format{})
	push := func(key string) {
		var r run
		r.add(&event{Event: Event{Key: key, Data: []byte("x")}})
		o.push(&r)
	}
	push("first")
	for push("other"); len(o.queue) < cap(o.queue) || int(o.replaced) <= len(o.queue)/2; push("other") {
	}
	o.nextLocked(new([maxWrite]byte))
	o.progress, o.moved = o.shared.clock.now(), true
	last := closeFrame(1013, "later")
	if !o.cut(just(last), func() {}) {
		t.Fatal("the outbox has failed")
	}
	b := o.nextLocked(new([maxWrite]byte))
	if want := append(frames(opText, "x", "x"), last.b...); !bytes.Equal(b, want) {
		t.Errorf("%q is written, want %q", b, want)
	}
}

// SlowAfter begins above SendBuffer, starts over when the backlog has shrunk by
// SendBuffer messages, and ends at SendBuffer.
func TestOutboxPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOutbox()
		s := o.shared
		s.sendBuffer, s.writeTimeout = 10, time.Hour
		conn := &recorder{gate: make(chan error)}
		o.open(conn, nil, format{})
		large := string(make([]byte, blindWrite-4)) // with its header of 4 bytes, one in a write
		push := func(n int) {
			t.Helper()
			for range n {
				if err := o.push(runOf(large)); err != nil {
					t.Fatalf("push: %v", err)
				}
			}
			synctest.Wait()
		}
		take := func(n int) {
			for range n {
				conn.gate <- nil
			}
			synctest.Wait()
		}
		look := func(want error) {
			t.Helper()
			if got := o.overdue(s.clock.now()); got != want {
				t.Errorf("%d waiting: overdue is %v, want %v", o.backlog.messages, got, want)
			}
		}
		push(10)
		time.Sleep(time.Minute)
		look(nil) // at the limit is never too slow
		push(30)
		time.Sleep(999 * time.Millisecond)
		look(nil)
		push(1)
		take(11) // 30 of 41, and SlowAfter starts over at 31
		time.Sleep(999 * time.Millisecond)
		look(nil)
		take(8) // 22 of 31: not enough
		look(nil)
		time.Sleep(time.Millisecond)
		look(ErrSlowClient)
		take(12) // 10: not above the limit
		look(nil)
		time.Sleep(time.Minute)
		push(1) // 11
		look(nil)
		time.Sleep(time.Second)
		look(ErrSlowClient)
		close(conn.gate)
		synctest.Wait()
	})
}

// A queue that never empties doesn't grow for ever.
func TestOutboxQueueIsBounded(t *testing.T) {
	o := newOutbox()
	o.writing = true // this test writes
	o.open(new(recorder), nil, format{})
	o.push(runOf("x"))
	for range 10_000 {
		o.push(runOf("x"))
		o.wroteLocked(3)
	}
	if cap(o.queue) > 16 {
		t.Errorf("a queue of 1 has room for %d", cap(o.queue))
	}
	kept := 0
	for _, buf := range o.queue[:cap(o.queue)] {
		if buf != nil {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("a queue of 1 keeps %d buffers", kept)
	}
}

// A message that the kernel accepted in part keeps its memory.
func TestOutboxTornMessageKeepsItsMemory(t *testing.T) {
	for range 20 { // under the race detector the pool may drop its items
		room := 3
		conn := &recorder{room: func() int { return room }}
		o, other := newOutbox(), newOutbox()
		o.open(conn, conn.try, format{})
		conn.gate = make(chan error)
		if err := o.post(&Event{Data: []byte("torn")}); !o.isWriting() || err != nil {
			t.Fatalf("post: goroutine %v, %v", o.isWriting(), err)
		}
		taker := &recorder{room: func() int { return 1 << 20 }}
		other.open(taker, taker.try, format{})
		other.post(&Event{Data: []byte("another")})
		o.post(&Event{Data: []byte("behind")})
		other.post(&Event{Data: []byte("another")})
		close(conn.gate)
		<-o.flushed()
		if want := frames(opText, "torn", "behind"); !bytes.Equal(conn.got, want) {
			t.Fatalf("wrote %q, want %q", conn.got, want)
		}
	}
}

// The bytes are messages in order, with whole control frames between them.
func TestOutboxKeepsOrder(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			conn := &recorder{gate: make(chan error)}
			o := newOutbox()
			var try func([]byte) (int, error)
			if seed%2 == 0 {
				try = conn.try
				conn.room = func() int { return [...]int{0, 1, 5, 1000, 1 << 20, 1 << 20}[rnd.IntN(6)] }
			}
			var want []string
			opened := false
			for range 300 {
				if !opened && rnd.IntN(10) == 0 {
					opened = true
					o.open(conn, try, format{})
				}
				switch rnd.IntN(5) {
				case 0, 1:
					var payloads []string
					for range 1 + rnd.IntN(100) {
						payloads = append(payloads, fmt.Sprint(len(want)+len(payloads), string(make([]byte, rnd.IntN(700)))))
					}
					want = append(want, payloads...)
					if err := o.push(runOf(payloads...)); err != nil {
						t.Fatal(err)
					}
				case 2:
					o.control(pingFrame)
				case 3:
					o.answer(controlFrame(opPong, []byte("pong")))
				case 4:
					for range rnd.IntN(30) {
						select {
						case conn.gate <- nil:
						default:
						}
						synctest.Wait()
					}
				}
			}
			if !opened {
				o.open(conn, try, format{})
			}
			close(conn.gate)
			synctest.Wait()
			rest := conn.got
			for i := 0; len(rest) > 0; {
				ping, pong := pingFrame.b, frames(opPong, "pong")
				switch {
				case bytes.HasPrefix(rest, ping):
					rest = rest[len(ping):]
				case bytes.HasPrefix(rest, pong):
					rest = rest[len(pong):]
				case i < len(want) && bytes.HasPrefix(rest, frames(opText, want[i])):
					rest = rest[len(frames(opText, want[i])):]
					i++
				default:
					t.Fatalf("seed %d: torn behind message %d", seed, i)
				}
				if len(rest) == 0 && i != len(want) {
					t.Errorf("seed %d: %d of %d messages", seed, i, len(want))
				}
			}
			if o.shared.delivered.Load() != int64(len(want)) || o.backlog.messages != 0 {
				t.Errorf("seed %d: %d delivered, %d waiting", seed, o.shared.delivered.Load(), o.backlog.messages)
			}
		})
	}
}
