package realtime

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// A recorder is a connection that keeps what is written, and takes it only
// through its gate.
type recorder struct {
	net.Conn
	gate chan error
	room func() int // what try takes at once; nil: nothing

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
			return 0, err
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

// What waits goes out in few writes, none of them over maxWrite, in order, and
// is counted by message.
func TestOutboxGathers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := &outbox{shared: newShared()}
		o.open(conn, conn.try, plainFormat)
		var want []byte
		for i := range 3000 {
			p := fmt.Sprint(i, string(make([]byte, i%100)))
			want = append(want, frames(opText, p)...)
			start, err := o.push(runOf(p))
			if err != nil || start != (i == 0) {
				t.Fatalf("push %d: start %v, %v", i, start, err)
			}
			if start {
				go o.drain()
				synctest.Wait() // the first one is being written
			}
		}
		if o.waiting != 3000 || o.shared.queued.Load() != 3000 {
			t.Errorf("%d waiting, %d queued, want 3000", o.waiting, o.shared.queued.Load())
		}
		close(conn.gate)
		synctest.Wait()
		if !bytes.Equal(conn.got, want) {
			t.Errorf("wrote %d bytes that are not the %d that were pushed", len(conn.got), len(want))
		}
		if conn.writes > 5 || conn.most > maxWrite {
			t.Errorf("%d bytes in %d writes, the largest of %d bytes", len(want), conn.writes, conn.most)
		}
		if o.waiting != 0 || o.shared.delivered.Load() != 3000 || o.writing || o.queue != nil {
			t.Errorf("%d waiting, %d delivered, writing %v", o.waiting, o.shared.delivered.Load(), o.writing)
		}
	})
}

// A pong overtakes what waits, but never a frame that has been begun; only
// the newest one is sent, and none behind a close frame.
func TestOutboxPong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := &outbox{shared: newShared()}
		o.open(conn, nil, plainFormat)
		large := string(bytes.Repeat([]byte("x"), 3*maxWrite))
		o.push(runOf(large))
		go o.drain()
		synctest.Wait() // the first piece of it is being written
		o.push(runOf("later"))
		for i := range 10 {
			o.answer(controlFrame(opPong, fmt.Append(nil, i)))
		}
		o.close(closeFrame(1000, ""))
		o.answer(controlFrame(opPong, []byte("too late")))
		if start, _ := o.control(pingFrame); start {
			t.Error("a closed outbox takes a ping")
		}
		close(conn.gate)
		synctest.Wait()
		want := append(frames(opText, large), frames(opPong, "9")...)
		want = append(append(want, frames(opText, "later")...), closeFrame(1000, "").b...)
		if !bytes.Equal(conn.got, want) {
			t.Errorf("wrote %d bytes, want %d: the large message, the last pong, the later one, the close frame", len(conn.got), len(want))
		}
	})
}

// Where nothing waits, what the kernel takes needs no goroutine; what is left
// of a frame goes first.
func TestOutboxWritesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		room := 1 << 20
		conn := &recorder{gate: make(chan error), room: func() int { return room }}
		o := &outbox{shared: newShared()}
		o.open(conn, conn.try, plainFormat)
		if start, err := o.push(runOf("a", "b")); start || err != nil {
			t.Errorf("push: start %v, %v; want neither", start, err)
		}
		if start, err := o.control(pingFrame); start || err != nil {
			t.Errorf("control: start %v, %v; want neither", start, err)
		}
		if start, err := o.answer(controlFrame(opPong, nil)); start || err != nil {
			t.Errorf("answer: start %v, %v; want neither", start, err)
		}
		room = 5
		if start, err := o.push(runOf("c", "torn", "d")); !start || err != nil || o.waiting != 2 {
			t.Errorf("push: start %v, %v, %d waiting; want a goroutine for 2", start, err, o.waiting)
		}
		room = 1 << 20
		if start, err := o.push(runOf("e")); start || err != nil {
			t.Errorf("push: start %v, %v; want neither while a goroutine writes", start, err)
		}
		go o.drain()
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
		if start, err := o.push(runOf("f")); start || err != nil {
			t.Errorf("push: start %v, %v; want neither once all is written", start, err)
		}
	})
}

