package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// serve starts the feed and returns its desk and its URL.
func serve(t *testing.T, pause time.Duration) (*desk, string) {
	ctx, stop := context.WithCancel(context.Background())
	desk := newDesk(ctx, pause)
	server := httptest.NewServer(newHandler(desk))
	t.Cleanup(func() {
		stop()
		server.CloseClientConnections()
		server.Close()
		desk.writing.Wait()
	})
	return desk, server.URL
}

// whole returns the answer to the prompt.
func whole(prompt string) string {
	var text strings.Builder
	for w := newWriter(prompt); ; {
		word, _, ok := w.next()
		if !ok {
			return text.String()
		}
		text.WriteString(word)
	}
}

func post(t *testing.T, url, body string) *http.Response {
	t.Helper()
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}

// ask asks the prompt and returns the answer's id.
func ask(t *testing.T, base, prompt string) string {
	t.Helper()
	resp := post(t, base+"/answers", fmt.Sprintf(`{"prompt": %q}`, prompt))
	var got struct{ ID, Prompt string }
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("got status %d and %v", resp.StatusCode, err)
	}
	if want := strings.TrimSpace(prompt); got.ID == "" || got.Prompt != want {
		t.Fatalf("got id %q and prompt %q, want %q", got.ID, got.Prompt, want)
	}
	return got.ID
}

// A reader reads an answer's event stream, as an EventSource does.
type reader struct {
	t      *testing.T
	resp   *http.Response
	lines  *bufio.Scanner
	lastID string
}

// read opens the stream behind lastID.
func read(t *testing.T, base, id, lastID string) *reader {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", base+"/events/feed/"+id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &reader{t, resp, bufio.NewScanner(resp.Body), lastID}
}

// next returns the next event's name and data, as JSON.
func (r *reader) next() (name, data string) {
	r.t.Helper()
	for r.lines.Scan() {
		field, value, _ := strings.Cut(r.lines.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "data":
			data = value
		case "id":
			r.lastID = value
		case "":
			if name != "" {
				return name, data
			}
		}
	}
	r.t.Fatalf("the stream ended behind the id %q: %v", r.lastID, r.lines.Err())
	return "", ""
}

// words returns the next words, or why there are no more.
func (r *reader) words() (text, end string) {
	r.t.Helper()
	for {
		name, data := r.next()
		into := &text
		switch name {
		case "words":
		case "end":
			into = &end
		default:
			continue
		}
		if err := json.Unmarshal([]byte(data), into); err != nil {
			r.t.Fatal(err)
		}
		return text, end
	}
}

// TestAnswer reads an answer in one go.
func TestAnswer(t *testing.T) {
	_, base := serve(t, time.Millisecond)
	const prompt = " What is an event stream? "
	reader := read(t, base, ask(t, base, prompt), "")
	var got strings.Builder
	for {
		text, end := reader.words()
		got.WriteString(text)
		if end != "" {
			if end != "finished" || reader.lastID != "end" {
				t.Errorf("got the end %q with the id %q, want %q with %q", end, reader.lastID, "finished", "end")
			}
			break
		}
	}
	if want := whole(strings.TrimSpace(prompt)); got.String() != want {
		t.Errorf("got\n%s\nwant\n%s", got.String(), want)
	}
	if reader.lines.Scan() {
		t.Errorf("got %q behind the end", reader.lines.Text())
	}
}

// TestResume cuts a reader after each event. It comes back with the last id and
// gets each word once and in order.
func TestResume(t *testing.T) {
	desk, base := serve(t, time.Hour)
	a := &answer{id: "a", changed: make(chan struct{})}
	desk.answers[a.id] = a
	got, want, lastID := "", "", ""
	for i, word := range strings.SplitAfter("each word once and in order", " ") {
		a.add(word)
		want += word
		if i%3 == 1 {
			continue // the next reader gets two
		}
		reader := read(t, base, a.id, lastID)
		text, _ := reader.words()
		got, lastID = got+text, reader.lastID
		if got != want {
			t.Fatalf("behind the id %s: got %q, want %q", lastID, got, want)
		}
		reader.resp.Body.Close()
	}
	a.finish(errFinished)
	if text, end := read(t, base, a.id, lastID).words(); text != "" || end != "finished" {
		t.Errorf("got %q and the end %q, want %q", text, end, "finished")
	}

	// A page that is reloaded, or comes late, gets all. So does one with an id
	// that no event had.
	for _, lastID := range []string{"", "-1", "100000", "words"} {
		if got, _ := read(t, base, a.id, lastID).words(); got != want {
			t.Errorf("behind the id %q: got %q, want %q", lastID, got, want)
		}
	}
	// One that has seen the end needn't come back.
	if got := read(t, base, a.id, "end").resp.StatusCode; got != http.StatusNoContent {
		t.Errorf("behind the end: got status %d, want 204", got)
	}
}

// TestStop has two pages watch an answer. Stop ends it for both.
func TestStop(t *testing.T) {
	desk, base := serve(t, time.Second)
	id := ask(t, base, "How does the page come back?")
	ann, bob := read(t, base, id, ""), read(t, base, id, "")
	if got := post(t, base+"/answers/"+id+"/stop", "").StatusCode; got != http.StatusNoContent {
		t.Errorf("got status %d, want 204", got)
	}
	for _, reader := range []*reader{ann, bob} {
		end := ""
		for end == "" {
			_, end = reader.words()
		}
		if end != "stopped" {
			t.Errorf("got the end %q, want %q", end, "stopped")
		}
	}
	desk.writing.Wait()
}

