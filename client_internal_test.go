package realtime

import (
	"testing"
	"unsafe"
)

// The limit is a size class of the allocator, 576, less the header that objects of
// more than 512 bytes need. Without it one costs 64 bytes less.
func TestClientSize(t *testing.T) {
	if size := unsafe.Sizeof(Client{}); size > 568 {
		t.Errorf("a Client has %d bytes, want at most 568", size)
	}
}
