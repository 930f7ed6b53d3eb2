package realtime

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// newTestJournal returns a journal. The test stands in for its log.
func newTestJournal(t *testing.T) (*driver, *journal, *testLog) {
	b := new(testLog)
	j := newJournal(newOrderShared(History{Age: time.Minute}), b)
	t.Cleanup(j.close)
	synctest.Wait()
	return &driver{t: t, o: j}, j, b
}

// recordOf returns a record of another node.
func recordOf(node byte, number uint64, data ...string) []byte {
	var events []*ownEvent
	for _, d := range data {
		events = append(events, &ownEvent{event: newEvent("a", Event{Data: []byte(d)})})
	}
	events[0].number = number
	return encodeRecord(nodeID{node}, trail{}, events)
}

func TestJournalOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 1, "old"))
		j.Current("e", 1)
		d.arrive()
		d.want() // from before this node was started
		rc := d.publish("a", "mine")
		d.want()
		synctest.Wait()
		if len(b.records()) != 1 || !j.isPending() || <-rc.later != nil {
			t.Fatalf("%d records appended, pending %v", len(b.records()), j.isPending())
		}
		j.Record("e", 2, recordOf(1, 2, "x", "y"))
		j.Record("e", 3, b.records()[0])
		j.Record("e", 4, b.records()[0])        // appended twice
		j.Record("e", 5, recordOf(1, 2, "x"))   // also a duplicate
		j.Record("e", 6, []byte("from nobody")) // uses a number, too
		j.Record("e", 7, recordOf(2, 1, "z"))
		d.arrive()
		d.want("x", "y", "mine", "z")
		if j.isPending() || j.shared.gaps.Load() != 0 {
			t.Errorf("pending %v, %d gaps", j.isPending(), j.shared.gaps.Load())
		}
		for id, want := range map[string]string{
			d.id(1, wholeRecord): "x y mine z", d.id(2, 1): "y mine z", d.id(7, wholeRecord): "",
			"other" + d.id(7, wholeRecord)[1:]: "lost", // another log
			d.id(7, wholeRecord) + "0":         "lost", // another record of this number
			fmt.Sprint("e-", 7<<recordBits):    "lost", // without a print
		} {
			if got := d.since(id, "a"); got != want {
				t.Errorf("from %s on a client has missed %q, want %q", id, got, want)
			}
		}
	})
}

// An own event that the engine accepted and lost has a place of its own: a client
// that was cut off right before it gets it. Other nodes lack it, so it counts.
func TestJournalLosesAnOwnEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 1, "1"))
		j.Current("e", 1)
		d.arrive()
		id := d.id(1, wholeRecord)
		for i := range uint64(2) { // its first event, and a later one
			for _, data := range []string{"first", "second"} {
				d.publish("a", data)
				synctest.Wait()
			}
			j.Record("e", 2+i, b.records()[1+2*i])
			d.arrive()
			d.want("first", "second")
			if got := d.since(id, "a"); got != "first second" {
				t.Errorf("a client that comes back has missed %q, want both", got)
			}
			if n := j.shared.gaps.Load(); n != int64(i+1) {
				t.Errorf("%d gaps, want %d", n, i+1)
			}
			id = d.id(2+i, wholeRecord)
		}
	})
}

// If the engine has lost records, connected clients get a reset, too. A record
// forged in this node's name isn't accepted as its own.
func TestJournalLoses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 1, "1"))
		j.Current("e", 1)
		d.arrive()
		id := d.id(1, wholeRecord)
		j.Record("e", 3, recordOf(1, 3, "3"))
		d.arrive()
		d.want("reset", "3")
		if got := d.since(id, "a"); got != "lost" || j.shared.gaps.Load() != 1 {
			t.Errorf("a client that comes back has missed %q, %d gaps", got, j.shared.gaps.Load())
		}
		j.Current("another", 1)
		d.arrive()
		d.want("reset")
		forged := recordOf(1, 1, "forged")
		copy(forged[2:], j.peers.node[:])
		j.Record("another", 2, forged)
		d.arrive()
		d.want()
	})
}

