//go:build !linux

package realtime

import "errors"

const canPark = false // only Linux has a parker

type parker struct{}

func newParker(*registry) (*parker, error) { return nil, errors.ErrUnsupported }

func (*parker) arm(*Client) bool { return false }
func (*parker) loop()            {}
func (*parker) close()           {}
