package realtime_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"unicode/utf8"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// An sseDispatch is an event that a browser dispatches.
type sseDispatch struct{ name, data, id string }

// An sseParsed is what the parser made of a stream.
type sseParsed struct {
	events   []sseDispatch
	comments []string
	unknown  []string // fields that the format doesn't know, and what it ignores
	retry    string
}

// sseParse is the parser of WHATWG HTML §9.2.5 and §9.2.6, written from the
// text of the standard and not from the encoder.
func sseParse(stream string) (p sseParsed) {
	stream = strings.ToValidUTF8(stream, "\uFFFD") // "must be decoded as UTF-8"
	stream = strings.TrimPrefix(stream, "\uFEFF")  // "one leading BOM"

	var data, eventType, lastID string
	for stream != "" {
		i := strings.IndexAny(stream, "\r\n")
		if i < 0 {
			break // no end of line: discarded
		}
		line := stream[:i]
		if strings.HasPrefix(stream[i:], "\r\n") {
			i++
		}
		stream = stream[i+1:]

		if line == "" { // dispatch the event
			if data != "" {
				if eventType == "" {
					eventType = "message"
				}
				p.events = append(p.events, sseDispatch{eventType, strings.TrimSuffix(data, "\n"), lastID})
			}
			data, eventType = "", ""
			continue
		}
		field, value, colon := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case colon && field == "":
			p.comments = append(p.comments, value)
		case field == "event":
			eventType = value
		case field == "data":
			data += value + "\n"
		case field == "id" && !strings.Contains(value, "\x00"):
			lastID = value
		case field == "retry" && value != "" && strings.Trim(value, "0123456789") == "":
			p.retry = value
		default:
			p.unknown = append(p.unknown, line)
		}
	}
	return p
}

// The standard's own examples (WHATWG HTML §9.2.6), for the parser's sake.
func TestSSEParser(t *testing.T) {
	for _, tt := range []struct {
		stream string
		want   sseParsed
	}{
		{"data: YHOO\ndata: +2\ndata: 10\n\n",
			sseParsed{events: []sseDispatch{{"message", "YHOO\n+2\n10", ""}}}},
		{": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
			sseParsed{comments: []string{"test stream"}, events: []sseDispatch{{"message", "first event", "1"}, {"message", "second event", ""}}}},
		{"data\n\ndata\ndata\n\ndata:", sseParsed{events: []sseDispatch{{"message", "", ""}, {"message", "\n", ""}}}},
		{"data:test\n\ndata: test\n\n", sseParsed{events: []sseDispatch{{"message", "test", ""}, {"message", "test", ""}}}},
		{"\uFEFFevent: add\r\ndata: 1\rid: 2\n\r\nretry: 10\nretry: x\nid: \x00\nnone: 1\n",
			sseParsed{events: []sseDispatch{{"add", "1", "2"}}, retry: "10", unknown: []string{"retry: x", "id: \x00", "none: 1"}}},
	} {
		if got := sseParse(tt.stream); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%q:\ngot  %+v\nwant %+v", tt.stream, got, tt.want)
		}
	}
}

