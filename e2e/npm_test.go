package e2e

import (
	"encoding/json"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// npm runs npm, or another program with it, in a directory and returns what it
// writes to its standard output.
func npm(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "npm", args...)
	cmd.Dir = dir
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("npm %s: %v\n%s%s", strings.Join(args, " "), err, complaints.String(), out)
	}
	return out
}

// TestNPM installs the npm package into a fresh project with Vite and TypeScript.
// The project's types are right, it builds, and it runs.
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
	npm(t, project, "install", "--no-audit", "--no-fund", "./"+packed[0].Filename)
	npm(t, project, "exec", "--", "tsc")
	npm(t, project, "exec", "--", "vite", "build", "--logLevel", "warn", "--base", "/built/")

	site := newSite(t, "", nil)
	built := http.FileServer(http.Dir(filepath.Join(project, "dist")))
	site.server.Config.Handler.(*http.ServeMux).Handle("/built/", http.StripPrefix("/built/", built))
	tab := newTab(t, newBrowser(t), "Ann")
	tab.open(site.server.URL + "/built/")
	site.has(1, 1)
	site.publish("prices", "price", `{"value": 42}`)
	tab.until(`document.querySelector("#price").textContent === "42"`)
}
