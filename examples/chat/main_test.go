package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/coder/websocket"
	"github.com/coder/websocket/wsjson"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// serve starts the chat and returns its hub and its URL.
func serve(t *testing.T) (hub *realtime.Hub, base string) {
	hub = newHub()
	server := httptest.NewServer(newHandler(hub))
	t.Cleanup(func() {
		if err := hub.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		server.Close()
	})
	return hub, server.URL
}

// A visitor is a client in the chat.
type visitor struct {
	*testing.T
	conn *websocket.Conn
	key  string
}

func join(t *testing.T, base, name string) *visitor {
	t.Helper()
	return joinAs(t, base, name, "", "")
}

// joinAs joins the chat with a cookie and the id of the last event.
func joinAs(t *testing.T, base, name, secret, id string) *visitor {
	t.Helper()
	options := &websocket.DialOptions{Subprotocols: []string{realtime.Subprotocol}, HTTPHeader: http.Header{}}
	if secret != "" {
		options.HTTPHeader.Set("Cookie", "person="+secret)
	}
	query := url.Values{"name": {name}, "lastEventId": {id}}
	conn, _, err := websocket.Dial(t.Context(), base+"/live?"+query.Encode(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.CloseNow() })
	v := &visitor{t, conn, ""}
	v.key = v.next("welcome")
	return v
}

// next returns the data of the next event of that name. If it is JSON, it is
// decoded into each of dst.
func (v *visitor) next(name string, dst ...any) string {
	v.Helper()
	ctx, cancel := context.WithTimeout(v.Context(), 30*time.Second)
	defer cancel()
	for {
		var e struct{ Event, Data string }
		if err := wsjson.Read(ctx, v.conn, &e); err != nil {
			v.Fatalf("waiting for %q: %v", name, err)
		}
		if e.Event != name {
			continue
		}
		for _, d := range dst {
			if err := json.Unmarshal([]byte(e.Data), d); err != nil {
				v.Fatalf("%s: %v", e.Data, err)
			}
		}
		return e.Data
	}
}

// member returns the next change of a member.
func (v *visitor) member(key string) (m member) {
	v.Helper()
	for m.Key != key {
		m = member{}
		v.next("presence", &m)
	}
	return m
}

func (v *visitor) send(text string) {
	v.Helper()
	if err := v.conn.Write(v.Context(), websocket.MessageText, []byte(text)); err != nil {
		v.Fatal(err)
	}
}

func TestName(t *testing.T) {
	_, base := serve(t)
	for _, tt := range []struct{ ask, want string }{
		{"Ann", "Ann"},
		{"  Ann \n", "Ann"},
		{"Zoë 🦊", "Zoë 🦊"},
		{strings.Repeat("é", 24), strings.Repeat("é", 24)},
		{strings.Repeat("é", 25), ""},
		{"", ""},
		{" ", ""},
		{"A\x00nn", ""},
		{"A\nnn", ""},
		{"A\x9bnn", ""}, // not UTF-8
		{"A\u009bnn", ""},
	} {
		if tt.want != "" {
			v := join(t, base, tt.ask)
			if m := v.member(v.key); m.Data.Name != tt.want {
				t.Errorf("%q: got the name %q, want %q", tt.ask, m.Data.Name, tt.want)
			}
			continue
		}
		conn, resp, err := websocket.Dial(t.Context(), base+"/live?name="+url.QueryEscape(tt.ask), nil)
		if err == nil {
			t.Errorf("%q was accepted", tt.ask)
			conn.CloseNow()
		} else if resp == nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: got %v, want a 400", tt.ask, err)
		}
	}
}

func TestOriginRefused(t *testing.T) {
	_, base := serve(t)
	_, resp, err := websocket.Dial(t.Context(), base+"/live?name=Eve", &websocket.DialOptions{
		HTTPHeader: http.Header{"Origin": {"https://evil.example"}},
	})
	if err == nil || resp == nil || resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site: got %v, want a 403", err)
	}
}

func TestMessageCannotBeForged(t *testing.T) {
	_, base := serve(t)
	ann, eve := join(t, base, "Ann"), join(t, base, "Eve")
	eve.send(`{"id": "1", "from": "` + ann.key + `", "name": "Ann", "text": "I am Ann <b>", "time": "2000-01-01T00:00:00Z"}`)
	for _, v := range []*visitor{ann, eve} {
		var got message
		v.next("said", &got)
		if got.ID != "1" || got.Name != "Eve" || got.From != eve.key || got.Text != "I am Ann <b>" {
			t.Errorf("got %+v, want it from Eve", got)
		}
		if age := time.Since(got.Time); age < 0 || age > time.Minute {
			t.Errorf("message is %v old", age)
		}
	}
	// To know Ann's key isn't enough to be her.
	if again := joinAs(t, base, "Ann", ann.key, ""); again.key == ann.key {
		t.Error("Eve has Ann's key")
	}
}

