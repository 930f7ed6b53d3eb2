//go:build unix

package realtime_test

import "syscall"

func setMaxSegment(fd uintptr, n int) error {
	return syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, n)
}
