//go:build linux

package main

import (
	"context"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

// serveCoder follows coder/websocket's chat example: a map of subscribers under a
// mutex. Each has a channel and the handler's goroutine, which writes with a
// timeout. The example discards what clients send, with CloseRead and its
// goroutine. Here a goroutine echoes it.
func serveCoder() (http.Handler, func(int, func() []byte)) {
	s := &coderServer{subscribers: make(map[*coderSubscriber]struct{})}
	return http.HandlerFunc(s.subscribe), func(n int, next func() []byte) {
		for range n {
			s.publish(next())
		}
	}
}

type coderServer struct {
	mu          sync.Mutex // guards the field below
	subscribers map[*coderSubscriber]struct{}
}

type coderSubscriber struct {
	msgs chan []byte
	conn *websocket.Conn
}

func (s *coderServer) subscribe(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	sub := &coderSubscriber{make(chan []byte, 256), conn}
	s.mu.Lock()
	s.subscribers[sub] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.subscribers, sub)
		s.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go sub.echo(ctx, cancel)
	for {
		select {
		case msg := <-sub.msgs:
			if sub.write(ctx, msg) != nil {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

func (sub *coderSubscriber) echo(ctx context.Context, done context.CancelFunc) {
	defer done()
	for {
		_, msg, err := sub.conn.Read(ctx)
		if err != nil || sub.write(ctx, msg) != nil {
			return
		}
	}
}

func (sub *coderSubscriber) write(ctx context.Context, msg []byte) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return sub.conn.Write(ctx, websocket.MessageText, msg)
}

func (s *coderServer) publish(msg []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscribers {
		select {
		case sub.msgs <- msg:
		default:
			go sub.conn.Close(websocket.StatusPolicyViolation, "too slow")
		}
	}
}
