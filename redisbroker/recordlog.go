package redisbroker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/rueidis"
)

// A recordLog is the log of all nodes in Redis: a stream of the records, and a
// hash with the epoch and the number of the last record. Both keys have the same
// hash tag, so they are in the same slot of a cluster.
type recordLog struct {
	key  string // of the stream
	head string // of the hash
	max  int64  // number of records
}

func newRecordLog(prefix string, maxRecords int) *recordLog {
	key := "{" + prefix + "log}"
	return &recordLog{key: key, head: key + ":head", max: int64(maxRecords)}
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
	end  streamID // of its last record
	max  int64    // the number of records that rules
	kept bool     // it has the record at the end of the node's position
}

// logScript writes the log. Nodes run it to append a record, and to open the log. It is one script, because both begin with the same question:
// is this the log that the node knows? Redis may have lost the log or its end.
// It may have started from an older snapshot, or without the last second of its
// append-only file, or a replica that was behind may have become the master.
// Then numbers would be given twice, with two meanings. So a new epoch begins.
//
// A loss shows in three ways. The number of the last record is lower than the
// node's, as long as no other node has appended since. The last record that the
// node has had, or has appended, isn't in the stream although an older one is, so
// it was lost and not trimmed. Or the epoch is one that the node had before its
// own, so Redis has started from a snapshot from before an earlier loss.
//
// Some losses don't show: another node has appended the records, no node has read
// them, and that node is gone too. So Redis counts as having lost records where
// another server has the log than before, which INFO tells by its run_id. There is
// one exception. The former server waited for its disk, this one isn't a replica
// that has taken over, and a node that has had the log finds its last record
// there. Other nodes wait for such a node, for a while. The hash has the run_id, so
// that each new server begins one epoch, however many nodes come.
//
// The records of the former epoch stay in the stream, because they are of use
// to a node that starts.
//
// Where the hash has no epoch the keys may be another program's. Then the script
// changes nothing. They are the log's if there is no hash, and the newest record
// of the stream, if there is one, looks like those of a node.
//
// Nodes may differ in how many records they keep. So the hash has the highest
// number, with the time at which such a node has been seen last. It rules for ten
// minutes after that.
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
// number, because each epoch has the numbers from 1 on.
const logScript = `
local log, head = KEYS[1], KEYS[2]
local fresh, seen, number, at, retired = unpack(ARGV, 1, 5)
local max, anew, record = tonumber(ARGV[6]), ARGV[7], ARGV[8]

local function info(section, pattern)
	local text = redis.pcall('INFO', section)
	return type(text) == 'string' and string.match(text, pattern) or nil
end

local state = redis.call('HMGET', head, 'epoch', 'last', 'max', 'maxAt', 'run')
local epoch, last = state[1], tonumber(state[2] or 0)
local newest
if not epoch or not record then
	newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
end
local known = seen ~= '' and redis.call('XREVRANGE', log, at, '-', 'COUNT', 1)[1]
local kept = known and known[1] == at
local lost = false
if not epoch then
	local fields = newest and newest[2]
	if redis.call('PTTL', head) ~= -2 or fields and not (fields[1] == 'epoch' and fields[3] == 'number' and fields[5] == 'record') then
		return redis.error_reply('FOREIGN these keys are not a history')
	end
	lost = true
elseif not state[2] or not last or string.find(epoch, '%W') then
	return redis.error_reply('FOREIGN this hash is not of a history')
elseif string.find(retired, epoch, 1, true) then
	lost = true
elseif epoch == seen then
	lost = last < tonumber(number) or known and not kept
end
local run = (lost or not record) and info('server', 'run_id:(%x+)') or state[5]
if not lost and run and state[5] and run ~= state[5] then
	lost = anew == 'lost' or not info('replication', 'second_repl_offset:%-1')
	if not lost and (anew == 'unsure' or epoch ~= seen) then
		return redis.error_reply('UNSURE another node may know what this Redis had')
	end
end
if lost then
	epoch, last = fresh, 0
	redis.call('HSET', head, 'epoch', epoch, 'last', 0)
end
if run ~= state[5] then
	redis.pcall('HSET', head, 'run', run) -- which a full Redis refuses
end

local now = redis.call('TIME')
now = now[1] * 1000 + math.floor(now[2] / 1000)
local highest, since = tonumber(state[3]), tonumber(state[4])
if highest and since and max < highest and now < since + 600000 then
	max = highest
elseif max ~= highest or not since or now > since + 10000 then
	redis.pcall('HSET', head, 'max', max, 'maxAt', now)
end

if record then
	last = last + 1
	newest = {redis.call('XADD', log, 'MAXLEN', '~', max, '*', 'epoch', epoch, 'number', last, 'record', record)}
	redis.call('HSET', head, 'last', last)
end
return {epoch, last, newest and newest[1] or '', max, kept and 1 or 0}
`

