package redisbroker

import "testing"

// Many records are read at a time, and fewer when they are large.
func TestNextCount(t *testing.T) {
	for _, tt := range []struct{ count, size, want int }{
		{1, 0, 2},
		{64, 1 << 20, 128},
		{128, 1 << 20, 128},
		{128, maxReadBytes/2 + 1, 128},
		{128, maxReadBytes + 1, 64},
		{1, maxReadBytes + 1, 1},
	} {
		if got := nextCount(tt.count, tt.size, maxReadBytes); got != tt.want {
			t.Errorf("nextCount(%d, %d) = %d, want %d", tt.count, tt.size, got, tt.want)
		}
	}
}

func TestStreamID(t *testing.T) {
	for _, s := range []string{"0-0", "1-18446744073709551615", "1700000000000-3"} {
		id, err := parseStreamID(s)
		if err != nil || id.String() != s {
			t.Errorf("parseStreamID(%q) = %v, %v", s, id, err)
		}
	}
	for _, s := range []string{"", "1", "-", "1-", "-1", "1-x", "x-1"} {
		if id, err := parseStreamID(s); err == nil {
			t.Errorf("parseStreamID(%q) = %v, want an error", s, id)
		}
	}
	order := []streamID{{}, {0, 1}, {1, 0}, {1, 2}, {2, 1}}
	for i, a := range order {
		for j, b := range order {
			if a.before(b) != (i < j) {
				t.Errorf("%v before %v: %v", a, b, a.before(b))
			}
		}
	}
}
