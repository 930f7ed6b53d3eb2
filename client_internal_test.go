package realtime

import (
	"testing"
	"unsafe"
)

// The limit is a size class of the allocator. The next one costs 64 bytes more.
func TestClientSize(t *testing.T) {
	if size := unsafe.Sizeof(Client{}); size > 576 { // raise it if you must
		t.Errorf("a Client has %d bytes, want at most 576", size)
	}
}
