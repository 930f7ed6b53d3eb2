package realtime

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// A history bounds its events by number and by age, in busy and in quiet
// topics.
func TestHistoryIsBounded(t *testing.T) {
	h := newHistory(History{Events: 10}.settled())
	now := time.Now()
	count := func() (events, byAge int) {
		for _, p := range h.topics {
			events += len(p.recent)
			if len(p.recent) == 0 {
				t.Errorf("topic %q is kept for nothing", p.topic)
			}
		}
		root := &h.recent.root
		last := root
		for m := root.newer; m != root; m = m.newer {
			if m.older != last || last != root && last.event.seq >= m.event.seq {
				t.Fatal("the list by age is torn")
			}
			last = m
			byAge++
		}
		if last != root.older || byAge != h.recent.len {
			t.Fatal("the list by age has another end")
		}
		return events, byAge
	}
	for i := range 10_000 {
		h.add(&event{topic: "busy"}, now)
		h.add(&event{topic: fmt.Sprint(i)}, now)
		now = now.Add(time.Millisecond)
	}
	if events, byAge := count(); events != 10_010 || byAge != events {
		t.Errorf("%d events are kept, %d by age; want 10 of the busy topic and one of each other", events, byAge)
	}
	if p := h.topics["busy"]; cap(p.recent) > 40 {
		t.Errorf("10 events are kept in a slice of %d", cap(p.recent))
	}
	if wait := h.expire(now); wait != 5*time.Minute-10*time.Second {
		t.Errorf("the next one expires in %v, want 4m50s", wait)
	}
	now = now.Add(5*time.Minute - 5*time.Second)
	h.expire(now)
	if events, byAge := count(); events != 5009 || byAge != events {
		t.Errorf("%d events are kept, %d by age; want 10 of the busy topic and 4,999 others", events, byAge)
	}
	h.expire(now.Add(time.Hour))
	if events, _ := count(); events != 0 || h.none.forgot != 20_000 {
		t.Errorf("%d events are kept, the floor is %d", events, h.none.forgot)
	}
	h.add(&event{topic: "7"}, now)
	if topic := []*subscription{{name: "7"}}; h.complete(topic, 19_999) || !h.complete(topic, 20_000) {
		t.Error("a topic that was forgotten knows what of it was")
	}
}

func TestHistorySettings(t *testing.T) {
	const many = 100_000
	for give, want := range map[History]History{
		{}:                              {},
		{Events: 7}:                     {Events: 7, Age: 5 * time.Minute, Values: many},
		{Age: time.Second}:              {Events: 100, Age: time.Second, Values: many},
		{Events: 7, Age: time.Second}:   {Events: 7, Age: time.Second, Values: many},
		{Events: -1}:                    {},
		{Events: -1, Age: time.Second}:  {Events: 100, Age: time.Second, Values: many},
		{Events: 7, Age: -time.Second}:  {Events: 7, Age: 5 * time.Minute, Values: many},
		{Events: -1, Age: -time.Second}: {},
		{Values: 3}:                     {Events: 100, Age: 5 * time.Minute, Values: 3},
		{Values: -1}:                    {},
		{Events: 7, Values: -1}:         {Events: 7, Age: 5 * time.Minute},
	} {
		if got := give.settled(); got != want {
			t.Errorf("%+v is settled as %+v, want %+v", give, got, want)
		}
	}
}