// A record with a known number but other bytes shows that the log was put back.
// Clients get that record and all later ones. Older ids of the lost records
// don't resume.
func TestJournalPutBackUnderANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		for i := range uint64(4) {
			j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i+1)))
		}
		d.arrive()
		d.want("1", "2", "3", "4")
		before := d.id(2, wholeRecord)
		j.Record("e", 4, recordOf(1, 4, "4")) // the last one again
		d.arrive()
		d.want()
		j.Record("e", 2, recordOf(2, 1, "other"))
		j.Record("e", 3, recordOf(2, 2, "another"))
		d.arrive()
		other := d.id(2, wholeRecord)
		d.want("reset", "other", "another")
		if got := d.since(before, "a"); got != "lost" || j.shared.gaps.Load() != 1 {
			t.Errorf("with an id from before a client has missed %q, %d gaps", got, j.shared.gaps.Load())
		}
		if got := d.since(other, "a"); got != "another" {
			t.Errorf("behind the second record a client has missed %q, want another", got)
		}
		time.Sleep(2 * journalTick) // a cut tells nodes that have not read the lost records
		synctest.Wait()
		if len(b.records()) != 1 {
			t.Fatalf("%d records appended, want a cut", len(b.records()))
		}
		fresh, f, _ := newTestJournal(t)
		for i, record := range [][]byte{recordOf(1, 1, "1"), recordOf(2, 1, "other"), recordOf(2, 2, "another"), b.records()[0], recordOf(2, 3, "later")} {
			f.Record("e", uint64(i+1), record)
		}
		f.Current("e", 5)
		fresh.arrive()
		fresh.want()
		if got, later := fresh.since(fresh.id(1, wholeRecord), "a"), fresh.since(fresh.id(4, wholeRecord), "a"); got != "lost" || later != "later" {
			t.Errorf("on a node that was started since, a client has missed %q and %q, want it lost, and later", got, later)
		}
		f.Record("e", 6, append(b.records()[0], "again"...)) // as if by a third node
		fresh.arrive()
		fresh.want("reset") // connected clients get one, too
	})
}

// A log that is shorter than before, after an outage, was put back as well.
func TestJournalIsShorter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		for i := range uint64(4) {
			j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i+1)))
		}
		j.Current("e", 3) // the last one when the broker connected
		d.arrive()
		before := d.id(2, wholeRecord)
		d.want()
		j.Away(errTestAway)
		j.Record("e", 4, recordOf(1, 4, "4"))
		j.Current("e", 4)
		d.arrive()
		d.want()
		j.Away(errTestAway)
		j.Record("e", 2, recordOf(1, 2, "2"))
		j.Current("e", 2)
		j.Record("e", 3, recordOf(1, 5, "5"))
		d.arrive()
		d.want("reset", "5")
		if got := d.since(before, "a"); got != "lost" {
			t.Errorf("behind the record that is the last one now a client has missed %q, want it lost", got)
		}
	})
}

// A node that first reads a long log begins no cut: each record is progress for
// its events and for clients that wait.
func TestJournalReadsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		start := time.Now()
		awaited := make(chan time.Duration, 1)
		go func() {
			j.await("")
			awaited <- time.Since(start)
		}()
		rc := d.publish("a", "mine")
		const records = 200
		for i := range uint64(records) { // 20 s
			j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i)))
			d.arrive()
			time.Sleep(100 * time.Millisecond)
		}
		d.want()
		if _, down := j.elsewhere(); down || len(b.records()) != 1 || <-rc.later != nil {
			t.Errorf("down %v, %d records appended", down, len(b.records()))
		}
		j.Record("e", records+1, b.records()[0])
		j.Current("e", records+1)
		d.arrive()
		d.want("mine")
		if took := <-awaited; took != 20*time.Second || j.shared.gaps.Load() != 0 {
			t.Errorf("a client waited for %v, %d gaps; want 20 s and none", took, j.shared.gaps.Load())
		}
	})
}

// A client waits for the event with its id until that arrives, but only if this
// log can still bring it.
func TestJournalAwaits(t *testing.T) {
	for id, want := range map[string]time.Duration{
		fmt.Sprint("e-", 1<<recordBits|wholeRecord):     0,
		fmt.Sprint("e-", 2<<recordBits|wholeRecord):     time.Second, // it arrives then
		fmt.Sprint("e-", 3<<recordBits|wholeRecord):     brokerTimeout,
		fmt.Sprint("other-", 2<<recordBits|wholeRecord): 0,
		"": 0, "nonsense": 0,
	} {
		synctest.Test(t, func(t *testing.T) {
			d, j, _ := newTestJournal(t)
			j.Record("e", 1, recordOf(1, 1, "1"))
			j.Current("e", 1)
			d.arrive()
			time.AfterFunc(time.Second, func() {
				j.Record("e", 2, recordOf(1, 2, "2"))
				d.arrive()
			})
			start := time.Now()
			j.await(id)
			if took := time.Since(start); took != want {
				t.Errorf("with the id %q a client waited for %v, want %v", id, took, want)
			}
			time.Sleep(time.Second)
		})
	}
}

