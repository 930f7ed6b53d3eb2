package natsbroker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	apiTimeout   = 3 * time.Second         // for an answer of JetStream
	lookTimeout  = 1500 * time.Millisecond // the same, where nothing is made or changed: a stream without a leader never answers
	pullBeat     = time.Second             // between heartbeats of an idle server; two missing ones are an outage
	pullExpiry   = 30 * time.Second        // of one request for messages
	pullMessages = 64                      // messages that may wait here
	idleConsumer = 30 * time.Second        // after which a server forgets the place of a silent node
	historyRetry = 200 * time.Millisecond  // between two tries to read the stream
	currentWait  = 3 * time.Second         // for a record that is due; then the leader is asked whether it still exists
)

// A HistoryBroker is a Broker that has a stream of JetStream for the history of
// its hub. It is made by [Broker.WithHistory].
type HistoryBroker struct {
	*Broker

	// MaxBytes bounds the history: above it the stream drops its oldest
	// records. As a rule the nodes bound it first, by the Age of the hub's
	// [realtime.History]. JetStream reserves that much on each server that has
	// the stream. Where nodes have different values, as with Replicas, the
	// highest holds. To lower it, change the stream. It may be assigned until the
	// hub is used. Zero and less mean what the stream has. A stream that isn't
	// there is made with 1 GiB, or less if JetStream has no room for that: then each
	// node that has no MaxBytes logs a warning.
	MaxBytes int64

	// Replicas is the number of servers of a cluster that keep the stream: 1, 3
	// or 5. With three the stream works while one of them is down. It may be
	// assigned until the hub is used. Zero means 3 where the broker is embedded
	// and its Config has three nodes or more, and 1 otherwise.
	Replicas int

	following sync.WaitGroup

	// Set by Follow, never changed.
	followed bool
	stream   jetstream.StreamConfig
	handler  realtime.HistoryHandler

	streams  atomic.Pointer[conversation]
	doubts   chan struct{}         // has room for one word that the stream should be looked at
	unfit    atomic.Pointer[error] // why the stream can't be used; nil: it can
	maxBytes atomic.Int64          // of the stream, as far as it is known

	preparing sync.Mutex // guards the field below, and is held while the stream is made or changed
	warned    map[string]bool

	// Owned by the goroutine read.
	revived time.Time // when JetStream was started again the last time
	epoch   string
	last    uint64 // number of the record that was handed over last
	away    bool   // the handler was told so, and no record has come since
}

var _ realtime.HistoryBroker = (*HistoryBroker)(nil)

// A conversation is JetStream by a connection.
type conversation struct {
	conn *nats.Conn
	jetstream.JetStream
}

// js returns JetStream by the connection that the broker has.
func (b *HistoryBroker) js() jetstream.JetStream {
	conn := b.conn.Load()
	if c := b.streams.Load(); c != nil && c.conn == conn {
		return c
	}
	js, err := jetstream.New(conn)
	if err != nil {
		panic(err) // only an option makes it fail
	}
	c := &conversation{conn, js}
	b.streams.Store(c)
	return c
}

// WithHistory returns a broker that keeps the history of its hub in JetStream,
// in one stream for all topics. The stream is made when it isn't there. Nodes
// that share a history have the same name. The servers need JetStream; an
// embedded one needs a StoreDir. The hub needs a [realtime.History]; without one
// the broker works as b does. Don't use b by itself after this.
func (b *Broker) WithHistory() *HistoryBroker {
	return &HistoryBroker{Broker: b, doubts: make(chan struct{}, 1)}
}

// Follow is called by the hub; see [realtime.HistoryBroker].
func (b *HistoryBroker) Follow(h realtime.HistoryHandler) error {
	return wrap("follow", b.follow(h))
}

