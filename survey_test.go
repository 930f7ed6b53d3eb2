package realtime_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
)

// A surveyBroker counts the messages of answers to questions, and loses the
// first ones.
type surveyBroker struct {
	realtime.Broker
	answers *atomic.Int64 // of all nodes
	lose    *atomic.Int64
	limit   int
}

func (b surveyBroker) MaxMessageBytes() int { return b.limit }

func (b surveyBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	if msg[1] == 'v' {
		b.answers.Add(1)
		if b.lose.Add(-1) >= 0 {
			return nil
		}
	}
	return b.Broker.Publish(ctx, topic, msg)
}

// A survey test has nodes with a History on one engine.
type surveyed struct {
	t       *testing.T
	engine  *brokertest.Memory
	answers atomic.Int64
	lose    atomic.Int64
	limit   int
}

func (s *surveyed) node() *site {
	return nodes(s.t, s.engine, 1, func(hub *realtime.Hub) {
		hub.History.Events = 10
		hub.Broker = surveyBroker{hub.Broker, &s.answers, &s.lose, s.limit}
	})[0]
}

// expect wants the values of topic a on all nodes.
func (s *surveyed) expect(when string, sites []*site, want ...string) {
	s.t.Helper()
	synctest.Wait()
	for i, site := range sites {
		got := latest(site.hub, "a")
		slices.Sort(got)
		if !slices.Equal(got, want) {
			s.t.Errorf("%s: node %d has %q, want %q", when, i, got, want)
		}
	}
}

func survey(t *testing.T, test func(t *testing.T, s *surveyed)) {
	synctest.Test(t, func(t *testing.T) { test(t, &surveyed{t: t, engine: brokertest.NewMemory()}) })
}

// A new node asks the others for the latest values. One of them answers.
func TestSurvey(t *testing.T) {
	survey(t, func(t *testing.T, s *surveyed) {
		sites := []*site{s.node(), s.node(), s.node()}
		for _, site := range sites[1:] {
			site.listen("topic=a") // the first has no client: it publishes
		}
		set(t, sites[0].hub, "a", "x", "1")
		set(t, sites[0].hub, "a", "y", "1")
		set(t, sites[0].hub, "", "all", "1")
		for range 20 {
			set(t, sites[0].hub, "a", "", "chat")
		}
		time.Sleep(time.Hour)
		set(t, sites[1].hub, "a", "x", "2")
		set(t, sites[1].hub, "a", "z", "1")
		set(t, sites[1].hub, "a", "z", "gone")
		s.answers.Store(0)
		late := s.node()
		for _, join := range transports {
			c := join(late, "topic=a&topic=b")
			got := map[string]bool{}
			for range 3 {
				ev, err := c.event()
				if err != nil {
					t.Fatal(err)
				}
				got[ev.data] = true
			}
			if len(got) != 2 { // "1" twice
				t.Errorf("a client of the new node got %v", got)
			}
		}
		time.Sleep(time.Minute)
		s.expect("in the end", append(sites, late), "x=2", "y=1")
		if got := latest(late.hub, ""); !slices.Equal(got, []string{"all=1"}) {
			t.Errorf("of the events to all the new node has %q", got)
		}
		if n := s.answers.Load(); n != 2 { // nobody else has b
			t.Errorf("%d answers to questions about two topics", n)
		}
	})
}

// Nodes that knew the topic answer when the one that published is gone.
func TestSurveyAfterThePublisherIsGone(t *testing.T) {
	survey(t, func(t *testing.T, s *surveyed) {
		first := s.node()
		set(t, first.hub, "a", "x", "1")
		synctest.Wait()
		second := s.node()
		second.listen("topic=a")
		time.Sleep(5 * time.Second)
		first.hub.Shutdown(t.Context())
		time.Sleep(time.Hour) // the second one's client is there, and leaves
		third := s.node()
		third.listen("topic=a")
		time.Sleep(5 * time.Second)
		s.expect("in the end", []*site{second, third}, "x=1")
	})
}

