package realtime

import (
	"testing"
	"unsafe"
)

// The limit is a size class of the allocator. The next one costs 64 bytes more,
// 8 of which are a header that objects of up to 512 bytes don't need.
func TestClientSize(t *testing.T) {
	if size := unsafe.Sizeof(Client{}); size > 512 { // raise it to 568 if you must
		t.Errorf("a Client has %d bytes, want at most 512", size)
	}
}
