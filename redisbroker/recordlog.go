package redisbroker

import (
	"context"
	"crypto/rand"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/rueidis"
)

// logExpiry is the time that a log without nodes is kept beyond its records.
const logExpiry = 24 * time.Hour

// A recordLog is the log of all nodes in Redis: a stream of the records, and a
// hash with the epoch and the number of the last record. Both keys have the same
// hash tag, so they are in the same slot of a cluster.
type recordLog struct {
	key    string // of the stream
	head   string // of the hash
	keep   string // how long a record is kept, in milliseconds
	expiry string // of both keys, in milliseconds
	max    string // number of records
}

func newRecordLog(prefix string, keep time.Duration, maxRecords int) *recordLog {
	key := "{" + prefix + "log}"
	ms := max(keep, 0).Milliseconds()
	return &recordLog{
		key:    key,
		head:   key + ":head",
		keep:   strconv.FormatInt(ms, 10),
		expiry: strconv.FormatInt(2*(ms+logExpiry.Milliseconds()), 10), // renewed when half of it is over
		max:    strconv.Itoa(maxRecords),
	}
}

// A streamID is Redis' own id of a record. The zero streamID is before all
// others.
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

// previous returns the ID before id. Before the zero streamID there is none, and
// it returns that.
func (id streamID) previous() streamID {
	switch {
	case id.n > 0:
		id.n--
	case id.ms > 0:
		id = streamID{id.ms - 1, math.MaxUint64}
	}
	return id
}

// A place is the place of a record in the log.
type place struct {
	epoch string
	last  uint64
}

// A position is the place up to which a node has had the log.
type position struct {
	place
	at      streamID // of that record; zero: the stream is to be read from its beginning
	retired string   // former epochs, which must not come again, separated by spaces
}

func (p position) isRetired(epoch string) bool {
	return slices.Contains(strings.Fields(p.retired), epoch)
}

// A logState is the state of the log when it was opened.
type logState struct {
	place
	end streamID // of its last record
}

// logScript is the only writer of the log. Nodes run it to append a record, and
// to open the log. It is one script, because both begin with the same question:
// is this the log that the node knows? Redis may have lost the log or its end.
// It may have started from an older snapshot, or without the last second of its
// append-only file, or a replica that was behind may have become the master.
// Then numbers would be given twice, with two meanings. So a new epoch begins.
//
// A loss shows in three ways. The number of the last record is lower than the
// node's, as long as no other node has appended since. The last record that the
// node has had isn't in the stream although an older one is, so it was lost and
// not trimmed; open looks for that. The epoch is one that the node had before
// its own, so Redis has started from a snapshot from before an earlier loss.
//
// The records of the former epoch stay in the stream, because they are of use
// to a node that starts. Only when the hash is missing the stream is deleted,
// because then nothing is known of it.
//
// Nodes that wait in XREAD need no message of a new record: XADD wakes them after
// the script. A PUBLISH would reach them by another connection, so not in order,
// and would be lost with that connection.
//
// Redis doesn't undo a script that fails. So the number is raised after the
// record is added: otherwise a record that Redis refuses would look like a lost
// one.
//
// The id of a record in the stream is made from Redis' clock, and not from its
// number, because MINID trims records by their age.
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
	errAnswer = errors.New("the answer of Redis is not understood: it has other contents in the keys of the history")
)

// append adds a record. rueidis doesn't retry an EVALSHA; the caller of Append
// decides whether to try again.
func (l *recordLog) append(ctx context.Context, c rueidis.Client, p position, record []byte) error {
	args := append(l.args(p), l.keep, l.max, string(record)) // a copy, because it may be sent after ctx has ended
	return script.Exec(ctx, c, []string{l.key, l.head}, args).Error()
}

// open returns the state of the log, and renews its expiry. If the epoch isn't
// the node's, neither is the log.
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

// args returns the arguments that both uses of the script have.
func (l *recordLog) args(p position) []string {
	fresh := rand.Text()[:16] // 80 bits
	return []string{fresh, p.epoch, strconv.FormatUint(p.last, 10), p.at.String(), p.retired, l.expiry}
}
