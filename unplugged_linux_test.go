package realtime_test

import (
	"bufio"
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
	hub.PingInterval, hub.PongTimeout = time.Second, 5*time.Second
	hub.WriteTimeout = time.Minute
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println("skip:", err)
		return 0
	}
	go http.Serve(l, hub)
	pings, beats := make(chan bool, 100), make(chan bool, 100)
	conn, _, err := websocket.Dial(context.Background(), "ws://"+l.Addr().String(), &websocket.DialOptions{
		OnPingReceived: func(context.Context, []byte) bool {
			pings <- true
			return true
		},
	})
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
	io.WriteString(stream, "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
	go func() {
		for lines := bufio.NewScanner(stream); lines.Scan(); {
			if strings.HasPrefix(lines.Text(), ":") {
				beats <- true
			}
		}
	}()
	patience := time.After(time.Minute)
	for range 3 { // there is no second ping without an answer to the first
		for _, signs := range []chan bool{pings, beats} {
			select {
			case <-signs:
			case <-patience:
				fmt.Println("no signs of life")
				return 1
			}
		}
	}
	if n := hub.ClientCount(); n != 2 {
		fmt.Println(n, "clients before the end")
		return 1
	}
	if err := plug(false); err != nil {
		fmt.Println(err)
		return 1
	}
	// It takes 6 s, at most one more for each of two, and the kernel's timers;
	// and many minutes where the kernel alone has to notice.
	for end := time.Now().Add(30 * time.Second); hub.ClientCount() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			fmt.Println(hub.ClientCount(), "clients are left")
			return 1
		}
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
