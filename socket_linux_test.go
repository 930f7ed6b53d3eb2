package realtime_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A hub whose first clients took the last descriptors says so once. It parks
// them when there are descriptors again. Clients notice nothing, then or when
// more want in than the limit allows.
func TestDescriptorsAreUsedUp(t *testing.T) {
	t.Parallel()
	_, lines := startChild(t, "starved")
	addr := nextLine(t, lines)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	stream, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	io.WriteString(stream, "GET / HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
	events := bufio.NewScanner(stream)
	conn, _, err := websocket.Dial(ctx, "ws://"+addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.CloseNow()
	tell := func(text string) {
		t.Helper()
		write(t, conn, text)
		if got := read(t, conn); got != text {
			t.Fatalf("the WebSocket got %q, want %q", got, text)
		}
		for events.Scan() {
			if events.Text() == "data: "+text {
				return
			}
		}
		t.Fatalf("the event stream has ended: %v", events.Err())
	}
	if got := nextLine(t, lines); !strings.Contains(got, "parking of idle clients lost") || !strings.Contains(got, "ulimit -n") {
		t.Errorf("the log says %q, want what is lost and the limit", got)
	}
	tell("none is left")
	tell("release")
	if got := nextLine(t, lines); !strings.Contains(got, "parking of idle clients is back") {
		t.Fatalf("the log says %q, want that parking is back", got)
	}
	if got := nextLine(t, lines); got != "all are parked" {
		t.Fatal(got)
	}

	const more = 500
	var in atomic.Int64
	got := make(chan error, more)
	for range more {
		go func() {
			c, _, err := websocket.Dial(ctx, "ws://"+addr, nil)
			if err != nil {
				got <- err
				return
			}
			defer c.CloseNow()
			in.Add(1)
			for err == nil {
				var data []byte
				if _, data, err = c.Read(ctx); string(data) == "end" {
					break
				}
			}
			got <- err
			<-ctx.Done() // it must not leave before the others have got their event
		}()
	}
	eventually(t, "most descriptors are used", func() bool { return in.Load() > starvedLimit-50 })
	tell("all are used")
	if n := in.Load(); n >= starvedLimit {
		t.Errorf("%d clients are in, which can't be", n)
	}
	tell("raise")
	eventually(t, "all are in", func() bool { return in.Load() == more || len(got) > 0 })
	tell("end")
	for range more {
		if err := <-got; err != nil {
			t.Fatal(err)
		}
	}
	if got := nextLine(t, lines); got != "end" {
		t.Errorf("the server says %q, want nothing more", got)
	}
}

const starvedLimit = 200

// childStarved serves a hub. Its first two clients take the last descriptors.
func childStarved() int {
	time.AfterFunc(time.Minute, func() {
		fmt.Println("the test takes more than a minute")
		os.Exit(1)
	})
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		fmt.Println(err)
		return 1
	}
	few := limit
	few.Cur = starvedLimit
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &few); err != nil {
		fmt.Println(err)
		return 1
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return 1
	}
	var held []int
	for {
		fd, err := syscall.Dup(0)
		if err != nil {
			break
		}
		held = append(held, fd)
	}
	release := func(fds []int) {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}
	release(held[:2])
	hub := realtime.NewHub()
	hub.Logger = textLogger(writerFunc(func(p []byte) (int, error) { return fmt.Print(string(p)) }))
	var clients atomic.Int64
	both := make(chan struct{}) // closed when there are two clients
	hub.OnConnect = func(*realtime.Client, *http.Request) error {
		if clients.Add(1) == 2 {
			close(both)
		}
		<-both
		return nil
	}
	hub.OnDisconnect = func(_ *realtime.Client, err error) { fmt.Println("left:", err) }
	hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
		switch string(msg.Data) {
		case "release":
			release(held[2:])
			go func() {
				for running("(*Client).serve") > 0 {
					time.Sleep(10 * time.Millisecond)
				}
				fmt.Println("all are parked")
			}()
		case "raise":
			if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
				fmt.Println(err)
			}
		case "end":
			fmt.Println("end")
		}
		hub.Broadcast <- msg.Data
	}
	fmt.Println(l.Addr())
	srv := &http.Server{Handler: hub, ErrorLog: log.New(io.Discard, "", 0)} // it tells of Accept's errors
	srv.Serve(l)
	return 0
}