// Clients stop waiting for a log that never becomes current.
func TestJournalNeverStarts(t *testing.T) {
	for name, tt := range map[string]struct {
		records int // one a second
		want    time.Duration
	}{"nothing": {0, brokerTimeout}, "a part": {7, 6*time.Second + brokerTimeout}, "without end": {1000, maxStart}} {
		synctest.Test(t, func(t *testing.T) {
			d, j, _ := newTestJournal(t)
			start := time.Now()
			go func() {
				for i := range uint64(tt.records) {
					j.Record("e", i+1, recordOf(1, i+1, fmt.Sprint(i)))
					time.Sleep(time.Second)
				}
			}()
			go func() {
				for range tt.records + 1 {
					d.arrive()
					time.Sleep(time.Second)
				}
			}()
			j.await("")
			if took := time.Since(start); took != tt.want {
				t.Errorf("%s: a client waited for %v, want %v", name, took, tt.want)
			}
			time.Sleep(time.Hour)
		})
	}
}

// A node trims the records that it has had for an Age, and no younger ones. They
// leave the log two Ages after they have come, at the latest.
func TestJournalTrims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		const age = time.Minute
		came := make(map[uint64]time.Time) // by number
		var newest uint64                  // record of events, which is never trimmed
		var resumed time.Time              // when the first one came behind a silence
		come := func(seq uint64) {
			j.Record("e", seq, recordOf(1, seq, "x"))
			d.arrive()
			if time.Since(came[newest]) > 2*time.Second {
				resumed = time.Now()
			}
			came[seq], newest = time.Now(), seq
		}
		come(5)
		come(6) // from before this node was started
		j.Current("e", 6)
		d.arrive()
		next, expiry, began := uint64(6), time.Now(), time.Now()
		var before uint64
		for range 2000 {
			if !time.Now().Before(expiry) {
				expiry = time.Now().Add(j.expire(time.Now()))
				if !expiry.After(time.Now()) {
					t.Fatal("expire wants to be called at once again")
				}
			}
			for _, r := range d.appended(b) {
				next++
				j.Record("e", next, r)
				d.arrive()
				came[next] = time.Now()
			}
			synctest.Wait()
			for _, trim := range b.trimmed() {
				if trim.epoch != "e" || trim.before < before {
					t.Fatalf("Trim(%q, %d) was called behind one to %d", trim.epoch, trim.before, before)
				}
				before = trim.before
			}
			for seq, at := range came {
				switch kept := time.Since(at); {
				case seq < before && kept < age:
					t.Fatalf("record %d was trimmed when it was %v old", seq, kept)
				case seq >= before && kept > 2*age+4*time.Second && seq < newest && time.Since(resumed) > age+4*time.Second:
					t.Fatalf("record %d is %v old, and was not trimmed", seq, kept)
				}
			}
			if next%20 > 0 || time.Since(came[next]) > 5*age { // now and then nothing comes for long
				next++
				come(next)
			}
			time.Sleep(time.Second)
		}
		if calls, most := b.trimCalls, int(time.Since(began)/(age/3)); calls > most {
			t.Errorf("Trim was called %d times in %v, want %d at most", calls, time.Since(began), most)
		}
	})
}

