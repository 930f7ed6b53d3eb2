package redisbroker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	readBlock    = 2 * time.Second // for the next record; a dead connection is noticed after that and callTimeout
	maxRead      = 128             // records that are read at a time: 32 MiB of the largest that a hub makes
	maxReadBytes = 32 << 20        // above which fewer records are read at a time
	maxRetired   = 100             // epochs that are remembered after they have ended
	witnessWait  = 3 * time.Second // for a node that has had the log, after Redis was started again
)

var (
	errSilent   = errors.New("no answer from Redis in time")
	errSentinel = errors.New("the sentinels have chosen another master")
)

// A follower hands the records of the log to the hub. One goroutine does it, over
// one connection. It asks for more records when the hub has accepted the ones
// before, so the records that a slow hub hasn't had yet wait in Redis.
//
// The connection is the follower's own, and not one that the client shares,
// because it is blocked while the follower waits for the next record.
type follower struct {
	// Set at construction, never changed.
	b       *Broker
	handler realtime.HistoryHandler
	log     *recordLog
	ended   chan struct{} // closed when the goroutine run has ended
	calling atomic.Bool   // a method of the handler is running

	// Owned by the goroutine run.
	away    bool      // the handler was told so, and Current not since
	told    bool      // the handler was told that the log is current
	warned  bool      // that other nodes keep more records
	witness bool      // the hub had the whole log, of a Redis that waited for its disk
	unsure  time.Time // since when the log can't be opened, see isUnsure

	mu  sync.Mutex // guards the fields below
	at  position   // up to which the hub has had the log; the goroutine run alone changes it
	top logPoint   // the last record that the hub has had, or that this node has appended
}

func newFollower(b *Broker, h realtime.HistoryHandler, log *recordLog) *follower {
	return &follower{b: b, handler: h, log: log, ended: make(chan struct{})}
}

// run is the follower's goroutine. It ends with the Broker, once a dial or a
// method of the handler that is running has returned. The broker's run waits for
// it.
func (f *follower) run() {
	defer close(f.ended)
	select {
	case <-f.b.known:
	case <-f.b.ctx.Done():
	}
	for wait := minBackoff; f.b.ctx.Err() == nil; wait = f.b.backOff(wait) {
		f.b.mu.Lock()
		client, err := f.b.client, f.b.err
		f.b.mu.Unlock()
		if client != nil {
			err = f.serve(client, func() { wait = minBackoff })
		}
		if !f.away {
			f.away = true
			f.call(func() { f.handler.Away(wrap("follow", err)) })
		}
	}
}

// call runs a method of the handler, but not after Close.
func (f *follower) call(method func()) {
	f.calling.Store(true)
	defer f.calling.Store(false)
	if f.b.ctx.Err() == nil {
		method()
	}
}

// serve connects, calls up, and hands records to the hub. It returns when the
// connection is lost, with the reason, or the Broker is closed.
func (f *follower) serve(client rueidis.Client, up func()) error {
	master := addresses(client)
	conn, _ := client.Dedicate()
	defer conn.Close()
	f.b.mu.Lock()
	l := f.b.linkOf(f.log.key)
	f.b.mu.Unlock()
	if l != nil {
		select {
		case <-l.tried:
		case <-f.b.ctx.Done():
		}
	}
	if f.b.maxRecord.Load() == 0 {
		return errConnecting // the link has yet to ask whether Redis waits for its disk
	}
	f.told = false
	var log logState
	count := 1
	again, flowing := true, false // the last record is to come again; records come without a pause
	for {
		state, err := f.open(client, conn, flowing)
		if isUnsure(err) {
			select {
			case <-time.After(retryDelay):
				continue
			case <-f.b.ctx.Done():
			}
		}
		if err != nil {
			return err
		}
		up()
		if !flowing || f.told || state.epoch != log.epoch {
			log = state // otherwise the handler still waits for the end that the log had
		}
		from := f.position().at
		if !from.before(log.end) && (!again || from != log.end || from == streamID{}) {
			f.current(log.place)
		}
		if again {
			again, from = false, from.previous()
		}
		// The log is opened again after an answer without records, and every few
		// seconds. It may have been lost or put back while the connection was
		// not, and XREAD doesn't tell that.
		opened := time.Now()
		for flowing = true; flowing && time.Since(opened) < readBlock; {
			records, err := f.read(conn, from, count)
			if err != nil {
				return err
			}
			size := 0
			for _, r := range records {
				if log.end.before(r.id) {
					f.current(log.place)
				}
				size += len(r.data)
				f.pass(r)
			}
			if from = f.position().at; !from.before(log.end) {
				f.current(log.place)
			}
			if len(records) == count {
				count = nextCount(count, size, min(maxReadBytes, int(f.b.maxRecord.Load())))
			}
			flowing = len(records) > 0
		}
		if client.Mode() != rueidis.ClientModeCluster && !slices.Equal(addresses(client), master) {
			return errSentinel // see link.serve; a former master of a cluster redirects the client
		}
	}
}