func (b *HistoryBroker) follow(h realtime.HistoryHandler) error {
	if err := b.usable(); err != nil {
		return err
	}
	if b.followed {
		return errors.New("the history is followed already")
	}
	if b.host != nil && !b.host.options.JetStream {
		return errors.New("the embedded server has no JetStream: set Config.StoreDir")
	}
	b.followed = true
	b.asks.Store(true)
	b.stream = jetstream.StreamConfig{
		Name:        streamName(b.prefix),
		Description: description,
		Metadata:    map[string]string{mark: markValue},
		Subjects:    []string{b.prefix + logSubject},
		Storage:     jetstream.FileStorage,
		Replicas:    cmp.Or(b.Replicas, b.replicas, 1),
		MaxBytes:    max(b.MaxBytes, 0),
	}
	b.stream.MaxBytes = cmp.Or(b.stream.MaxBytes, historyBytes)
	b.maxBytes.Store(b.stream.MaxBytes)
	b.handler = h
	b.following.Go(b.read)
	return nil
}

// logSubject follows the prefix in the subject of records. It is two words, so
// that the subscription to topics doesn't get them. No topic and no prefix has
// its form.
const logSubject = "=log.records"

// streamName returns the name of the stream of a prefix. It is also a file's
// name, so it can't have every character of a prefix.
func streamName(prefix string) string {
	return strings.NewReplacer(".", "=2E", "/", "=2F", "\\", "=5C").Replace(strings.TrimSuffix(prefix, "."))
}

// Append is called by the hub; see [realtime.HistoryBroker]. It waits for
// JetStream's answer. It returns [realtime.ErrEventTooLarge] for a record that
// the server's max_payload or MaxBytes can't hold, and sends nothing then.
func (b *HistoryBroker) Append(ctx context.Context, record []byte) error {
	return wrap("append", b.append(ctx, record))
}

func (b *HistoryBroker) append(ctx context.Context, record []byte) error {
	if err := b.reachable(); err != nil {
		return err
	}
	if !b.followed {
		return errors.New("the history is not followed")
	}
	if most := b.conn.Load().MaxPayload(); int64(len(record)) > most-maxHeaderBytes {
		return tooLarge(record, "the server's max_payload", most)
	}
	if most := b.maxBytes.Load(); int64(len(record)) > most-maxHeaderBytes { // the stream would accept it, and drop it
		return tooLarge(record, "MaxBytes", most)
	}
	if why := b.unfit.Load(); why != nil {
		return *why
	}
	began := time.Now()
	_, err := b.js().Publish(ctx, b.prefix+logSubject, record,
		jetstream.WithExpectStream(b.stream.Name), jetstream.WithRetryAttempts(0))
	if err != nil {
		select {
		case b.doubts <- struct{}{}:
		default:
		}
	}
	return b.host.because(b.because(err, began))
}

// Trim is called by the hub; see [realtime.HistoryBroker]. It waits for JetStream's
// answers.
func (b *HistoryBroker) Trim(ctx context.Context, epoch string, before uint64) error {
	return wrap("trim", b.trim(ctx, epoch, before))
}

func (b *HistoryBroker) trim(ctx context.Context, epoch string, before uint64) error {
	if err := b.reachable(); err != nil {
		return err
	}
	if !b.followed {
		return errors.New("the history is not followed")
	}
	if why := b.unfit.Load(); why != nil {
		return *why
	}
	began := time.Now()
	stream, err := b.js().Stream(ctx, b.stream.Name)
	if err == nil && epochOf(stream.CachedInfo()) == epoch {
		// A purge of more than there is would drop the newest record. If the stream
		// is deleted and made again at this moment, nodes notice what is missing by
		// the numbers.
		if before = min(before, stream.CachedInfo().State.LastSeq); before > 1 {
			err = stream.Purge(ctx, jetstream.WithPurgeSequence(before))
		}
	}
	return b.host.because(b.because(err, began))
}

// epochOf returns the epoch of a stream.
func epochOf(info *jetstream.StreamInfo) string {
	return strconv.FormatInt(info.Created.UnixNano(), 36)
}

// maxHeaderBytes is more than the size of a record's headers.
const maxHeaderBytes = 1024