// Numbers of another epoch, and of a log that was put back, stand for other
// records. These are not trimmed before they are old.
func TestJournalTrimsNoOtherLog(t *testing.T) {
	for name, change := range map[string]func(j *journal){
		"epoch":    func(j *journal) { j.Record("f", 1, recordOf(1, 1, "y")) },
		"put back": func(j *journal) { j.Record("e", 3, recordOf(2, 1, "y")) },
		"lost":     func(j *journal) { j.Away(errTestAway); j.Current("e", 2) },
	} {
		synctest.Test(t, func(t *testing.T) {
			d, j, b := newTestJournal(t)
			for seq := range uint64(100) {
				j.Record("e", seq+1, recordOf(1, seq+1, "x"))
			}
			j.Current("e", 100)
			d.arrive()
			j.expire(time.Now())
			time.Sleep(30 * time.Second)
			change(j)
			d.arrive()
			last := j.lastRecord
			j.Record(j.past.epoch, last+1, recordOf(3, 1, "the newest, which stays"))
			d.arrive()
			tidy := func() {
				j.expire(time.Now())
				for _, r := range d.appended(b) {
					j.Record(j.past.epoch, j.lastRecord+1, r)
					d.arrive()
				}
			}
			for range 29 {
				time.Sleep(2 * time.Second)
				tidy()
			}
			if trims := b.trimmed(); len(trims) > 0 {
				t.Errorf("%s: %v was trimmed before it was old", name, trims)
			}
			time.Sleep(time.Minute)
			tidy()
			synctest.Wait()
			// A log that was put back also gets a record that says so.
			if trims := b.trimmed(); len(trims) != 1 || trims[0].epoch != j.past.epoch || trims[0].before < last+1 || trims[0].before > last+3 {
				t.Errorf("%s: %v was trimmed, want it up to %d of %s", name, trims, last+1, j.past.epoch)
			}
		})
	}
}

// While the engine trims slowly, events are appended, and no second Trim begins.
func TestJournalTrimsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		b.trimHold = make(chan struct{})
		j.Current("e", 0)
		d.arrive()
		for range 3 {
			j.trim(trim{"e", 1})
			synctest.Wait()
		}
		rc := d.publish("a", "1")
		synctest.Wait()
		if n := len(b.records()); n != 1 || <-rc.later != nil {
			t.Errorf("%d records were appended, want the event's", n)
		}
		j.Record("e", 1, b.records()[0])
		d.arrive()
		calls := func() int {
			b.mu.Lock()
			defer b.mu.Unlock()
			return b.trimCalls
		}
		if n := calls(); n != 1 {
			t.Errorf("Trim was called %d times, want 1", n)
		}
		close(b.trimHold)
		synctest.Wait()
		if n := calls(); n != 2 {
			t.Errorf("Trim was called %d times after that, want 2", n)
		}
	})
}

// A log that can't be trimmed grows. The line says so once, and all else works.
func TestJournalTrimFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		var lines strings.Builder
		j.shared.log.logger = slog.New(slog.NewTextHandler(&lines, nil))
		b.setTrimError(errors.New("no permission for PURGE"))
		j.Record("e", 1, recordOf(1, 1, "x"))
		j.Record("e", 2, recordOf(1, 2, "y"))
		j.Current("e", 2)
		d.arrive()
		pass := func(span time.Duration) {
			for range span / time.Second {
				j.expire(time.Now())
				for _, r := range d.appended(b) {
					j.Record("e", j.lastRecord+1, r)
					d.arrive()
				}
				time.Sleep(time.Second)
			}
			synctest.Wait()
		}
		pass(2 * time.Minute)
		const lost = "bound of the broker history lost"
		if got := lines.String(); strings.Count(got, lost) != 1 || !strings.Contains(got, "keeps events that are older than History.Age: no permission for PURGE") {
			t.Errorf("the log has\n%s, want one line of it", got)
		}
		if _, down := j.elsewhere(); down {
			t.Error("the broker counts as down")
		}
		b.setTrimError(nil)
		pass(2 * time.Minute)
		if got := lines.String(); !strings.Contains(got, "bound of the broker history is back") {
			t.Errorf("the log has\n%s, want a line that it is over", got)
		}
		j.Away(errTestAway)
		b.setTrimError(errTestAway)
		pass(2 * time.Minute)
		if got := lines.String(); strings.Count(got, lost) != 1 {
			t.Errorf("the log has\n%s, want no line of it while the engine is away", got)
		}
	})
}

