package redisbroker

import (
	"context"
	"errors"
	"strings"

	"github.com/redis/rueidis"
)

var errReplica = errors.New("this Redis is a replica, and only its master can be used: does the address lead to the master?")

// A sender is the connection by which a link's node publishes and appends. It is
// the broker's own, so that its loss is noticed at once, also where nothing is
// being sent, and so that it can be made again. In a cluster the messages go by the
// connections that the client shares, because the client follows redirections.
type sender struct {
	rueidis.Client                         // runs commands by conn, if there is one
	conn           rueidis.DedicatedClient // nil in a cluster
	lost           <-chan error            // has the reason when conn is lost
}

// newSender returns the sender of a link whose client is given. It fails where
// Redis can't be reached by it.
func (l *link) newSender(client rueidis.Client) (*sender, error) {
	out := &sender{Client: client}
	if l.addr == "" {
		out.conn, _ = client.Dedicate()
		out.Client = pinned{client, out.conn}
		// rueidis reads a connection with hooks all the time.
		out.lost = out.conn.SetPubSubHooks(rueidis.PubSubHooks{OnMessage: func(rueidis.PubSubMessage) {}})
	}
	err := l.check(out)
	if l.addr != "" && err != nil {
		err = l.check(out) // the first try has made the client notice that it had lost the connection
	}
	if err != nil {
		out.close(l.b)
		return nil, err
	}
	limits := l.learnLimits(out)
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.limits = limits
	l.b.boundLocked()
	if l.addr != "" {
		out.Client = l.b.client
	}
	return out, nil
}

func (s *sender) close(b *Broker) {
	if s.conn != nil {
		b.own.Go(s.conn.Close) // which can take a second
	}
}

// check returns nil if the Redis of a connection answers, and is a master.
func (l *link) check(c commander) error {
	ctx, cancel := context.WithTimeout(l.ctx, callTimeout)
	defer cancel()
	if l.addr != "" { // a replica of a cluster redirects, or passes messages on
		return c.Do(ctx, c.B().Ping().Build()).NonRedisError()
	}
	return checkMaster(ctx, c)
}

// A commander is a [rueidis.Client] or a [rueidis.DedicatedClient].
type commander interface {
	B() rueidis.Builder
	Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult
}

// checkMaster returns [errReplica] if the Redis of a connection is a replica, or
// the error of the connection. It asks by HELLO, which needs no permission.
func checkMaster(ctx context.Context, c commander) error {
	answer := c.Do(ctx, c.B().Arbitrary("HELLO").Build())
	if err := answer.NonRedisError(); err != nil {
		return err
	}
	if fields, err := answer.AsMap(); err == nil {
		role := fields["role"]
		if text, _ := role.ToString(); text == "replica" || text == "slave" {
			return errReplica
		}
		return nil
	}
	// Before version 6.2 HELLO needs an argument. ROLE needs a permission.
	answer = c.Do(ctx, c.B().Role().Build())
	if err := answer.NonRedisError(); err != nil {
		return err
	}
	if fields, err := answer.ToArray(); err == nil && len(fields) > 0 {
		if text, _ := fields[0].ToString(); text == "slave" {
			return errReplica
		}
	}
	return nil
}

// isReplicas reports whether Redis answers so because it is a replica.
func isReplicas(answer *rueidis.RedisError) bool {
	return strings.HasPrefix(answer.Error(), "READONLY ") || strings.HasPrefix(answer.Error(), "MASTERDOWN ")
}

// A pinned client runs commands by one connection.
type pinned struct {
	rueidis.Client
	conn rueidis.DedicatedClient
}

func (p pinned) Do(ctx context.Context, cmd rueidis.Completed) rueidis.RedisResult {
	return p.conn.Do(ctx, cmd)
}

func (p pinned) DoMulti(ctx context.Context, cmds ...rueidis.Completed) []rueidis.RedisResult {
	return p.conn.DoMulti(ctx, cmds...)
}