// Close is called by the hub; see [Broker.Close]. It also waits for a method of
// the [realtime.HistoryHandler] that is running.
func (b *HistoryBroker) Close() error {
	b.cancel() // as Broker.Close does, but the connection is needed until read has ended
	b.following.Wait()
	return b.Broker.Close()
}

// read is the goroutine that hands the records of the stream to the hub. It ends
// with Close, which waits for it.
func (b *HistoryBroker) read() {
	for b.ctx.Err() == nil {
		err := b.session()
		err = b.host.because(b.because(err, time.Now().Add(-2*apiTimeout)))
		if b.ctx.Err() != nil {
			return
		}
		if !b.away {
			b.away = true
			b.handler.Away(wrap("follow", err))
		}
		select {
		case <-time.After(historyRetry/2 + rand.N(historyRetry)):
		case <-b.ctx.Done():
		}
	}
}

// session hands over records until something is wrong, and returns that error.
// It begins with the last record of the session before, which the hub compares
// with the one that it has read: so it notices a log that was put back.
func (b *HistoryBroker) session() error {
	connected, end := b.whileConnected()
	defer end()
	if err := b.revive(); err != nil { // first: where there is no server, nothing is reachable
		return err
	}
	if err := b.reachable(); err != nil {
		return err
	}
	info, err := b.prepare()
	if err != nil {
		return err
	}
	if epoch := epochOf(info); epoch != b.epoch {
		b.epoch, b.last = epoch, 0
	}
	if info.State.LastSeq < b.last {
		return b.renew(info)
	}
	consumer, err := b.consume()
	if err != nil {
		return err
	}
	defer b.leave(consumer)
	messages, err := consumer.Messages(
		jetstream.PullMaxMessages(pullMessages),
		jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(pullBeat),
		jetstream.WithMessagesErrOnMissingHeartbeat(true),
	)
	if err != nil {
		return err
	}
	defer messages.Stop()
	// info is from the stream's leader. The server that serves the consumer may
	// lag behind it, so its last record may not be the stream's last one.
	current := false
	due := info.State
	came := uint64(0) // the last record of this session
	print := uint64(0)
	for delivered := uint64(0); ; {
		if !current && (came >= due.LastSeq || due.FirstSeq > due.LastSeq) {
			if err := b.verify(came, print); err != nil {
				return err
			}
			current = true
			b.tell(max(b.last, due.LastSeq))
		}
		wait, cancel := connected, context.CancelFunc(func() {})
		if !current {
			wait, cancel = context.WithTimeout(connected, currentWait)
		}
		m, err := messages.Next(jetstream.NextContext(wait))
		cancel()
		if err != nil && !current && errors.Is(wait.Err(), context.DeadlineExceeded) {
			if due, err = b.missing(due, came); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return cmp.Or(context.Cause(connected), err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return err
		}
		if delivered++; meta.Sequence.Consumer != delivered {
			return errSkipped
		}
		came = meta.Sequence.Stream
		if !current {
			print = crc64.Checksum(m.Data(), printTable)
		}
		b.last, b.away = max(b.last, came), false
		b.handler.Record(b.epoch, came, m.Data())
	}
}

var printTable = crc64.MakeTable(crc64.ECMA)

var errDiverged = errors.New("a server had other records than the stream's leader, and is asked again")

// verify asks the stream's leader whether its record is the one that has come. The
// server of the consumer may have another, until the leader tells it so: if the
// stores of other servers were put back, and they have elected each other.
func (b *HistoryBroker) verify(came, print uint64) error {
	if came == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(b.ctx, apiTimeout)
	defer cancel()
	stream, err := b.js().Stream(ctx, b.stream.Name)
	if err != nil {
		return err
	}
	m, err := stream.GetMsg(ctx, came)
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound) && stream.CachedInfo().State.LastSeq >= came:
		return nil // too old by now, or somebody has deleted it
	case errors.Is(err, jetstream.ErrMsgNotFound):
		return errDiverged
	case err != nil:
		return err
	case crc64.Checksum(m.Data, printTable) != print:
		return errDiverged
	}
	return nil
}

