package realtime

import (
	"fmt"
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
			events += len(p.kept)
			if len(p.kept) == 0 {
				t.Errorf("topic %q is kept for nothing", p.topic)
			}
		}
		var last *keptEvent
		for m := h.oldest; m != nil; m = m.newer {
			if m.older != last || last != nil && last.event.seq >= m.event.seq {
				t.Fatal("the list by age is torn")
			}
			last = m
			byAge++
		}
		if last != h.newest {
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
	if p := h.topics["busy"]; cap(p.kept) > 40 {
		t.Errorf("10 events are kept in a slice of %d", cap(p.kept))
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
	if events, _ := count(); events != 0 || h.floor != 20_000 {
		t.Errorf("%d events are kept, the floor is %d", events, h.floor)
	}
	h.add(&event{topic: "7"}, now)
	if topic := []pastTopic{{name: "7"}}; h.complete(topic, 19_999) || !h.complete(topic, 20_000) {
		t.Error("a topic that was forgotten knows what of it was")
	}
}

func TestHistorySettings(t *testing.T) {
	for give, want := range map[History]History{
		{}:                              {},
		{Events: 7}:                     {Events: 7, Age: 5 * time.Minute},
		{Age: time.Second}:              {Events: 100, Age: time.Second},
		{Events: 7, Age: time.Second}:   {Events: 7, Age: time.Second},
		{Events: -1}:                    {},
		{Events: -1, Age: time.Second}:  {Events: 100, Age: time.Second},
		{Events: 7, Age: -time.Second}:  {Events: 7, Age: 5 * time.Minute},
		{Events: -1, Age: -time.Second}: {},
	} {
		if got := give.settled(); got != want {
			t.Errorf("%+v is settled as %+v, want %+v", give, got, want)
		}
	}
}
