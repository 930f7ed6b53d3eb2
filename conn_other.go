//go:build !linux

package realtime

import (
	"io"
	"net"
	"time"
)

// limitSilence does nothing: there is no portable way.
func limitSilence(net.Conn, time.Duration) {}

// unsent can't tell: there is no portable way.
func unsent(io.Writer) (n int, ok bool) { return 0, false }
