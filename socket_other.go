//go:build !linux

package realtime

import (
	"errors"
	"io"
	"net"
	"time"
)

// No portable way exists to do what these do on Linux.

func limitSilence(net.Conn, time.Duration) {}

func unsent(io.Writer) (n int, ok bool) { return 0, false }

func tlsTryWriter(*Client) func(b []byte) (n int, err error) { return nil }

const canPark = false

type parker struct{}

func newParker(*registry) (*parker, error) { return nil, errors.ErrUnsupported }

func (*parker) arm(*Client) bool { return false }
func (*parker) loop()            {}
func (*parker) close()           {}
