//go:build linux

package main

import (
	"net/http"

	"github.com/r3labs/sse/v2"
)

// serveR3labs follows r3labs/sse's README.
func serveR3labs() (http.Handler, func(int, func() []byte)) {
	s := sse.New()
	s.CreateStream("messages")
	return s, func(n int, next func() []byte) {
		for range n {
			s.Publish("messages", &sse.Event{Data: next()})
		}
	}
}
