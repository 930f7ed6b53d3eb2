package docs

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
)

// imports are the packages that Go on a page may use without importing them. Those
// with a page before the name are for that page.
var imports = map[string]string{
	"bufio": "bufio", "cmp": "cmp", "context": "context", "errors": "errors", "fmt": "fmt", "http": "net/http", "httptest": "net/http/httptest",
	"json": "encoding/json", "log": "log", "maps": "maps", "os": "os", "rand": "math/rand/v2", "signal": "os/signal", "slog": "log/slog",
	"strings": "strings", "sync": "sync", "synctest": "testing/synctest", "syscall": "syscall", "testing": "testing", "time": "time",
	"brokertest":  "github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest",
	"nats":        "github.com/nats-io/nats.go",
	"natsbroker":  "github.com/shashiranjanraj/kashvi/pkg/realtime/natsbroker",
	"prometheus":  "github.com/prometheus/client_golang/prometheus",
	"promhttp":    "github.com/prometheus/client_golang/prometheus/promhttp",
	"prommetrics": "github.com/shashiranjanraj/kashvi/pkg/realtime/prommetrics",
	"rate":        "golang.org/x/time/rate",
	"realtime":    "github.com/shashiranjanraj/kashvi/pkg/realtime",
	"redisbroker": "github.com/shashiranjanraj/kashvi/pkg/realtime/redisbroker",
	"rueidis":     "github.com/redis/rueidis",
	"websocket":   "github.com/coder/websocket",

	"coming-from/websocket": "github.com/gorilla/websocket",
	"coming-from/melody":    "github.com/olahol/melody",
}

// given are the declarations of names that Go on a page may use without declaring
// them.
var given = map[string]string{
	"c":          "var c *realtime.Client",
	"config":     "var config natsbroker.Config",
	"conn":       "var conn *nats.Conn",
	"ctx":        "var ctx context.Context",
	"endSession": "func endSession(s session) { delete(sessions, s.ID) }",
	"err":        "var err error",
	"hub":        "var hub = realtime.NewHub()",
	"load":       "func load(match string) (state any, err error) { return match, nil }",
	"mayEnter":   "func mayEnter(user, room string) bool { return room != \"secret\" }",
	"mayWatch":   "var mayWatch func(r *http.Request, match string) bool",
	"mux":        "var mux *http.ServeMux",
	"now":        "var now []byte",
	"options":    "var options rueidis.ClientOption",
	"r":          "var r *http.Request",
	"score":      "var score struct{}",
	"server":     "var server *http.Server",
	"session":    "type session struct { User, ID string; Expires time.Time }; var sessions = make(map[string]session)",
	"sessionOf":  "func sessionOf(r *http.Request) (s session, err error) { cookie, err := r.Cookie(\"session\"); if err == nil { s = sessions[cookie.Value]; if s.ID == \"\" { err = http.ErrNoCookie } }; return s, err }",
	"stillValid": "func stillValid(s session) bool { return sessions[s.ID].ID != \"\" }",
	"text":       "var text []byte",
	"userOf":     "func userOf(r *http.Request) (string, error) { cookie, err := r.Cookie(\"user\"); if err != nil { return \"\", err }; return cookie.Value, nil }",
	"w":          "var w http.ResponseWriter",
}

// TestGo compiles all Go on the pages, and runs the tests that are there. A block
// that begins with a package clause is a program. The other blocks of a page are
// one file: those that are declarations as they are, the others as the bodies of
// functions. What they use without declaring it is in imports and given. The file
// testdata/PAGE_test.go is a test of what the page declares.
func TestGo(t *testing.T) {
	for _, p := range pages(t) {
		t.Run(p.name()+filepath.Dir(p.path), func(t *testing.T) {
			t.Parallel()
			dir, pieces := t.TempDir(), ""
			for i, b := range p.blocks {
				at := fmt.Sprintf("//line %s:%d\n", p.path, b.line)
				switch {
				case b.lang != "go":
				case strings.HasPrefix(b.text, "package "):
					path := filepath.Join(dir, fmt.Sprint("program", i, ".go"))
					write(t, path, at+b.text)
					goTool(t, "vet", path)
				case parses(b.text):
					pieces += at + b.text
				default:
					pieces += fmt.Sprintf("func piece%d() {\n%s%s}\n", i, at, b.text)
				}
			}
			if pieces == "" {
				return
			}
			file := filepath.Join(dir, p.name()+"_page_test.go")
			write(t, file, complete(t, p, pieces))
			test, err := os.ReadFile("testdata/" + p.name() + "_test.go")
			if p.name() == "README" || err != nil && !strings.Contains(pieces, "*testing.T)") {
				goTool(t, "vet", file)
				return
			}
			files := []string{file}
			if err == nil {
				files = append(files, filepath.Join(dir, "extra_test.go"))
				write(t, files[1], string(test))
			}
			args := []string{"test", "-count=1"}
			if raceEnabled() {
				args = append(args, "-race")
			}
			goTool(t, append(args, files...)...)
		})
	}
}

// complete makes a file of pieces: it adds what they don't declare.
func complete(t *testing.T, p page, pieces string) string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "", "package docs\n"+pieces, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	used, declared := make(map[string]bool), make(map[string]bool)
	for _, decl := range file.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil {
			declared[f.Name.Name] = true
		} else if g, ok := decl.(*ast.GenDecl); ok {
			for _, spec := range g.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					declared[spec.Name.Name] = true
				case *ast.ValueSpec:
					for _, name := range spec.Names {
						declared[name.Name] = true
					}
				}
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok {
			used[id.Name] = true
		}
		return true
	})
	var rest strings.Builder
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if used[name] && !declared[name] {
			fmt.Fprintln(&rest, given[name])
		}
	}
	rest.WriteString(pieces)
	if file, err = parser.ParseFile(token.NewFileSet(), "", "package docs\n"+rest.String(), parser.SkipObjectResolution); err != nil {
		t.Fatal(err)
	}
	packages := make(map[string]bool)
	ast.Inspect(file, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			if id, ok := sel.X.(*ast.Ident); ok {
				packages[id.Name] = true
			}
		}
		return true
	})
	var head strings.Builder
	head.WriteString("package docs\n")
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		if path := cmp.Or(imports[p.name()+"/"+name], imports[name]); path != "" {
			fmt.Fprintf(&head, "import %s %q\n", name, path)
		}
	}
	return head.String() + rest.String()
}

// parses reports whether text is declarations.
func parses(text string) bool {
	_, err := parser.ParseFile(token.NewFileSet(), "", "package docs\n"+text, 0)
	return err == nil
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
		t.Fatal(err)
	}
}

func goTool(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "go", args...).CombinedOutput(); err != nil {
		t.Errorf("go %s: %v\n%s", args[0], err, out)
	}
}

// raceEnabled reports whether this test has the race detector.
func raceEnabled() bool {
	info, _ := debug.ReadBuildInfo()
	for _, s := range info.Settings {
		if s.Key == "-race" {
			return s.Value == "true"
		}
	}
	return false
}
