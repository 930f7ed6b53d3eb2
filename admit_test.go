package realtime_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// Whatever keeps a request from becoming a client, it has the same cause, the
// same figures and an answer that means the same on both transports.
func TestAdmissionIsOne(t *testing.T) {
	flood := func(c *realtime.Client) error {
		for {
			if err := c.Send([]byte("x")); err != nil {
				return err
			}
		}
	}
	published := func(hub *realtime.Hub) {
		for range 65 * 64 {
			hub.PublishAll(context.Background(), realtime.Event{Data: []byte("x")})
		}
		time.Sleep(time.Millisecond) // for the shards to hand it on
	}
	for name, tt := range map[string]struct {
		onConnect func(hub *realtime.Hub, c *realtime.Client) error
		later     bool  // the answer asks to come back later
		status    int   // otherwise
		cause     error // what OnDisconnect gets; nil: it isn't called
	}{
		"refused":                   {func(*realtime.Hub, *realtime.Client) error { return realtime.Refuse(404, "no such room") }, false, 404, nil},
		"refused by an error":       {func(*realtime.Hub, *realtime.Client) error { return errors.New("database is away") }, false, 403, nil},
		"panic":                     {func(*realtime.Hub, *realtime.Client) error { panic("oops") }, false, 500, nil},
		"broker away":               {func(*realtime.Hub, *realtime.Client) error { return realtime.ErrBrokerUnavailable }, true, 0, nil},
		"flooded by sends":          {func(_ *realtime.Hub, c *realtime.Client) error { flood(c); return nil }, true, 0, realtime.ErrSlowClient},
		"flooded, and says so":      {func(_ *realtime.Hub, c *realtime.Client) error { flood(c); return c.Send(nil) }, true, 0, nil},
		"flooded by what others do": {func(hub *realtime.Hub, _ *realtime.Client) error { published(hub); return nil }, true, 0, realtime.ErrSlowClient},
		"shutdown": {func(hub *realtime.Hub, _ *realtime.Client) error {
			go hub.Shutdown(context.Background())
			time.Sleep(time.Second)
			return nil
		}, true, 0, realtime.ErrHubClosed},
		"shutdown, and says so": {func(hub *realtime.Hub, c *realtime.Client) error {
			go hub.Shutdown(context.Background())
			time.Sleep(time.Second)
			return c.Subscribe("a")
		}, true, 0, nil},
	} {
		for transport, header := range map[string][]string{
			"WebSocket":    {"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg=="},
			"event stream": {"Accept: text/event-stream"},
		} {
			t.Run(name+" "+transport, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hub := realtime.NewHub()
					hub.SendBuffer = 64
					hub.OnConnect = func(c *realtime.Client, _ *http.Request) error { return tt.onConnect(hub, c) }
					l := recordLeft(hub)
					s := newPipeSite(t, hub)
					answer := s.request("GET", "", header...)
					got := answer.resp.StatusCode
					switch {
					case !tt.later:
						if got != tt.status {
							t.Errorf("answered %d, want %d", got, tt.status)
						}
					case transport == "WebSocket":
						if got != 503 || answer.resp.Header.Get("Retry-After") == "" {
							t.Errorf("answered %d with %v, want 503 with Retry-After", got, answer.resp.Header)
						}
					default:
						if ev, err := answer.event(); got != 200 || err == nil || answer.retry == "" {
							t.Errorf("answered %d with %v, retry %q; want 200, a retry and the end", got, ev, answer.retry)
						}
					}
					synctest.Wait()
					if want := 1; (tt.cause == nil) != (l.n == 0) || tt.cause != nil && (l.n != want || !errors.Is(l.err, tt.cause)) {
						t.Errorf("OnDisconnect %d times, last with %v; want %v", l.n, l.err, tt.cause)
					}
					if st := hub.Stats(); st.Refused != 1 || st.Clients != 0 || st.Queued != 0 || realtime.Joined(hub) != 0 {
						t.Errorf("Stats() = %+v with %d slots, want one refused and nothing left", st, realtime.Joined(hub))
					}
				})
			})
		}
	}
}
