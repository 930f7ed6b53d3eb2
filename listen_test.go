package realtime_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// A listener is an event-stream client of a hub: what a browser's EventSource
// is (WHATWG HTML §9.2), but that it comes back only when told to.
type listener struct {
	t    testing.TB
	conn net.Conn
	resp *http.Response
	br   *bufio.Reader

	lastID   string // as the browser would send it back
	retry    string // the last one
	comments int    // how many came
}

// A heard is an event as a script in the browser gets it.
type heard struct{ id, name, data string }

// listen joins an event-stream client with the given query and header lines,
// or fails the test.
func (s *site) listen(query string, header ...string) *listener {
	s.t.Helper()
	l := s.request("GET", query, append(header, "Accept: text/event-stream")...)
	if l.resp.StatusCode != http.StatusOK || l.resp.Header.Get("Content-Type") != "text/event-stream" {
		body, _ := io.ReadAll(l.resp.Body)
		s.t.Fatalf("answered %s with %v: %s", l.resp.Status, l.resp.Header, body)
	}
	return l
}

// request makes a request of the hub's handler and reads the head of its answer.
func (s *site) request(method, query string, header ...string) *listener {
	s.t.Helper()
	conn, err := s.dial(context.Background(), "tcp", s.host())
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	lines := append([]string{method + " /ws?" + query + " HTTP/1.1", "Host: pipe"}, header...)
	go io.WriteString(conn, strings.Join(lines, "\r\n")+"\r\n\r\n")
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, &http.Request{Method: method})
	if err != nil {
		s.t.Fatalf("%s: %v", method, err)
	}
	return &listener{t: s.t, conn: conn, resp: resp, br: bufio.NewReader(resp.Body)}
}

func (s *site) host() string { return strings.TrimSuffix(strings.TrimPrefix(s.url, "ws://"), "/ws") }

// event returns the next event, or the error that ended the stream.
func (l *listener) event() (ev heard, err error) {
	var data []string
	for {
		line, err := l.br.ReadString('\n')
		if err != nil {
			if line != "" {
				return ev, fmt.Errorf("the stream ends within line %q: %w", line, err)
			}
			return ev, err
		}
		line = line[:len(line)-1]
		field, value, _ := strings.Cut(line, ":")
		value = strings.TrimPrefix(value, " ")
		switch {
		case line == "":
			if data != nil {
				ev.id, ev.data = l.lastID, strings.Join(data, "\n")
				return ev, nil
			}
			ev = heard{}
		case field == "":
			l.comments++
		case field == "id":
			l.lastID = value
		case field == "event":
			ev.name = value
		case field == "data":
			data = append(data, value)
		case field == "retry":
			l.retry = value
		default:
			return ev, errors.New("strange line " + line)
		}
	}
}

// next returns the data of the next event, or fails the test.
func (l *listener) next() string {
	l.t.Helper()
	ev, err := l.event()
	if err != nil {
		l.t.Fatalf("next event: %v", err)
	}
	return ev.data
}

// cut ends the connection as a pulled plug does.
func (l *listener) cut() { l.conn.Close() }
