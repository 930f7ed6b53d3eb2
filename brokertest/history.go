package brokertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A HistoryEngine is the engine that the brokers of a test share, with a history.
type HistoryEngine interface {
	// HistoryBroker returns a broker for one more node.
	HistoryBroker() realtime.HistoryBroker

	// Stop and Start are those of an [Engine]. The engine has the same history
	// after Start as before Stop.
	Stop() error
	Start() error
}

// RunHistory tests what a realtime.HistoryBroker has beyond a Broker, in
// subtests. It calls start as [Run] does.
func RunHistory(t *testing.T, start func(t *testing.T) HistoryEngine) {
	runEach(t, start, []subtest[HistoryEngine]{
		{"Log", logOrder},
		{"LogSizes", logSizes},
		{"LogFromTheStart", logFromTheStart},
		{"LogSlowHandler", logSlowHandler},
		{"LogEngineAway", logEngineAway},
		{"LogClose", logCloses},
		{"LogTrim", logTrim},
		{"LogTrimBusy", logTrimBusy},
		{"LogTrimOvertakes", logTrimOvertakes},
	})
}

// A follower is a broker whose handler keeps the records.
type follower struct {
	t *testing.T
	realtime.HistoryBroker

	mu      sync.Mutex // guards the fields below
	busy    bool
	slow    time.Duration
	hold    <-chan struct{} // Record waits until it is closed; nil: it doesn't
	epoch   string
	log     []string // the records
	first   uint64   // number of the first record in log
	current bool     // since the last Away
	again   bool     // the last record is to come a second time
	lags    bool     // numbers may be missing; log then has the records behind the newest gap
	gaps    int      // in the numbers
	away    int
}

func newFollower(t *testing.T, engine HistoryEngine) *follower {
	t.Helper()
	f := &follower{t: t, HistoryBroker: engine.HistoryBroker()}
	if err := f.Start(handler{&node{t: t, got: make(map[string][]string), busy: make(map[string]bool)}}); err != nil {
		t.Fatalf("Start: %v", err)
	}
	if err := f.Follow(f); err != nil {
		t.Fatalf("Follow: %v", err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// enter notes that a method of the handler has begun. It locks mu, until leave.
func (f *follower) enter() (leave func()) {
	f.mu.Lock()
	if f.busy {
		f.t.Error("two methods of the handler are called at a time")
	}
	f.busy = true
	slow, hold := f.slow, f.hold
	f.mu.Unlock()
	time.Sleep(slow)
	if hold != nil {
		<-hold
	}
	f.mu.Lock()
	return func() {
		f.busy = false
		f.mu.Unlock()
	}
}

func (f *follower) Record(epoch string, seq uint64, record []byte) {
	defer f.enter()()
	f.at(epoch)
	if len(f.log) == 0 {
		f.first = seq
	}
	want := f.first + uint64(len(f.log))
	if f.lags && seq > want {
		f.gaps++
		f.log, f.first, f.again = nil, seq, false
		want = seq
	}
	if f.again {
		f.again = false
		if want--; seq == want && f.log[len(f.log)-1] == string(record) {
			return
		}
		f.t.Errorf("record %d came after an outage, want the last one, %d, again", seq, want)
	} else if seq != want {
		f.t.Errorf("record %d came, want %d", seq, want)
	}
	f.log = append(f.log, string(record))
	clear(record) // it is the handler's
}

func (f *follower) Current(epoch string, last uint64) {
	defer f.enter()()
	f.at(epoch)
	if have := f.first + uint64(len(f.log)); len(f.log) > 0 && last+1 != have {
		f.t.Errorf("Current(%d) came after record %d", last, have-1)
	}
	f.current = true
}

func (f *follower) Away(err error) {
	defer f.enter()()
	if err == nil {
		f.t.Error("Away(nil), want an error that says what happened")
	}
	f.current, f.again = false, len(f.log) > 0
	f.away++
}

// at notes the epoch of the log. It doesn't change as long as the engine loses no
// records.
func (f *follower) at(epoch string) {
	if epoch == "" || len(epoch) > 32 || strings.ContainsFunc(epoch, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		f.t.Errorf("the epoch is %q, want at most 32 letters and digits", epoch)
	}
	if f.epoch != "" && epoch != f.epoch {
		f.t.Errorf("the epoch is %q, want %q as before", epoch, f.epoch)
	}
	f.epoch = epoch
}

// records returns the records that have come.
func (f *follower) records() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.log)
}

// add appends a record. It tries again for a while, because the broker may still
// be connecting. Then it overwrites the record, which is its own again.
func (f *follower) add(record string) {
	f.t.Helper()
	b := []byte(record)
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = f.Append(ctx, b)
		cancel()
		if err == nil {
			break
		}
	}
	if err != nil {
		f.t.Fatalf("Append: %v", err)
	}
	for i := range b {
		b[i] = 'X'
	}
}

