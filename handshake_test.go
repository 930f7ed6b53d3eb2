package realtime_test

import (
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
