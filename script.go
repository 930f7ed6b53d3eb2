package realtime

import (
	"bytes"
	"crypto/sha256"
	_ "embed" // for realtime.js
	"encoding/hex"
	"net/http"
	"sync"
	"time"
)

//go:embed realtime.js
var script []byte

// scriptTag is the ETag: the same on every server that has the same script.
var scriptTag = sync.OnceValue(func() string {
	sum := sha256.Sum256(script)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
})

// Script returns a handler that serves realtime.js, an ES module for web pages.
// The module connects to a hub's ServeHTTP: over a WebSocket or, where none
// gets through, an event stream. It reconnects, resumes, and says when events
// may be lost. realtime.d.ts in this directory tells what it offers.
//
//	mux.Handle("/live", hub)
//	mux.Handle("/realtime.js", realtime.Script())
//
// Browsers keep it, but ask by its ETag each time, so page and hub don't differ
// in version for long. Pages of other sites may import it: it has no secret.
// Methods other than GET and HEAD get 405. It is safe for concurrent use.
func Script() http.Handler { return http.HandlerFunc(serveScript) }

func serveScript(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "the script is for GET, not for "+r.Method, http.StatusMethodNotAllowed)
		return
	}
	header.Set("Content-Type", "text/javascript; charset=utf-8") // RFC 9239 §6
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-cache") // to be kept, but asked about each time (RFC 9111 §5.2.2.4)
	header.Set("ETag", scriptTag())
	header.Set("Access-Control-Allow-Origin", "*") // modules are loaded with CORS
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(script))
}
