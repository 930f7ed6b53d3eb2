package realtime

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/coder/websocket"
)

// checkHandshake reports why r is no opening handshake (RFC 6455 §4.2.1), and
// the HTTP status that says so. It runs before OnConnect, so that no client is
// made of a request that websocket.Accept would refuse.
func checkHandshake(answer http.Header, r *http.Request) (status int, err error) {
	switch {
	case r.Method != http.MethodGet:
		answer.Set("Allow", http.MethodGet)
		return http.StatusMethodNotAllowed, fmt.Errorf("a WebSocket handshake is a GET, not a %s", r.Method)
	case !r.ProtoAtLeast(1, 1) || r.ProtoMajor != 1:
		return http.StatusUpgradeRequired, fmt.Errorf("a WebSocket handshake needs HTTP/1.1, not %s", r.Proto)
	case !hasToken(r.Header["Connection"], "upgrade") || !hasToken(r.Header["Upgrade"], "websocket"):
		return http.StatusUpgradeRequired, errors.New("not a WebSocket handshake: it lacks Connection: Upgrade and Upgrade: websocket, which a proxy in front may have dropped")
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		answer.Set("Sec-WebSocket-Version", "13")
		return http.StatusUpgradeRequired, fmt.Errorf("WebSocket version %q is not 13", r.Header.Get("Sec-WebSocket-Version"))
	case r.ContentLength != 0: // negative if it is chunked; the body would be read as frames
		answer.Set("Connection", "close") // so that net/http doesn't wait for it
		return http.StatusBadRequest, errors.New("a WebSocket handshake has no body")
	}
	keys := r.Header["Sec-Websocket-Key"]
	if len(keys) == 1 {
		key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(keys[0]))
		if err == nil && len(key) == 16 {
			return 0, nil
		}
	}
	return http.StatusBadRequest, errors.New("the handshake needs one Sec-WebSocket-Key, 16 bytes in base64")
}

// hasToken reports whether token is in a header's comma-separated lists.
func hasToken(values []string, token string) bool {
	for t := range strings.SplitSeq(strings.Join(values, ","), ",") {
		if strings.EqualFold(strings.TrimSpace(t), token) {
			return true
		}
	}
	return false
}

// shakeHands answers the handshake and puts the library on the connection.
func (c *Client) shakeHands(header http.Header, r *http.Request) (format, error) {
	mode := websocket.CompressionDisabled
	if c.hub.shared.compression {
		mode = websocket.CompressionNoContextTakeover
	}
	h := &handshaker{header: header, wire: &c.wire}
	conn, err := websocket.Accept(h, r, &websocket.AcceptOptions{
		InsecureSkipVerify: true, // the hub has asked CheckOrigin
		CompressionMode:    mode,
		Subprotocols:       []string{Subprotocol},
		OnPingReceived:     c.gotPing,
		OnPongReceived:     func(context.Context, []byte) { c.gotControl() },
	})
	if err != nil {
		return format{}, err
	}
	conn.SetReadLimit(c.hub.shared.maxMessageBytes)
	c.conn = conn
	c.wire.in.Reset(&c.wire) // without the library's reader of bytes that it thinks were read already
	return h.format, nil
}
