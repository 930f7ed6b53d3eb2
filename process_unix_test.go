//go:build unix

package realtime_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// childProcess is what this test binary does as another process.
func childProcess(role string) int {
	switch role {
	case "server":
		return childServer()
	case "client":
		return childClient(os.Getenv("REALTIME_TEST_URL"))
	case "unplugged":
		return childUnplugged()
	case "starved":
		return childStarved()
	}
	return 2
}

// child returns a command that runs this test binary in a role.
func child(role string, env ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), "REALTIME_TEST_PROCESS="+role), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

// startChild runs this test binary in a role and returns its output.
func startChild(t *testing.T, role string, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := child(role, env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd, bufio.NewScanner(out)
}

func nextLine(t *testing.T, lines *bufio.Scanner) string {
	t.Helper()
	if !lines.Scan() {
		t.Fatalf("the other process has ended: %v", lines.Err())
	}
	return lines.Text()
}

// childTimeout is how long a childServer waits for its clients: on a busy
// machine, too, they do what they have to in less.
const childTimeout = 12 * time.Second

// childServer serves a hub with short timeouts and reports each client that
// leaves.
func childServer() int {
	hub := realtime.NewHub()
	hub.PingInterval, hub.PongTimeout = time.Second, childTimeout
	hub.SlowAfter, hub.WriteTimeout = childTimeout, childTimeout
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) { hub.Broadcast <- msg.Data }
	hub.OnDisconnect = func(_ *realtime.Client, err error) { fmt.Println("left:", err) }
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 1
	}
	fmt.Println(l.Addr())
	http.Serve(l, hub)
	return 0
}

// childClient reads n messages and counts them.
func childClient(url string) int {
	conn, _, err := websocket.Dial(context.Background(), url, nil)
	if err != nil {
		fmt.Println("dial:", err)
		return 1
	}
	conn.SetReadLimit(-1)
	for n := 0; ; n++ {
		_, data, err := conn.Read(context.Background())
		if err != nil {
			fmt.Println("read:", err)
			return 1
		}
		if n == 0 {
			fmt.Println("connected")
		}
		if string(data) == "last" {
			fmt.Println("got", n)
			return 0
		}
	}
}

// A server that stood still for longer than all its timeouts, while pings were
// under way, doesn't take that time for its clients' silence: it loses none of
// them, and pings on as before.
func TestStoppedServerLosesNoClient(t *testing.T) {
	t.Parallel()
	server, lines := startChild(t, "server")
	addr := nextLine(t, lines)
	const clients = 20
	var conns []*rawClient
	pings, hello, gone := make(chan int, 100*clients), make(chan bool, clients), make(chan error, clients)
	answer := make(chan struct{}) // closed when pings are to be answered
	for i := range clients {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		c := newRawClient(t, conn, nil)
		conns = append(conns, c)
		go func() {
			for {
				first, payload, err := c.readFrame()
				if err != nil {
					gone <- err
					return
				}
				if first == 0x89 {
					pings <- i
					<-answer
					c.send(frame(0x8A, payload))
				} else {
					hello <- string(payload) == "hello"
				}
			}
		}()
	}
	deadline := time.After(time.Minute)
	lost := func(err error) {
		t.Helper()
		server.Process.Kill()
		t.Fatalf("a client was lost: %v; the server says %q", err, nextLine(t, lines))
	}
	for range clients / 2 {
		select {
		case <-pings:
		case <-deadline:
			t.Fatal("few clients were pinged")
		}
	}
	server.Process.Signal(syscall.SIGSTOP)
	time.Sleep(childTimeout + 2*time.Second)
	server.Process.Signal(syscall.SIGCONT)
	time.Sleep(1500 * time.Millisecond) // the server looks at each client meanwhile
	for len(pings) > 0 {
		<-pings
	}
	close(answer)
	for pinged := make(map[int]bool); len(pinged) < clients; {
		select {
		case i := <-pings:
			pinged[i] = true
		case err := <-gone:
			lost(err)
		case <-deadline:
			t.Fatalf("%d of %d clients were pinged", len(pinged), clients)
		}
	}
	conns[0].send(frame(0x81, []byte("hello")))
	for range clients {
		select {
		case ok := <-hello:
			if !ok {
				t.Error("a client got something else than hello")
			}
		case err := <-gone:
			lost(err)
		case <-deadline:
			t.Fatal("not all clients got hello")
		}
	}
}

// A client's process that is stopped for a while and continues has lost
// nothing, as long as what it missed fits into its buffers.
func TestStoppedClientLosesNothing(t *testing.T) {
	t.Parallel()
	hub := realtime.NewHub()
	s := newTCPSite(t, hub)
	client, lines := startChild(t, "client", "REALTIME_TEST_URL="+s.url)
	for hub.ClientCount() == 0 {
		time.Sleep(time.Millisecond)
	}
	hub.Broadcast <- []byte("first")
	if got := nextLine(t, lines); got != "connected" {
		t.Fatal(got)
	}
	client.Process.Signal(syscall.SIGSTOP)
	const events = 500
	for i := range events {
		hub.Broadcast <- []byte(strconv.Itoa(i))
		time.Sleep(3 * time.Millisecond)
	}
	hub.Broadcast <- []byte("last")
	client.Process.Signal(syscall.SIGCONT)
	if got, want := nextLine(t, lines), fmt.Sprint("got ", events+1); got != want {
		t.Errorf("the client says %q, want %q", got, want)
	}
}

// A client's process that is stopped while more is published than its buffers
// hold is gone soon, and nobody else notices.
func TestStoppedClientIsSlow(t *testing.T) {
	t.Parallel()
	hub := realtime.NewHub()
	hub.WriteTimeout = time.Hour // slowness comes first
	l := make(chan error, 2)
	hub.OnDisconnect = func(_ *realtime.Client, err error) { l <- err }
	s := newTCPSite(t, hub)
	client, lines := startChild(t, "client", "REALTIME_TEST_URL="+s.url)
	for hub.ClientCount() == 0 {
		time.Sleep(time.Millisecond)
	}
	healthy := s.connect()
	hub.Broadcast <- []byte("first")
	if got := nextLine(t, lines); got != "connected" {
		t.Fatal(got)
	}
	read(t, healthy)
	client.Process.Signal(syscall.SIGSTOP)
	big := []byte(strings.Repeat("x", 64<<10))
	for range 400 { // 25 MB
		hub.Broadcast <- big
		read(t, healthy)
	}
	if err := <-l; !errors.Is(err, realtime.ErrSlowClient) {
		t.Errorf("OnDisconnect got %v, want ErrSlowClient", err)
	}
	if n := hub.ClientCount(); n != 1 {
		t.Errorf("ClientCount() = %d, want 1", n)
	}
	go closeStatus(healthy)
}
