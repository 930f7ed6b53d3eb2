package redisbroker

import "testing"

func TestParseLimits(t *testing.T) {
	const usual = "normal 0 0 0 slave 268435456 67108864 60 pubsub 33554432 8388608 60"
	for _, tt := range []struct {
		bulk, query, output string
		message, record     int
	}{
		{"536870912", "1073741824", usual, 16 << 20, 512 << 20},
		{"1048576", "1073741824", usual, 1 << 20, 1 << 20},
		{"536870912", "1048576", usual, 1<<20 - spareBytes, 1<<20 - spareBytes},
		{"536870912", "1073741824", "normal 1000000 0 0 slave 0 0 0 pubsub 0 0 0", 512 << 20, 500_000},
		{"", "", "", 512 << 20, 512 << 20}, // Redis doesn't tell
		{"x", "-1", "normal pubsub", 512 << 20, 512 << 20},
	} {
		want := limits{message: tt.message, record: tt.record}
		if got := parseLimits(tt.bulk, tt.query, tt.output); got != want {
			t.Errorf("parseLimits(%q, %q, %q) = %v, want %v", tt.bulk, tt.query, tt.output, got, want)
		}
	}
}
