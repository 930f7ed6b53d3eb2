package realtime

import "hash/crc32"

// A trail tells which records a node has read: the number of the newest one, and a
// checksum of the last few. It goes with each record of events and each heartbeat.
// A node that has read others under these numbers notices it.
//
// That happens when an engine's servers disagree. In NATS, a server whose peers'
// stores were put back may keep its own records, and drop those that the peers then
// give the same numbers. It says so to nobody.
type trail struct {
	log    uint32 // of which log, as a checksum of the epoch
	record uint64 // zero: the node doesn't know enough records
	sum    uint32 // see prints.sum
}

// trailRecords is how many records a trail's sum covers. A node may lag behind by
// so many, and still notice the first one that differs.
const trailRecords = 64

func (t *trail) code(c *codec) {
	if c.numbers(&t.record); t.record > 0 {
		sums := uint64(t.log)<<32 | uint64(t.sum)
		c.hash(&sums)
		t.log, t.sum = uint32(sums>>32), uint32(sums)
	}
}

// trail returns that of this node, which has read the records up to a number.
func (h *history) trail(record uint64) *trail {
	sum, ok := h.prints.sum(record)
	if !ok {
		return new(trail)
	}
	return &trail{crc32.Checksum([]byte(h.epoch), castagnoli), record, sum}
}

// compare compares another node's trail with the records that this node has read.
// If they differ, nobody knows which ones are lost, or who lacks them. So clients
// get a reset, and older ids don't resume here.
func (j *journal) compare(t trail, out *batch) {
	p := j.past
	if here := p.trail(t.record); here.record == 0 || here.log != t.log || here.sum == t.sum {
		return
	}
	j.lost(out, "another node has read other records than this one: the engine's servers disagree")
	p.prints = new(prints)
	j.loseHomes(max(t.record, trailRecords) - trailRecords) // they may stand for other values
	j.carrier.first = j.lastRecord + 1                      // so that it asks for values
	j.beginBehind(j.lastRecord)
}