// trimScript drops the records of an epoch with numbers below before, and those of
// earlier epochs, which are in front of them. The ids of the stream don't tell
// numbers. So it looks for the first record that stays by bisection: first for its
// millisecond, then among the records of that. XREVRANGE would be wrong for that:
// where it finds nothing it reads the whole stream. What no node has made stays.
//
// An earlier version of this package let the keys expire.
const trimScript = `
local log, head = KEYS[1], KEYS[2]
local epoch, before = ARGV[1], tonumber(ARGV[2])

local state = redis.call('HMGET', head, 'epoch', 'last')
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
if state[1] ~= epoch or not newest then
	return
end
for _, key in ipairs(KEYS) do
	redis.call('PERSIST', key)
end
before = math.min(before, tonumber(state[2])) -- the newest record stays

local function id(ms, n) return string.format('%.0f-%.0f', ms, n) end
local function parse(id)
	local ms, n = string.match(id, '^(%d+)-(%d+)$')
	return tonumber(ms), tonumber(n)
end
-- bisect returns the lowest number above low for which the first record from
-- at(number) on stays. It does for high.
local function bisect(low, high, at)
	while high - low > 1 do
		local middle = math.floor((low + high) / 2)
		local entry = redis.call('XRANGE', log, at(middle), '+', 'COUNT', 1)[1]
		local fields = entry and entry[2]
		if entry and fields[1] == 'epoch' and (fields[2] ~= epoch or tonumber(fields[4]) < before) then
			low = middle
		else
			high = middle
		end
	end
	return high
end
local ms = bisect(-1, parse(newest[1]) + 1, function(ms) return id(ms, 0) end) - 1
if ms < 0 then
	return
end
local _, n = parse(redis.call('XREVRANGE', log, string.format('%.0f', ms), '-', 'COUNT', 1)[1][1])
n = bisect(0, n + 1, function(n) return id(ms, n) end)
redis.call('XTRIM', log, 'MINID', id(ms, n))
`

var (
	script    = rueidis.NewLuaScript(logScript)
	trimmer   = rueidis.NewLuaScript(trimScript)
	errAnswer = errors.New("the answer of Redis is not understood")
)

// append adds a record, and returns the state of the log with the record at its
// end. rueidis doesn't retry an EVALSHA; the caller of Append decides whether to
// try again.
func (l *recordLog) append(ctx context.Context, c rueidis.Client, p position, record []byte) (logState, error) {
	return l.run(ctx, c, append(l.args(p, lostAnew), string(record))) // a copy, because it may be sent after ctx has ended
}

// trim drops the records of an epoch with numbers below before.
func (l *recordLog) trim(ctx context.Context, c rueidis.Client, epoch string, before uint64) error {
	err := trimmer.Exec(ctx, c, []string{l.key, l.head}, []string{epoch, strconv.FormatUint(before, 10)}).Error()
	if rueidis.IsRedisNil(err) { // the answer of a script that returns nothing
		return nil
	}
	answer, refused := rueidis.IsRedisErr(err)
	if refused && (strings.Contains(answer.Error(), "NOPERM") || strings.Contains(answer.Error(), "user executing the script")) {
		return fmt.Errorf("the history grows up to MaxRecords: give the user of Redis +xrange, +xtrim and +persist: %w", err)
	}
	return l.explain(err)
}

// open returns the state of the log. If the epoch isn't the node's, neither is the
// log. It returns an error that isUnsure if Redis was started anew, and a node that
// can say keptAnew has to open the log first.
func (l *recordLog) open(ctx context.Context, c rueidis.Client, p position, anew string) (logState, error) {
	return l.run(ctx, c, l.args(p, anew))
}

// What a node says of a log whose Redis was started anew.
const (
	lostAnew   = "lost"   // it may have lost records
	unsureAnew = "unsure" // another node may know
	keptAnew   = "kept"   // Redis waited for its disk, and the node has had the log
)

// isUnsure reports whether the log can't be opened yet; see open.
func isUnsure(err error) bool {
	answer, refused := rueidis.IsRedisErr(err)
	return refused && strings.HasPrefix(answer.Error(), "UNSURE ")
}

// explain says what to do about an error where the log's keys are another
// program's.
func (l *recordLog) explain(err error) error {
	answer, refused := rueidis.IsRedisErr(err)
	if !refused || !strings.Contains(answer.Error(), "WRONGTYPE ") && !strings.HasPrefix(answer.Error(), "FOREIGN ") {
		return err
	}
	return fmt.Errorf("the keys %s and %s have the data of another program, which stays as it is: give the broker a name that no other program uses: %w", l.key, l.head, err)
}

// run runs the script.
func (l *recordLog) run(ctx context.Context, c rueidis.Client, args []string) (s logState, err error) {
	answer, err := script.Exec(ctx, c, []string{l.key, l.head}, args).ToArray()
	if err != nil {
		return logState{}, l.explain(err)
	}
	if len(answer) != 5 {
		return logState{}, errAnswer
	}
	epoch, err1 := answer[0].ToString()
	last, err2 := answer[1].AsUint64()
	end, err3 := answer[2].ToString()
	records, err4 := answer[3].AsInt64()
	kept, err5 := answer[4].AsInt64()
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return logState{}, err
	}
	s.place = place{epoch, last}
	s.max, s.kept = records, kept == 1
	if end != "" {
		s.end, err = parseStreamID(end)
	}
	return s, err
}

// args returns the arguments that both uses of the script have.
func (l *recordLog) args(p position, anew string) []string {
	fresh := rand.Text()[:16] // 80 bits
	return []string{
		fresh, p.epoch, strconv.FormatUint(p.last, 10), p.at.String(), p.retired,
		strconv.FormatInt(l.max, 10), anew,
	}
}
