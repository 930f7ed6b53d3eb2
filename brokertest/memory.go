package brokertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"sync"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// ErrStopped is returned by the brokers of a Memory that is stopped, and by those
// that are closed.
var ErrStopped = errors.New("brokertest: the engine is stopped")

// A Memory is an engine within the process: it joins hubs that each have a
// broker of it. It is for tests, of what one's program does on several nodes
// and when the engine is away, and it shows what a Broker has to be.
type Memory struct {
	mu      sync.Mutex // guards the fields below
	brokers map[*memoryBroker]bool
	stopped bool

	log     [][]byte   // the records that are kept
	first   uint64     // the number of the first of them
	epoch   string     // the log's
	changed *sync.Cond // any of this
}

// NewMemory returns an engine without nodes.
func NewMemory() *Memory {
	m := &Memory{brokers: make(map[*memoryBroker]bool)}
	m.changed = sync.NewCond(&m.mu)
	m.Forget()
	return m
}

// Broker returns a broker for one more hub.
func (m *Memory) Broker() realtime.Broker {
	return &memoryBroker{engine: m, topics: make(map[string]bool), done: make(chan struct{})}
}

// HistoryBroker returns a broker for one more hub, by which the engine keeps
// what is published.
func (m *Memory) HistoryBroker() realtime.HistoryBroker {
	return &memoryHistory{memoryBroker: memoryBroker{engine: m, topics: make(map[string]bool), done: make(chan struct{})}}
}

// Forget makes the engine lose its history, and begin another.
func (m *Memory) Forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log, m.first, m.epoch = nil, 1, rand.Text()
	m.changed.Broadcast()
}

// PutBack makes the engine lose all but the oldest records, and give the numbers
// of the others again without a word, as an engine does whose store was put back.
func (m *Memory) PutBack(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = m.log[:min(keep, len(m.log))]
	m.changed.Broadcast()
}

// Trim makes the engine forget all but the newest records.
func (m *Memory) Trim(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	drop := max(len(m.log)-keep, 0)
	m.log = m.log[drop:]
	m.first += uint64(drop)
}

// Stop makes the engine fail until Start. What its brokers have not delivered
// yet is lost, but for its history. It returns nil.
func (m *Memory) Stop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
	m.changed.Broadcast()
	for b := range m.brokers {
		b.lose()
	}
	return nil
}

// Start lets the engine work again. It returns nil.
func (m *Memory) Start() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = false
	m.changed.Broadcast()
	for b := range m.brokers {
		b.put(memoryMessage{gap: ErrStopped})
	}
	return nil
}

// A memoryBroker is a node's. Its messages wait in a queue without a bound, as
// nothing is ever lost but by Stop.
type memoryBroker struct {
	engine *Memory
	done   chan struct{} // closed when the goroutine has ended

	handler realtime.BrokerHandler // set by Start
	topics  map[string]bool        // guarded by engine.mu

	mu     sync.Mutex // guards the fields below
	ready  *sync.Cond
	queue  []memoryMessage
	closed bool
}

type memoryMessage struct {
	topic string
	msg   []byte
	gap   error // instead of a message
}

func (b *memoryBroker) Start(h realtime.BrokerHandler) error {
	b.handler = h
	b.ready = sync.NewCond(&b.mu)
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	b.engine.brokers[b] = true
	go b.deliver()
	return nil
}

// deliver is the goroutine of a node; it ends with Close.
func (b *memoryBroker) deliver() {
	defer close(b.done)
	for {
		b.mu.Lock()
		for len(b.queue) == 0 && !b.closed {
			b.ready.Wait()
		}
		if b.closed {
			b.mu.Unlock()
			return
		}
		m := b.queue[0]
		b.queue = b.queue[1:]
		b.mu.Unlock()
		if m.gap != nil {
			b.handler.Gap(m.gap)
		} else {
			b.handler.Deliver(m.topic, m.msg)
		}
	}
}

func (b *memoryBroker) put(m memoryMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, m)
	b.ready.Signal()
}

func (b *memoryBroker) lose() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = nil
}

func (b *memoryBroker) Publish(_ context.Context, topic string, msg []byte) error {
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	if b.engine.stopped || !b.engine.brokers[b] {
		return ErrStopped
	}
	for other := range b.engine.brokers {
		if other.topics[topic] {
			other.put(memoryMessage{topic: topic, msg: bytes.Clone(msg)})
		}
	}
	return nil
}

func (b *memoryBroker) Subscribe(ctx context.Context, topic string) error {
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	if b.engine.stopped || !b.engine.brokers[b] {
		return ErrStopped
	}
	b.topics[topic] = true
	return ctx.Err()
}

func (b *memoryBroker) Unsubscribe(topic string) error {
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	delete(b.topics, topic)
	return nil
}

func (b *memoryBroker) Close() error {
	b.engine.mu.Lock()
	delete(b.engine.brokers, b)
	b.engine.mu.Unlock()
	if b.ready == nil {
		return nil // it was never started
	}
	b.mu.Lock()
	b.closed = true
	b.ready.Signal()
	b.mu.Unlock()
	<-b.done
	return nil
}

// A memoryHistory is a node's that has a history.
type memoryHistory struct {
	memoryBroker
	handler  realtime.HistoryHandler
	closed   bool          // guarded by engine.mu
	followed chan struct{} // closed when the goroutine follow has ended; nil: there is none
}

func (b *memoryHistory) Follow(h realtime.HistoryHandler, _ time.Duration) error {
	b.handler, b.followed = h, make(chan struct{})
	go b.follow()
	return nil
}

// follow is the goroutine that hands on records; it ends with Close.
func (b *memoryHistory) follow() {
	defer close(b.followed)
	m := b.engine
	var epoch string
	var next uint64
	current, away := false, false
	m.mu.Lock()
	defer m.mu.Unlock()
	for !b.closed {
		if m.epoch != epoch {
			epoch, next, current = m.epoch, 0, false
		}
		last := m.first + uint64(len(m.log)) - 1
		next = max(min(next, last+1), m.first)
		var tell func()
		switch {
		case m.stopped && !away:
			away, current = true, false
			next = max(next, 1) - 1 // the last one comes again
			tell = func() { b.handler.Away(ErrStopped) }
		case m.stopped:
		case next <= last:
			seq, epoch, record := next, epoch, bytes.Clone(m.log[next-m.first])
			tell = func() { b.handler.Record(epoch, seq, record) }
			next++
		case !current:
			current, away = true, false
			tell = func() { b.handler.Current(epoch, last) }
		}
		if tell == nil {
			m.changed.Wait()
			continue
		}
		m.mu.Unlock()
		tell()
		m.mu.Lock()
	}
}

func (b *memoryHistory) Append(ctx context.Context, record []byte) error {
	m := b.engine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped || b.closed {
		return ErrStopped
	}
	m.log = append(m.log, bytes.Clone(record))
	m.changed.Broadcast()
	return ctx.Err()
}

func (b *memoryHistory) Close() error {
	b.engine.mu.Lock()
	b.closed = true
	b.engine.changed.Broadcast()
	b.engine.mu.Unlock()
	if b.followed != nil {
		<-b.followed
	}
	return b.memoryBroker.Close()
}