// A write that fails ends the outbox: what waits is dropped and counted, and
// nothing more is taken.
func TestOutboxWriteFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &recorder{gate: make(chan error)}
		o := &outbox{shared: newShared()}
		o.open(conn, nil, plainFormat)
		o.push(runOf("a", "b", "c"))
		ended := make(chan error, 1)
		go func() { ended <- o.drain() }()
		reset := errors.New("reset")
		conn.gate <- reset
		if err := <-ended; err != reset {
			t.Errorf("drain: %v, want the error of the write", err)
		}
		if _, err := o.push(runOf("d")); err != ErrClientClosed {
			t.Errorf("push: %v, want ErrClientClosed", err)
		}
		if d, q := o.shared.dropped.Load(), o.shared.queued.Load(); d != 3 || q != 0 {
			t.Errorf("%d dropped, %d queued; want 3 and 0", d, q)
		}
	})
}

// Whatever is pushed, and however the writes go, the bytes are those of the
// messages in order, with whole control frames between them.
func TestOutboxKeepsOrder(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			conn := &recorder{gate: make(chan error)}
			o := &outbox{shared: newShared()}
			var try func([]byte) (int, error)
			if seed%2 == 0 {
				try = conn.try
				conn.room = func() int { return [...]int{0, 1, 5, 1000, 1 << 20, 1 << 20}[rnd.IntN(6)] }
			}
			var want []string
			start := func(b bool, err error) {
				if err != nil {
					t.Fatal(err)
				}
				if b {
					go o.drain()
				}
			}
			opened := false
			for range 300 {
				if !opened && rnd.IntN(10) == 0 {
					opened = true
					start(o.open(conn, try, plainFormat))
				}
				switch rnd.IntN(5) {
				case 0, 1:
					var payloads []string
					for range 1 + rnd.IntN(100) {
						payloads = append(payloads, fmt.Sprint(len(want)+len(payloads), string(make([]byte, rnd.IntN(700)))))
					}
					want = append(want, payloads...)
					start(o.push(runOf(payloads...)))
				case 2:
					start(o.control(pingFrame))
				case 3:
					start(o.answer(controlFrame(opPong, []byte("pong"))))
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
				start(o.open(conn, try, plainFormat))
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
			if o.shared.delivered.Load() != int64(len(want)) || o.waiting != 0 {
				t.Errorf("seed %d: %d delivered, %d waiting", seed, o.shared.delivered.Load(), o.waiting)
			}
		})
	}
}

// The hub depends on each of the library's writes being one control frame: it
// asserts that.
func TestWireTakesControlFramesOnly(t *testing.T) {
	var taken [][]byte
	clk := &clock{start: time.Now()}
	newWire := func() *wire { return &wire{clock: clk, reply: func(b []byte) { taken = append(taken, b) }} }
	if _, err := newWire().Write(closeFrame(1000, "bye").b); err != nil || len(taken) != 1 {
		t.Errorf("a close frame: %v, taken %q", err, taken)
	}
	for name, b := range map[string][]byte{
		"data":             frames(opText, "hi"),
		"half a frame":     closeFrame(1000, "bye").b[:3],
		"two frames":       append(frames(opPong, "a"), frames(opPong, "b")...),
		"not final":        {opPong, 0},
		"masked":           {finBit | opPong, 0x80, 0, 0, 0, 0},
		"more than 125":    append([]byte{finBit | opPong, 126, 0, 126}, make([]byte, 126)...),
		"nothing":          {},
		"a lie of its own": {finBit | opPong, 5, 1},
	} {
		w := newWire()
		if _, err := w.Write(b); err == nil || len(taken) != 1 || !w.aborted {
			t.Errorf("%s: %v, taken %q, aborted %v", name, err, taken, w.aborted)
		}
	}
}
