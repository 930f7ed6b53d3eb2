//go:build linux

package main

import (
	"net/http"
	"runtime/debug"
	"slices"
)

// A contender is a server to compare.
type contender struct {
	name   string
	module string // the results name its version; empty: it is part of this program
	protocol

	// serve sets the server up, in its own process. It returns the handler
	// that clients connect to, and a function that publishes n messages. next
	// makes a message with the current time; its bytes belong to the publisher.
	// next is called on the goroutine that publishes.
	serve func() (clients http.Handler, publish func(n int, next func() []byte))
}

// contenders are in the order in which they take turns.
var contenders = slices.Concat([]contender{{"floor", "", noEcho, serveFloor}}, ours, peers)

var peers = []contender{
	{"gorilla", "github.com/gorilla/websocket", plain, serveGorilla},
	{"coder", "github.com/coder/websocket", plain, serveCoder},
	{"melody", "github.com/olahol/melody", plain, serveMelody},
	{"gws", "github.com/lxzan/gws", plain, serveGWS},
	{"centrifuge", "github.com/centrifugal/centrifuge", centrifugeJSON, serveCentrifuge},
	{"go-sse", "github.com/tmaxmax/go-sse", eventStream, serveGoSSE},
	{"r3labs", "github.com/r3labs/sse/v2", eventStream, serveR3labs},
}

// find returns the contender with that name, or nil.
func find(all []contender, name string) *contender {
	for i := range all {
		if all[i].name == name {
			return &all[i]
		}
	}
	return nil
}

// ours reports whether the contender is this package.
func (c *contender) ours() bool { return c.module == ourModule }

// version returns the version of the contender's module in this program.
func (c *contender) version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || c.module == "" {
		return ""
	}
	for _, m := range info.Deps {
		switch {
		case m.Path != c.module:
		case m.Replace != nil:
			return "this tree"
		default:
			return m.Version
		}
	}
	return ""
}
