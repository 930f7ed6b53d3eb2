package redisbroker

import (
	"context"

	"github.com/redis/rueidis"
)

const (
	maxBatch      = 64      // messages that are sent to Redis at a time
	maxBatchBytes = 1 << 20 // the same in bytes, and one message more
)

// A publication is a message on its way to Redis.
type publication struct {
	link    *link
	channel string
	msg     string
	result  chan<- error // has room for one; nil: nobody waits
}

// Publish is called by the hub; see [realtime.Broker]. It returns
// [realtime.ErrEventTooLarge] for more than [Broker.MaxMessageBytes], and sends
// nothing then.
//
// Publish doesn't wait for Redis' answer. Otherwise a node could publish no more
// than one message in each round trip; this way the messages of a round trip are
// sent together. When Redis loses or refuses some of them, at most 128, Publish
// has already returned nil for them. Then each Publish waits for its answer, and
// returns the error, until one succeeds.
func (b *Broker) Publish(ctx context.Context, topic string, msg []byte) error {
	return wrap("publish", b.publish(ctx, topic, msg))
}

func (b *Broker) publish(ctx context.Context, name string, msg []byte) error {
	if err := b.usable(); err != nil {
		return err
	}
	channel := b.prefix + name
	l, err := b.reach(ctx, channel)
	if err != nil {
		return err
	}
	if err := tooLarge(msg, b.maxMessage.Load()); err != nil {
		return err
	}
	p := publication{link: l, channel: channel, msg: string(msg)}
	var result chan error
	if !b.trusted.Load() {
		result = make(chan error, 1)
		p.result = result
	}
	if b.isStopped() {
		return ErrClosed
	}
	select {
	case b.out <- p:
	case <-ctx.Done():
		return ctx.Err()
	case <-b.stop:
		return ErrClosed
	}
	if result == nil {
		return nil
	}
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-b.ctx.Done():
		return ErrClosed
	}
}

// reach returns the link of a channel, or the reason why Redis can't be reached.
// It waits for the first try to connect, so that a program that starts isn't told
// of an outage. It doesn't wait for later ones.
func (b *Broker) reach(ctx context.Context, channel string) (*link, error) {
	wait := func(done <-chan struct{}) error {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-b.stop:
			return ErrClosed
		}
	}
	if err := wait(b.known); err != nil {
		return nil, err
	}
	b.mu.Lock()
	l, err := b.linkOf(channel), b.err
	b.mu.Unlock()
	if l == nil {
		if err == nil {
			err = errNobody
		}
		return nil, err
	}
	if err := wait(l.tried); err != nil {
		return nil, err
	}
	return l, l.down()
}

// write is the goroutine that publishes. It ends with Close, which waits for it,
// once the messages are sent that Publish had accepted before.
func (b *Broker) write() {
	defer close(b.written)
	for {
		var p publication
		select {
		case p = <-b.out:
		default:
			select {
			case p = <-b.out:
			case <-b.stop:
				return
			}
		}
		batch := []publication{p}
	collect:
		for size := len(p.msg); len(batch) < maxBatch && size < maxBatchBytes; size += len(p.msg) {
			select {
			case p = <-b.out:
				batch = append(batch, p)
			default:
				break collect
			}
		}
		b.send(batch)
	}
}

// send publishes the messages whose link has a connection. The others are lost:
// the connection was lost after Publish had accepted them, and no message is kept
// for later.
func (b *Broker) send(batch []publication) {
	b.mu.Lock()
	client := b.client // not nil, because there is a link
	sharded := client.Mode() == rueidis.ClientModeCluster
	var out *sender
	if !sharded {
		out = batch[0].link.out // of the only link, which has had a connection
		client = out
	}
	b.mu.Unlock()
	trusted := true
	var sent []publication
	var cmds []rueidis.Completed
	for _, p := range batch {
		if err := p.link.down(); err != nil {
			trusted = false
			p.answer(err)
			continue
		}
		sent = append(sent, p)
		if sharded {
			cmds = append(cmds, client.B().Spublish().Channel(p.channel).Message(p.msg).Build())
		} else {
			cmds = append(cmds, client.B().Publish().Channel(p.channel).Message(p.msg).Build())
		}
	}
	if len(sent) > 0 {
		ctx, cancel := context.WithTimeout(b.ctx, callTimeout)
		defer cancel()
		for i, result := range client.DoMulti(ctx, cmds...) {
			err := result.Error()
			trusted = trusted && err == nil
			sent[i].answer(err)
			if err := result.NonRedisError(); err != nil && b.ctx.Err() == nil {
				sent[i].link.doubt(out, err)
			}
		}
	}
	b.trusted.Store(trusted)
}

func (p publication) answer(err error) {
	if p.result != nil {
		p.result <- err
	}
}
