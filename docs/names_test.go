package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

var types = map[string]reflect.Type{
	"Hub":     reflect.TypeFor[*realtime.Hub](),
	"Client":  reflect.TypeFor[*realtime.Client](),
	"Event":   reflect.TypeFor[*realtime.Event](),
	"History": reflect.TypeFor[*realtime.History](),
	"Stats":   reflect.TypeFor[*realtime.Stats](),
	"Left":    reflect.TypeFor[*realtime.Left](),
}

// has reports whether a type has a field or method.
func has(typ, name string) bool {
	_, field := types[typ].Elem().FieldByName(name)
	_, method := types[typ].MethodByName(name)
	return field || method
}

// exported returns what package realtime exports.
func exported(t *testing.T) map[string]bool {
	t.Helper()
	names := make(map[string]bool)
	for _, path := range sources(t) {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil {
					names[decl.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.TypeSpec:
						names[spec.Name.Name] = true
					case *ast.ValueSpec:
						for _, name := range spec.Names {
							names[name.Name] = true
						}
					}
				}
			}
		}
	}
	return names
}

// sources returns the paths of the package's sources, without its tests.
func sources(t *testing.T) (paths []string) {
	t.Helper()
	all, err := filepath.Glob("../*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range all {
		if !strings.HasSuffix(path, "_test.go") {
			paths = append(paths, path)
		}
	}
	return paths
}

var (
	member = regexp.MustCompile(`\b(Hub|Client|Event|History|Stats|Left)\.([A-Z]\w*)`)
	name   = regexp.MustCompile(`\brealtime\.([A-Z]\w*)`)
	code   = regexp.MustCompile("`([^`]+)`")
)

// The names that the text of a page has are names of the package. Those in blocks
// are compiled.
func TestNames(t *testing.T) {
	exported := exported(t)
	for _, p := range pages(t) {
		for _, m := range member.FindAllStringSubmatch(p.text, -1) {
			if !has(m[1], m[2]) {
				t.Errorf("%s: there is no %s", p.path, m[0])
			}
		}
		for _, m := range name.FindAllStringSubmatch(p.text, -1) {
			if !exported[m[1]] {
				t.Errorf("%s: there is no %s", p.path, m[0])
			}
		}
	}
}

// column returns the code in the first column of a page's table with that header.
func column(t *testing.T, page, header string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n| "+header+" |")
	table, _, _ = strings.Cut(table, "\n\n")
	for _, line := range strings.Split(table, "\n")[1:] {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "|"), "|")
		for _, m := range code.FindAllStringSubmatch(first, -1) {
			all = append(all, m[1])
		}
	}
	if len(all) < 3 {
		t.Fatalf("%s: a table of %q has %q", page, header, all)
	}
	return all
}

// The tables of settings, figures and alerts have what there is.
func TestTables(t *testing.T) {
	for _, field := range column(t, "sizing.md", "Field of `Hub`") {
		typ, name, ok := strings.Cut(field, ".")
		if !ok {
			typ, name = "Hub", field
		}
		if !has(typ, name) && !has("History", name) {
			t.Errorf("sizing.md: there is no field %s", field)
		}
	}
	for _, figure := range column(t, "watching.md", "Figure of `Stats`") {
		typ, name, ok := strings.Cut(figure, ".")
		if !ok {
			typ, name = "Stats", figure
		}
		if !has(typ, name) {
			t.Errorf("watching.md: there is no figure %s", figure)
		}
	}
	rules, err := os.ReadFile("../prommetrics/alerts/alerts.yml")
	if err != nil {
		t.Fatal(err)
	}
	alerts := column(t, "watching.md", "Alert")
	for _, alert := range alerts {
		if !strings.Contains(string(rules), "- alert: "+alert+"\n") {
			t.Errorf("watching.md: there is no alert %s", alert)
		}
	}
	if n := strings.Count(string(rules), "- alert: "); n != len(alerts) {
		t.Errorf("watching.md has %d of %d alerts", len(alerts), n)
	}
}

// The hub can log the lines of the table. Some are put together of parts.
func TestLogLines(t *testing.T) {
	var code strings.Builder
	for _, path := range sources(t) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}
	parts := strings.NewReplacer("client refused: ", "client refused: \x00", "OnMessage ", "OnMessage\x00 ", " lost", "\x00 lost")
	for _, line := range column(t, "watching.md", "Line") {
		for part := range strings.SplitSeq(parts.Replace(line), "\x00") {
			if !strings.Contains(code.String(), part) {
				t.Errorf("watching.md: no source has %q of the line %q", part, line)
			}
		}
	}
}
