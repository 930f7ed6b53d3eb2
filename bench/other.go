//go:build !linux

package main

import (
	"fmt"
	"os"
	"runtime"
)

func main() {
	fmt.Fprintf(os.Stderr, "bench needs Linux: it reads with epoll and gets its figures from /proc. This is %s.\n", runtime.GOOS)
	os.Exit(1)
}