// The newest event of each Key stays when it is no longer recent, until it is
// replaced, taken away, or there are too many.
func TestValuesStay(t *testing.T) {
	h := newHistory(History{Events: 10, Values: 50}.settled())
	dropped := 0
	h.forgotten = func() { dropped++ }
	now := time.Now()
	values := func(topic string) (all []string) {
		r := &replay{topics: []*subscription{{name: topic}}, whole: true}
		h.fill(r)
		for _, ev := range r.part {
			all = append(all, ev.Key+string(ev.Data))
		}
		return all
	}
	check := func(what, topic string, want ...string) {
		t.Helper()
		if got := values(topic); !slices.Equal(got, want) {
			t.Errorf("%s: the values are %q, want %q", what, got, want)
		}
		stayed := 0
		for _, p := range h.topics {
			if len(p.recent) == 0 && len(p.stayed) == p.stale {
				t.Errorf("%s: topic %q is kept for nothing", what, p.topic)
			}
			if p.stale > len(p.stayed)/2 {
				t.Errorf("%s: %d of %d are stale", what, p.stale, len(p.stayed))
			}
			stayed += len(p.stayed) - p.stale
			for key, m := range p.keys {
				if m.stale || m.replacement != nil {
					t.Errorf("%s: %q has a stale value", what, key)
				}
			}
		}
		n := 0
		for m := h.stayed.root.newer; m != nil && m != &h.stayed.root; m = m.newer {
			n++
		}
		if n != stayed || h.stayed.len != n {
			t.Errorf("%s: %d values have stayed, %d in order, counted as %d", what, stayed, n, h.stayed.len)
		}
	}
	add := func(topic, key, data string) {
		h.add(newEvent(topic, Event{Key: key, Data: []byte(data), Gone: data == "gone"}), now)
	}
	add("a", "x", "1")
	add("a", "y", "1")
	for range 20 {
		add("a", "", "chat")
	}
	check("by number", "a", "x1", "y1")
	add("a", "z", "1")
	now = now.Add(time.Hour)
	h.expire(now)
	check("by age", "a", "x1", "y1", "z1")
	add("a", "x", "2")
	check("one replaced", "a", "y1", "z1", "x2")
	add("a", "y", "gone")
	check("one taken away", "a", "z1", "x2")
	now = now.Add(time.Hour)
	h.expire(now)
	check("later", "a", "z1", "x2")
	if _, kept := h.topics["a"].keys["y"]; kept {
		t.Error("a value that was taken away is kept for ever")
	}
	add("a", "z", "gone")
	add("a", "x", "gone")
	add("a", "never", "gone")
	now = now.Add(time.Hour)
	h.expire(now)
	check("all taken away", "a")
	if len(h.topics) != 0 {
		t.Errorf("%d topics are kept for nothing", len(h.topics))
	}
	for i := range 200 { // of which 30 of each are replaced in turn
		add("b", fmt.Sprint(i%100), "n")
		add(fmt.Sprint("topic", i%30), "k", "n")
	}
	if dropped == 0 {
		t.Error("no value was dropped")
	}
	now = now.Add(time.Hour)
	h.expire(now)
	if h.stayed.len != 50 {
		t.Errorf("%d values have stayed, want 50", h.stayed.len)
	}
	check("too many", "nowhere")
	if want := 130 - 50; dropped < want {
		t.Errorf("%d values were dropped, want %d at least", dropped, want)
	}
}

// What was forgotten of topics that are not kept any more is the most that was
// forgotten of any, whichever goes last.
func TestForgottenTopics(t *testing.T) {
	h := newHistory(History{Events: 10, Values: 1}.settled())
	now := time.Now()
	h.add(newEvent("value", Event{Key: "k"}), now)
	h.add(newEvent("gone", Event{Key: "k", Gone: true}), now)
	gone := h.seq
	h.expire(now.Add(time.Hour))
	h.add(newEvent("other value", Event{Key: "k"}), now)
	h.expire(now.Add(time.Hour)) // for which the first value is dropped
	if len(h.topics) != 1 || h.none.forgot != gone || h.none.buried != gone {
		t.Errorf("%d topics are kept, up to %d is forgotten and up to %d taken away; want 1, %d and %d",
			len(h.topics), h.none.forgot, h.none.buried, gone, gone)
	}
}

// A hub that keeps no values beyond its events doesn't say that it forgets them.
func TestNoValuesStay(t *testing.T) {
	h := newHistory(History{Events: 1, Values: -1}.settled())
	h.forgotten = func() { t.Error("a value counts as forgotten") }
	h.add(newEvent("a", Event{Key: "k"}), time.Now())
	h.add(newEvent("a", Event{}), time.Now())
	if h.stayed.len != 0 || len(h.topics["a"].keys) != 0 {
		t.Error("a value has stayed")
	}
}

// Hub.Position learns of a move, also if another one to the same place follows.
func TestPositionIsTold(t *testing.T) {
	h := newHistory(History{Events: 1}.settled())
	h.move(5)
	h.move(5)
	if h.tell(); h.now.Load().seq != 5 {
		t.Errorf("the position is %d, want 5", h.now.Load().seq)
	}
}
