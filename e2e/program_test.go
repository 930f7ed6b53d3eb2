package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

// build builds the example of that name and returns the program's path. The
// program has the race detector if the test has it.
func build(t *testing.T, example string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), example+".exe")
	args := []string{"build", "-o", path}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "-race" && s.Value == "true" {
				args = append(args, "-race") // a race makes the exit code 66
			}
		}
	}
	build := exec.CommandContext(t.Context(), "go", append(args, "./examples/"+example)...)
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	noteSources(t, example)
	noteSources(t, "internal/look")
	return path
}

// noteSources opens the sources in a directory of examples, so that go test doesn't use a cached
// result after a page has changed. go test checks the files that a test has
// opened, but only those whose path begins with the module's. So the path goes
// through this directory and isn't cleaned.
func noteSources(t *testing.T, example string) {
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	dir += "/../examples/" + example
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if _, err := os.ReadFile(dir + "/" + file.Name()); err != nil {
			t.Fatal(err)
		}
	}
}

// A process is a running example.
type process struct {
	*testing.T
	cmd    *exec.Cmd
	url    string
	stderr strings.Builder
	exited chan error
}

// start starts the program and waits until it prints its URL.
func start(t *testing.T, path, addr string, args ...string) *process {
	t.Helper()
	p := &process{T: t, cmd: exec.Command(path, append(args, "-addr", addr)...), exited: make(chan error, 1)}
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	_, url, ok := strings.Cut(strings.TrimSpace(line), " is at ")
	if !ok {
		err := p.cmd.Wait()
		t.Fatalf("%v prints %q instead of its URL: %v\n%s", p.cmd, line, err, &p.stderr)
	}
	p.url = url
	go func() { p.exited <- p.cmd.Wait() }()
	return p
}

// interrupt stops the program as Ctrl-C does and checks that it ends with exit
// code 0. It tells the tabs that their server will be down.
func (p *process) interrupt(tabs ...*tab) {
	p.Helper()
	for _, tab := range tabs {
		tab.expectOutage(true)
	}
	began := time.Now()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.Fatal(err)
	}
	select {
	case err := <-p.exited:
		if err != nil {
			p.Errorf("the program ended with %v, want exit code 0\n%s", err, &p.stderr)
		}
		p.Logf("the program ended %v after SIGINT", time.Since(began).Round(time.Millisecond))
	case <-time.After(patience):
		p.Fatalf("the program still runs %v after SIGINT", patience)
	}
}
