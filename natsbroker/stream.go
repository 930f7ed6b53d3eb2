package natsbroker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/nats-io/nats.go/jetstream"
)

// A history has one stream, which all its nodes make and none of them owns. Nodes
// may have different settings, for example while a new version is rolled out. If
// each set its own, the lowest would drop what the others keep. So a node only
// raises what it finds.

const (
	description = "the history of realtime hubs"
	mark        = "realtime" // in the Metadata of a stream; its value is markValue
	markValue   = "history"
	lack        = "realtime.room" // the same, of a stream that was made smaller than by default
	lackValue   = "little"

	historyBytes = 1 << 30  // of a stream, by default
	leastBytes   = 16 << 20 // the same where JetStream has not that much
)

// prepare returns the state of the stream. It makes the stream if it isn't there,
// and raises its limits if the broker has higher ones. It fails for a stream that
// isn't one of ours, and for one that somebody has changed.
func (b *HistoryBroker) prepare() (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(b.ctx, apiTimeout)
	defer cancel()
	b.preparing.Lock()
	defer b.preparing.Unlock()
	var info *jetstream.StreamInfo
	looking, looked := context.WithTimeout(ctx, lookTimeout)
	stream, err := b.js().Stream(looking, b.stream.Name)
	looked()
	switch {
	case err == nil:
		info, err = b.raise(ctx, stream.CachedInfo())
	case errors.Is(err, jetstream.ErrStreamNotFound):
		info, err = b.create(ctx)
	}
	if err != nil {
		err = fmt.Errorf("stream %s: %w", b.stream.Name, err)
		if _, is := errors.AsType[*unfitError](err); is {
			b.unfit.Store(&err)
		}
		return nil, err
	}
	b.unfit.Store(nil)
	// create doesn't say it: JetStream's answer may get lost. So may the node.
	if c := &info.Config; b.MaxBytes <= 0 && c.Metadata[lack] == lackValue && c.MaxBytes < historyBytes {
		b.warn("room", "natsbroker: JetStream has less room than a history has by default: set HistoryBroker.MaxBytes, or give it more",
			"stream", c.Name, "bytes", c.MaxBytes, "default", int64(historyBytes))
	}
	b.maxBytes.Store(unlimited(info.Config.MaxBytes))
	return info, nil
}

// An unfitError says why a stream can't be used until somebody does something.
type unfitError struct{ error }

func (e *unfitError) Unwrap() error { return e.error }

func unfit(format string, v ...any) error { return &unfitError{fmt.Errorf(format, v...)} }

// create makes the stream. It is as large as JetStream has room for, unless the
// user has said how large it is to be.
func (b *HistoryBroker) create(ctx context.Context) (*jetstream.StreamInfo, error) {
	config := b.stream
	for {
		stream, err := b.js().CreateStream(ctx, config)
		switch {
		case err == nil:
			return stream.CachedInfo(), nil
		case isOverlap(err):
			return nil, unfit("another program's stream has the subject %s: give the broker another name: %w", config.Subjects[0], err)
		case !isNoRoom(err):
			return nil, err
		case b.MaxBytes > 0:
			return nil, unfit("JetStream has no room for MaxBytes, which is %d: set a lower one, or give it more: %w", config.MaxBytes, err)
		case config.MaxBytes/2 < leastBytes:
			return nil, unfit("JetStream has no room for %d bytes: give it more, or set MaxBytes to less: %w", config.MaxBytes, err)
		}
		config.MaxBytes /= 2
		config.Metadata = map[string]string{mark: markValue, lack: lackValue}
	}
}

