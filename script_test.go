package realtime_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A page that follows two topics. The module comes from the program itself.
func ExampleScript() {
	hub := realtime.NewHub()
	defer hub.Shutdown(context.Background())
	hub.History = realtime.History{Events: 100}

	mux := http.NewServeMux()
	mux.Handle("/live", hub)
	mux.Handle("/realtime.js", realtime.Script())
	mux.HandleFunc("/{$}", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `<!doctype html>
<p id="price">
<script type="module">
	import { connect } from "/realtime.js";

	const live = connect("/live", { topics: ["prices", "news"] });
	live.on("price", (event) => { document.querySelector("#price").textContent = event.json().value; });
	live.addEventListener("reset", () => location.reload());
</script>`)
	})

	server := httptest.NewServer(mux)
	defer server.Close()
	resp, err := http.Get(server.URL + "/realtime.js")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status, resp.Header.Get("Content-Type"))
	// Output: 200 OK text/javascript; charset=utf-8
}

// askScript asks the handler for the script.
func askScript(method string, header http.Header) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/realtime.js", nil)
	r.Header = header
	w := httptest.NewRecorder()
	realtime.Script().ServeHTTP(w, r)
	return w
}

func TestScript(t *testing.T) {
	want, err := os.ReadFile("realtime.js")
	if err != nil {
		t.Fatal(err)
	}
	w := askScript("GET", http.Header{})
	if w.Code != 200 || w.Body.String() != string(want) {
		t.Errorf("got status %d and %d bytes, want 200 and the %d of realtime.js", w.Code, w.Body.Len(), len(want))
	}
	for name, want := range map[string]string{
		"Content-Type":                "text/javascript; charset=utf-8",
		"X-Content-Type-Options":      "nosniff",
		"Cache-Control":               "no-cache",
		"Access-Control-Allow-Origin": "*",
		"Content-Length":              fmt.Sprint(len(want)),
	} {
		if got := w.Header().Get(name); got != want {
			t.Errorf("got %s %q, want %q", name, got, want)
		}
	}
	tag := w.Header().Get("ETag")
	if !regexp.MustCompile(`^"[0-9a-f]{32}"$`).MatchString(tag) {
		t.Errorf("got ETag %q, want a strong one", tag)
	}

	for _, tt := range []struct {
		method string
		header http.Header
		status int
		bytes  int
	}{
		{"HEAD", http.Header{}, 200, 0},
		{"GET", http.Header{"If-None-Match": {tag}}, 304, 0},
		{"GET", http.Header{"If-None-Match": {"W/" + tag}}, 304, 0}, // a proxy compresses it
		{"HEAD", http.Header{"If-None-Match": {tag}}, 304, 0},
		{"GET", http.Header{"If-None-Match": {`"of an older version"`}}, 200, len(want)},
		{"GET", http.Header{"Range": {"bytes=0-9"}}, 206, 10},
	} {
		w := askScript(tt.method, tt.header)
		if w.Code != tt.status || w.Body.Len() != tt.bytes {
			t.Errorf("%s %v: got status %d and %d bytes, want %d and %d", tt.method, tt.header, w.Code, w.Body.Len(), tt.status, tt.bytes)
		}
		if got := w.Header().Get("ETag"); got != tag {
			t.Errorf("%s %v: got ETag %q, want %q", tt.method, tt.header, got, tag)
		}
	}

	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		w := askScript(method, http.Header{})
		if got := w.Header().Get("Allow"); w.Code != 405 || got != "GET, HEAD" {
			t.Errorf("%s: got status %d and Allow %q, want 405 and GET, HEAD", method, w.Code, got)
		}
	}
}

// A page loads the script before it shows anything.
func TestScriptSize(t *testing.T) {
	var b bytes.Buffer
	z, _ := gzip.NewWriterLevel(&b, gzip.BestCompression)
	z.Write(askScript("GET", http.Header{}).Body.Bytes())
	z.Close()
	if b.Len() > 5<<10 {
		t.Errorf("realtime.js has %d bytes compressed, want 5 KB at most", b.Len())
	}
}

// TestScriptTypes checks that the declarations have what the module exports and
// its Connection offers, and nothing else.
func TestScriptTypes(t *testing.T) {
	names := func(file, pattern string) map[string]bool {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, class, _ := strings.Cut(string(text), "export class Connection")
		class, _, _ = strings.Cut(class, "\n}\n")
		names := make(map[string]bool)
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(class, -1) {
			names[m[1]] = true
		}
		for _, m := range regexp.MustCompile(`(?m)^export (?:function|class|const) (\w+)`).FindAllStringSubmatch(string(text), -1) {
			names[m[1]] = true
		}
		return names
	}
	module := names("realtime.js", `(?m)^\t(?:get )?(\w+)\([^\n]*\{`)
	types := names("realtime.d.ts", `(?m)^\t(?:readonly )?(\w+)(?:<[^>]*>)?(?:\(|: )`)
	for name := range module {
		if !types[name] {
			t.Errorf("realtime.d.ts doesn't have %s", name)
		}
	}
	for name := range types {
		if !module[name] && name != "addEventListener" && name != "removeEventListener" { // of EventTarget
			t.Errorf("realtime.js doesn't have %s", name)
		}
	}
	if len(module) < 10 {
		t.Errorf("found %v in realtime.js, not all of it", module)
	}
}
