package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// defaultRecords is how many records are kept, by default.
const defaultRecords = 1_000_000

// A HistoryBroker is a Broker that has a stream of Redis for the history of its
// hub. It is made by [Broker.WithHistory].
//
// The keys of the broker "chat" are "{chat:log}" and "{chat:log}:head". Its only
// channel, for the nodes' heartbeats, is "chat:nodes". These rules are enough for
// the user of Redis:
//
//	~{chat:log}* &chat:*
//	+ping +publish +subscribe +unsubscribe
//	+eval +evalsha +hmget +hset +xadd +xtrim +xread +xrange +xrevrange +time +pttl +persist +info +config|get
//
// Without the last one the broker doesn't learn what [Broker.MaxMessageBytes] says,
// and each start of Redis counts as a loss. Without +info no start is noticed.
// Without +xrange, +xtrim or +persist the history grows up to MaxRecords.
//
// In a cluster the user also needs +cluster|slots, +cluster|shards, +spublish,
// +ssubscribe and +sunsubscribe. With a client of [New] that caches it needs
// what the cache needs.
type HistoryBroker struct {
	*Broker

	// MaxRecords bounds the history: above about that number the stream drops
	// its oldest records. As a rule the nodes bound it first, by the Age of the
	// hub's [realtime.History]. Where nodes differ the highest number rules, and
	// the others log a warning. It may be assigned until the hub is used. Zero
	// and less mean 1,000,000.
	//
	// A record has the events that a node published while its last record was
	// on its way, up to 256 KiB and one event. The stream has those of twice the
	// Age at most. 1,000,000 are 1,600 a second for the default Age of 5 minutes,
	// and with small events some 300 MB. With large events choose a number that
	// fits into Redis' memory, because a full Redis refuses records.
	MaxRecords int

	follower *follower // set by Follow, never changed; nil before
}

var _ realtime.HistoryBroker = (*HistoryBroker)(nil)

// WithHistory returns a broker that keeps the history of its hub in Redis, in
// one stream for all topics. The stream is made when it isn't there. Nodes that
// share a history have the same name. The hub needs a [realtime.History];
// without one the broker works as b does. Don't use b by itself after this.
func (b *Broker) WithHistory() *HistoryBroker { return &HistoryBroker{Broker: b} }

// Follow is called by the hub; see [realtime.HistoryBroker].
func (b *HistoryBroker) Follow(h realtime.HistoryHandler) error {
	return wrap("follow", b.follow(h))
}

func (b *HistoryBroker) follow(h realtime.HistoryHandler) error {
	if err := b.usable(); err != nil {
		return err
	}
	if b.follower != nil {
		return errors.New("the history is followed already")
	}
	maxRecords := b.MaxRecords
	if maxRecords <= 0 {
		maxRecords = defaultRecords
	}
	b.follower = newFollower(b.Broker, h, newRecordLog(b.prefix, maxRecords))
	b.own.Go(b.follower.run)
	return nil
}

// Append is called by the hub; see [realtime.HistoryBroker]. It waits for Redis'
// answer, for 3 s at the most. It returns [realtime.ErrEventTooLarge] for more
// than [HistoryBroker.MaxMessageBytes], and sends nothing then.
func (b *HistoryBroker) Append(ctx context.Context, record []byte) error {
	return wrap("append", b.append(ctx, record))
}

func (b *HistoryBroker) append(ctx context.Context, record []byte) error {
	return b.change(ctx, record, func(call context.Context, c rueidis.Client) error {
		log, err := b.follower.log.append(call, c, b.follower.known(), record)
		if err == nil {
			b.follower.appended(log)
		}
		return err
	})
}

// Trim is called by the hub; see [realtime.HistoryBroker]. It waits for Redis'
// answer, for 3 s at the most.
func (b *HistoryBroker) Trim(ctx context.Context, epoch string, before uint64) error {
	return wrap("trim", b.change(ctx, nil, func(call context.Context, c rueidis.Client) error {
		return b.follower.log.trim(call, c, epoch, before)
	}))
}

// change calls do if Redis can be reached. do changes the log, and may add a
// record to it.
func (b *HistoryBroker) change(ctx context.Context, record []byte, do func(ctx context.Context, c rueidis.Client) error) error {
	if err := b.usable(); err != nil {
		return err
	}
	if b.follower == nil {
		return errors.New("the history is not followed")
	}
	l, err := b.reach(ctx, b.follower.log.key)
	if err != nil {
		return err
	}
	if err := tooLarge(record, b.maxRecord.Load()); err != nil {
		return err
	}
	if b.isStopped() {
		return ErrClosed
	}
	b.mu.Lock()
	out := l.out // not nil, because the link has had a connection
	b.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	if err = do(call, out); err == nil {
		return nil
	}
	if answer, refused := rueidis.IsRedisErr(err); refused && !isReplicas(answer) || b.ctx.Err() != nil || errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	l.doubt(out, err)
	return err
}

// Close is called by the hub; see [Broker.Close]. It also waits for a method of
// the [realtime.HistoryHandler] that is running.
func (b *HistoryBroker) Close() error {
	patience := time.After(closeTimeout)
	err := b.Broker.Close() // whose goroutine run waits for the follower
	f := b.follower
	if f == nil {
		return err
	}
	select {
	case <-f.ended:
	case <-patience:
		if f.calling.Load() {
			err = errors.Join(err, fmt.Errorf("redisbroker: close: a Record has been blocking for %v", closeTimeout))
		}
	}
	return err
}
