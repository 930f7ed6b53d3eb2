package brokertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"sync"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// ErrStopped is returned by a broker of a [Memory] while the Memory is stopped,
// before the broker is started, and after it is closed.
var ErrStopped = errors.New("brokertest: the engine is stopped")

// A Memory is an engine inside the process. It joins the hubs that have a
// broker of it. It is for tests of programs: what they do on several nodes, and
// while the engine is unreachable. It also is an example of a Broker. Its
// methods may be called by several goroutines at a time.
type Memory struct {
	mu      sync.Mutex // guards the fields below
	brokers map[*memoryBroker]bool
	stopped bool
	outages int // so far: a broker notices each, however short

	log     [][]byte   // the records that are kept
	first   uint64     // the number of the first one
	epoch   string     // of the log
	changed *sync.Cond // signals that one of the fields above has changed
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

// HistoryBroker returns a broker for one more hub. The engine keeps the events of
// such hubs.
func (m *Memory) HistoryBroker() realtime.HistoryBroker {
	return &memoryHistory{memoryBroker: memoryBroker{engine: m, topics: make(map[string]bool), done: make(chan struct{})}}
}

// Forget makes the engine lose its history, and begin another one.
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

// Trim makes the engine drop all records but the newest keep ones. A record has
// the events that a hub published at about the same time.
func (m *Memory) Trim(keep int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	drop := max(len(m.log)-keep, 0)
	m.log = m.log[drop:]
	m.first += uint64(drop)
}

// Stop makes the engine unreachable until Start. Messages that its brokers have
// not delivered yet are lost. The history is not lost. Stop returns nil.
func (m *Memory) Stop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.stopped {
		m.stopped = true
		m.outages++
	}
	m.changed.Broadcast()
	for b := range m.brokers {
		b.lose()
	}
	return nil
}

// Start makes the engine reachable again after Stop. It returns nil.
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

// A memoryBroker is the broker of a node. Its messages wait in a queue without a
// bound, so that Stop alone loses any.
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

// A memoryMessage is a message for a node, or a gap.
type memoryMessage struct {
	topic string
	msg   []byte
	gap   error // instead of a message
}

func (b *memoryBroker) Start(h realtime.BrokerHandler) error {
	b.engine.mu.Lock()
	defer b.engine.mu.Unlock()
	if b.handler != nil {
		return errors.New("brokertest: the broker is started already: make one for each hub")
	}
	b.handler = h
	b.ready = sync.NewCond(&b.mu)
	b.engine.brokers[b] = true
	go b.deliver()
	return nil
}

// deliver is the goroutine that calls the handler. It ends with Close, which
// waits for it.
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

// A memoryHistory is the broker of a node with a history.
type memoryHistory struct {
	memoryBroker
	handler  realtime.HistoryHandler
	closed   bool          // guarded by engine.mu
	followed chan struct{} // closed when the goroutine follow has ended; nil: Follow was not called
}

func (b *memoryHistory) Follow(h realtime.HistoryHandler) error {
	b.handler, b.followed = h, make(chan struct{})
	go b.follow()
	return nil
}

// follow is the goroutine that calls the handler. It ends with Close, which waits
// for it.
func (b *memoryHistory) follow() {
	defer close(b.followed)
	m := b.engine
	var epoch string
	var next uint64
	current := false
	m.mu.Lock()
	defer m.mu.Unlock()
	outages := m.outages
	if m.stopped {
		outages-- // it doesn't know of this one
	}
	for !b.closed {
		if m.epoch != epoch {
			epoch, next, current = m.epoch, 0, false
		}
		last := m.first + uint64(len(m.log)) - 1
		next = max(min(next, last+1), m.first)
		var tell func()
		switch {
		case m.outages > outages:
			outages, current = m.outages, false
			next = max(next, 1) - 1 // the last one comes again
			tell = func() { b.handler.Away(ErrStopped) }
		case m.stopped:
		case next <= last:
			seq, epoch, record := next, epoch, bytes.Clone(m.log[next-m.first])
			tell = func() { b.handler.Record(epoch, seq, record) }
			next++
		case !current:
			current = true
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

func (b *memoryHistory) Trim(ctx context.Context, epoch string, before uint64) error {
	m := b.engine
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stopped || b.closed {
		return ErrStopped
	}
	if last := m.first + uint64(len(m.log)) - 1; epoch == m.epoch && before > m.first && last >= m.first {
		before = min(before, last)
		m.log = m.log[before-m.first:]
		m.first = before
	}
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
