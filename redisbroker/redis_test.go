package redisbroker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker"
)

const (
	// patience is the time that a test waits for an event that has to come.
	patience = 90 * time.Second

	// Calls that have to fail at once take less than atOnce together, also on a
	// busy machine. If each of them waited for Redis they took more.
	failures = 10
	atOnce   = 20 * time.Second
)

// failsAtOnce tests that calls fail without waiting for Redis.
func failsAtOnce(t *testing.T, what string, call func() error) {
	t.Helper()
	start := time.Now()
	for range failures {
		if err := call(); err == nil {
			t.Errorf("%s succeeds, want an error", what)
		}
	}
	if d := time.Since(start); d > atOnce {
		t.Errorf("%d calls of %s failed after %v, want each to fail at once", failures, what, d)
	}
}

// A redis is a redis-server of the test's own.
type redis struct {
	t    testing.TB
	addr string
	dir  string
	args []string
	log  bytes.Buffer // may be read when the server has ended
	cmd  *exec.Cmd
}

// startRedis starts a redis-server on a free port of the loopback interface. It
// is killed when the test ends.
func startRedis(t testing.TB, args ...string) *redis {
	t.Helper()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		const how = "these tests need redis-server in the PATH: apt-get install redis-server"
		if os.Getenv("CI") != "" {
			t.Fatal(how)
		}
		t.Skip(how)
	}
	port := freePort(t)
	r := &redis{t: t, addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), dir: t.TempDir()}
	r.args = []string{path}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") { // a configuration file has to be the first argument
		r.args, args = append(r.args, args[0]), args[1:]
	} else {
		r.args = append(r.args, "--save", "", "--appendonly", "no")
	}
	r.args = append(r.args, "--port", strconv.Itoa(port), "--bind", "127.0.0.1", "--dir", r.dir, "--daemonize", "no", "--loglevel", "warning")
	r.args = append(r.args, args...)
	t.Cleanup(func() {
		if r.Stop(); t.Failed() {
			t.Logf("redis-server at %s:\n%s", r.addr, r.log.Bytes())
		}
	})
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// freePort returns a free port. The port 10000 above it is free as well,
// because a node of a cluster also needs that one.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := l.Addr().(*net.TCPAddr).Port
		l.Close()
		if port > 55000 {
			port -= 20000
		}
		free := true
		for _, p := range []int{port, port + 10000} {
			l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p)))
			if err != nil {
				free = false
				break
			}
			l.Close()
		}
		if free {
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// Start starts the server on its port and returns when it answers.
func (r *redis) Start() error {
	r.cmd = exec.Command(r.args[0], r.args[1:]...)
	r.cmd.Stdout = &r.log
	if err := r.cmd.Start(); err != nil {
		return err
	}
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = r.ping(); err == nil {
			return nil
		}
	}
	return fmt.Errorf("redis-server doesn't answer: %w", err)
}

// ping returns nil if the server answers, also by an error. A connection to a port
// where nobody listens may lead to itself.
func (r *redis) ping() error {
	conn, err := net.DialTimeout("tcp", r.addr, time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Second))
	fmt.Fprint(conn, "PING\r\n")
	first := make([]byte, 1)
	if _, err := conn.Read(first); err != nil {
		return err
	}
	if first[0] != '+' && first[0] != '-' {
		return errors.New("this isn't Redis")
	}
	return nil
}

// freeze stops the process, with its connections open, until thaw.
func (r *redis) freeze() { r.cmd.Process.Signal(syscall.SIGSTOP) }
func (r *redis) thaw()   { r.cmd.Process.Signal(syscall.SIGCONT) }

// Stop kills the server, with SIGKILL.
func (r *redis) Stop() error {
	r.thaw()
	r.cmd.Process.Kill()
	r.cmd.Wait()
	return nil
}

func (r *redis) Broker() realtime.Broker { return newBroker(r.addr) }

func newBroker(addrs ...string) *redisbroker.Broker {
	return redisbroker.Connect("realtime", rueidis.ClientOption{InitAddress: addrs})
}

// do sends a command on a connection of its own. The command must not fail.
func (r *redis) do(args ...string) rueidis.RedisResult {
	r.t.Helper()
	result := r.ask(args...)
	if err := result.Error(); err != nil {
		r.t.Fatalf("%q: %v", args, err)
	}
	return result
}

// try sends a command that may fail.
func (r *redis) try(args ...string) error { return r.ask(args...).Error() }

func (r *redis) ask(args ...string) rueidis.RedisResult {
	r.t.Helper()
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{r.addr}, ForceSingleClient: true, DisableCache: true})
	if err != nil {
		r.t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return client.Do(ctx, client.B().Arbitrary(args...).Build())
}
