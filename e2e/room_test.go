package e2e

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/device"

	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
)

// In the room on two nodes each page shows its node and gets the messages from
// both. It also shows when the other node can't be reached.
func TestRoom(t *testing.T) {
	engine := brokertest.NewMemory()
	failed := make(chan error, 2)
	browser := newBrowser(t)
	var tabs []*tab
	for i := range 2 {
		n, err := room.Start("localhost:0", engine.HistoryBroker(), failed)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			if err := n.Shutdown(ctx); err != nil {
				t.Error(err)
			}
		})
		tab := newTab(t, browser, fmt.Sprint("room", i))
		if i == 1 {
			tab.do("becoming a phone", chromedp.Emulate(device.IPhone13))
		}
		tab.open(n.URL)
		tab.until(fmt.Sprintf(`document.querySelector("#node").textContent === %q`, n.Name))
		tab.until(state("state", "open", "Connected"))
		tabs = append(tabs, tab)
	}
	said := func(tab *tab, text string) {
		t.Helper()
		tab.until(fmt.Sprintf(`[...document.querySelectorAll(".said")].at(-1)?.textContent === %q`, text))
	}
	say := func(tab *tab, text string) {
		t.Helper()
		tab.write("#text", text)
		tab.enter()
		said(tab, text)
	}
	say(tabs[0], "Hello from the first node")
	said(tabs[1], "Hello from the first node")
	say(tabs[1], "And from the second, on a phone")
	said(tabs[0], "And from the second, on a phone")
	for _, tab := range tabs {
		tab.until(`document.querySelector("#count").textContent === "1 here, 2 in all"`)
	}
	engine.Stop()
	say(tabs[0], "Is anybody there?")
	tabs[0].until(`document.querySelector("#log").textContent.includes("can't be reached")`)
	engine.Start()
	time.Sleep(time.Second)
	say(tabs[0], "Back again")
	said(tabs[1], "Back again")
}
