//go:build !unix

package realtime

import "net"

// tryWriter returns nil: the drain goroutine does all the writing.
func tryWriter(net.Conn) func(b []byte) (n int, err error) { return nil }
