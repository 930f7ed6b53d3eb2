package realtime_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

func TestNotAHandshake(t *testing.T) {
	valid := http.Header{
		"Connection": {"keep-alive, Upgrade"}, "Upgrade": {"websocket"},
		"Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
	}
	tests := map[string]struct {
		change func(r *http.Request)
		status int
		header string // one that the answer must have
	}{
		"a plain GET":       {func(r *http.Request) { r.Header = http.Header{} }, 426, ""},
		"an EventSource":    {func(r *http.Request) { r.Header = http.Header{"Accept": {"text/event-stream"}} }, 426, ""},
		"no Upgrade":        {func(r *http.Request) { r.Header.Del("Upgrade") }, 426, ""},
		"no Connection":     {func(r *http.Request) { r.Header.Del("Connection") }, 426, ""},
		"another protocol":  {func(r *http.Request) { r.Header.Set("Upgrade", "h2c") }, 426, ""},
		"HTTP/1.0":          {func(r *http.Request) { r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/1.0", 1, 0 }, 426, ""},
		"HTTP/2":            {func(r *http.Request) { r.Proto, r.ProtoMajor, r.ProtoMinor = "HTTP/2.0", 2, 0 }, 426, ""},
		"POST":              {func(r *http.Request) { r.Method = "POST" }, 405, "Allow"},
		"an old version":    {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Version", "8") }, 426, "Sec-WebSocket-Version"},
		"no version":        {func(r *http.Request) { r.Header.Del("Sec-WebSocket-Version") }, 426, "Sec-WebSocket-Version"},
		"no key":            {func(r *http.Request) { r.Header.Del("Sec-WebSocket-Key") }, 400, ""},
		"two keys":          {func(r *http.Request) { r.Header.Add("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==") }, 400, ""},
		"a short key":       {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "c2hvcnQ=") }, 400, ""},
		"a key not base64":  {func(r *http.Request) { r.Header.Set("Sec-WebSocket-Key", "!") }, 400, ""},
		"a hidden Hijacker": {func(r *http.Request) {}, 501, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			hub := realtime.NewHub()
			defer hub.Shutdown(t.Context())
			hub.Logger = quiet
			hub.OnConnect = func(*realtime.Client, *http.Request) error {
				t.Error("OnConnect was called")
				return nil
			}
			r := httptest.NewRequest("GET", "/ws", nil)
			r.Header = valid.Clone()
			tt.change(r)
			rec := httptest.NewRecorder()
			err := realtime.Upgrade(rec, r, hub)
			if err == nil || rec.Code != tt.status {
				t.Errorf("answered %d, %v; want %d and an error", rec.Code, err, tt.status)
			}
			if tt.header != "" && rec.Header().Get(tt.header) == "" {
				t.Errorf("the answer lacks %s: %v", tt.header, rec.Header())
			}
			if tt.status == 501 && (!strings.Contains(err.Error(), "*httptest.ResponseRecorder") || !strings.Contains(err.Error(), "Unwrap")) {
				t.Errorf("error %q should name the culprit and the cure", err)
			}
			for of, cure := range map[string]string{"a plain GET": "Accept: text/event-stream", "an EventSource": "Hub.ServeSSE"} {
				if body := rec.Body.String(); name == of && !strings.Contains(body, cure) {
					t.Errorf("the answer %q should name the cure, %s", body, cure)
				}
			}
			connection, upgrade := "", ""
			if tt.status == 426 && r.ProtoMajor == 1 { // RFC 9110 §7.8 and §15.5.22
				connection, upgrade = "Upgrade", "websocket"
			}
			if h := rec.Header(); h.Get("Connection") != connection || h.Get("Upgrade") != upgrade {
				t.Errorf("the answer %d to %s has %v, want Connection: %q and Upgrade: %q", tt.status, r.Proto, h, connection, upgrade)
			}
			if hub.Stats().Refused != 1 {
				t.Errorf("Refused = %d, want 1", hub.Stats().Refused)
			}
		})
	}
}

// A body is not read as frames: a handshake that has one is refused, before
// OnConnect, and so is one that only announces it.
func TestHandshakeWithABody(t *testing.T) {
	body := frame(0x81, []byte("hello"))
	tests := map[string]struct {
		headers string
		status  string
	}{
		"a length":            {"Content-Length: 11\r\n", "400"},
		"chunks":              {"Transfer-Encoding: chunked\r\n", "400"},
		"a body that waits":   {"Content-Length: 11\r\nExpect: 100-continue\r\n", "400"},
		"no length":           {"", "101"},
		"a length of zero":    {"Content-Length: 0\r\n", "101"},
		"Expect without body": {"Expect: 100-continue\r\n", "101"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.OnConnect = func(*realtime.Client, *http.Request) error {
					if tt.status != "101" {
						t.Error("OnConnect was called")
					}
					return nil
				}
				var got []string
				hub.OnMessage = func(_ *realtime.Hub, msg realtime.Message) { got = append(got, string(msg.Data)) }
				s := newPipeSite(t, hub)
				conn := s.connection()
				go io.WriteString(conn, strings.TrimSuffix(handshake, "\r\n")+tt.headers+"\r\n"+string(body))
				var answer [12]byte
				io.ReadFull(conn, answer[:])
				if want := "HTTP/1.1 " + tt.status; string(answer[:]) != want {
					t.Errorf("answered %q, want %q", answer[:], want)
				}
				go io.Copy(io.Discard, conn)
				synctest.Wait()
				var want []string
				if tt.status == "101" {
					want = []string{"hello"}
				}
				if !slices.Equal(got, want) {
					t.Errorf("OnMessage got %q, want %q", got, want)
				}
			})
		})
	}
}