// In a cut, events bypass a log that accepts none. When it works again, it gets
// a record of the cut.
func TestJournalCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		d.arrive()
		b.setAway(true)
		rc := d.publish("a", "1")
		time.Sleep(journalPatience - time.Millisecond)
		d.arrive()
		d.want()
		time.Sleep(appendRetry)
		d.arrive()
		if id := d.last(); !strings.HasSuffix(id, "-local") || d.since(id, "a") != "lost" {
			t.Errorf("the id %s resumes", id)
		}
		d.want("1")
		if err := <-rc.later; err != ErrBrokerUnavailable || j.isPending() {
			t.Errorf("the publisher got %v, pending %v", err, j.isPending())
		}
		if _, down := j.elsewhere(); !down {
			t.Error("it isn't down")
		}
		late := encodeRecord(j.peers.node, trail{}, []*ownEvent{{event: newEvent("a", Event{Data: []byte("1")}), number: 1}})
		j.Record("e", 1, late) // the engine had accepted it
		d.arrive()
		d.want()
		b.setAway(false)
		time.Sleep(2 * journalTick) // the goroutine tries again
		synctest.Wait()
		if len(b.records()) != 1 {
			t.Fatalf("%d records appended, want the cut", len(b.records()))
		}
		j.Record("e", 2, b.records()[0])
		d.arrive()
		d.want()
		synctest.Wait()
		if _, down := j.elsewhere(); down {
			t.Error("it is down though the cut has come back")
		}
		rc = d.publish("a", "2")
		synctest.Wait()
		j.Record("e", 3, b.records()[1])
		d.arrive()
		id := d.last()
		d.want("2")
		if err := <-rc.later; err != nil || d.since(id, "a") != "" || j.shared.brokerLost.Load() != 1 {
			t.Errorf("the publisher got %v, behind %s a client has missed %q, %d lost", err, id, d.since(id, "a"), j.shared.brokerLost.Load())
		}
	})
}

// Each event that a log lacks has an id of its own. What is read from the log keeps
// its number. Neither resumes before the cut is over.
func TestJournalCutIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		d.arrive()
		b.setAway(true)
		d.publish("a", "1")
		d.publish("a", "2")
		time.Sleep(journalPatience + appendRetry)
		j.Record("e", 1, recordOf(1, 1, "3", "4"))
		d.arrive()
		var ids []string
		for _, e := range d.out {
			if e.event != nil && e.event.Data != nil {
				ids = append(ids, e.event.ID)
			}
		}
		d.want("1", "2", "3", "4")
		name := j.past.name
		if want := []string{"e-l" + name + ".1.1024-", "e-l" + name + ".2.1024-", "e-1025-", "e-2047-"}; !slices.EqualFunc(ids, want, strings.HasPrefix) {
			t.Errorf("the ids are %q, want %q", ids, want)
		}
		for _, id := range ids {
			if d.since(id, "b") != "lost" {
				t.Errorf("the id %s resumes", id)
			}
		}
	})
}

// An engine that accepts some events and then loses them doesn't make them one to
// those who tell events apart by id. A client that got only the first of them doesn't
// resume behind all.
func TestJournalLostIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		d.arrive()
		for _, data := range []string{"1", "2", "3", "4"} {
			d.publish("a", data)
			synctest.Wait()
		}
		records := b.records()
		j.Record("e", 1, records[len(records)-1])
		d.arrive()
		had := make(map[string]bool)
		for i, want := range []string{"lost", "lost", "4", ""} {
			id := d.out[i].event.ID
			if had[id] {
				t.Errorf("two have the id %s", id)
			}
			had[id] = true
			if got := d.since(id, "a"); got != want {
				t.Errorf("behind %s a client has missed %q, want %q", d.out[i].event.Data, got, want)
			}
		}
		d.want("1", "2", "3", "4")
	})
}

// The numbers of a node's events show that the engine has lost some of them before
// any node got them. Clients of other nodes get a reset.
func TestJournalSkippedEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 7, "7")) // the first that this node has read
		j.Current("e", 1)
		d.arrive()
		id := d.id(1, wholeRecord)
		j.Record("e", 2, recordOf(1, 9, "9"))
		j.Record("e", 3, recordOf(1, 10, "10"))
		d.arrive()
		d.want("reset", "9", "10")
		if got := d.since(id, "a"); got != "lost" {
			t.Errorf("a client that comes back has missed %q, want it lost", got)
		}
		if got := d.since(d.id(2, wholeRecord), "a"); got != "10" {
			t.Errorf("behind that, a client that comes back has missed %q, want 10", got)
		}
		j.Record("e", 4, encodeCut(nodeID{1}, 15, map[string]bool{"b": true}))
		j.Record("e", 5, recordOf(1, 16, "16"))
		d.arrive()
		d.want("16")
		j.Record("e", 8, recordOf(1, 18, "18")) // the node has noticed the loss of records
		d.arrive()
		d.want("reset", "18")
		if n := j.shared.gaps.Load(); n != 3 {
			t.Errorf("%d gaps, want 3", n)
		}
	})
}

