//go:build linux

package main

import (
	"net/http"

	"github.com/tmaxmax/go-sse"
)

// serveGoSSE follows go-sse's README, with its provider Joe. OnSession sends the
// headers. Otherwise they would come with the first event.
func serveGoSSE() (http.Handler, func(int, func() []byte)) {
	s := &sse.Server{OnSession: func(w http.ResponseWriter, _ *http.Request) ([]string, bool) {
		w.Header().Set("Content-Type", "text/event-stream")
		return nil, http.NewResponseController(w).Flush() == nil
	}}
	return s, func(n int, next func() []byte) {
		for range n {
			m := &sse.Message{}
			m.AppendData(string(next()))
			s.Publish(m)
		}
	}
}
