//go:build !linux

package realtime

import (
	"errors"
	"net"
)

// canPark reports whether conn can wait for input without a goroutine.
func canPark(net.Conn) bool { return false }

// A parker exists on Linux alone.
type parker struct{}

func newParker() (*parker, error) { return nil, errors.ErrUnsupported }

func (*parker) enter(*Client) int32            { return 0 }
func (*parker) arm(int32, net.Conn, bool) bool { return false }
func (*parker) leave(int32)                    {}
func (*parker) loop()                          {}
func (*parker) close()                         {}