// FuzzStream checks that what a browser makes of a stream is what was sent,
// each event one event and nothing besides, whatever its parts contain.
func FuzzStream(f *testing.F) {
	f.Add("update", "hello", "42", "heartbeat", false)
	f.Add("", "", "", "", false)
	f.Add("a", " a\r\n\r\nevent: b\nid: 1\rdata: c\n", "x", "\n\ndata: injected\n\n", false)
	f.Add("a\nb", "\uFEFF", "1 2", "\r", true)
	f.Add("\x80", "a\xe2\x82\nb\xff\x00", "é", "\xff\r\n", false)
	f.Add(" : ", "retry: 1", "\x00", ":", true)
	f.Fuzz(func(t *testing.T, name, data, id, comment string, binary bool) {
		rec := httptest.NewRecorder()
		s := realtime.NewStream(rec, httptest.NewRequest("GET", "/", nil))
		if err := s.Comment(comment); err != nil {
			t.Fatal(err)
		}
		before := rec.Body.Len()
		err := s.SendEvent(realtime.Event{Name: name, Data: []byte(data), ID: id, Binary: binary})

		visible := func(r rune) bool { return r > ' ' && r < 0x7F }
		allowed := !strings.Contains(name, "\n") && !strings.Contains(name, "\r") &&
			strings.IndexFunc(id, func(r rune) bool { return !visible(r) }) < 0 && len(id) <= 1024
		var want sseParsed
		if allowed {
			e := sseDispatch{name: sseUTF8(name), data: sseLines(data), id: id}
			if name == "" {
				e.name = "message"
			}
			if binary {
				e.data = base64.StdEncoding.EncodeToString([]byte(data))
			}
			want.events = append(want.events, e)
		} else if rec.Body.Len() > before {
			t.Errorf("got %q written by an event that was refused", rec.Body.String()[before:])
		}
		if (err == nil) != allowed {
			t.Errorf("got error %v, want one: %v", err, !allowed)
		}

		if err := s.SendRaw(data); err != nil {
			t.Fatal(err)
		}
		if !allowed {
			id = ""
		}
		want.events = append(want.events, sseDispatch{"message", sseLines(data), id})
		if err := s.Comment(comment); err != nil {
			t.Fatal(err)
		}
		lines := strings.Split(sseLines(comment), "\n")
		want.comments = append(lines, lines...)

		stream := rec.Body.String()
		if !utf8.ValidString(stream) {
			t.Errorf("%q is not UTF-8", stream)
		}
		if got := sseParse(stream); !reflect.DeepEqual(got, want) {
			t.Errorf("%q\ngot  %+v\nwant %+v", stream, got, want)
		}
	})
}

// sseLines returns text as it arrives: its line breaks are LF.
func sseLines(text string) string {
	return sseUTF8(strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(text))
}

// sseUTF8 returns text as it arrives, with a U+FFFD for each run of bytes
// that are not UTF-8.
func sseUTF8(text string) string {
	var b strings.Builder
	invalid := false
	for text != "" {
		r, size := utf8.DecodeRuneInString(text)
		text = text[size:]
		wasInvalid := invalid
		invalid = r == utf8.RuneError && size == 1
		if !invalid || !wasInvalid {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// TestLineBreaks sends every text of up to four letters that end lines or might
// confuse a reader. No CR goes out, so that readers for which only LF ends a line
// get the same data as those for which CR and CRLF do too (WHATWG HTML §9.2.5).
func TestLineBreaks(t *testing.T) {
	texts := []string{""}
	for i := 0; len(texts) < 1+4+16+64+256; i++ {
		for _, letter := range []string{"\r", "\n", "a", "\uFEFF"} {
			texts = append(texts, texts[i]+letter)
		}
	}
	check := func(t *testing.T, stream string, want func(text string) string) {
		t.Helper()
		if strings.Contains(stream, "\r") {
			t.Error("a CR goes out")
		}
		events := slices.DeleteFunc(sseParse(stream).events, func(e sseDispatch) bool {
			return strings.HasPrefix(e.data, `{"client":`) || strings.HasPrefix(e.data, `{"close":`) // the hub's own
		})
		if len(events) != len(texts) {
			t.Fatalf("got %d events, want %d", len(events), len(texts))
		}
		for i, text := range texts {
			if want := want(text); events[i].data != want {
				t.Errorf("%q arrives as %q, want %q", text, events[i].data, want)
			}
		}
	}

	t.Run("Stream", func(t *testing.T) {
		rec := httptest.NewRecorder()
		s := realtime.NewStream(rec, httptest.NewRequest("GET", "/", nil))
		for _, text := range texts {
			if err := errors.Join(s.Comment(text), s.SendRaw(text)); err != nil {
				t.Fatal(err)
			}
		}
		check(t, rec.Body.String(), sseLines)
	})
	for _, tt := range []struct {
		query string
		want  func(text string) string
	}{
		{"", sseLines},
		{"protocol=realtime.v1", func(text string) string { // which has all line breaks as they are
			b, _ := json.Marshal(map[string]string{"data": text})
			return string(b)
		}},
	} {
		t.Run("Hub/"+tt.query, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := realtime.NewHub()
				hub.SendBuffer = len(texts)
				hub.PingInterval = -1
				hub.OnConnect = func(*realtime.Client, *http.Request) error { return nil }
				l := newPipeSite(t, hub).listen(tt.query)
				for _, text := range texts {
					hub.Broadcast <- []byte(text)
				}
				go hub.Shutdown(context.Background())
				stream, err := io.ReadAll(l.br)
				if err != nil {
					t.Fatal(err)
				}
				check(t, string(stream), tt.want)
			})
		})
	}
}