// answer sends a handshake with more header lines, and returns what is answered
// to it, byte for byte.
func (s *site) answer(lines ...string) string {
	s.t.Helper()
	conn := s.connection()
	defer conn.Close()
	go io.WriteString(conn, strings.TrimSuffix(handshake, "\r\n")+strings.Join(append(lines, "\r\n"), "\r\n"))
	var answer []byte
	for !strings.HasSuffix(string(answer), "\r\n\r\n") {
		var b [1]byte
		if _, err := conn.Read(b[:]); err != nil {
			s.t.Fatalf("after %q: %v", answer, err)
		}
		answer = append(answer, b[0])
	}
	return string(answer)
}

// Offers of compression are answered as RFC 7692 §7.1 wants it. An offer that
// must be declined, or that can't be kept to, leaves the connection without.
func TestDeflateOffers(t *testing.T) {
	const agreed = "permessage-deflate; client_no_context_takeover; server_no_context_takeover"
	padding := strings.Repeat("x,", 8<<10)
	tests := map[string]string{
		"permessage-deflate":                                                         agreed,
		"permessage-deflate; client_max_window_bits":                                 agreed, // Chromium, Firefox
		"permessage-deflate;client_max_window_bits=15":                               agreed,
		"permessage-deflate; client_max_window_bits=8":                               agreed,
		"permessage-deflate ; client_max_window_bits = \"10\"":                       agreed,
		"permessage-deflate; server_no_context_takeover; client_no_context_takeover": agreed,
		"permessage-deflate; server_max_window_bits=15":                              agreed + "; server_max_window_bits=15",
		"permessage-deflate; server_max_window_bits=\"15\"; client_max_window_bits":  agreed + "; server_max_window_bits=15",
		"permessage-deflate; server_max_window_bits=10, permessage-deflate":          agreed,
		"x-other; a=\", permessage-deflate, \"; b, permessage-deflate":               agreed,
		"x-other, permessage-deflate; server_max_window_bits=15, z":                  agreed + "; server_max_window_bits=15",
		"x-other\r\nSec-WebSocket-Extensions: permessage-deflate":                    agreed,

		"":                                    "",
		"x-other":                             "",
		"x-other; a=\", permessage-deflate\"": "",
		"Permessage-Deflate":                  "",
		"permessage-deflate;":                 "",
		"permessage-deflate; server_max_window_bits":                                 "",
		"permessage-deflate; server_max_window_bits=":                                "",
		"permessage-deflate; server_max_window_bits=8":                               "",
		"permessage-deflate; server_max_window_bits=14":                              "",
		"permessage-deflate; server_max_window_bits=16":                              "",
		"permessage-deflate; server_max_window_bits=015":                             "",
		"permessage-deflate; server_max_window_bits=\"15":                            "",
		"permessage-deflate; client_max_window_bits=":                                "",
		"permessage-deflate; client_max_window_bits=7":                               "",
		"permessage-deflate; client_max_window_bits=16":                              "",
		"permessage-deflate; client_max_window_bits=08":                              "",
		"permessage-deflate; client_max_window_bits=x":                               "",
		"permessage-deflate; client_max_window_bits=1x":                              "",
		"permessage-deflate; client_max_window_bits; client_max_window_bits":         "",
		"permessage-deflate; client_max_window_bits=9; client_max_window_bits=10":    "",
		"permessage-deflate; server_max_window_bits=15; server_max_window_bits=15":   "",
		"permessage-deflate; server_no_context_takeover; server_no_context_takeover": "",
		"permessage-deflate; server_no_context_takeover=1":                           "",
		"permessage-deflate; client_no_context_takeover=":                            "",
		"permessage-deflate; unknown":                                                "",
		"permessage-deflate; unknown=1":                                              "",
		padding + "permessage-deflate":                                               "", // so much is not looked at
		"permessage-deflate\r\nSec-WebSocket-Extensions: " + padding:                 "",
	}
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		hub.Compression = true
		s := newPipeSite(t, hub)
		for offer, extensions := range tests {
			if extensions != "" {
				extensions = "Sec-Websocket-Extensions: " + extensions + "\r\n"
			}
			want := "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
				"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" + extensions + "\r\n"
			if got := s.answer("Sec-WebSocket-Extensions: " + offer); got != want {
				t.Errorf("offer %.100q: answered %q, want %q", offer, got, want)
			}
		}
	})
}

