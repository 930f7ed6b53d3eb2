package realtime

import (
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
)

// checkHandshake reports why r is no opening handshake (RFC 6455 §4.2.1), and
// the HTTP status that says so. It runs before OnConnect, so that no client is
// made of a request that websocket.Accept would refuse.
func checkHandshake(answer http.Header, r *http.Request) (status int, err error) {
	switch {
	case r.Method != http.MethodGet:
		answer.Set("Allow", http.MethodGet)
		return http.StatusMethodNotAllowed, fmt.Errorf("a WebSocket handshake is a GET, not a %s", clip(r.Method))
	case !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1:
		return http.StatusUpgradeRequired, fmt.Errorf("a WebSocket handshake needs HTTP/1.1, not %s", r.Proto)
	case !hasToken(r.Header["Connection"], "upgrade") || !hasToken(r.Header["Upgrade"], "websocket"):
		err := errors.New("not a WebSocket handshake: it lacks Connection: Upgrade and Upgrade: websocket, which a proxy in front may have dropped; an event stream needs Accept: text/event-stream")
		if acceptsStream(r) {
			err = errors.New("not a WebSocket handshake but a request for an event stream, which Upgrade doesn't serve: use Hub.ServeHTTP or Hub.ServeSSE")
		}
		return http.StatusUpgradeRequired, err
	case r.Header.Get("Sec-Websocket-Version") != "13":
		answer.Set("Sec-Websocket-Version", "13")
		return http.StatusUpgradeRequired, fmt.Errorf("WebSocket version %q is not 13", clip(r.Header.Get("Sec-Websocket-Version")))
	case r.ContentLength != 0: // negative if it is chunked; the body would be read as frames
		answer.Set("Connection", "close") // so that net/http doesn't wait for it
		return http.StatusBadRequest, errors.New("a WebSocket handshake has no body")
	}
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) == 1 && len(keys[0]) <= maxKey {
		var key [maxKey]byte
		n, err := base64.StdEncoding.Decode(key[:], []byte(strings.TrimSpace(keys[0])))
		if err == nil && n == 16 {
			return 0, nil
		}
	}
	return http.StatusBadRequest, errors.New("the handshake needs one Sec-WebSocket-Key, 16 bytes in base64")
}

const maxKey = 64 // bytes of a Sec-WebSocket-Key: it has 24, and spaces around

// hasToken reports whether token is in a header's lists, in any letter case.
func hasToken(values []string, token string) bool {
	return anyListed(values, func(t string) bool { return strings.EqualFold(t, token) })
}

// anyListed reports whether a header's lists have an element for which is holds.
func anyListed(values []string, is func(element string) bool) bool {
	for element := range listed(values) {
		if is(element) {
			return true
		}
	}
	return false
}

// maxListBytes is the most bytes of a header's lists that are looked at. Some
// clients send a token of some kilobytes as a subprotocol.
const maxListBytes = 16 << 10

// listed yields the elements of a header's comma-separated lists (RFC 9110
// §5.6.1), or nothing if they are longer than maxListBytes.
func listed(values []string) iter.Seq[string] {
	return func(yield func(string) bool) {
		total := 0
		for _, v := range values {
			total += len(v) + 1
		}
		if total > maxListBytes {
			return
		}
		for _, v := range values {
			for more := true; more; {
				var element string
				if element, v, more = cutUnquoted(v, ","); !yield(strings.TrimSpace(element)) {
					return
				}
			}
		}
	}
}

// cutUnquoted cuts s at the first of separators that is in no quoted string (RFC
// 9110 §5.6.4), as strings.Cut does.
func cutUnquoted(s, separators string) (before, after string, found bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case !quoted && strings.IndexByte(separators, c) >= 0:
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

// shakeHands answers the handshake itself. net/http would have to answer before
// the takeover, which may then fail. And middleware that holds headers back, such
// as one that compresses, would never let the answer out. header is that of the
// ResponseWriter, with what middleware has put in.
func (c *Client) shakeHands(header http.Header, r *http.Request) (f format, err error) {
	for _, own := range [...]string{"Connection", "Upgrade", "Sec-Websocket-Accept", "Sec-Websocket-Extensions", "Content-Type"} {
		delete(header, own) // there is no content
	}
	if offersSubprotocol(r.Header["Sec-Websocket-Protocol"]) {
		header.Set("Sec-Websocket-Protocol", Subprotocol)
	}
	if header.Get("Sec-Websocket-Protocol") == Subprotocol {
		f.encoding = envelopeFrame
	}
	if c.hub.shared.compression {
		if agreed := agreeOnDeflate(r.Header["Sec-Websocket-Extensions"]); agreed != "" {
			header.Set("Sec-Websocket-Extensions", agreed)
			f.deflate = true
		}
	}
	c.wire.inflates = f.deflate
	mem := messages.Get().(*[]byte)
	defer messages.Put(mem)
	head := append((*mem)[:0], "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: "...)
	head = append(appendAcceptKey(head, r.Header.Get("Sec-Websocket-Key")), "\r\n"...)
	return f, c.wire.answer(head, header, nil)
}

// offersSubprotocol reports whether the client speaks Subprotocol. Its names are
// compared exactly (RFC 6455 §11.5).
func offersSubprotocol(header []string) bool {
	return anyListed(header, func(name string) bool { return name == Subprotocol })
}

// appendAcceptKey appends what proves that the handshake was understood (RFC 6455
// §4.2.2).
func appendAcceptKey(b []byte, key string) []byte {
	proof := append(make([]byte, 0, 2*maxKey), strings.TrimSpace(key)...)
	sum := sha1.Sum(append(proof, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"...))
	return base64.StdEncoding.AppendEncode(b, sum[:])
}
