package docs

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// elsewhere is the check of a command that another test runs.
func elsewhere(*testing.T, string) {}

// commands are those of the pages, each with its check.
var commands = map[string]func(t *testing.T, command string){
	`go run ./examples/chat`: elsewhere, // ../e2e/chat_test.go
	`go test -race ./...`:    elsewhere, // ../.ci/run

	`go -C natsbroker run ./example`: func(t *testing.T, command string) { runExample(t, command) },
	`go -C redisbroker run ./example`: func(t *testing.T, command string) {
		runExample(t, command, "-redis", startRedis(t))
	},

	`curl -N -H "Accept: text/event-stream" http://localhost:8080/live`: checkCurl,

	`ulimit -Hn`:                          runOnLinux,
	`sysctl fs.nr_open`:                   runOnLinux,
	`sysctl net.core.somaxconn`:           runOnLinux,
	`sysctl net.ipv4.ip_local_port_range`: runOnLinux,
	`cat /proc/net/sockstat`:              runOnLinux,
}

// Each command on a page has a check, and passes it.
func TestCommands(t *testing.T) {
	seen := make(map[string]bool)
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang != "sh" {
				continue
			}
			for line := range strings.Lines(b.text) {
				command, _, _ := strings.Cut(line, " # ")
				command = strings.TrimSpace(command)
				seen[command] = true
				check := commands[command]
				if check == nil {
					t.Errorf("%s:%d: nothing checks the command %s", p.path, b.line, command)
					continue
				}
				t.Run(command, func(t *testing.T) { check(t, command) })
			}
		}
	}
	for command := range commands {
		if !seen[command] {
			t.Errorf("no page has the command %s", command)
		}
	}
}

func runOnLinux(t *testing.T, command string) {
	if runtime.GOOS != "linux" {
		t.Skip("the command is for Linux")
	}
	if name, arg, _ := strings.Cut(command, " "); name == "sysctl" { // it isn't everywhere
		command = "cat /proc/sys/" + strings.ReplaceAll(arg, ".", "/")
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", command).CombinedOutput(); err != nil || len(out) == 0 {
		t.Errorf("%s: %v\n%s", command, err, out)
	}
}

// need returns the path of a program. Without it the test fails if $CI is set and
// is skipped otherwise.
func need(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	return path
}

// runExample runs the program of a command "go -C DIR run PACKAGE", on another
// port. It prints its address and ends by an interrupt.
func runExample(t *testing.T, command string, args ...string) {
	dir, pkg, ok := strings.Cut(strings.TrimPrefix(command, "go -C "), " run ")
	if !ok {
		t.Fatalf("%q is another command", command)
	}
	program := filepath.Join(t.TempDir(), "example.exe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, pkg)
	build.Dir = filepath.Join("..", dir)
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	run := exec.CommandContext(ctx, program, append([]string{"-addr", "localhost:0"}, args...)...)
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaints strings.Builder
	run.Stderr = &complaints
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || !strings.Contains(lines.Text(), "http://") {
		t.Errorf("the program prints %q, %v, want an address", lines.Text(), lines.Err())
	}
	run.Process.Signal(os.Interrupt)
	if err := run.Wait(); err != nil {
		t.Errorf("the program ended with %v\n%s", err, &complaints)
	}
}

// startRedis starts a Redis and returns its address.
func startRedis(t *testing.T) string {
	path := need(t, "redis-server")
	for range 10 { // another process may take the port
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		_, port, _ := net.SplitHostPort(addr)
		redis := exec.Command(path, "--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", t.TempDir())
		out, err := redis.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := redis.Start(); err != nil {
			t.Fatal(err)
		}
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if strings.Contains(lines.Text(), "Ready to accept connections") {
				t.Cleanup(func() { redis.Process.Kill(); redis.Wait() })
				return addr
			}
		}
		redis.Wait()
	}
	t.Fatal("Redis does not start")
	return ""
}

// checkCurl runs the command at a hub, which sends it an event.
func checkCurl(t *testing.T, command string) {
	need(t, "curl")
	hub := realtime.NewHub()
	mux := http.NewServeMux()
	mux.Handle("GET /live", hub)
	server := httptest.NewServer(mux)
	defer server.Close()
	defer hub.Shutdown(context.Background())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	curl := exec.CommandContext(ctx, "sh", "-c", "exec "+strings.Replace(command, "http://localhost:8080", server.URL, 1))
	out, err := curl.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := curl.Start(); err != nil {
		t.Fatal(err)
	}
	defer curl.Wait()
	defer curl.Process.Kill()
	lines, sent := bufio.NewScanner(out), false
	for lines.Scan() {
		switch {
		case lines.Text() == "data: hello":
			return
		case strings.HasPrefix(lines.Text(), "retry: ") && !sent:
			sent = true
			hub.Broadcast <- []byte("hello")
		}
	}
	t.Errorf("curl has ended: %v", lines.Err())
}

// The YAML is what Kubernetes accepts in form. A pod has the time that its hub
// needs to drain.
func TestYAML(t *testing.T) {
	type object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct{ Name string }
		Spec       struct {
			Template struct {
				Spec struct {
					TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
					Containers                    []struct {
						Lifecycle struct {
							PreStop struct{ Sleep struct{ Seconds int } } `yaml:"preStop"`
						}
					}
				}
			}
			Rules []struct{ Timeouts struct{ Request string } }
		}
	}
	kinds := make(map[string]object)
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang != "yaml" {
				continue
			}
			for decoder := yaml.NewDecoder(strings.NewReader(b.text)); ; {
				var o object
				err := decoder.Decode(&o)
				if err != nil && err.Error() == "EOF" {
					break
				}
				if err != nil || o.APIVersion == "" || o.Kind == "" || o.Metadata.Name == "" {
					t.Fatalf("%s:%d: %v, %+v", p.path, b.line, err, o)
				}
				kinds[o.Kind] = o
			}
		}
	}
	pod := kinds["Deployment"].Spec.Template.Spec
	if len(pod.Containers) != 1 || len(kinds["HTTPRoute"].Spec.Rules) != 1 {
		t.Fatalf("got %+v", kinds)
	}
	const drain = 28 // the context of Shutdown in nodes.md
	nodes, err := os.ReadFile("nodes.md")
	if err != nil || !strings.Contains(string(nodes), "28*time.Second") {
		t.Errorf("nodes.md no longer drains for %d s: %v", drain, err)
	}
	if preStop := pod.Containers[0].Lifecycle.PreStop.Sleep.Seconds; preStop == 0 || pod.TerminationGracePeriodSeconds < preStop+drain {
		t.Errorf("a pod has %d s, and needs %d for preStop and %d to drain", pod.TerminationGracePeriodSeconds, preStop, drain)
	}
	if got := kinds["HTTPRoute"].Spec.Rules[0].Timeouts.Request; got != "0s" {
		t.Errorf("the route ends requests after %q", got)
	}
}
