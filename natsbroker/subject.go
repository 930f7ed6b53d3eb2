package natsbroker

import (
	"errors"
	"fmt"
	"strings"
)

// maxSubjectBytes leaves room in a line of the protocol, which has 4096 bytes by
// default. A server closes a connection that sends a longer line.
const maxSubjectBytes = 4000

// subject returns the subject of a topic: the prefix and one token. In the token
// every byte that means something to NATS, its tools or a log is written in the
// form "=2E". Different topics have different subjects.
func subject(prefix, topic string) (string, error) {
	const digits = "0123456789ABCDEF"
	escaped := 0
	for _, c := range []byte(topic) {
		if !plain(c) {
			escaped++
		}
	}
	size := len(prefix) + len(topic) + 2*escaped
	if size > maxSubjectBytes {
		return "", fmt.Errorf("topic %.50q… makes a subject of %d bytes, more than %d: use a shorter topic", topic, size, maxSubjectBytes)
	}
	switch {
	case topic == "":
		return prefix + "=", nil
	case escaped == 0:
		return prefix + topic, nil
	}
	b := make([]byte, 0, size)
	b = append(b, prefix...)
	for _, c := range []byte(topic) {
		if plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '=', digits[c>>4], digits[c&15])
		}
	}
	return string(b), nil
}

// plain reports whether a byte stands for itself in a subject.
func plain(c byte) bool { return c > ' ' && c < 0x7f && c != '.' && c != '*' && c != '>' && c != '=' }

// subjectPrefix returns the beginning of all subjects of a broker.
func subjectPrefix(name string) (string, error) {
	if name == "" {
		return "", errors.New("the broker has no name: give it one that all nodes of the hub have, and no other hub")
	}
	for token := range strings.SplitSeq(name, ".") {
		if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r >= 0x7f || !plain(byte(r)) }) {
			return "", fmt.Errorf("name %q: use words of printable ASCII with dots between them, without blanks and without the characters *>=", name)
		}
	}
	if len(name) > 200 {
		return "", fmt.Errorf("name %.50q… has %d bytes: use 200 at most", name, len(name))
	}
	return name + ".", nil
}
