package brokertest

import (
	"context"
	"errors"
	"sync"

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
}

// NewMemory returns an engine without nodes.
func NewMemory() *Memory { return &Memory{brokers: make(map[*memoryBroker]bool)} }

// Broker returns a broker for one more hub.
func (m *Memory) Broker() realtime.Broker {
	return &memoryBroker{engine: m, topics: make(map[string]bool), done: make(chan struct{})}
}

// Stop makes the engine fail until Start. What its brokers have not delivered
// yet is lost. It returns nil.
func (m *Memory) Stop() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.stopped = true
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
			other.put(memoryMessage{topic: topic, msg: append([]byte(nil), msg...)})
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
	b.mu.Lock()
	b.closed = true
	b.ready.Signal()
	b.mu.Unlock()
	<-b.done
	return nil
}
