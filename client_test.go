package realtime_test

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A client is found by its id for as long as it counts, and tells its transport.
func TestClientByID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := realtime.NewHub()
		var clients []*realtime.Client
		hub.OnConnect = func(c *realtime.Client, _ *http.Request) error {
			if _, ok := hub.Client(c.ID()); ok {
				t.Error("found before it counts")
			}
			clients = append(clients, c)
			return nil
		}
		s := newPipeSite(t, hub)
		for range 3 {
			s.connect()
			s.listen("")
		}
		for i, c := range clients {
			if got, ok := hub.Client(c.ID()); got != c || !ok {
				t.Errorf("client %d: got %v, %v", i, got, ok)
			}
			if want := []realtime.Transport{realtime.WebSocket, realtime.EventStream}[i%2]; c.Transport() != want {
				t.Errorf("client %d: transport %q, want %q", i, c.Transport(), want)
			}
		}
		id := clients[2].ID()
		clients[2].Close(1000, "")
		synctest.Wait()
		s.listen("") // which gets its slot
		last := "0"
		if strings.HasSuffix(id, "0") {
			last = "1"
		}
		for _, none := range []string{id, "", "x", strings.Repeat("0", 32), strings.Repeat("g", 32), clients[0].ID()[:31] + last, clients[0].ID() + "00"} {
			if c, ok := hub.Client(none); c != nil || ok {
				if none != clients[0].ID() {
					t.Errorf("id %q: got %v, %v", none, c, ok)
				}
			}
		}
		if c, ok := realtime.NewHub().Client(clients[0].ID()); c != nil || ok {
			t.Errorf("another hub: got %v, %v", c, ok)
		}
	})
}
