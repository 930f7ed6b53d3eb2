package realtime_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// Clients of both transports that vanish without a word are gone within
// PingInterval and PongTimeout.
func TestClientsVanish(t *testing.T) {
	t.Parallel()
	cmd := child("unplugged")
	cmd.SysProcAttr = &syscall.SysProcAttr{ // a network of its own, to be unplugged
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	if out := string(out); strings.HasPrefix(out, "skip") || len(out) == 0 && err != nil {
		t.Skipf("no network namespace to be had: %s%v", out, err)
	}
	if err != nil || string(out) != "both are gone\n" {
		t.Errorf("%s%v", out, err)
	}
}

// childUnplugged serves two clients on a loopback that it then takes down.
func childUnplugged() int {
	if err := plug(true); err != nil {
		fmt.Println("skip:", err)
		return 0
	}
	hub := realtime.NewHub()
	hub.PingInterval, hub.PongTimeout = time.Second, 2*time.Second
	hub.WriteTimeout = time.Minute
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println("skip:", err)
		return 0
	}
	go http.Serve(l, hub)
	conn, _, err := websocket.Dial(context.Background(), "ws://"+l.Addr().String(), nil)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go conn.Read(context.Background()) // answers pings
	stream, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return 1
	}
	go io.Copy(io.Discard, stream)
	io.WriteString(stream, "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
	time.Sleep(5 * time.Second)
	if n := hub.ClientCount(); n != 2 {
		fmt.Println(n, "clients before the end")
		return 1
	}
	if err := plug(false); err != nil {
		fmt.Println(err)
		return 1
	}
	time.Sleep(7 * time.Second) // 3, at most one late for each of two, and for the kernel's timers
	if n := hub.ClientCount(); n != 0 {
		fmt.Println(n, "clients are left")
		return 1
	}
	fmt.Println("both are gone")
	return 0
}

// plug takes the loopback interface up or down (netdevice(7)).
func plug(up bool) error {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	var req [40]byte // struct ifreq
	copy(req[:], "lo")
	if up {
		binary.NativeEndian.PutUint16(req[16:], syscall.IFF_UP)
	}
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), syscall.SIOCSIFFLAGS, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}
