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

// scriptTag is the script's ETag: the same on every server that has the same
// script.
var scriptTag = sync.OnceValue(func() string {
	sum := sha256.Sum256(script)
	return `"` + hex.EncodeToString(sum[:16]) + `"`
})

// Script returns a handler that serves realtime.js, an ES module for web pages
// that connects to a hub's ServeHTTP: over a WebSocket or, where none gets
// through, over an event stream. It reconnects, resumes where it was, and says
// when events may have been missed. No page needs it: a plain WebSocket or
// EventSource is a client as well. What it offers stands in realtime.d.ts,
// beside it in the module's directory.
//
//	mux.Handle("/live", hub)
//	mux.Handle("/realtime.js", realtime.Script())
//
// Browsers keep it and ask each time whether it is still the same, by its ETag,
// so that page and hub never differ in version for long. Pages of other sites
// may import it: there is no secret in it. Methods other than GET and HEAD are
// answered by 405. The handler is safe for concurrent use.
func Script() http.Handler {
	return http.HandlerFunc(serveScript)
}

func serveScript(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		http.Error(w, "the script is for GET, not for "+r.Method, http.StatusMethodNotAllowed)
		return
	}
	header.Set("Content-Type", "text/javascript; charset=utf-8") // RFC 9239 §6
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-cache") // to be kept, but asked about (RFC 9111 §5.2.2.4)
	header.Set("ETag", scriptTag())
	header.Set("Access-Control-Allow-Origin", "*") // modules are loaded with CORS
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(script))
}
