//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// These flags, followed by a name, make this program that contender's server.
const (
	serveFlag = "-serve"
	tlsFlag   = "-serve-tls"
)

// serve is a contender's process. It prints the port it listens on. Then it runs
// the commands on standard input, a line each, until the input ends:
//
//	publish N       publish N messages
//	gc              collect garbage and return free memory, then print "done"
//	profile FILE    begin a CPU profile, or end it if there is no name
func serve(c *contender, in io.Reader, out io.Writer) error {
	if c == nil {
		return errors.New("no contender has that name")
	}
	clients, publish := c.serve()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: clients}
	if c.tls {
		if srv.TLSConfig, err = serverTLS(); err != nil {
			return err
		}
		srv.Protocols = new(http.Protocols)
		srv.Protocols.SetHTTP1(!c.http2)
		srv.Protocols.SetHTTP2(c.http2)
		go srv.ServeTLS(l, "", "") // until the process ends
	} else {
		go srv.Serve(l)
	}
	fmt.Fprintln(out, l.Addr().(*net.TCPAddr).Port)

	var profile *os.File
	published := int64(0)
	next := func() []byte {
		published++
		return message{published, time.Now().UnixNano()}.appendTo(make([]byte, 0, messageBytes))
	}
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		verb, arg, _ := strings.Cut(lines.Text(), " ")
		switch verb {
		case "publish":
			n, err := strconv.Atoi(arg)
			if err != nil {
				return err
			}
			publish(n, next)
		case "gc":
			debug.FreeOSMemory()
			fmt.Fprintln(out, "done")
		case "profile":
			if arg == "" {
				pprof.StopCPUProfile()
				if err := profile.Close(); err != nil {
					return err
				}
				continue
			}
			if profile, err = os.Create(arg); err != nil {
				return err
			}
			if err := pprof.StartCPUProfile(profile); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown command %q", verb)
		}
	}
	return lines.Err()
}

// A server is a contender's process, as its parent controls it.
type server struct {
	port    int
	cmd     *exec.Cmd
	in      io.WriteCloser
	answers *bufio.Reader
	log     bytes.Buffer // its standard error
}

// startServer starts another process of this program as a contender's server. The
// caller must stop it. It also ends with ctx and with this process.
func startServer(ctx context.Context, c *contender) (*server, error) {
	if c.tls {
		return startProcess(ctx, tlsFlag, c.name)
	}
	return startProcess(ctx, serveFlag, c.name)
}

// startProcess starts another process of this program as a server.
func startProcess(ctx context.Context, args ...string) (*server, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s := &server{cmd: exec.CommandContext(ctx, self, args...)}
	s.cmd.Stderr = &s.log // exec waits for what writes it
	s.cmd.WaitDelay = 5 * time.Second
	if s.in, err = s.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.answers = bufio.NewReader(out)
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := s.answers.ReadString('\n')
	if err == nil {
		s.port, err = strconv.Atoi(strings.TrimSpace(line))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("no port: %w", err), s.stop())
	}
	return s, nil
}

// publish lets the server publish n messages. It does not wait for that.
func (s *server) publish(n int) error {
	_, err := fmt.Fprintf(s.in, "publish %d\n", n)
	return err
}

// gc lets the server return the memory that it does not use.
func (s *server) gc() error {
	if _, err := io.WriteString(s.in, "gc\n"); err != nil {
		return err
	}
	_, err := s.answers.ReadString('\n')
	return err
}

// profile lets the server write a CPU profile to a file. An empty name ends it.
func (s *server) profile(file string) error {
	_, err := fmt.Fprintf(s.in, "profile %s\n", file)
	return err
}

// cpu returns the CPU time that the process has used, user and system. It is from
// the kernel's clock for the process. /proc has the same, but in ticks of 10 ms.
func (s *server) cpu() time.Duration { return processCPU(s.cmd.Process.Pid) }

// processCPU returns the CPU time of a process. 0 means this process.
func processCPU(pid int) time.Duration {
	const schedClock = 2                 // CPUCLOCK_SCHED of the kernel's posix-timers.h
	clock := int32(^pid)<<3 | schedClock // as clock_getcpuclockid(3) does
	var ts unix.Timespec
	if err := unix.ClockGettime(clock, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// ticks returns the user and system time of the process.
func (s *server) ticks() (user, system time.Duration) { return processTicks(s.cmd.Process.Pid) }

// processTicks returns a process's user and system time from /proc/PID/stat.
func processTicks(pid int) (user, system time.Duration) {
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0
	}
	// The name in parentheses may contain blanks. After it, utime is the twelfth
	// field: see proc_pid_stat(5).
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	u, _ := strconv.Atoi(fields[11])
	k, _ := strconv.Atoi(fields[12])
	return time.Duration(u) * tick, time.Duration(k) * tick
}

// resident returns the resident memory of the process in bytes.
func (s *server) resident() (int64, error) { return s.status("VmRSS:") }

// status returns one of the sizes in /proc/PID/status, in bytes.
func (s *server) status(field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	_, after, ok := bytes.Cut(status, []byte(field))
	if !ok {
		return 0, errors.New("the server has ended")
	}
	kb, _, _ := bytes.Cut(after, []byte("kB"))
	n, err := strconv.ParseInt(string(bytes.TrimSpace(kb)), 10, 64)
	return n << 10, err
}

// stop ends the process. It kills a process that has not ended by itself after
// 3 s. The error says how the process ended, unless it ended well.
func (s *server) stop() error {
	s.in.Close()
	late := time.AfterFunc(3*time.Second, func() { s.cmd.Process.Kill() })
	defer late.Stop()
	io.Copy(io.Discard, s.answers)
	if err := s.cmd.Wait(); err != nil {
		said := s.log.Bytes() // a crash may print very much
		return fmt.Errorf("the server: %w %s", err, bytes.TrimSpace(said[:min(len(said), 500)]))
	}
	return nil
}