// missing asks whether the records that are due behind came still exist, and
// returns due without those that the stream has dropped by a Trim, or for its size,
// or because somebody has deleted the last ones.
func (b *HistoryBroker) missing(due jetstream.StreamState, came uint64) (jetstream.StreamState, error) {
	info, err := b.prepare()
	if err != nil {
		return due, err
	}
	if info.State.FirstSeq > due.LastSeq {
		due.FirstSeq = info.State.FirstSeq
	}
	ctx, cancel := context.WithTimeout(b.ctx, apiTimeout)
	defer cancel()
	stream, err := b.js().Stream(ctx, b.stream.Name)
	for err == nil && due.LastSeq > came && due.FirstSeq <= due.LastSeq {
		if _, err = stream.GetMsg(ctx, due.LastSeq); !errors.Is(err, jetstream.ErrMsgNotFound) {
			break
		}
		due.LastSeq, err = due.LastSeq-1, nil
	}
	return due, err
}

// whileConnected returns a context that ends when the connection is lost, the
// stream has become unfit, or end is called. A consumer alone would wait.
func (b *HistoryBroker) whileConnected() (ctx context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(b.ctx)
	conn := b.conn.Load()
	status := conn.StatusChanged(nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	b.following.Go(func() {
		looking := time.NewTicker(lookEvery)
		defer looking.Stop()
		for {
			select {
			case <-status:
				cancel(errAway)
				return
			case <-b.doubts: // a record was not accepted
				if b.host.isIll() {
					cancel(errStuck)
					return
				}
				if _, err := b.prepare(); b.unfit.Load() != nil {
					cancel(err)
				}
			case <-looking.C: // the others may accept records while this server doesn't
				if b.host.isIll() && b.host.tryDisk() == nil {
					cancel(errStuck)
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return ctx, func() {
		conn.RemoveStatusListener(status)
		cancel(nil)
	}
}

var errSkipped = errors.New("a record was lost on its way, and is asked for again")

// tell tells the hub that it has all records.
func (b *HistoryBroker) tell(last uint64) {
	b.last, b.away = last, false
	b.handler.Current(b.epoch, last)
}

// renew deletes a stream that has lost records, because it would give their
// numbers again. The next session makes another. Other nodes may do the same at
// that time, so it looks first whether old is still the stream.
func (b *HistoryBroker) renew(old *jetstream.StreamInfo) error {
	select {
	case <-time.After(rand.N(time.Second)):
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
	ctx, cancel := context.WithTimeout(b.ctx, apiTimeout)
	defer cancel()
	info, err := b.prepare()
	if err == nil && info.Created.Equal(old.Created) && info.State.LastSeq < b.last {
		err = b.js().DeleteStream(ctx, b.stream.Name)
	}
	return cmp.Or(err, fmt.Errorf("stream %s has lost its records %d to %d, and starts again at 1", b.stream.Name, old.State.LastSeq+1, b.last))
}

// consume returns a consumer of the records from last on.
func (b *HistoryBroker) consume() (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(b.ctx, apiTimeout)
	defer cancel()
	consumer, err := b.js().CreateConsumer(ctx, b.stream.Name, jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       max(b.last, 1),
		AckPolicy:         jetstream.AckNonePolicy,
		InactiveThreshold: idleConsumer,
		Replicas:          1,
		MemoryStorage:     true,
	})
	if err != nil {
		return nil, fmt.Errorf("consumer: %w", err)
	}
	return consumer, nil
}

// leave deletes a consumer. The server deletes it by itself after idleConsumer if
// this can't reach it.
func (b *HistoryBroker) leave(consumer jetstream.Consumer) {
	if b.conn.Load().IsConnected() {
		ctx, cancel := context.WithTimeout(context.Background(), historyRetry)
		defer cancel()
		b.js().DeleteConsumer(ctx, b.stream.Name, consumer.CachedInfo().Name)
	}
}
