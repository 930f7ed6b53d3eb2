package redisbroker

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

const (
	defaultBulkBytes = 512 << 20 // Redis' proto-max-bulk-len, by default
	spareBytes       = 64 << 10  // of a buffer of Redis, for what is in it beside one message
)

// limits are what Redis tells of its settings: the sizes above which it closes a
// connection, and loses other messages with it, and how it keeps data.
type limits struct {
	message int  // for the text of one PUBLISH; zero: Redis was not asked yet
	record  int  // for a record of the history
	durable bool // Redis answers when it has written to its disk
}

// learnLimits asks Redis for its limits. A limit that it may not ask for, or that
// Redis doesn't know, has the default of proto-max-bulk-len.
func (l *link) learnLimits(c commander) limits {
	get := func(name string) (value string) {
		ctx, cancel := context.WithTimeout(l.ctx, callTimeout)
		defer cancel()
		values, err := c.Do(ctx, c.B().ConfigGet().Parameter(name).Build()).AsStrMap()
		if err != nil {
			return ""
		}
		return values[name]
	}
	found := parseLimits(get("proto-max-bulk-len"), get("client-query-buffer-limit"), get("client-output-buffer-limit"))
	found.durable = get("appendonly") == "yes" && get("appendfsync") == "always" && get("no-appendfsync-on-rewrite") == "no"
	return found
}

// parseLimits returns the limits that follow from settings of Redis. bulk bounds
// one text of a command, and query the buffer in which it arrives. output bounds
// the buffers of the clients that a message goes to: a message is at most half of
// that, as others wait there too.
func parseLimits(bulk, query, output string) limits {
	most := defaultBulkBytes
	if n, err := strconv.Atoi(bulk); err == nil && n > 0 {
		most = n
	}
	if n, err := strconv.Atoi(query); err == nil && n > spareBytes {
		most = min(most, n-spareBytes)
	}
	found := limits{message: most, record: most}
	classes := strings.Fields(output) // of four words each: name, hard limit, soft limit, seconds
	for i := 0; i+1 < len(classes); i += 4 {
		n, err := strconv.Atoi(classes[i+1])
		if err != nil || n <= 0 {
			continue
		}
		switch classes[i] {
		case "pubsub":
			found.message = min(found.message, n/2)
		case "normal":
			found.record = min(found.record, n/2)
		}
	}
	return found
}

// boundLocked notes the limits that hold for each link.
func (b *Broker) boundLocked() {
	var all limits
	for _, l := range b.links {
		switch {
		case l.limits.message == 0:
		case all.message == 0:
			all = l.limits
		default:
			all.durable = all.durable && l.limits.durable
			all.message = min(all.message, l.limits.message)
			all.record = min(all.record, l.limits.record)
		}
	}
	b.maxMessage.Store(int64(all.message))
	b.maxRecord.Store(int64(all.record))
	b.durable.Store(all.durable)
}

// MaxMessageBytes returns the size of the largest message that Redis accepts: the
// lower one of its proto-max-bulk-len and its client-query-buffer-limit, and at
// most half of what its client-output-buffer-limit lets wait for a subscriber.
// That is 16 MiB for a Redis with its default settings. Redis closes the
// connections of a larger message, and loses others with it. The broker asks for
// the settings by CONFIG GET, each time when it connects. Where it may not ask it
// takes 512 MiB, the default of proto-max-bulk-len. MaxMessageBytes returns zero
// before the broker has connected for the first time.
func (b *Broker) MaxMessageBytes() int { return int(b.maxMessage.Load()) }

// MaxMessageBytes returns the size of the largest record that Redis accepts: the
// lower one of its proto-max-bulk-len and its client-query-buffer-limit, and at
// most half of what its client-output-buffer-limit lets wait for a normal client.
// That is 512 MiB for a Redis with its default settings. See
// [Broker.MaxMessageBytes], which holds where the hub has no History.
func (b *HistoryBroker) MaxMessageBytes() int {
	if b.follower == nil {
		return b.Broker.MaxMessageBytes()
	}
	return int(b.maxRecord.Load())
}

// tooLarge returns an error for a message, or record, of more bytes than the
// limit. Zero stands for the default limit.
func tooLarge(msg []byte, limit int64) error {
	if limit == 0 {
		limit = defaultBulkBytes
	}
	if int64(len(msg)) <= limit {
		return nil
	}
	return fmt.Errorf("%w: it has %d bytes, and this Redis accepts %d: publish less at a time, or raise its proto-max-bulk-len, client-query-buffer-limit or client-output-buffer-limit", realtime.ErrEventTooLarge, len(msg), limit)
}
