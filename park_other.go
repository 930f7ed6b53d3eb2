//go:build !linux

package realtime

import (
	"errors"
	"net"
)

// canPark returns false: only Linux has a parker.
func canPark(net.Conn) bool { return false }

type parker struct{}

func newParker() (*parker, error) { return nil, errors.ErrUnsupported }

func (*parker) enter(*Client) int32            { return 0 }
func (*parker) arm(int32, net.Conn, bool) bool { return false }
func (*parker) leave(int32)                    {}
func (*parker) loop()                          {}
func (*parker) close()                         {}
