package realtime

import (
	"encoding/binary"
	"hash/crc32"
	"strconv"
	"strings"
)

// id returns the event id of a position: the epoch, the number and, in a log, the
// record's print. It ends in "local" if it resumes nowhere.
//
// An event that the log lacks is between two records, where several events have one
// number. So its id also says which of this node's such events it is. That keeps
// realtime.js from comparing it by number.
func (h *history) id(seq uint64) string {
	number := seq - h.base
	isLocal := len(h.unshared) > 0 || h.divided
	digits := strconv.FormatUint(number, 10)
	if h.prints != nil && number&wholeRecord == 0 && (number > 0 || isLocal) {
		digits = "l" + h.name + "." + strconv.FormatUint(h.unsharedEvents, 10) + "." + digits
	}
	id := h.epoch + "-" + digits
	if print, ok := h.prints.text(number >> recordBits); ok {
		id += "-" + print
	}
	if isLocal {
		id += "-local"
	}
	return id
}

// seqOf returns an id's position. It reports whether the id is of this history.
func (h *history) seqOf(id string) (seq uint64, ok bool) {
	epoch, number, print, ok := parseEventID(id)
	if !ok || epoch != h.epoch || number > h.seq-h.base {
		return 0, false
	}
	want, ok := h.prints.text(number >> recordBits)
	return h.base + number, print == want && (ok || h.prints == nil)
}

func parseEventID(id string) (epoch string, number uint64, print string, ok bool) {
	epoch, rest, _ := strings.Cut(strings.TrimSuffix(id, provisionalMark), "-")
	digits, print, _ := strings.Cut(rest, "-")
	digits = digits[strings.LastIndexByte(digits, '.')+1:]
	number, err := strconv.ParseUint(digits, 10, 64)
	return epoch, number, print, err == nil
}

// prints are checksums of a log's newest records. A log that was put back gives
// numbers again, to other records. An id has its record's print, so every node
// notices the id of a lost record.
type prints struct {
	first uint64   // the record of of[0]
	of    []uint32 // of that record and all later ones
}

// add adds a record's print. If it skips records, add drops all earlier prints.
func (p *prints) add(record uint64, print uint32) {
	if record != p.first+uint64(len(p.of)) {
		p.first, p.of = record, nil
	}
	if len(p.of) == maxPrints {
		p.first += maxPrints / 2
		p.of = append(p.of[:0], p.of[maxPrints/2:]...)
	}
	p.of = append(p.of, print)
}

// get returns the print of a record, if it is known.
func (p *prints) get(record uint64) (print uint32, ok bool) {
	if i := record - p.first; record >= p.first && i < uint64(len(p.of)) {
		return p.of[i], true
	}
	return 0, false
}

// sum returns a checksum of a record and those before it, trailRecords in all, if
// they are known.
func (p *prints) sum(record uint64) (sum uint32, ok bool) {
	from := max(record, trailRecords) - trailRecords + 1
	if record == 0 || from < p.first || record-p.first >= uint64(len(p.of)) {
		return 0, false
	}
	var b [4 * trailRecords]byte
	text := b[:0]
	for _, print := range p.of[from-p.first : record-p.first+1] {
		text = binary.BigEndian.AppendUint32(text, print)
	}
	return crc32.Checksum(text, castagnoli), true
}

// text returns the print of a record as an id has it, if it is known. Record 0
// is the beginning of a log, which is the same in all.
func (p *prints) text(record uint64) (print string, ok bool) {
	switch {
	case p == nil:
		return "", false
	case record == 0:
		return "0", true
	}
	n, ok := p.get(record)
	if !ok {
		return "", false
	}
	return strconv.FormatUint(uint64(n), 36), true
}