// open returns the state of the log. If it isn't the log that the node knows, and
// lacks the node's last record, the follower goes back to its beginning. flowing
// says that records come without a pause, so that some may have come since the last
// one that the hub had.
func (f *follower) open(client rueidis.Client, conn rueidis.DedicatedClient, flowing bool) (logState, error) {
	ctx, cancel := f.within(callTimeout)
	defer cancel()
	if client.Mode() != rueidis.ClientModeCluster {
		if err := checkMaster(ctx, conn); err != nil {
			return logState{}, because(ctx, err)
		}
	}
	at, known := f.position(), f.known()
	anew := lostAnew
	switch {
	case !f.unsure.IsZero() && time.Since(f.unsure) > witnessWait:
	case f.witness:
		anew = keptAnew
	case f.b.durable.Load():
		anew = unsureAnew
	}
	log, err := f.log.open(ctx, pinned{client, conn}, known, anew)
	if isUnsure(err) && f.unsure.IsZero() {
		f.unsure = time.Now()
	}
	if err != nil {
		return logState{}, because(ctx, err)
	}
	f.unsure = time.Time{}
	if !f.warned && log.max > f.log.max {
		f.warned = true
		slog.Warn("redisbroker: nodes of one history differ: the highest MaxRecords rules",
			"name", f.b.name, "records", log.max, "records of this node", f.log.max)
	}
	if log.epoch != at.epoch || log.last != at.last && !flowing {
		f.told = false
	}
	f.witness = f.b.durable.Load() && (f.witness || f.told)
	if log.epoch != at.epoch && (!log.kept || known.epoch != at.epoch) {
		f.moveTo(at.place, streamID{})
	}
	return log, nil
}

// A logPoint is a record's place in the log, and in the stream.
type logPoint struct {
	place
	id streamID
}

// A record is one of the log.
type record struct {
	id streamID
	place
	data []byte
}

