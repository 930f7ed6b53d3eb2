package realtime_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// A carryLog counts the bytes that nodes append, and the records that each node
// follows.
type carryLog struct {
	realtime.HistoryBroker
	appended *atomic.Int64
	followed atomic.Int64
}

func (b *carryLog) Append(ctx context.Context, record []byte) error {
	b.appended.Add(int64(len(record)))
	return b.HistoryBroker.Append(ctx, record)
}

func (b *carryLog) Follow(h realtime.HistoryHandler) error {
	return b.HistoryBroker.Follow(carryHandler{h, &b.followed})
}

type carryHandler struct {
	realtime.HistoryHandler
	followed *atomic.Int64
}

func (h carryHandler) Record(epoch string, seq uint64, record []byte) {
	h.followed.Add(1)
	h.HistoryHandler.Record(epoch, seq, record)
}

// carryNode returns a node whose events are kept for a minute.
func carryNode(t *testing.T, engine *brokertest.Memory, appended *atomic.Int64) (*site, *carryLog) {
	log := &carryLog{HistoryBroker: engine.HistoryBroker(), appended: appended}
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 10, Age: time.Minute}
	hub.Broker = log
	return newPipeSite(t, hub), log
}

// Values outlive their records and all nodes, and cost little while nothing
// happens.
func TestCarry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		var appended atomic.Int64
		first, _ := carryNode(t, engine, &appended)
		second, _ := carryNode(t, engine, &appended)
		const size = 1000
		var want []string
		for i := range 2000 { // several records of values
			set(t, first.hub, "board", fmt.Sprint(i), strings.Repeat("x", size))
			if i > 0 {
				want = append(want, fmt.Sprintf("%d=%s", i, strings.Repeat("x", size)))
			}
		}
		set(t, second.hub, "board", "0", "gone")
		slices.Sort(want)
		time.Sleep(30 * time.Minute)

		appended.Store(0)
		time.Sleep(time.Hour)
		if n := appended.Load(); n > 12*2000*size {
			t.Errorf("in an hour without events the nodes appended %d bytes", n)
		}
		for _, s := range []*site{first, second} {
			if err := s.hub.Shutdown(t.Context()); err != nil {
				t.Error(err)
			}
		}
		time.Sleep(time.Hour)
		third, log := carryNode(t, engine, &appended)
		c := third.listen("topic=board")
		for range want {
			if ev, err := c.event(); err != nil || len(ev.data) != size || ev.id != "" {
				t.Fatalf("a client got %.50q, id %q, %v", ev.data, ev.id, err)
			}
		}
		got := latest(third.hub, "board")
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("a node that started alone has %d values, want %d", len(got), len(want))
		}
		if n := log.followed.Load(); n > 200 {
			t.Errorf("it read %d records for 2 MB of values", n)
		}
	})
}

// The log of a hub with values stays small while other events come.
func TestCarryKeepsTheLogSmall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		var appended atomic.Int64
		s, _ := carryNode(t, engine, &appended)
		for i := range 100 {
			set(t, s.hub, "board", fmt.Sprint(i), "value")
		}
		published := 0
		for range 20_000 {
			publish(t, s.hub, "chat", strings.Repeat("x", 100))
			published += 100
			time.Sleep(time.Second)
		}
		if n := int(appended.Load()); n > 2*published {
			t.Errorf("%d bytes were appended for %d bytes of events", n, published)
		}
		late, log := carryNode(t, engine, &appended)
		late.listen("topic=board")
		if got := latest(late.hub, "board"); len(got) != 100 {
			t.Errorf("a new node has %d values", len(got))
		}
		if n := log.followed.Load(); n > 400 {
			t.Errorf("a new node reads %d records, where one a second is published", n)
		}
	})
}

// A node whose engine has lost records by a limit of its own asks the others.
func TestCarryForANodeThatAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		var appended atomic.Int64
		first, _ := carryNode(t, engine, &appended)
		set(t, first.hub, "a", "x", "1")
		set(t, first.hub, "a", "y", "1")
		set(t, first.hub, "a", "y", "gone")
		set(t, first.hub, "a", "", "chat")
		engine.Trim(1)
		second, _ := carryNode(t, engine, &appended)
		c := second.listen("topic=a")
		if got := c.next(); got != "1" {
			t.Errorf("a client of the node got %q", got)
		}
		time.Sleep(10 * time.Second)
		for i, s := range []*site{first, second} {
			if got := latest(s.hub, "a"); !slices.Equal(got, []string{"x=1"}) {
				t.Errorf("node %d has %q", i, got)
			}
		}
	})
}

// Values survive the loss of the whole log, if a node lives.
func TestCarryAfterTheLogIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := brokertest.NewMemory()
		var appended atomic.Int64
		first, _ := carryNode(t, engine, &appended)
		set(t, first.hub, "a", "x", "1")
		set(t, first.hub, "a", "x", "2")
		engine.Forget()
		time.Sleep(10 * time.Second)
		if err := first.hub.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		second, _ := carryNode(t, engine, &appended)
		second.listen("topic=a")
		if got := latest(second.hub, "a"); !slices.Equal(got, []string{"x=2"}) {
			t.Errorf("a new node has %q", got)
		}
	})
}
