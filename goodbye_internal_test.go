package realtime

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/coder/websocket"
)

func TestGoodbyeIsFinal(t *testing.T) {
	final := map[websocket.StatusCode]bool{
		1000: true, 1001: false, 1003: false, 1008: true, 1011: false, 1012: false, 1013: false, 3000: false, 3003: false,
		4000: false, 4199: false, 4200: true, 4204: true, 4304: true, 4401: true, 4403: true, 4404: true, 4408: false,
		4410: true, 4425: false, 4429: false, 4499: true, 4500: false, 4503: false, 4599: false, 4999: false,
	}
	for code, want := range final {
		if got := (goodbye{code: code}).isFinal(); got != want {
			t.Errorf("%d is final: %v, want %v", code, got, want)
		}
	}
}

func TestFitReason(t *testing.T) {
	x := func(n int) string { return strings.Repeat("x", n) }
	for reason, want := range map[string]string{
		"":                 "",
		x(123):             x(123),
		x(124):             x(123),
		x(122) + "é":       x(122),
		x(121) + "é":       x(121) + "é",
		x(120) + "😀":       x(120),
		x(119) + "😀":       x(119) + "😀",
		x(1 << 20):         x(123),
		"\xff":             "\uFFFD",
		x(121) + "\xff":    x(121),
		x(245) + "éé":      x(123),
		x(10) + "\xe2\x82": x(10) + "\uFFFD",
	} {
		if got := fitReason(reason); got != want || !utf8.ValidString(got) {
			t.Errorf("fitReason(%.140q) = %q, want %q", reason, got, want)
		}
	}
}
