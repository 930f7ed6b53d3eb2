package realtime

import (
	"testing"
	"unsafe"
)

// A client that grows beyond one of the allocator's size classes costs 64 bytes
// more. Whoever needs that may raise the limit.
func TestClientSize(t *testing.T) {
	if size := unsafe.Sizeof(Client{}); size > 576 {
		t.Errorf("a Client has %d bytes, want at most 576", size)
	}
}
