// Package look is how the pages of the examples look and how they are served.
package look

import (
	"crypto/rand"
	_ "embed"
	"fmt"
	"io"
	"net/http"
	"strings"
)

//go:embed look.css
var css string

//go:embed look.js
var js string

// Handle serves a page at the root of mux, and look.css and look.js beside it. In
// the page, NONCE stands for the answer's nonce.
func Handle(mux *http.ServeMux, page string) {
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { servePage(w, page) })
	mux.HandleFunc("GET /look.css", func(w http.ResponseWriter, _ *http.Request) { serve(w, "text/css", css) })
	mux.HandleFunc("GET /look.js", func(w http.ResponseWriter, _ *http.Request) { serve(w, "text/javascript", js) })
}

// servePage sends the page. Its policy allows only the styles and the script that
// have this answer's nonce, and what the script imports. They may connect to this
// server alone.
func servePage(w http.ResponseWriter, page string) {
	nonce := rand.Text()
	w.Header().Set("Content-Security-Policy", fmt.Sprintf("default-src 'none'; script-src 'nonce-%[1]s'; style-src 'nonce-%[1]s'; "+
		"img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "+
		"require-trusted-types-for 'script'", nonce))
	serve(w, "text/html", strings.ReplaceAll(page, "NONCE", nonce))
}

func serve(w http.ResponseWriter, kind, text string) {
	header := w.Header()
	header.Set("Content-Type", kind+"; charset=utf-8")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-store") // a nonce is used once, and an example changes
	io.WriteString(w, text)
}
