package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	defaultRecords = 1_000_000
	maxBulkBytes   = 512 << 20 // proto-max-bulk-len, by default
)

// A HistoryBroker is a [realtime.HistoryBroker]: a Broker that keeps what is
// published, in a stream of Redis. Its hub needs a [realtime.History], or it
// works as the Broker does. Like that it is for one hub.
//
// Its keys are "{realtime:log}" and "{realtime:log}:head", with the Prefix for
// "realtime:". A user of Redis needs them and the channel of the heartbeats,
// which is "realtime:nodes", and may do with these rules:
//
//	~{realtime:log}* &realtime:*
//	+ping +publish +subscribe +unsubscribe
//	+eval +evalsha +hmget +hset +del +xadd +xtrim +xread +xrevrange +time +pttl +pexpire
//
// In a cluster also +cluster|slots, +cluster|shards, +spublish, +ssubscribe and
// +sunsubscribe; with a Client that caches, what that takes.
type HistoryBroker struct {
	// Broker says where Redis is. Nodes that share a history have the same
	// Prefix, which may not begin with "}". Topics don't have channels then; one
	// is left, for the nodes' heartbeats.
	Broker

	// MaxRecords is about how many records are kept, if they don't become too
	// old before, which is what usually bounds them. A record has what a node
	// published while its last one was on its way, up to 256 KiB and an event.
	// Zero or less means 1,000,000: 3,300 a second for the default Age of 5
	// minutes, and with small events some 300 MB. Who has large ones, and a
	// Redis that is full before, wants less: a full one takes nothing.
	MaxRecords int

	follower *follower // set by Follow, never changed; nil before
}

// Follow begins to read the log, and returns. It fails if Start hasn't been
// called, if it has been called before, or for a Prefix that a cluster could not
// keep in one slot.
func (b *HistoryBroker) Follow(h realtime.HistoryHandler, keep time.Duration) error {
	switch {
	case !b.started.Load():
		return errors.New("redisbroker: Follow before Start")
	case b.follower != nil:
		return errors.New("redisbroker: Follow is called once")
	case strings.HasPrefix(b.prefix, "}"):
		return fmt.Errorf("redisbroker: the Prefix %q makes an empty hash tag: let it begin with another character", b.prefix)
	}
	b.mu.Lock()
	closed := b.closed
	b.mu.Unlock()
	if closed {
		return errClosed
	}
	maxRecords := b.MaxRecords
	if maxRecords <= 0 {
		maxRecords = defaultRecords
	}
	b.follower = newFollower(&b.Broker, h, newRecordLog(b.prefix, keep, maxRecords))
	b.own.Go(b.follower.run)
	return nil
}

// Append waits for Redis' answer, for 3 s at the most. It fails at once while
// Redis is away, and with [realtime.ErrEventTooLarge] for more than 512 MiB,
// which is what Redis takes unless its proto-max-bulk-len says otherwise. A lower
// limit there is an outage to Append.
func (b *HistoryBroker) Append(ctx context.Context, record []byte) error {
	f := b.follower
	if f == nil {
		return errors.New("redisbroker: Append before Follow")
	}
	if len(record) > maxBulkBytes { // Redis would close the connection, and seldom be heard to say why
		return fmt.Errorf("redisbroker: append: %w", realtime.ErrEventTooLarge)
	}
	l, err := b.reach(ctx, f.log.key)
	if err != nil {
		return err
	}
	select {
	case <-b.stop:
		return errClosed
	default:
	}
	b.mu.Lock()
	client := b.client // is there: there is a link
	b.mu.Unlock()
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	defer context.AfterFunc(b.ctx, cancel)()
	err = f.log.append(call, client, f.position(), record)
	if err == nil {
		return nil
	}
	if _, refused := rueidis.IsRedisErr(err); !refused && b.ctx.Err() == nil && !errors.Is(ctx.Err(), context.Canceled) {
		l.doubt(err)
	}
	return fmt.Errorf("redisbroker: append: %w", err)
}

// Close ends what Start and Follow began. It waits for a method of the handler
// that is running, and returns an error if that blocks for 5 s.
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
