//go:build !unix

package realtime

import (
	"io"
	"net"
)

// tryWriter returns nil: the drain goroutine does all the writing.
func tryWriter(net.Conn) func(b []byte) (n int, err error) { return nil }

// patientWriter returns a function that writes b as conn does.
func patientWriter(conn io.Writer) func(b []byte, release func()) (n int, err error) {
	return func(b []byte, _ func()) (int, error) { return conn.Write(b) }
}