func TestBadMessage(t *testing.T) {
	_, base := serve(t)
	ann, bob := join(t, base, "Ann"), join(t, base, "Bob")
	for _, bad := range []string{
		`{"id": "7", "text": "` + strings.Repeat(`\ud83e\udd8a`, 1001) + `"}`,
		`{"id": "7", "text": "  "}`,
		`{"text": 1}`,
		`{"text": "x", "id": "` + strings.Repeat("x", 65) + `"}`,
		`Hello`,
	} {
		ann.send(bad)
		var got struct{ ID, Reason string }
		if ann.next("refused", &got); got.Reason == "" || strings.Contains(bad, `"7"`) != (got.ID == "7") {
			t.Errorf("%.20s…: got %+v", bad, got)
		}
	}
	longest := strings.Repeat("🦊", 1000)
	ann.send(`{"text": "` + strings.Repeat(`\ud83e\udd8a`, 1000) + `"}`)
	var m message // the first from Ann that Bob gets
	if bob.next("said", &m); m.Text != longest {
		t.Errorf("Bob got %.40q, want Ann's valid message", m.Text)
	}
}

// A client may send some messages at once, and then so many in a time.
func TestTooFast(t *testing.T) {
	g := &guest{}
	synctest.Test(t, func(t *testing.T) {
		accepted := func() (n int) {
			for range 100 {
				if _, err := g.accept([]byte(`{"text": "spam"}`)); err == nil {
					n++
				}
			}
			return n
		}
		if got := accepted(); got != burst {
			t.Errorf("%d at once were accepted, want %d", got, burst)
		}
		time.Sleep(3 * interval)
		if got := accepted(); got != 3 {
			t.Errorf("%d after three intervals were accepted", got)
		}
		time.Sleep(time.Hour)
		if got := accepted(); got != burst {
			t.Errorf("%d after an hour were accepted, want %d", got, burst)
		}
	})
}

// A member is the data of an event of presence.
type member struct {
	Key  string
	Data person
	Gone bool
}

// A newcomer gets the last 50 messages, and who is there. Typing is told, and
// ends with what was typed.
func TestNewcomer(t *testing.T) {
	hub, base := serve(t)
	ann := joinAs(t, base, "Ann", "a secret", "")
	ann.next("presence")
	for i := range 60 {
		said, _ := realtime.JSON("said", message{Text: fmt.Sprint(i)})
		if err := hub.Publish(t.Context(), chat, said); err != nil {
			t.Fatal(err)
		}
	}
	bob := joinAs(t, base, "Bob", "", realtime.Oldest)
	for i := 10; i < 60; i++ {
		var m message
		if bob.next("said", &m); m.Text != fmt.Sprint(i) {
			t.Fatalf("got message %s, want %d", m.Text, i)
		}
	}
	ann.send(`{"typing": true}`)
	for !bob.member(ann.key).Data.Typing {
	}
	ann.send(`{"text": "Well"}`)
	if bob.member(ann.key).Data.Typing {
		t.Error("Ann still types what she has sent")
	}
	again := joinAs(t, base, "Ann", "a secret", realtime.Oldest) // another tab
	if again.key != ann.key {
		t.Errorf("Ann has the keys %s and %s", ann.key, again.key)
	}
	var m message
	for m.Text != "Well" {
		again.next("said", &m)
	}
	if m.From != ann.key {
		t.Errorf("got %+v", m)
	}
	count := 0
	for range hub.Members(people) {
		count++
	}
	if count != 2 {
		t.Errorf("%d people are there, want 2", count)
	}
}

func TestFeed(t *testing.T) {
	hub, base := serve(t)
	join(t, base, "Ann").next("presence")
	bob := join(t, base, "Bob")
	bob.next("presence")
	resp, err := http.Get(base + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("got Content-Type %q", got)
	}
	scanner := bufio.NewScanner(resp.Body)
	var tick struct {
		Time  time.Time
		Count int
	}
	for scanner.Scan() && tick.Count != 2 {
		if data, ok := strings.CutPrefix(scanner.Text(), "data: "); ok {
			if err := json.Unmarshal([]byte(data), &tick); err != nil {
				t.Fatal(err)
			}
		}
	}
	if age := time.Since(tick.Time); tick.Count != 2 || age > time.Minute {
		t.Errorf("got %+v, want two people now", tick)
	}
	go hub.Shutdown(context.Background())
	for scanner.Scan() {
	}
	if err := scanner.Err(); err != nil {
		t.Errorf("the feed ended with %v, want a clean end", err)
	}
}

// Each browser gets a cookie once, which scripts can't read.
func TestCookie(t *testing.T) {
	handler := newHandler(newHub())
	get := func(cookie *http.Cookie) []*http.Cookie {
		w, r := httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil)
		if cookie != nil {
			r.AddCookie(cookie)
		}
		handler.ServeHTTP(w, r)
		if !strings.Contains(w.Body.String(), "<title>Chat</title>") {
			t.Errorf("the page is %.100q", w.Body.String())
		}
		return w.Result().Cookies()
	}
	cookies := get(nil)
	if len(cookies) != 1 || !cookies[0].HttpOnly || len(cookies[0].Value) < 20 {
		t.Fatalf("got the cookies %v", cookies)
	}
	if again := get(cookies[0]); len(again) != 0 {
		t.Errorf("got another cookie: %v", again)
	}
}
