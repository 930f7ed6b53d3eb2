package natsbroker_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker"
)

// newHistoryHub starts a hub with settings of its history. It returns what the hub
// and its broker log.
func newHistoryHub(t *testing.T, engine *servers, age time.Duration, bytes int64) (*site, *buffer) {
	var logged buffer
	logger := slog.New(slog.NewTextHandler(&logged, nil))
	b := natsbroker.New("realtime", connect(t, engine.url(0)))
	b.Logger = logger
	h := b.WithHistory()
	h.MaxBytes = bytes
	return newSite(t, h, func(h *realtime.Hub) {
		h.History.Age = age
		h.Logger = logger
	}), &logged
}

func streams(t *testing.T, engine *servers) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(connect(t, engine.url(0)))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Another program's stream has the name of the history, or its subject. Nothing of
// it is changed. The log says that it wants another name.
func TestStreamOfAnotherProgram(t *testing.T) {
	t.Parallel()
	for _, config := range []jetstream.StreamConfig{
		{Name: "realtime", Subjects: []string{"orders.>"}},
		{Name: "other", Subjects: []string{"realtime.>"}},
	} {
		t.Run(config.Name, func(t *testing.T) {
			t.Parallel() // the test mostly waits
			engine := newStores(t, 1)
			js := streams(t, engine)
			stream, err := js.CreateStream(t.Context(), config)
			if err != nil {
				t.Fatal(err)
			}
			subject := strings.Replace(config.Subjects[0], ">", "x", 1)
			for range 10 {
				if _, err := js.Publish(t.Context(), subject, []byte("an order")); err != nil {
					t.Fatal(err)
				}
			}
			before := fmt.Sprintf("%+v", stream.CachedInfo().Config)
			a, logged := newHistoryHub(t, engine, time.Second, 0)
			eventually(t, "error", func() bool { return strings.Contains(logged.String(), "another name") })
			if a.Publish(t.Context(), "x", realtime.Event{Data: []byte("1")}) == nil {
				t.Error("Publish returns nil")
			}
			info, err := stream.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if after := fmt.Sprintf("%+v", info.Config); after != before || config.Name == "realtime" && info.State.Msgs != 10 {
				t.Errorf("the stream is\n%s with %d messages, was\n%s with 10", after, info.State.Msgs, before)
			}
		})
	}
}

// Nodes with different settings share a stream. It has the highest MaxBytes,
// whoever starts first, and stays so. The others say so once.
func TestStreamKeepsTheMost(t *testing.T) {
	t.Parallel()
	for _, lessFirst := range []bool{false, true} {
		t.Run(fmt.Sprint("lessFirst=", lessFirst), func(t *testing.T) {
			t.Parallel() // the test mostly waits
			engine := newStores(t, 1)
			bytes := []int64{10 << 20, 5 << 20}
			if lessFirst {
				bytes[0], bytes[1] = bytes[1], bytes[0]
			}
			a, aLog := newHistoryHub(t, engine, time.Minute, bytes[0])
			a.say(t, "1")
			b, bLog := newHistoryHub(t, engine, time.Minute, bytes[1])
			b.expectAny(t, "2", a)
			engine.Stop() // after which each looks at the stream again
			if err := engine.Start(); err != nil {
				t.Fatal(err)
			}
			b.expectAny(t, "3", a)
			a.expectAny(t, "4", b)
			stream, err := streams(t, engine).Stream(t.Context(), "realtime")
			if err != nil {
				t.Fatal(err)
			}
			if c := stream.CachedInfo().Config; c.MaxAge != 0 || c.MaxBytes != 10<<20 {
				t.Errorf("the stream keeps records for %v, and %d bytes; want without an end, and 10 MB", c.MaxAge, c.MaxBytes)
			}
			for i, logged := range []*buffer{aLog, bLog} {
				if n := strings.Count(logged.String(), "the stream keeps more"); n > 1 || i == 1 && n == 0 {
					t.Errorf("node %d has logged it %d times:\n%s", i, n, logged)
				}
			}
		})
	}
}

// Records leave the stream when they are older than Age. The newest one with events
// stays.
func TestStreamIsTrimmed(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	a, _ := newHistoryHub(t, engine, time.Second, 0)
	for i := range 5 {
		a.expectAny(t, fmt.Sprint(i), a)
	}
	js := streams(t, engine)
	eventually(t, "stream without old records", func() bool {
		stream, err := js.Stream(t.Context(), "realtime")
		if err != nil {
			t.Fatal(err)
		}
		return stream.CachedInfo().State.FirstSeq >= 5
	})
	a.expectAny(t, "behind it", a)
}

// In the stream of an earlier version of this package records expired. They don't
// any more.
func TestStreamOfEarlierVersion(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	js := streams(t, engine)
	if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: "realtime", Subjects: []string{"realtime.=log.records"}, Storage: jetstream.FileStorage, Replicas: 1,
		MaxAge: 10 * time.Second, MaxBytes: 1 << 30, Duplicates: 10 * time.Second, Metadata: map[string]string{"realtime": "history"},
	}); err != nil {
		t.Fatal(err)
	}
	a, _ := newHistoryHub(t, engine, time.Minute, 0)
	a.expectAny(t, "1", a)
	stream, err := js.Stream(t.Context(), "realtime")
	if err != nil {
		t.Fatal(err)
	}
	if age := stream.CachedInfo().Config.MaxAge; age != 0 {
		t.Errorf("records expire after %v", age)
	}
}

