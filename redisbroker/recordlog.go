package redisbroker

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// logExpiry is how much longer than its records a log stays that nobody follows.
const logExpiry = 24 * time.Hour

// A recordLog is the log of all nodes as Redis has it: a stream of the records,
// and a hash with its epoch and the number of its last record. Both have one
// hash tag, and so one slot of a cluster.
type recordLog struct {
	key    string // of the stream
	head   string // of the hash
	keep   string // of a record, in milliseconds
	expiry string // of both keys, in milliseconds
	max    string // records
}

func newRecordLog(prefix string, keep time.Duration, maxRecords int) *recordLog {
	key := "{" + prefix + "log}"
	ms := max(keep, 0).Milliseconds()
	return &recordLog{
		key:    key,
		head:   key + ":head",
		keep:   strconv.FormatInt(ms, 10),
		expiry: strconv.FormatInt(2*(ms+logExpiry.Milliseconds()), 10), // it's renewed at half
		max:    strconv.Itoa(maxRecords),
	}
}

// A streamID is Redis' own id of a record: the zero one is before all.
type streamID struct{ ms, n uint64 }

func parseStreamID(s string) (id streamID, err error) {
	ms, n, ok := strings.Cut(s, "-")
	if !ok {
		return streamID{}, errAnswer
	}
	if id.ms, err = strconv.ParseUint(ms, 10, 64); err == nil {
		id.n, err = strconv.ParseUint(n, 10, 64)
	}
	return id, err
}

func (id streamID) String() string {
	return strconv.FormatUint(id.ms, 10) + "-" + strconv.FormatUint(id.n, 10)
}

func (id streamID) before(other streamID) bool {
	return id.ms < other.ms || id.ms == other.ms && id.n < other.n
}

// A place is that of a record in the log.
type place struct {
	epoch string
	last  uint64
}

// A position is what a node has had of the log.
type position struct {
	place
	at      streamID // zero: it is to be read from the start, and has what the node has had
	retired string   // epochs before, which must not come again, with spaces between them
}

func (p position) isRetired(epoch string) bool {
	return slices.Contains(strings.Fields(p.retired), epoch)
}

// A logState is what the log is when somebody asks.
type logState struct {
	place
	end streamID // of its last record
}

// logScript is all that writes the log; nodes run it to append a record, and to
// open the log. It is one script, as what it asks first is the same: is this the
// log that the node knows? Redis may have lost all of it, or its end: it was
// started with an older snapshot, or without the last second of its append-only
// file, or a replica has become master that was behind. Then numbers would be
// given twice, and mean two things: a new epoch begins.
//
// That its number is lower than the node's tells it, as long as others haven't
// appended since. So open also looks whether the last record that the node has
// had is in the stream: if not, although one is that is older, it was not
// trimmed but lost. An epoch that the node has had before its own is of a
// snapshot from before the loss that ended it.
//
// What is left of the former epoch stays in the stream: to a node that starts
// it's worth something. Only where the hash is missing nothing is known of the
// stream; then it begins anew.
//
// Nothing has to be told to those who wait in XREAD: XADD wakes them, after the
// script. A PUBLISH would reach them by another connection, so in no order, and
// be lost when the connection is.
//
// A script that fails isn't undone: so the number is taken behind the record, or
// one would seem to be lost that Redis has refused.
//
// The id in the stream is Redis' clock, by which records are trimmed, and not
// the number: MINID could not tell their age by that.
const logScript = `
local log, head = KEYS[1], KEYS[2]
local fresh, seen, number, at, retired, expiry = unpack(ARGV, 1, 6)
local keep, max, record = ARGV[7], ARGV[8], ARGV[9]

local state = redis.call('HMGET', head, 'epoch', 'last')
local epoch, last = state[1], tonumber(state[2] or 0)
local lost = false
if not epoch then
	redis.call('DEL', log)
	lost = true
elseif string.find(retired, epoch, 1, true) then
	lost = true
elseif epoch == seen then
	lost = last < tonumber(number)
	if not record and not lost then
		local known = redis.call('XREVRANGE', log, at, '-', 'COUNT', 1)[1]
		lost = known ~= nil and known[1] ~= at
	end
end
if lost then
	epoch, last = fresh, 0
	redis.call('HSET', head, 'epoch', epoch, 'last', 0)
end

local newest = ''
if record then
	last = last + 1
	redis.call('XADD', log, 'MAXLEN', '~', max, '*', 'epoch', epoch, 'number', last, 'record', record)
	redis.call('HSET', head, 'last', last)
	local now = redis.call('TIME')
	local oldest = now[1] * 1000 + math.floor(now[2] / 1000) - keep
	redis.call('XTRIM', log, 'MINID', '~', math.max(oldest, 0))
else
	local entry = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
	newest = entry and entry[1] or newest
end

for _, key in ipairs(KEYS) do
	if redis.call('PTTL', key) < expiry / 2 then
		redis.call('PEXPIRE', key, expiry)
	end
end
return {epoch, last, newest}
`

var (
	script    = rueidis.NewLuaScript(logScript)
	errAnswer = errors.New("what Redis has answered is not understood")
)

// append adds a record. It's not tried again by the client: an EVALSHA isn't
// retryable to rueidis, and its caller has the patience to say when.
func (l *recordLog) append(ctx context.Context, c rueidis.Client, p position, record []byte) error {
	args := append(l.args(p), l.keep, l.max, string(record)) // a copy: it may be on its way after ctx
	return script.Exec(ctx, c, []string{l.key, l.head}, args).Error()
}

// open returns what the log is; it's another one than the node's where the
// epoch says so. It renews the expiry.
func (l *recordLog) open(ctx context.Context, c rueidis.Client, p position) (s logState, err error) {
	answer, err := script.Exec(ctx, c, []string{l.key, l.head}, l.args(p)).ToArray()
	if err != nil {
		return logState{}, err
	}
	if len(answer) != 3 {
		return logState{}, errAnswer
	}
	epoch, err1 := answer[0].ToString()
	last, err2 := answer[1].AsUint64()
	end, err3 := answer[2].ToString()
	if err := errors.Join(err1, err2, err3); err != nil {
		return logState{}, err
	}
	s.place = place{epoch, last}
	if end != "" {
		s.end, err = parseStreamID(end)
	}
	return s, err
}

// args returns what both uses of the script need.
func (l *recordLog) args(p position) []string {
	fresh := rand.Text()[:16] // 80 bits
	return []string{fresh, p.epoch, strconv.FormatUint(p.last, 10), p.at.String(), p.retired, l.expiry}
}
