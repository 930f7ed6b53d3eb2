package look

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandle(t *testing.T) {
	mux := http.NewServeMux()
	Handle(mux, `<style nonce="NONCE"></style><script nonce="NONCE"></script>`)
	get := func(path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return w
	}
	seen := make(map[string]bool)
	for range 2 {
		w := get("/")
		policy := w.Header().Get("Content-Security-Policy")
		if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
			t.Errorf("got policy %q", policy)
		}
		_, rest, _ := strings.Cut(policy, "'nonce-")
		nonce, _, _ := strings.Cut(rest, "'")
		if got := strings.Count(w.Body.String(), `nonce="`+nonce+`"`); got != 2 {
			t.Errorf("nonce %q is on %d elements, want 2, the style and the script", nonce, got)
		}
		if seen[nonce] {
			t.Errorf("got nonce %q twice", nonce)
		}
		seen[nonce] = true
	}
	for path, kind := range map[string]string{"/": "text/html", "/look.css": "text/css", "/look.js": "text/javascript"} {
		if got := get(path).Header().Get("Content-Type"); got != kind+"; charset=utf-8" {
			t.Errorf("%s: got Content-Type %q, want %s", path, got, kind)
		}
	}
	if w := get("/other"); w.Code != http.StatusNotFound {
		t.Errorf("/other: got %d, want 404", w.Code)
	}
}