// trim calls Trim, and tries again for a while, as add does.
func (f *follower) trim(epoch string, before uint64) {
	f.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		err = f.Trim(ctx, epoch, before)
		cancel()
		if err == nil {
			return
		}
	}
	f.t.Fatalf("Trim: %v", err)
}

// waitFor waits until n records have come and the log is current. It returns the
// records.
func (f *follower) waitFor(n int) []string {
	f.t.Helper()
	eventually(f.t, fmt.Sprintf("%d records", n), func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.log) >= n && f.current
	})
	return f.records()
}

// upTo waits until a record has come, and returns the records up to it.
func (f *follower) upTo(record string) []string {
	f.t.Helper()
	var got []string
	eventually(f.t, "the record "+record, func() bool {
		got = f.records()
		i := slices.Index(got, record)
		got = got[:i+1]
		return i >= 0
	})
	return got
}

// logOrder tests that all nodes get the records in the same order, in which the
// records of each node are in its order.
func logOrder(t *testing.T, engine HistoryEngine) {
	const nodes, records = 3, 500
	var all []*follower
	for range nodes {
		all = append(all, newFollower(t, engine))
	}
	for i, f := range all {
		f.add(fmt.Sprint("warm up ", i))
	}
	var appending sync.WaitGroup
	for p, f := range all {
		appending.Go(func() {
			for i := range records {
				f.add(fmt.Sprint(p, " ", i))
			}
		})
	}
	appending.Wait()
	const last = "warm down"
	all[0].add(last)
	want := all[0].upTo(last)
	var next [nodes]int
	for _, record := range slices.DeleteFunc(slices.Clone(want), func(s string) bool { return strings.HasPrefix(s, "warm") }) {
		var p, i int
		fmt.Sscan(record, &p, &i)
		if i > next[p] {
			t.Fatalf("got %d of node %d, want %d", i, p, next[p])
		}
		next[p] = max(next[p], i+1) // add may append a record twice
	}
	for p, n := range next {
		if n != records {
			t.Errorf("got %d records of node %d, want %d", n, p, records)
		}
	}
	for _, f := range append(all[1:], newFollower(t, engine)) {
		if got := f.upTo(last); !slices.Equal(got, want) {
			t.Error("nodes have different orders")
		}
		if f.epoch != all[0].epoch || f.first != 1 {
			t.Errorf("the log begins with %s-%d at one node and with %s-%d at another", f.epoch, f.first, all[0].epoch, all[0].first)
		}
	}
}

// logSizes tests that records of any size arrive as they were.
func logSizes(t *testing.T, engine HistoryEngine) {
	a, b := newFollower(t, engine), newFollower(t, engine)
	var want []string
	for _, size := range []int{0, 1, 100, 4096, 64 << 10, 300 << 10, 900 << 10} {
		record := make([]byte, size)
		for i := range record {
			record[i] = byte(rand.IntN(256))
		}
		want = append(want, string(record))
		b.add(string(record))
	}
	for i, record := range a.waitFor(len(want)) {
		if record != want[i] {
			t.Errorf("a record of %d bytes came as one of %d", len(want[i]), len(record))
		}
	}
}

// logFromTheStart tests that a node that starts late gets all records that exist,
// and then a call of Current.
func logFromTheStart(t *testing.T, engine HistoryEngine) {
	first := newFollower(t, engine)
	eventually(t, "a current log", func() bool {
		first.mu.Lock()
		defer first.mu.Unlock()
		return first.current
	})
	const records = 3000
	for i := range records {
		first.add(fmt.Sprint(i, " ", strings.Repeat("x", rand.IntN(1000))))
	}
	want := first.waitFor(records)
	first.Close()
	var late []*follower
	for range 3 { // while others append
		late = append(late, newFollower(t, engine))
		late[0].add("live")
		want = append(want, "live")
	}
	for _, f := range late {
		if got := f.waitFor(len(want)); !slices.Equal(got, want) {
			t.Errorf("%d records came to a later node, want the %d", len(got), len(want))
		}
	}
}