// A cut that is too large for the log becomes one of all topics, also if the hub
// ends before the log has told of it.
func TestJournalCutTooLarge(t *testing.T) {
	for _, ends := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			b := new(testLog)
			b.limit = 100
			j := newJournal(newOrderShared(History{Age: time.Minute}), b)
			d := &driver{t: t, o: j}
			j.Current("e", 0)
			d.arrive()
			b.setAway(true)
			for i := range 20 {
				d.publish(strings.Repeat("x", i+1), "1")
			}
			time.Sleep(journalPatience + journalTick)
			d.arrive()
			b.setAway(false)
			if ends {
				j.close()
			} else {
				time.Sleep(2 * journalTick)
				synctest.Wait()
				defer j.close()
			}
			records := b.records()
			if len(records) == 0 {
				t.Fatalf("ends %v: no record was appended, want a cut", ends)
			}
			if r, err := parseRecord(records[0]); err != nil || r.kind != brokeredCut || r.number != 20 || len(r.events) != 1 || r.events[0].topic != "" {
				t.Errorf("ends %v: the record %+v, %v was appended, want a cut of all topics", ends, r, err)
			}
		})
	}
}

// An event that is on its way when the log is looked at for the first time has its
// 2 s like any other.
func TestJournalFirstLook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, b := newTestJournal(t)
		j.Current("e", 0)
		d.arrive()
		time.Sleep(journalTick - 10*time.Millisecond)
		d.publish("a", "1")
		time.Sleep(journalPatience - journalTick)
		synctest.Wait()
		if _, down := j.elsewhere(); down || len(b.records()) != 1 {
			t.Fatalf("down %v, %d records appended; want false and 1", down, len(b.records()))
		}
		j.Record("e", 1, b.records()[0])
		d.arrive()
		d.want("1")
	})
}

// Other nodes' records that arrive without a pause don't cut a node off; but an
// event that the engine has lost among them isn't waited for for ever.
func TestJournalReadsOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		j.Current("e", 0)
		d.arrive()
		rc := d.publish("a", "mine")
		start, seq := time.Now(), uint64(0)
		for !j.out.down.Load() && seq < 1000 {
			seq++
			j.Record("e", seq, recordOf(1, seq, "x"))
			d.arrive()
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(start); took < maxReading || took > maxReading+journalPatience+2*journalTick || <-rc.later != nil {
			t.Errorf("the node is cut off after %v, want %v", took, maxReading+journalPatience)
		}
	})
}

// The cut of another node concerns the topics that it names, and no others.
func TestJournalCutOfAnotherNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, j, _ := newTestJournal(t)
		j.Record("e", 1, recordOf(1, 1, "1"))
		j.Current("e", 1)
		j.Record("e", 2, encodeCut(nodeID{2}, 7, map[string]bool{"a": true}))
		d.arrive()
		d.want()
		before, behind := d.id(1, wholeRecord), d.id(2, wholeRecord)
		if a, b, later := d.since(before, "a"), d.since(before, "b"), d.since(behind, "a"); a != "lost" || b != "" || later != "" {
			t.Errorf("clients of a and b have missed %q and %q, and behind the cut %q; want it lost, and nothing", a, b, later)
		}
		if n := j.shared.gaps.Load(); n != 1 {
			t.Errorf("%d gaps, want 1", n)
		}
	})
}

// A node that is alone takes the members of one that is gone away within two beats.
func TestJournalTakesMembersAway(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			d, j, _ := newTestJournal(t)
			p := &presence{hub: &Hub{order: j}, wake: make(chan struct{}, 1)} // nobody publishes what it is told
			j.shared.presence = p
			member := &ownEvent{event: newMember(topicKey{"a", "Ann"}, nodeID{1}, []byte("{}"), false), number: 1}
			j.Record("e", 1, encodeRecord(nodeID{1}, trail{}, []*ownEvent{member}))
			j.Current("e", 1)
			d.arrive()
			time.Sleep(nodeTimeout)
			for range 3 {
				time.Sleep(heartbeatInterval)
				d.arrive()
			}
			if len(p.buried) == 0 {
				t.Error("the member is still there")
			}
		})
	}
}