// read waits for records behind from.
func (f *follower) read(conn rueidis.DedicatedClient, from streamID, count int) (records []record, err error) {
	ctx, cancel := f.within(readBlock + callTimeout)
	defer cancel()
	cmd := conn.B().Xread().Count(int64(count)).Block(readBlock.Milliseconds()).Streams().Key(f.log.key).Id(from.String()).Build()
	streams, err := conn.Do(ctx, cmd).AsXReadSlices()
	if rueidis.IsRedisNil(err) {
		return nil, nil
	}
	if err != nil {
		return nil, because(ctx, f.log.explain(err))
	}
	for _, entry := range streams[f.log.key] {
		r, err := parseRecord(entry)
		if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

// nextCount returns the number of records to ask for next, where the last count
// records had the given size in bytes, and all may have limit. A follower starts
// with one record, because a slow network may not deliver more in the time after
// which it counts as dead.
func nextCount(count, size, limit int) int {
	switch {
	case size > limit:
		return max(count/2, 1)
	case size > limit/2:
		return count
	}
	return min(2*count, maxRead)
}

// parseRecord returns the record of an entry of the stream. It has no epoch if no
// node has made the entry.
func parseRecord(entry rueidis.XRangeSlice) (r record, err error) {
	if r.id, err = parseStreamID(entry.ID); err != nil {
		return record{}, err
	}
	for _, field := range entry.FieldValues {
		switch field.Field {
		case "epoch":
			r.epoch = field.Value
		case "number":
			r.last, err = strconv.ParseUint(field.Value, 10, 64)
		case "record":
			r.data = []byte(field.Value)
		}
	}
	if err != nil {
		return record{id: r.id}, nil
	}
	return r, nil
}

// pass hands a record to the hub. The hub also gets those that it has had, where
// the log is read again: it compares them with what came before. A number that
// has come with other contents shows that the log was put back, and written
// again.
func (f *follower) pass(r record) {
	at := f.position()
	if r.epoch == "" || r.last == 0 || at.isRetired(r.epoch) {
		f.moveTo(at.place, r.id)
		return
	}
	to := r.place
	if r.epoch == at.epoch {
		to.last = max(to.last, at.last) // so that open notices a log that was put back
	}
	// Before the handler is called: a client may have the record's id before the
	// handler returns, and from then on a loss of the record has to be noticed.
	f.moveTo(to, r.id)
	f.call(func() { f.handler.Record(r.epoch, r.last, r.data) })
}

// current tells the handler that it has had the log up to a record. It does so
// once after the log was opened.
func (f *follower) current(p place) {
	if f.told {
		return
	}
	f.told, f.away, f.witness = true, false, f.b.durable.Load()
	f.moveTo(p, f.position().at)
	f.call(func() { f.handler.Current(p.epoch, p.last) })
}

// position returns the position up to which the hub has had the log.
func (f *follower) position() position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.at
}

// moveTo notes the position of the hub. An epoch that ends by it is remembered.
func (f *follower) moveTo(p place, id streamID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.at.epoch; old != "" && old != p.epoch {
		retired := append(strings.Fields(f.at.retired), old)
		f.at.retired = strings.Join(retired[max(len(retired)-maxRetired, 0):], " ")
	}
	if p.epoch != f.at.epoch || p.epoch == f.top.epoch {
		f.raise(logPoint{p, id})
	}
	f.at.place, f.at.at = p, id
}

// appended notes a record that this node has appended. From then on its loss has
// to be noticed, though the hub may not have had it yet.
func (f *follower) appended(log logState) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.raise(logPoint{log.place, log.end})
}

// raise moves top up. The caller holds mu.
func (f *follower) raise(p logPoint) {
	if p.epoch != f.top.epoch {
		f.top = p
		return
	}
	f.top.last = max(f.top.last, p.last)
	if f.top.id.before(p.id) {
		f.top.id = p.id
	}
}

// known returns the position that the log must have, unless it has lost records.
// A node that has not read the log knows nothing of it, whatever it has appended.
func (f *follower) known() position {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at.epoch == "" {
		return position{}
	}
	p := position{place: f.top.place, at: f.top.id, retired: f.at.retired}
	if f.at.epoch != f.top.epoch { // the hub will have the records of another epoch next
		p.retired = strings.TrimSpace(p.retired + " " + f.at.epoch)
	}
	return p
}

// within returns a context that ends after the given time, or with the Broker. It
// has no deadline: with a deadline rueidis may read the answer on this goroutine,
// and then the deadline ends the command and Close doesn't.
func (f *follower) within(d time.Duration) (ctx context.Context, cancel func()) {
	ctx, end := context.WithCancelCause(f.b.ctx)
	timer := time.AfterFunc(d, func() { end(errSilent) })
	return ctx, func() {
		timer.Stop()
		end(nil)
	}
}

// because returns the reason why a command has failed.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
