package realtime_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// Clients that come, talk, stall and go in every way there is, while
// publishers never stop, leave nothing behind.
func TestStampede(t *testing.T) {
	t.Parallel()
	for name, serve := range map[string]func(testing.TB, *realtime.Hub) *site{
		"tcp": newTCPSite, "tls": newTLSSite, "pipe": newPipeSite,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			hub := realtime.NewHub()
			hub.SendBuffer, hub.SlowAfter = 16, time.Millisecond
			var connects, disconnects atomic.Int64
			hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
				c.Send([]byte("welcome"))
				if rand.IntN(10) == 0 {
					return realtime.Refuse(403, "not you")
				}
				connects.Add(1)
				if rand.IntN(10) == 0 {
					c.Close(4000, "not now")
				}
				return nil
			}
			hub.OnMessage = func(hub *realtime.Hub, msg realtime.Message) {
				msg.Client.Send(msg.Data)
				switch n := rand.IntN(40); {
				case n < 20:
					hub.Broadcast <- msg.Data
				case n == 20:
					panic("oh no")
				case n == 21:
					msg.Client.Close(4000, "enough")
				case n == 22:
					for c := range hub.Clients() {
						c.Send([]byte("hello"))
					}
				}
			}
			hub.OnDisconnect = func(c *realtime.Client, err error) {
				if err == nil {
					t.Error("OnDisconnect without a cause")
				}
				disconnects.Add(1)
				hub.Broadcast <- []byte("somebody left")
			}
			s := serve(t, hub)

			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var publishers, clients sync.WaitGroup
			publishers.Go(func() { // it lasts for 2 s, and until all of it has happened
				time.Sleep(2 * time.Second)
				for ctx.Err() == nil && (connects.Load() < 50 || hub.Stats().Refused == 0 || hub.Stats().Received == 0) {
					time.Sleep(time.Millisecond)
				}
				cancel()
			})
			publishers.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					hub.Broadcast <- []byte(strconv.Itoa(i))
					if i%100 == 0 {
						time.Sleep(time.Millisecond)
					}
				}
			})
			publishers.Go(func() {
				for ctx.Err() == nil {
					realtime.Kick(hub)
					time.Sleep(100 * time.Microsecond)
				}
			})
			for range 32 {
				clients.Go(func() {
					for ctx.Err() == nil {
						misbehave(ctx, s)
					}
				})
			}
			clients.Wait()
			publishers.Wait()
			if err := hub.Shutdown(context.Background()); err != nil {
				t.Error(err)
			}
			if c, d, l := connects.Load(), disconnects.Load(), leftInAll(hub); c == 0 || c != d || d != l {
				t.Errorf("%d OnConnects, %d OnDisconnects, %d in Stats().Left", c, d, l)
			}
			if st := hub.Stats(); st.Clients != 0 || st.Queued != 0 || st.Refused == 0 || st.Received == 0 {
				t.Errorf("Stats() = %+v", st)
			}
		})
	}
}

// misbehave is one client's life.
func misbehave(ctx context.Context, s *site) {
	conn, _, err := websocket.Dial(ctx, s.url, &websocket.DialOptions{HTTPClient: s.httpClient()})
	if err != nil {
		return
	}
	defer conn.CloseNow()
	conn.SetReadLimit(-1)
	for i := range rand.IntN(30) {
		conn.Write(ctx, websocket.MessageText, fmt.Appendf(nil, "message %d", i))
		if rand.IntN(3) > 0 {
			conn.Read(ctx)
		}
	}
	switch rand.IntN(3) {
	case 0:
		conn.Close(websocket.StatusNormalClosure, "bye")
	case 1:
		time.Sleep(5 * time.Millisecond) // doesn't read
	}
}

// Goroutines that wait for a client's end see it, and the count is right at
// any time, under Run late, Send from many and Close from many.
func TestConcurrentUseOfOneClient(t *testing.T) {
	hub := realtime.NewHub()
	clients := make(chan *realtime.Client, 1)
	hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
		clients <- c
		return nil
	}
	s := newTCPSite(t, hub)
	for range 20 {
		conn := s.connect()
		c := <-clients
		var users sync.WaitGroup
		for n := range 8 {
			users.Go(func() {
				for i := range 50 {
					c.Set(strconv.Itoa(n), i)
					if err := c.Send([]byte("x")); err != nil {
						return
					}
					c.Get("0")
				}
				c.Close(4000+websocket.StatusCode(n), "")
			})
		}
		users.Go(func() { <-c.Context().Done() })
		if status := closeStatus(conn); status.Code < 4000 || status.Code > 4007 {
			t.Errorf("closed with %v", status)
		}
		users.Wait()
	}
}
