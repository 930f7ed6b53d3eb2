package realtime_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// set publishes a value, or takes it away if data is "gone".
func set(t *testing.T, hub *realtime.Hub, topic, key, data string) {
	t.Helper()
	e := realtime.Event{Key: key, Data: []byte(data), Gone: data == "gone"}
	var err error
	if topic == "" {
		err = hub.PublishAll(t.Context(), e)
	} else {
		err = hub.Publish(t.Context(), topic, e)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// latest returns a topic's values as key=data.
func latest(hub *realtime.Hub, topic string) (all []string) {
	for e := range hub.Latest(topic) {
		all = append(all, e.Key+"="+string(e.Data))
	}
	return all
}

// Values outlive History.Events and History.Age.
func TestLatestValuesStay(t *testing.T) {
	eachTransport(t, func(t *testing.T, join func(*site, string) resumer) {
		hub := realtime.NewHub()
		hub.History.Events = 100
		s := newPipeSite(t, hub)
		var want []string
		for i := range 150 {
			set(t, hub, "board", fmt.Sprint(i), fmt.Sprint("value ", i))
			want = append(want, fmt.Sprint("value ", i))
		}
		expect(t, join(s, "topic=board"), want...)
		time.Sleep(6 * time.Minute)
		expect(t, join(s, "topic=board"), want...)

		set(t, hub, "board", "7", "new")
		set(t, hub, "board", "8", "gone")
		c := join(s, "topic=board")
		want = append(append(want[:7], want[9:]...), "new")
		expect(t, c, want...)
		set(t, hub, "board", "9", "gone") // is an event to those who are there
		expect(t, c, "gone")
		id := c.last()
		c.cut()
		set(t, hub, "board", "10", "gone") // and to those who come back
		set(t, hub, "board", "end", "end")
		expect(t, back(s, join, "topic=board", id), "gone", "end")
		if got := latest(hub, "board"); len(got) != 148 || got[0] != "0=value 0" || got[147] != "end=end" {
			t.Errorf("Latest gives %d values, %v", len(got), got)
		}
	})
}

// The envelope tells the Key, and that its value is gone.
func TestGoneInEnvelope(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.PingInterval = -1
		s := newPipeSite(t, hub)
		conn := s.connectAs("topic=a", realtime.Subprotocol)
		plain := s.connectAs("topic=a", "")
		set(t, hub, "a", "x", "gone")
		read(t, conn) // the hub says hello
		var got map[string]any
		if err := json.Unmarshal([]byte(read(t, conn)), &got); err != nil || got["key"] != "x" || got["gone"] != true || got["data"] != "gone" {
			t.Errorf("got %v, %v", got, err)
		}
		if got := read(t, plain); got != "gone" {
			t.Errorf("a plain client got %q", got)
		}
		set(t, hub, "a", "x", "1")
		clear(got)
		if err := json.Unmarshal([]byte(read(t, conn)), &got); err != nil || got["key"] != "x" || got["gone"] != nil {
			t.Errorf("got %v, %v", got, err)
		}
	})
}

func TestGoneWithoutKey(t *testing.T) {
	hub := realtime.NewHub()
	if err := hub.Publish(t.Context(), "a", realtime.Event{Gone: true}); err == nil {
		t.Error("an event without a Key was taken for a value that is gone")
	}
}

// A value that waits for a slow client is not sent once it is gone.
func TestGoneReplacesWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		s := newPipeSite(t, hub)
		conn := s.connectAs("topic=a", "") // the pipe has no buffer
		hub.Broadcast <- []byte("first")
		synctest.Wait()
		set(t, hub, "a", "x", "1")
		set(t, hub, "a", "x", "gone")
		synctest.Wait()
		if first, next := read(t, conn), read(t, conn); first != "first" || next != "gone" {
			t.Errorf("got %q and %q", first, next)
		}
	})
}

// Latest works on any hub, and may be left early.
func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		none := realtime.NewHub()
		set(t, none, "a", "x", "1")
		if got := latest(none, "a"); got != nil {
			t.Errorf("a hub without a History has %v", got)
		}
		if err := none.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		hub := realtime.NewHub()
		hub.History.Events = 1
		if got := latest(hub, "a"); got != nil {
			t.Errorf("an unused hub has %v", got)
		}
		for _, key := range []string{"x", "y", "x"} {
			set(t, hub, "a", key, "1")
			set(t, hub, "", key, "all")
		}
		for range hub.Latest("a") {
			break
		}
		if got := latest(hub, "a"); !slices.Equal(got, []string{"y=1", "x=1"}) {
			t.Errorf("Latest gives %v", got)
		}
		if got := latest(hub, ""); !slices.Equal(got, []string{"y=all", "x=all"}) {
			t.Errorf("Latest gives %v of what all clients get", got)
		}
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if got := latest(hub, "a"); got != nil {
			t.Errorf("a closed hub has %v", got)
		}
	})
}

// Of too many values the oldest go, and not silently.
func TestTooManyValues(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log safeBuffer
		hub := realtime.NewHub()
		hub.History = realtime.History{Events: 1, Values: 10}
		hub.Logger = textLogger(&log)
		newPipeSite(t, hub)
		for i := range 15 {
			set(t, hub, "a", fmt.Sprint(i), "v")
		}
		time.Sleep(time.Hour)
		if got := latest(hub, "a"); len(got) != 10 || got[0] != "5=v" {
			t.Errorf("Latest gives %v", got)
		}
		if n := hub.Stats().Forgotten; n != 5 {
			t.Errorf("%d values count as forgotten, want 5", n)
		}
		if !strings.Contains(log.String(), "more than History.Values") {
			t.Errorf("the log is %q", log.String())
		}
	})
}
