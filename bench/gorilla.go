//go:build linux

package main

import (
	"net/http"
	"time"

	"github.com/gorilla/websocket"
)

// serveGorilla follows gorilla/websocket's chat example, with its numbers. One
// goroutine of the hub owns the clients. Each client has two goroutines and a
// channel of 256 messages. Messages that wait together go out as one, a line
// each.
func serveGorilla() (http.Handler, func(int, func() []byte)) {
	hub := &gorillaHub{
		broadcast:  make(chan []byte),
		register:   make(chan *gorillaClient),
		unregister: make(chan *gorillaClient),
		clients:    make(map[*gorillaClient]bool),
	}
	go hub.run()
	upgrader := websocket.Upgrader{ReadBufferSize: 1024, WriteBufferSize: 1024}
	join := func(w http.ResponseWriter, r *http.Request) {
		conn, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		c := &gorillaClient{hub, conn, make(chan []byte, 256)}
		hub.register <- c
		go c.writePump()
		go c.readPump()
	}
	return http.HandlerFunc(join), func(n int, next func() []byte) {
		for range n {
			hub.broadcast <- next()
		}
	}
}

const (
	gorillaWriteWait  = 10 * time.Second
	gorillaPongWait   = 60 * time.Second
	gorillaPingPeriod = gorillaPongWait * 9 / 10
	gorillaMaxMessage = 512
)

type gorillaHub struct {
	clients    map[*gorillaClient]bool
	broadcast  chan []byte
	register   chan *gorillaClient
	unregister chan *gorillaClient
}

func (h *gorillaHub) run() {
	for {
		select {
		case c := <-h.register:
			h.clients[c] = true
		case c := <-h.unregister:
			h.drop(c)
		case msg := <-h.broadcast:
			for c := range h.clients {
				select {
				case c.send <- msg:
				default:
					h.drop(c)
				}
			}
		}
	}
}

func (h *gorillaHub) drop(c *gorillaClient) {
	if h.clients[c] {
		delete(h.clients, c)
		close(c.send)
	}
}

type gorillaClient struct {
	hub  *gorillaHub
	conn *websocket.Conn
	send chan []byte
}

func (c *gorillaClient) readPump() {
	defer func() {
		c.hub.unregister <- c
		c.conn.Close()
	}()
	alive := func(string) error { return c.conn.SetReadDeadline(time.Now().Add(gorillaPongWait)) }
	c.conn.SetReadLimit(gorillaMaxMessage)
	alive("")
	c.conn.SetPongHandler(alive)
	for {
		_, msg, err := c.conn.ReadMessage()
		if err != nil {
			return
		}
		c.send <- msg
	}
}

func (c *gorillaClient) writePump() {
	ticker := time.NewTicker(gorillaPingPeriod)
	defer func() {
		ticker.Stop()
		c.conn.Close()
	}()
	for {
		select {
		case msg, ok := <-c.send:
			c.conn.SetWriteDeadline(time.Now().Add(gorillaWriteWait))
			if !ok {
				c.conn.WriteMessage(websocket.CloseMessage, nil)
				return
			}
			if c.writeWaiting(msg) != nil {
				return
			}
		case <-ticker.C:
			c.conn.SetWriteDeadline(time.Now().Add(gorillaWriteWait))
			if c.conn.WriteMessage(websocket.PingMessage, nil) != nil {
				return
			}
		}
	}
}

// writeWaiting writes msg and the messages that wait behind it.
func (c *gorillaClient) writeWaiting(msg []byte) error {
	w, err := c.conn.NextWriter(websocket.TextMessage)
	if err != nil {
		return err
	}
	w.Write(msg)
	for range len(c.send) {
		w.Write([]byte{'\n'})
		w.Write(<-c.send)
	}
	return w.Close()
}