// TestLeaving checks that a reader who leaves is noticed.
func TestLeaving(t *testing.T) {
	desk, base := serve(t, time.Hour)
	id := ask(t, base, "Is anybody there?")
	a := desk.find(id)
	a.add("Yes")
	reader := read(t, base, id, "")
	reader.words()
	if got := a.watch(0); got != 1 {
		t.Errorf("got %d readers, want 1", got)
	}
	reader.resp.Body.Close()
	for deadline := time.Now().Add(time.Minute); a.watch(0) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the reader has left, but still counts")
		}
	}
}

// TestUnread checks that an answer is written to its end without a reader.
func TestUnread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desk := newDesk(t.Context(), 80*time.Millisecond)
		a, err := desk.ask("Is anybody there?")
		if err != nil {
			t.Fatal(err)
		}
		desk.writing.Wait()
		if got, _, end, _ := a.after(0); got != whole("Is anybody there?") || end != "finished" {
			t.Errorf("without a reader the answer ended with %q and is\n%s", end, got)
		}
	})
}

func TestTick(t *testing.T) {
	_, base := serve(t, time.Hour)
	reader := read(t, base, ask(t, base, "What is the time?"), "")
	name, data := reader.next()
	var tick struct {
		Time  time.Time
		Count int
	}
	if err := json.Unmarshal([]byte(data), &tick); err != nil || name != "tick" || tick.Count != 1 || reader.lastID != "" {
		t.Errorf("got %s %s with the id %q and %v, want a tick for one reader without an id", name, data, reader.lastID, err)
	}
}

func TestRefused(t *testing.T) {
	desk, base := serve(t, time.Hour)
	for _, body := range []string{``, `{}`, `{"prompt": " "}`, `"hello"`, `{"prompt": "` + strings.Repeat("ä", maxPromptRunes+1) + `"}`,
		`{"prompt": "` + strings.Repeat(" ", 100_000) + `hello"}`} {
		if got := post(t, base+"/answers", body).StatusCode; got != http.StatusBadRequest {
			t.Errorf("%.40q: got status %d, want 400", body, got)
		}
	}
	ask(t, base, strings.Repeat("🦊", maxPromptRunes))
	for _, path := range []string{"/answers/no", "/events/feed/no"} {
		resp, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: got status %d, want 404", path, resp.StatusCode)
		}
	}

	// A page of another site can't ask.
	r, err := http.NewRequestWithContext(t.Context(), "POST", base+"/answers", strings.NewReader(`{"prompt": "hello"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Origin", "https://evil.example")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site: got status %d, want 403", resp.StatusCode)
	}

	for range maxWriting - 1 {
		ask(t, base, "hello")
	}
	resp = post(t, base+"/answers", `{"prompt": "hello"}`)
	if resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" {
		t.Errorf("got status %d after %d answers, want 503 with Retry-After", resp.StatusCode, maxWriting)
	}
	for id := range desk.answers {
		post(t, base+"/answers/"+id+"/stop", "")
		break
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if post(t, base+"/answers", `{"prompt": "hello"}`).StatusCode == http.StatusCreated {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("an answer was stopped, but there is no room for another one")
		}
	}
}

// TestLimits checks how long an answer may take, how long it is kept, and how
// many are.
func TestLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		desk := newDesk(t.Context(), time.Hour)
		slow, err := desk.ask("hello")
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(maxDuration - time.Nanosecond)
		synctest.Wait()
		if _, _, end, _ := slow.after(0); end != "" {
			t.Errorf("the answer ended too early: %s", end)
		}
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		if _, _, end, _ := slow.after(0); end != "too long" {
			t.Errorf("after %v: got the end %q, want %q", maxDuration, end, "too long")
		}
		time.Sleep(keepFor)
		if desk.find(slow.id) == nil {
			t.Errorf("the answer is gone %v after its end", keepFor)
		}
		time.Sleep(time.Nanosecond)
		if desk.find(slow.id) != nil {
			t.Errorf("the answer is still kept %v after its end", keepFor)
		}

		var first *answer
		for range maxKept {
			a, err := desk.ask("hello")
			if err != nil {
				t.Fatal(err)
			}
			if first == nil {
				first = a
			}
			a.stop(errStopped)
			synctest.Wait()
		}
		if desk.find(first.id) == nil {
			t.Errorf("of %d answers the first is gone", maxKept)
		}
		a, _ := desk.ask("hello")
		a.stop(errStopped)
		synctest.Wait()
		if desk.find(first.id) != nil || len(desk.answers) != maxKept {
			t.Errorf("got %d answers, the first among them: %v, want %d", len(desk.answers), desk.find(first.id) != nil, maxKept)
		}
	})
}

// TestWriter checks that answers end, and that they answer.
func TestWriter(t *testing.T) {
	for i := range 1000 {
		prompt := fmt.Sprint("Nothing ", i)
		text := whole(prompt)
		if words := len(strings.Fields(text)); words < 20 || words > maxWords {
			t.Errorf("%s: got %d words", prompt, words)
		}
		if !strings.HasPrefix(text, "Nothing ") || text != whole(prompt) {
			t.Errorf("%s: got %q, want the same each time, with %q first", prompt, text, "Nothing")
		}
	}
}

func TestPage(t *testing.T) {
	_, base := serve(t, time.Millisecond)
	resp, err := http.Get(base)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	policy := resp.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") {
		t.Errorf("got policy %q", policy)
	}
}