// logSlowHandler tests that no record is lost while Record blocks.
func logSlowHandler(t *testing.T, engine HistoryEngine) {
	slow, fast := newFollower(t, engine), newFollower(t, engine)
	slow.mu.Lock()
	slow.slow = 2 * time.Millisecond
	slow.mu.Unlock()
	const records = 1000
	payload := strings.Repeat(".", 10_000)
	for i := range records {
		fast.add(fmt.Sprint(i, payload))
	}
	for i, record := range slow.waitFor(records) {
		if record != fmt.Sprint(i, payload) {
			t.Fatalf("record %d is %.20q", i, record)
		}
	}
}

// logEngineAway tests that Append fails while the engine is unreachable. After
// that the last record comes again, the log continues where it was, and no record
// is lost.
func logEngineAway(t *testing.T, engine HistoryEngine) {
	a, b := newFollower(t, engine), newFollower(t, engine)
	next := 0
	add := func() {
		b.add(fmt.Sprint(next))
		next++
	}
	for round := range 2 {
		for range 100 {
			add()
		}
		a.waitFor(next)
		if err := engine.Stop(); err != nil {
			t.Skipf("the engine can't be stopped: %v", err)
		}
		for range 3 {
			start := time.Now()
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			err := b.Append(ctx, []byte("doubtful"))
			cancel()
			if err == nil || time.Since(start) > atOnce {
				t.Errorf("Append: %v after %v, want an error when its context ends after 2 s", err, time.Since(start))
			}
			start = time.Now()
			ctx, cancel = context.WithTimeout(context.Background(), 2*time.Second)
			err = b.Trim(ctx, "any", 1)
			cancel()
			if err == nil || time.Since(start) > atOnce {
				t.Errorf("Trim: %v after %v, want an error when its context ends after 2 s", err, time.Since(start))
			}
		}
		eventually(t, "a call of Away", func() bool {
			a.mu.Lock()
			defer a.mu.Unlock()
			return a.away > round
		})
		if err := engine.Start(); err != nil {
			t.Fatal(err)
		}
		for range 100 {
			add()
		}
	}
	last := fmt.Sprint(next - 1)
	for _, f := range []*follower{a, b, newFollower(t, engine)} {
		eventually(t, "the last record", func() bool {
			got := f.records()
			return len(got) > 0 && slices.Contains(got, last)
		})
		i := 0
		for _, record := range f.records() {
			switch {
			case record == "doubtful" || i > 0 && record == fmt.Sprint(i-1): // add may append a record twice
			case record != fmt.Sprint(i):
				t.Fatalf("got record %q, want %d", record, i)
			default:
				i++
			}
		}
		f.waitFor(next)
	}
}

