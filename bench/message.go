//go:build linux

package main

import (
	"bytes"
	"strconv"
	"strings"
)

// A message is published or echoed. It holds its number and the time when it was
// sent, in 128 bytes of JSON. Centrifuge's protocol carries only JSON.
//
//	{"seq":"0000000042","at":"1795426465123456789","pad":"abcd…"}
type message struct {
	seq int64
	at  int64 // nanoseconds of the wall clock, which is the same for all processes
}

const (
	messageBytes = 128
	seqAt        = len(`{"seq":"`)
	seqDigits    = 10
	midAt        = seqAt + seqDigits
	atAt         = midAt + len(mid)
	atDigits     = 19
	tailAt       = atAt + atDigits
	mid          = `","at":"`
)

var (
	head = []byte(`{"seq":"`)
	tail = func() []byte {
		pad := messageBytes - tailAt - len(`","pad":""}`)
		letters := strings.Repeat("abcdefghijklmnopqrstuvwxyz", 3)
		return []byte(`","pad":"` + letters[:pad] + `"}`)
	}()
)

// appendTo appends m to b.
func (m message) appendTo(b []byte) []byte {
	b = append(b, head...)
	b = appendDigits(b, m.seq, seqDigits)
	b = append(b, mid...)
	b = appendDigits(b, m.at, atDigits)
	return append(b, tail...)
}

func appendDigits(b []byte, n int64, digits int) []byte {
	s := strconv.FormatInt(n, 10)
	for range digits - len(s) {
		b = append(b, '0')
	}
	return append(b, s...)
}

// nextMessage finds the first message in text and returns it and the text behind
// it. A protocol may put anything around a message. It reports whether there is a
// message. A message that was cut or changed doesn't count.
func nextMessage(text []byte) (m message, rest []byte, ok bool) {
	i := bytes.Index(text, head)
	if i < 0 || len(text)-i < messageBytes {
		return m, nil, false
	}
	b := text[i : i+messageBytes]
	m.seq = digits(b[seqAt:midAt])
	m.at = digits(b[atAt:tailAt])
	if m.seq < 0 || m.at < 0 || string(b[midAt:atAt]) != mid || !bytes.Equal(b[tailAt:], tail) {
		return m, nil, false
	}
	return m, text[i+messageBytes:], true
}

// digits returns the number that b holds, or -1.
func digits(b []byte) int64 {
	n := int64(0)
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int64(c-'0')
	}
	return n
}