// raise raises the limits of a stream that is there, where the broker has higher
// ones.
func (b *HistoryBroker) raise(ctx context.Context, info *jetstream.StreamInfo) (*jetstream.StreamInfo, error) {
	if err := b.check(&info.Config); err != nil {
		return nil, err
	}
	have, want := info.Config, info.Config
	bytes := unlimited(have.MaxBytes)
	want.Replicas = max(have.Replicas, b.stream.Replicas)
	want.MaxAge = 0         // which an earlier version of this package has set
	if bytes < b.MaxBytes { // by default it is as large as it is
		want.MaxBytes = b.MaxBytes
	}
	if b.MaxBytes > 0 && bytes > b.MaxBytes || have.Replicas > b.stream.Replicas && b.Replicas > 0 {
		b.warn("more", "natsbroker: the stream keeps more than this node asks for: other nodes have other settings, or had",
			"stream", have.Name, "bytes", have.MaxBytes, "replicas", have.Replicas)
	}
	if want.MaxAge == have.MaxAge && want.MaxBytes == have.MaxBytes && want.Replicas == have.Replicas {
		return info, nil
	}
	stream, err := b.js().UpdateStream(ctx, want)
	if isNoRoom(err) && want.MaxBytes != have.MaxBytes {
		b.warn("room", "natsbroker: JetStream has no room for MaxBytes: set a lower one, or give it more",
			"stream", have.Name, "bytes", have.MaxBytes, "MaxBytes", b.MaxBytes)
		want.MaxBytes = have.MaxBytes
		stream, err = b.js().UpdateStream(ctx, want)
	}
	if err != nil && want.Replicas != have.Replicas {
		return nil, fmt.Errorf("it has %d replicas, and Replicas is %d: %w", have.Replicas, want.Replicas, err)
	}
	if err != nil {
		return nil, err
	}
	b.warn("raised", "natsbroker: the stream keeps more than before, as this node asks for it",
		"stream", have.Name, "bytes", want.MaxBytes, "replicas", want.Replicas)
	return stream.CachedInfo(), nil
}

// check returns why a stream isn't fit for a history, or nil.
func (b *HistoryBroker) check(c *jetstream.StreamConfig) error {
	ours := b.stream.Subjects[0]
	if c.Metadata[mark] != markValue && c.Description != description {
		return unfit("it is another program's, with the subjects %q: give the broker another name, which the history's stream gets as well", c.Subjects)
	}
	is := func(what, cure string) error {
		return unfit("somebody has changed it: %s: %s, or delete the stream: then clients that reconnect get a reset", what, cure)
	}
	switch {
	case c.Sealed:
		return is("it is sealed", "that can't be undone: restore it")
	case len(c.Subjects) != 1 || c.Subjects[0] != ours:
		return is(fmt.Sprintf("it has the subjects %q", c.Subjects), "set them to "+ours)
	case c.Storage != jetstream.FileStorage:
		return is("it is in memory", "that can't be changed: restore it")
	case c.Discard != jetstream.DiscardOld:
		return is("it refuses new records when it is full", "set its discard policy to old")
	case c.Retention != jetstream.LimitsPolicy:
		return is("it drops records by "+c.Retention.String(), "set its retention policy to limits")
	case c.MaxMsgs > 0 || c.MaxMsgsPerSubject > 0 || c.MaxMsgSize > 0:
		return is("it has a limit of messages, or of a message's size", "take that away")
	case c.NoAck:
		return is("it doesn't acknowledge", "set no_ack to false")
	case c.Mirror != nil || len(c.Sources) > 0 || c.SubjectTransform != nil:
		return is("it has records from elsewhere", "take away mirror, sources and subject transform")
	}
	return nil
}

// warn writes a line to the Logger, the first time that it is called with a kind.
// The caller holds preparing.
func (b *HistoryBroker) warn(kind, msg string, args ...any) {
	if b.warned[kind] {
		return
	}
	if b.warned == nil {
		b.warned = make(map[string]bool)
	}
	b.warned[kind] = true
	b.logger().Warn(msg, args...)
}

// unlimited returns a limit of a stream, which has none if that isn't positive.
func unlimited(limit int64) int64 {
	if limit <= 0 {
		return math.MaxInt64
	}
	return limit
}

// isOverlap reports whether a stream isn't made because another one has its
// subject.
func isOverlap(err error) bool {
	api, is := errors.AsType[*jetstream.APIError](err)
	return is && api.ErrorCode == 10065
}

// isNoRoom reports whether a stream is too large for the server or the account.
func isNoRoom(err error) bool {
	api, is := errors.AsType[*jetstream.APIError](err)
	if !is {
		return false
	}
	switch api.ErrorCode {
	case 10002, 10023, 10047, 10122: // of the account, of a cluster, of a server, of one stream
		return true
	case 10005: // no server of a cluster is suitable, for one reason or another
		return strings.Contains(api.Description, "storage")
	}
	return false
}