// Somebody has changed the stream, before the hub starts or while it runs. The log
// names what, once, and what to do. The hub works again when that is done.
func TestStreamIsChanged(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, want string
		change     func(c *jetstream.StreamConfig)
		live       bool // it is changed while the hub runs
		last       bool // the change can't be undone
	}{
		{"Subjects", "set them to realtime.=log.records", func(c *jetstream.StreamConfig) { c.Subjects = []string{"elsewhere"} }, true, false},
		{"Sealed", "it is sealed", func(c *jetstream.StreamConfig) { c.Sealed = true }, true, true},
		{"Discard", "set its discard policy to old", func(c *jetstream.StreamConfig) { c.Discard = jetstream.DiscardNew }, false, false},
		{"MaxMsgs", "limit of messages", func(c *jetstream.StreamConfig) { c.MaxMsgs = 1000 }, false, false},
		{"Memory", "it is in memory", func(c *jetstream.StreamConfig) { c.Storage = jetstream.MemoryStorage }, false, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel() // the test mostly waits
			engine := newStores(t, 1)
			js := streams(t, engine)
			was := jetstream.StreamConfig{
				Name: "realtime", Subjects: []string{"realtime.=log.records"}, MaxMsgs: -1, MaxAge: time.Minute, MaxBytes: 1 << 30,
				Metadata: map[string]string{"realtime": "history"},
			}
			if test.live {
				if _, err := js.CreateStream(t.Context(), was); err != nil {
					t.Fatal(err)
				}
			}
			config := was
			test.change(&config)
			change := func() {
				t.Helper()
				if _, err := js.CreateOrUpdateStream(t.Context(), config); err != nil {
					t.Fatal(err)
				}
			}
			if !test.live {
				change()
			}
			a, logged := newHistoryHub(t, engine, time.Minute, 0)
			if test.live {
				a.expectAny(t, "1", a)
				change()
			}
			eventually(t, "line that names it", func() bool {
				a.Publish(t.Context(), "x", realtime.Event{Data: []byte("2")})
				return strings.Contains(logged.String(), test.want)
			})
			eventually(t, "outage", func() bool { return a.Stats().BrokerDown })
			time.Sleep(time.Second)
			lines := logged.String()
			if n := strings.Count(lines, test.want) - strings.Count(lines, "history still lost"); n != 1 { // which comes after 10 s
				t.Errorf("%d lines name it, want 1:\n%s", n, lines)
			}
			if test.last {
				if err := js.DeleteStream(t.Context(), "realtime"); err != nil {
					t.Fatal(err)
				}
			} else if _, err := js.UpdateStream(t.Context(), was); err != nil {
				t.Fatal(err)
			}
			a.expectAny(t, "3", a)
			eventually(t, "working hub", func() bool { return !a.Stats().BrokerDown })
		})
	}
}

// JetStream has room for less than a history has by default. It works all the same,
// and the log says so once. An error about MaxBytes names it.
func TestLittleRoom(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	engine.Stop()
	engine.options[0].JetStreamMaxStore = 200 << 20
	engine.Start()
	a, logged := newHistoryHub(t, engine, time.Minute, 0)
	a.expectAny(t, "1", a)
	if n := strings.Count(logged.String(), "less room than a history has by default"); n != 1 {
		t.Errorf("%d lines say that there is little room, want 1:\n%s", n, logged)
	}
	stream, err := streams(t, engine).Stream(t.Context(), "realtime")
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().Config.MaxBytes; n != 128<<20 {
		t.Errorf("the stream has %d bytes, want 128 MB", n)
	}

	// A node that finds the stream says so too, as one whose answer was lost does.
	c, logged := newHistoryHub(t, engine, time.Minute, 0)
	c.expectAny(t, "1b", a)
	if n := strings.Count(logged.String(), "less room than a history has by default"); n != 1 {
		t.Errorf("%d lines of a node that finds the stream say that there is little room, want 1:\n%s", n, logged)
	}

	// Another node asks for more than there is: the stream stays as it is.
	b, logged := newHistoryHub(t, engine, time.Minute, 300<<20)
	b.expectAny(t, "2", a)
	if n := strings.Count(logged.String(), "no room for MaxBytes"); n != 1 {
		t.Errorf("%d lines say that there is no room, want 1:\n%s", n, logged)
	}
	if err := streams(t, engine).DeleteStream(t.Context(), "realtime"); err != nil {
		t.Fatal(err)
	}
	a.expectAny(t, "3", a)
}

// A stream that is smaller than by default because somebody wants it so is not worth
// a line.
func TestSmallOnPurpose(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	a, _ := newHistoryHub(t, engine, time.Minute, 128<<20)
	a.expectAny(t, "1", a)
	b, logged := newHistoryHub(t, engine, time.Minute, 0)
	b.expectAny(t, "2", a)
	if strings.Contains(logged.String(), "less room") {
		t.Errorf("a line says that there is little room:\n%s", logged)
	}
}

func TestNoRoom(t *testing.T) {
	t.Parallel() // the test mostly waits
	engine := newStores(t, 1)
	engine.Stop()
	engine.options[0].JetStreamMaxStore = 200 << 20
	engine.Start()
	_, logged := newHistoryHub(t, engine, time.Minute, 300<<20)
	eventually(t, "error", func() bool { return strings.Contains(logged.String(), "no room for MaxBytes, which is 314572800") })
}
