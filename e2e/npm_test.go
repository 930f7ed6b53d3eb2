package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// npm runs npm, or another program with it, in a directory and returns what it
// writes to its standard output.
func npm(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "npm", args...)
	cmd.Dir = dir
	cmd.Env = append(cmd.Environ(), "NODE_ENV=development") // React's StrictMode does nothing in production
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("npm %s: %v\n%s%s", strings.Join(args, " "), err, complaints.String(), out)
	}
	return out
}

// onServer makes a Connection where there are no tabs. Older versions of Node have no
// navigator.
const onServer = `delete globalThis.navigator;
const {connect} = await import("@kashvi/realtime");
connect("http://localhost:1/", {shared: true}).close();`

// TestNPM installs the npm package into a fresh project with Vite and TypeScript.
// The project's types are right, it builds, and it runs, also with React and the
// README's hook.
func TestNPM(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("npm"); err != nil {
		t.Fatal("this test needs npm, and a registry: apt-get install npm")
	}
	project := t.TempDir()
	if err := os.CopyFS(project, os.DirFS("testdata/npm")); err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var packed []struct {
		Filename string
		Files    []struct{ Path string }
	}
	if err := json.Unmarshal(npm(t, root, "pack", "--json", "--pack-destination", project), &packed); err != nil || len(packed) != 1 {
		t.Fatalf("npm pack: %v, %d packages", err, len(packed))
	}
	var files []string
	for _, f := range packed[0].Files {
		files = append(files, f.Path)
	}
	slices.Sort(files)
	if want := []string{"LICENSE", "README.md", "package.json", "realtime.d.ts", "realtime.js"}; !slices.Equal(files, want) {
		t.Errorf("the package has %q, want %q", files, want)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	hook := regexp.MustCompile("(?ms)^```tsx\n(.*?)^```$").FindSubmatch(readme)
	if hook == nil {
		t.Fatal("the README has no hook")
	}
	if err := os.WriteFile(filepath.Join(project, "src", "useLive.tsx"), hook[1], 0o666); err != nil {
		t.Fatal(err)
	}
	npm(t, project, "install", "--no-audit", "--no-fund", "./"+packed[0].Filename)
	npm(t, project, "exec", "--", "tsc")
	npm(t, project, "exec", "--", "node", "--input-type=module", "--eval", onServer)
	npm(t, project, "exec", "--", "vite", "build", "--logLevel", "warn", "--base", "/built/")

	site := newSite(t, "", nil)
	built := http.FileServer(http.Dir(filepath.Join(project, "dist")))
	site.server.Config.Handler.(*http.ServeMux).Handle("/built/", http.StripPrefix("/built/", built))
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL + "/built/")
	site.has(1, 1)
	site.publish("prices", "price", `{"value": 42}`)
	tab.until(`document.querySelector("#price").textContent === "42"`)

	value := func(want string) { tab.until(`document.querySelector("output")?.textContent === "` + want + `"`) }
	choose := func(topic string) {
		eval[chromedp.Void](tab, `[...document.querySelectorAll("button")].find((b) => b.textContent === "`+topic+`").click()`)
	}
	choose("prices")
	value("0")
	site.has(2, 1) // its effect ran twice, and left one connection
	site.publish("prices", "price", `{"value": 43}`)
	value("43")
	choose("others") // the effect runs again
	for deadline := time.Now().Add(patience); len(slices.Collect(site.hub.Subscribers("others"))) == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the hook doesn't follow its URL")
		}
	}
	site.has(2, 1)
	site.publish("prices", "price", `{"value": 44}`)
	site.publish("others", "price", `{"value": 45}`)
	value("45")
	choose("none")
	site.has(1, 1)
}