// An answer may take many messages, and some of them may be lost.
func TestSurveyLargeAnswer(t *testing.T) {
	survey(t, func(t *testing.T, s *surveyed) {
		s.limit = 1000
		site0 := s.node()
		site0.listen("topic=a")
		var want []string
		for i := range 90 {
			data := "value"
			set(t, site0.hub, "a", fmt.Sprintf("%02d", i), data)
			want = append(want, fmt.Sprintf("%02d=%s", i, data))
		}
		for lose := range 3 {
			s.lose.Store(int64(lose))
			late := s.node()
			late.listen("topic=a")
			time.Sleep(10 * time.Second)
			s.expect(fmt.Sprintf("%d messages lost", lose), []*site{late}, want...)
		}
		if n := s.answers.Load(); n < 20 {
			t.Errorf("the answers had %d messages", n)
		}
	})
}

// After an outage the nodes agree: what is newer counts.
func TestSurveyAfterAnOutage(t *testing.T) {
	survey(t, func(t *testing.T, s *surveyed) {
		sites := []*site{s.node(), s.node()}
		var heard [2]safeBuffer // what the nodes' clients get
		for i, site := range sites {
			l := site.listen("topic=a")
			go io.Copy(&heard[i], l.conn)
		}
		for _, key := range []string{"v", "w", "x", "y", "z"} {
			set(t, sites[0].hub, "a", key, "1")
		}
		time.Sleep(time.Second)
		s.engine.Stop()
		cutOff := func(node int, key, data string) {
			sites[node].hub.Publish(t.Context(), "a", realtime.Event{Key: key, Data: []byte(key + data), Gone: data == "gone"})
			time.Sleep(time.Second)
		}
		cutOff(0, "x", "2")
		cutOff(1, "x", "3")
		cutOff(1, "y", "2")
		cutOff(0, "y", "3")
		cutOff(0, "z", "gone")
		cutOff(1, "w", "2")
		cutOff(1, "new", "1")
		s.engine.Start()
		time.Sleep(10 * time.Second)
		s.expect("in the end", sites, "new=new1", "v=1", "w=w2", "x=x3", "y=y3")
		// The clients were told, too.
		for i, want := range [][]string{{"w2", "x3", "new1"}, {"y3", "zgone"}} {
			for _, data := range want {
				if !strings.Contains(heard[i].String(), "data: "+data+"\n") {
					t.Errorf("the client of node %d was not told %s, but %s", i, data, heard[i].String())
				}
			}
		}
	})
}

// Hubs that are alone, or without a History, don't ask for ever.
func TestSurveyAlone(t *testing.T) {
	survey(t, func(t *testing.T, s *surveyed) {
		var questions atomic.Int64
		hub := realtime.NewHub()
		hub.History.Events = 10
		hub.Broker = countingBroker{s.engine.Broker(), 'q', &questions}
		alone := newPipeSite(t, hub)
		alone.listen("topic=a")
		set(t, hub, "a", "x", "1")
		time.Sleep(time.Minute)
		if n := questions.Load(); n != 2 {
			t.Errorf("a hub that is alone asked %d times about two topics", n)
		}
		without := nodes(t, s.engine, 1, func(hub *realtime.Hub) { hub.Broker = countingBroker{hub.Broker, 'q', &questions} })[0]
		without.listen("topic=a")
		questions.Store(0)
		time.Sleep(time.Minute)
		if n := questions.Load(); n != 0 {
			t.Errorf("a hub without a History asked %d times", n)
		}
	})
}

// A node without a History knows no values, and keeps no other node from telling them.
func TestSurveyBesideANodeWithoutHistory(t *testing.T) {
	survey(t, func(t *testing.T, s *surveyed) {
		first, without := s.node(), nodes(t, s.engine, 1, nil)[0]
		first.listen("topic=a")
		drained(without.listen("topic=a"))
		set(t, first.hub, "a", "x", "1")
		for range 10 {
			late := s.node()
			late.listen("topic=a")
			time.Sleep(5 * time.Second)
			s.expect("beside a node without a History", []*site{late}, "x=1")
			late.hub.Shutdown(t.Context())
		}
	})
}

// A countingBroker counts messages of a kind.
type countingBroker struct {
	realtime.Broker
	kind byte
	n    *atomic.Int64
}

func (b countingBroker) Publish(ctx context.Context, topic string, msg []byte) error {
	if bytes.HasPrefix(msg[1:], []byte{b.kind}) {
		b.n.Add(1)
	}
	return b.Broker.Publish(ctx, topic, msg)
}
