package realtime

import "testing"

// The wire accepts only whole close frames from the library.
func TestWireTakesControlFramesOnly(t *testing.T) {
	hub := NewHub()
	c := newClient(hub, webSocket{})
	if _, err := c.wire.Write(closeFrame(1000, "bye").b); err != nil || !c.out.isClosed() || string(c.out.held.last(plainFrame).b) != string(closeFrame(1000, "bye").b) {
		t.Errorf("a close frame: %v, closed %v", err, c.out.isClosed())
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
		c := newClient(hub, webSocket{})
		if _, err := c.wire.Write(b); err == nil || c.out.isClosed() || !c.wire.aborted {
			t.Errorf("%s: %v, closed %v, aborted %v", name, err, c.out.isClosed(), c.wire.aborted)
		}
	}
}