// logCloses tests that Close returns while records come, and that no record comes
// after it.
func logCloses(t *testing.T, engine HistoryEngine) {
	a, b := newFollower(t, engine), newFollower(t, engine)
	a.mu.Lock()
	a.slow = 10 * time.Millisecond
	a.mu.Unlock()
	for i := range 100 {
		b.add(fmt.Sprint(i))
	}
	eventually(t, "records", func() bool { return len(a.records()) > 0 })
	closed := make(chan struct{})
	go func() {
		a.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Fatal("Close hangs")
	}
	n := len(a.records())
	time.Sleep(100 * time.Millisecond)
	if got := len(a.records()); got != n {
		t.Errorf("%d records came after Close", got-n)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := a.Append(ctx, []byte("x")); err == nil {
		t.Error("Append succeeds after Close")
	}
	if err := a.Trim(ctx, "any", 2); err == nil {
		t.Error("Trim succeeds after Close")
	}
	b.add("other brokers still work")
}

// logTrim tests that Trim takes the records below a number away from nodes that
// start, and nothing else. Connected nodes notice nothing. The newest record stays.
func logTrim(t *testing.T, engine HistoryEngine) {
	a, b := newFollower(t, engine), newFollower(t, engine)
	var want []string
	add := func(n int) {
		for range n {
			want = append(want, fmt.Sprint(len(want)+1))
			a.add(want[len(want)-1])
		}
	}
	add(20)
	a.waitFor(20)
	b.waitFor(20)
	for _, tt := range []struct {
		epoch  string
		before uint64
		first  uint64 // the first record that stays
	}{
		{a.epoch, 0, 1},
		{a.epoch, 1, 1},
		{a.epoch, 2, 2},
		{"another", 10, 2},
		{a.epoch, 10, 10},
		{a.epoch, 10, 10},
		{a.epoch, 5, 10},
		{a.epoch, 20, 20},
		{a.epoch, 21, 20},
		{a.epoch, 1 << 40, 20},
		{a.epoch, 1<<64 - 1, 20},
	} {
		a.trim(tt.epoch, tt.before)
		late := newFollower(t, engine)
		if got := late.waitFor(int(21 - tt.first)); !slices.Equal(got, want[tt.first-1:]) || late.first != tt.first || late.epoch != a.epoch {
			t.Fatalf("behind Trim(%q, %d) a node gets the records %q from %s-%d on, want those from %s-%d on",
				tt.epoch, tt.before, got, late.epoch, late.first, a.epoch, tt.first)
		}
		late.Close()
	}
	add(5)
	for _, f := range []*follower{a, b} {
		if got := f.waitFor(25); !slices.Equal(got, want) {
			t.Errorf("a connected node got the records %q, want %q", got, want)
		}
	}
	if late := newFollower(t, engine); len(late.waitFor(6)) != 6 || late.first != 20 {
		t.Errorf("a node got the records from %d on, want them from 20 on", late.first)
	}
}

// logTrimBusy tests that several nodes call Trim while they append records. No
// record is lost that is to stay, and connected nodes get all.
func logTrimBusy(t *testing.T, engine HistoryEngine) {
	const nodes, records = 3, 300
	var all []*follower
	for range nodes {
		all = append(all, newFollower(t, engine))
	}
	for i, f := range all {
		f.add(fmt.Sprint("warm up ", i))
	}
	all[0].waitFor(nodes)
	epoch := all[0].epoch
	trim := func(f *follower) (before uint64) {
		before = 1 << 63
		for _, other := range all { // which have had what is trimmed
			before = min(before, uint64(len(other.records())))
		}
		f.trim(epoch, before)
		return before
	}
	var working sync.WaitGroup
	for p, f := range all {
		working.Go(func() {
			for i := range records {
				f.add(fmt.Sprint(p, " ", i))
			}
		})
		working.Go(func() {
			for trim(f) < nodes*records/2 {
			}
		})
	}
	working.Wait()
	const last = "the last one"
	all[0].add(last)
	want := all[0].upTo(last)
	if len(want) < nodes+nodes*records+1 { // add may append a record twice
		t.Errorf("%d records came, want %d", len(want), nodes+nodes*records+1)
	}
	for _, f := range all {
		if got := f.upTo(last); !slices.Equal(got, want) {
			t.Error("nodes have different orders")
		}
	}
	late := newFollower(t, engine)
	got := late.upTo(last)
	if n := len(want) - len(got); !slices.Equal(got, want[n:]) || n < nodes*records/2-1 || late.first != uint64(n)+1 {
		t.Errorf("%d records came to a later node, from %d on, want the newest", len(got), late.first)
	}
}

// logTrimOvertakes tests that a node which is behind gets no record that was
// trimmed, but the later ones with their numbers. So it notices the gap.
func logTrimOvertakes(t *testing.T, engine HistoryEngine) {
	slow, fast := newFollower(t, engine), newFollower(t, engine)
	fast.add("0")
	slow.waitFor(1)
	hold := make(chan struct{})
	slow.mu.Lock()
	slow.lags, slow.hold = true, hold
	slow.mu.Unlock()
	const records = 1000
	payload := strings.Repeat(".", 10_000)
	for i := range records {
		fast.add(fmt.Sprint(i+1, payload))
	}
	fast.waitFor(1 + records)
	fast.trim(fast.epoch, records-10)
	close(hold)
	eventually(t, "the last record", func() bool {
		got := slow.records()
		return len(got) > 0 && got[len(got)-1] == fmt.Sprint(records, payload)
	})
	got := slow.records()
	if slow.gaps != 1 || slow.first != records-10 || len(got) != 12 || got[0] != fmt.Sprint(records-11, payload) {
		t.Errorf("there are %d gaps, and behind them %d records from %d on, want one and 12 from %d on", slow.gaps, len(got), slow.first, records-10)
	}
}
