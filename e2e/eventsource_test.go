package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"testing"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// TestEventSourcePosition checks that a plain EventSource sends back the id of a
// position, also one that a reset told, if it is cut off before its first event.
// The page gets no event for a position.
func TestEventSourcePosition(t *testing.T) {
	t.Parallel()
	site := newSite(t, "", func(hub *realtime.Hub) { hub.History = keep })
	proxy := newProxy(t, site.addr())
	tab := newTab(t, newBrowser(t), "Ann")
	for _, tt := range []struct{ topic, lastID, want string }{
		{"a", "", "event,"},
		{"b", "old-7", "reset,event,"},
	} {
		before := len(site.asked())
		tab.expectOutage(false)
		tab.open(proxy.url)
		tab.run(fmt.Sprintf(`
			globalThis.got = "";
			globalThis.id = "";
			globalThis.es = new EventSource("/live?topic=%s&lastEventId=%s");
			es.onmessage = (event) => { got += event.data + ","; };
			es.addEventListener("reset", (event) => { got += "reset,"; id = event.lastEventId; });
			es.addEventListener("realtime.position", (event) => { id = event.lastEventId; });
		`, tt.topic, tt.lastID))
		tab.until(`id !== ""`)
		id := eval[string](tab, `id`)
		tab.expectOutage(true)
		proxy.cut()
		site.publish(tt.topic, "", "event")
		tab.until(fmt.Sprintf(`got === %q`, tt.want))
		asked := site.asked()[before:]
		if i := slices.IndexFunc(asked[1:], func(r *http.Request) bool { return r.Header.Get("Last-Event-ID") != id }); i >= 0 {
			t.Errorf("topic %s: request %d has the id %q, want %q", tt.topic, i+1, asked[i+1].Header.Get("Last-Event-ID"), id)
		}
		tab.run(`es.close()`)
	}
}
