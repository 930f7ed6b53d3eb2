//go:build linux

package main

import (
	"net/http"

	"github.com/olahol/melody"
)

// serveMelody follows melody's README.
func serveMelody() (http.Handler, func(int, func() []byte)) {
	m := melody.New()
	m.HandleMessage(func(s *melody.Session, msg []byte) { s.Write(msg) })
	join := func(w http.ResponseWriter, r *http.Request) { m.HandleRequest(w, r) }
	return http.HandlerFunc(join), func(n int, next func() []byte) {
		for range n {
			m.Broadcast(next())
		}
	}
}
