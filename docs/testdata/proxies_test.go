package docs

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestClientAddr(t *testing.T) {
	for want, values := range map[string][]string{
		"192.0.2.1:1234": nil, // httptest's
		"10.0.0.7":       {"10.0.0.7"},
		"10.0.0.8":       {"6.6.6.6, 10.0.0.8"},
		"10.0.0.9":       {"6.6.6.6", "10.0.0.9"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.Header = http.Header{"X-Forwarded-For": values}
		if got := clientAddr(r); got != want {
			t.Errorf("%q: got %s, want %s", values, got, want)
		}
	}
}