// A subprotocol is chosen where its very name is offered: names are compared
// exactly.
func TestSubprotocolOffers(t *testing.T) {
	tests := map[string]struct {
		offer  string
		chosen string
	}{
		"alone":                  {"realtime.v1", "realtime.v1"},
		"among others":           {"chat, realtime.v1 ,x", "realtime.v1"},
		"in a line of its own":   {"chat\r\nSec-WebSocket-Protocol: realtime.v1", "realtime.v1"},
		"beside a token of 8 KB": {"realtime.v1, " + strings.Repeat("x", 8<<10), "realtime.v1"},
		"in other letters":       {"Realtime.V1", ""},
		"a longer name":          {"realtime.v10, realtime", ""},
		"none":                   {"", ""},
		"behind too much":        {strings.Repeat("x,", 8<<10) + "realtime.v1", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return c.Send([]byte("hi")) }
				s := newPipeSite(t, hub)
				conn := s.connection()
				go io.WriteString(conn, strings.TrimSuffix(handshake, "\r\n")+"Sec-WebSocket-Protocol: "+tt.offer+"\r\n\r\n")
				c := &rawClient{t: t, conn: conn}
				want := "hi"
				if tt.chosen != "" {
					want = `{"client":` // before "hi"
				}
				if got := c.readHandshake().Get("Sec-WebSocket-Protocol"); got != tt.chosen {
					t.Errorf("chosen: %q, want %q", got, tt.chosen)
				}
				if _, payload, err := c.readFrame(); err != nil || !strings.HasPrefix(string(payload), want) {
					t.Errorf("got %q, %v; want %q", payload, err, want)
				}
			})
		})
	}
}

// A handler chooses a subprotocol of its own by a header. Its client gets data
// alone. One that offers realtime.v1, too, gets that.
func TestOwnSubprotocol(t *testing.T) {
	for offer, want := range map[string]struct{ chosen, first string }{
		"chat":              {"chat", "hi"},
		"chat, realtime.v1": {"realtime.v1", `{"client":`},
	} {
		synctest.Test(t, func(t *testing.T) {
			hub := realtime.NewHub()
			hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return c.Send([]byte("hi")) }
			s := newPipeSite(t, hub)
			next := s.srv.Handler
			s.srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Sec-WebSocket-Protocol", "chat")
				next.ServeHTTP(w, r)
			})
			conn := s.connection()
			go io.WriteString(conn, strings.TrimSuffix(handshake, "\r\n")+"Sec-WebSocket-Protocol: "+offer+"\r\n\r\n")
			c := &rawClient{t: t, conn: conn}
			if got := c.readHandshake().Values("Sec-WebSocket-Protocol"); !slices.Equal(got, []string{want.chosen}) {
				t.Errorf("%s: chosen %q, want %q", offer, got, want.chosen)
			}
			if _, payload, err := c.readFrame(); err != nil || !strings.HasPrefix(string(payload), want.first) {
				t.Errorf("%s: got %q, %v; want %q", offer, payload, err, want.first)
			}
		})
	}
}

// Lists in headers are read to a limit. What is behind it doesn't count, so a
// megabyte costs about as little as to receive it.
func TestLongLists(t *testing.T) {
	padding := strings.Repeat("x,", 8<<10)
	hub := realtime.NewHub()
	defer hub.Shutdown(t.Context())
	for _, name := range []string{"Connection", "Upgrade", "Sec-WebSocket-Key", "Sec-WebSocket-Version"} {
		r := handshakeRequest(t)
		r.Header.Set(name, padding+r.Header.Get(name))
		rec := httptest.NewRecorder()
		if err := realtime.Upgrade(rec, r, hub); err == nil || rec.Code/100 != 4 || rec.Body.Len() > 1000 {
			t.Errorf("a long %s: answered %d with %d bytes, %v; want a short refusal", name, rec.Code, rec.Body.Len(), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel() // so that a stream would end at once
	r := httptest.NewRequestWithContext(ctx, "GET", "/", nil)
	r.Header.Set("Accept", padding+"text/event-stream")
	rec := httptest.NewRecorder()
	if hub.ServeHTTP(rec, r); rec.Code != http.StatusUpgradeRequired { // it becomes no stream
		t.Errorf("a long Accept: answered %d, want 426", rec.Code)
	}
	forwarded := "host=a.example"
	r = originRequest("x.example", "Origin: https://a.example", "Forwarded: "+forwarded)
	if !realtime.SameOrigin(r) {
		t.Error("an Origin that Forwarded names is refused")
	}
	r = originRequest("x.example", "Origin: https://a.example", "Forwarded: "+padding+forwarded)
	if realtime.SameOrigin(r) {
		t.Error("an Origin that Forwarded names behind its limit is accepted")
	}
}
