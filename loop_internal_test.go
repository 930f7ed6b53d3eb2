package realtime

import (
	"context"
	"fmt"
	"testing"
)

// A client joins without the loop. It must get what is published from then on,
// and nothing from before.
func TestJoinsBetweenEvents(t *testing.T) {
	hub := NewHub()
	t.Cleanup(func() { hub.Shutdown(context.Background()) })
	for i := range 2000 {
		if err := hub.PublishAll(t.Context(), Event{Data: fmt.Append(nil, "before ", i)}); err != nil {
			t.Fatal(err)
		}
		c := newClient(hub, webSocket{})
		if err := hub.add(c); err != nil {
			t.Fatal(err)
		}
		after := fmt.Sprint("after ", i)
		if err := hub.PublishAll(t.Context(), Event{Data: []byte(after)}); err != nil {
			t.Fatal(err)
		}
		came := make(chan string, 1)
		c.home.inbox.put(entry{do: func(*shard) { came <- fmt.Sprintf("%s", heldData(&c.out)) }})
		if got, want := <-came, fmt.Sprintf("[%s]", after); got != want {
			t.Errorf("client %d has got %s, want %s", i, got, want)
		}
		c.abort(ErrClientClosed)
		c.gone()
	}
}

func heldData(o *outbox) (all [][]byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.held != nil {
		for _, ev := range o.held.early {
			all = append(all, ev.Data)
		}
	}
	return all
}
