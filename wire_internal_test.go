package realtime

import (
	"testing"
	"time"
)

// The wire accepts only whole close frames from the library.
func TestWireTakesControlFramesOnly(t *testing.T) {
	var taken [][]byte
	clk := &clock{start: time.Now()}
	newWire := func() *wire { return &wire{clock: clk, closeFrame: func(b []byte) { taken = append(taken, b) }} }
	if _, err := newWire().Write(closeFrame(1000, "bye").b); err != nil || len(taken) != 1 {
		t.Errorf("a close frame: %v, taken %q", err, taken)
	}
	for name, b := range map[string][]byte{
		"data":             frames(opText, "hi"),
		"half a frame":     closeFrame(1000, "bye").b[:3],
		"two frames":       append(frames(opPong, "a"), frames(opPong, "b")...),
		"not final":        {opPong, 0},
		"masked":           {finBit | opPong, 0x80, 0, 0, 0, 0},
		"more than 125":    append([]byte{finBit | opPong, 126, 0, 126}, make([]byte, 126)...),
		"nothing":          {},
		"a lie of its own": {finBit | opPong, 5, 1},
	} {
		w := newWire()
		if _, err := w.Write(b); err == nil || len(taken) != 1 || !w.aborted {
			t.Errorf("%s: %v, taken %q, aborted %v", name, err, taken, w.aborted)
		}
	}
}
