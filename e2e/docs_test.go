package e2e

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// TestDocs checks the types of all JavaScript and TypeScript of the README and of
// docs, against the npm package. A page's realtime.js is the same module.
func TestDocs(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Fatal("this test needs npm, and a registry: apt-get install npm")
	}
	project := t.TempDir()
	if err := os.CopyFS(project, os.DirFS("testdata/docs")); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	src := filepath.Join(project, "src")
	if err := os.Mkdir(src, 0o777); err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	block, script := regexp.MustCompile("(?ms)^```(js|ts|tsx|html)\n(.*?)^```$"), regexp.MustCompile(`(?s)<script type="module">(.*?)</script>`)
	blocks := make(map[string]int)
	for _, path := range append(paths, "../README.md") {
		page, err := os.ReadFile(dir + "/" + path) // see noteSources
		if err != nil {
			t.Fatal(err)
		}
		for _, at := range block.FindAllSubmatchIndex(page, -1) {
			lang, text := string(page[at[2]:at[3]]), string(page[at[4]:at[5]])
			blocks[lang]++
			if lang == "html" {
				m := script.FindStringSubmatch(text)
				if m == nil {
					t.Fatalf("%s: the HTML has no script that is a module:\n%s", path, text)
				}
				lang, text = "js", m[1]
			}
			line := 1 + strings.Count(string(page[:at[4]]), "\n")
			name := fmt.Sprintf("%s.%d.%s", strings.ToLower(strings.NewReplacer("../", "", "/", "-", ".md", "").Replace(path)), line, lang)
			text = strings.ReplaceAll(text, `"/realtime.js"`, `"@kashvi/realtime"`) + "\nexport {};\n" // so that it is a module
			if err := os.WriteFile(filepath.Join(src, name), []byte(text), 0o666); err != nil {
				t.Fatal(err)
			}
		}
	}
	if blocks["js"] == 0 || blocks["tsx"] == 0 || blocks["html"] == 0 {
		t.Errorf("got %v, want js, tsx and html", blocks)
	}
	npm(t, project, "install", "--no-audit", "--no-fund", "--install-links", root)
	npm(t, project, "exec", "--", "tsc")
}

// TestReadme runs the program that the README begins with, in two tabs. It ends
// as its shutdown promises.
func TestReadme(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile(here + "/../README.md") // see noteSources
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```go\n(package main\n.*?)```").FindSubmatch(readme)
	if m == nil {
		t.Fatal("the README has no program")
	}
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0") // another process may take the port, but hardly does
	if err != nil {
		t.Fatal(err)
	}
	addr := listener.Addr().String()
	listener.Close()
	source := strings.Replace(string(m[1]), `"localhost:8080"`, `"`+addr+`"`, 1)
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source), 0o666); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "chat.exe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", program, filepath.Join(dir, "main.go"))
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", build, err, out)
	}
	p := &process{T: t, cmd: exec.Command(program), url: "http://" + addr, exited: make(chan error, 1)}
	p.cmd.Stderr = &p.stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	go func() { p.exited <- p.cmd.Wait() }()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(p.url)
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the program doesn't serve: %v\n%s", err, &p.stderr)
		}
	}

	browser := newBrowser(t)
	ann, bob := newTab(t, browser, "Ann"), newTab(t, browser, "Bob")
	for _, tab := range []*tab{ann, bob} {
		tab.expectOutage(true) // there is no icon
		tab.open(p.url)
		tab.until(`ws.readyState === WebSocket.OPEN`)
	}
	ann.write("#text", "hello")
	ann.enter()
	for _, tab := range []*tab{ann, bob} {
		tab.until(`log.textContent === "hello\n"`)
		tab.until(`(ws.onclose = (event) => log.append(event.code), true)`)
	}
	p.interrupt(ann, bob)
	ann.until(`log.textContent === "hello\n1001"`)
	bob.until(`log.textContent === "hello\n1001"`)
}

// TestTickets checks what docs/access.md says of tickets in the URL: an old one
// that is refused with 408 makes the page ask for a new one. So does a cut.
func TestTickets(t *testing.T) {
	eachTransport(t, func(t *testing.T, browser context.Context, transport string) {
		var mu sync.Mutex
		used := make(map[string]int)
		site := newSite(t, "", func(hub *realtime.Hub) {
			hub.OnConnect = func(c *realtime.Client, r *http.Request) error {
				mu.Lock()
				defer mu.Unlock()
				ticket := r.URL.Query().Get("ticket")
				if used[ticket]++; ticket == "1" || used[ticket] > 1 {
					return realtime.Refuse(http.StatusRequestTimeout, "ticket has expired")
				}
				return nil
			}
		})
		proxy := newProxy(t, site.addr())
		tab := newTab(t, browser, "Ann-"+transport)
		tab.open(proxy.url)
		tab.run(`
			const {connect} = await import("/realtime.js");
			globalThis.asked = 0;
			globalThis.live = connect(async () => "/live?ticket=" + ++asked, ` + options(transport, "") + `);` + watch)
		tab.until(`live.state === "open" && asked === 2`)
		tab.expectOutage(true)
		proxy.cut()
		tab.until(`live.state === "open" && asked === 3`)
		mu.Lock()
		defer mu.Unlock()
		if want := map[string]int{"1": 1, "2": 1, "3": 1}; !maps.Equal(used, want) {
			t.Errorf("tickets were used %v times, want %v", used, want)
		}
	})
}
