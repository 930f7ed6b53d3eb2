//go:build !linux

package realtime

import (
	"io"
	"net"
	"time"
)

// limitSilence does nothing, and unsent can't tell. No portable way exists.
func limitSilence(net.Conn, time.Duration) {}

func unsent(io.Writer) (n int, ok bool) { return 0, false }
