package e2e

import (
	"context"
	"fmt"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/device"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/brokertest"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/examples/room"
)

// JavaScript expressions for a node of the room, from 1.
const (
	nodeState  = `document.querySelector(".node:nth-child(%d) .state")?.dataset.state`
	nodeCounts = `document.querySelector(".node:nth-child(%d) .counts")?.textContent`
	nodeCutter = `document.querySelector(".node:nth-child(%d) .top button")?.textContent`
	nodeNotes  = `[...document.querySelectorAll(".node:nth-child(%d) .note")].map((e) => e.textContent).join()`
	// Each message with its author, and the words of those that only one node has.
	nodeLog = `[...document.querySelectorAll(".node:nth-child(%d) .log li:not(.note)")].map((e) =>
		e.querySelector("b").textContent + ": " + [...e.querySelectorAll(".said, .alone")].map((e) => e.textContent).join(" – ")).join("|")`
)

// The page of the room shows two nodes side by side. One is cut off from the engine,
// and says so, and which messages the other lacks. Afterwards both say that there
// is a gap.
func TestRoom(t *testing.T) {
	t.Parallel()
	engine := brokertest.NewMemory()
	failed := make(chan error, 1)
	r, err := room.Start("localhost:0", []string{"A", "B"}, func(node int) (realtime.Broker, func(bool) error, error) {
		return engine.HistoryBroker(), func(cut bool) error {
			if cut {
				return engine.Stop()
			}
			return engine.Start()
		}, nil
	}, failed)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	browser := newBrowser(t)
	ann, phone := newTab(t, browser, "Ann"), newTab(t, browser, "phone")
	phone.do("becoming a phone", chromedp.Emulate(device.IPhone13))
	for _, tab := range []*tab{ann, phone} {
		tab.open(r.URL)
		for i := 1; i <= 2; i++ {
			tab.until(fmt.Sprintf(nodeState+` === "live"`, i))
		}
	}
	if over := eval[int](phone, `document.documentElement.scrollWidth - document.documentElement.clientWidth`); over > 0 {
		t.Errorf("on a phone the page is %d px too wide", over)
	}
	sees := func(tab *tab, node int, log string) {
		t.Helper()
		tab.until(fmt.Sprintf(nodeLog+` === %q`, node, log))
	}
	say := func(tab *tab, node int, text string) {
		t.Helper()
		tab.write(fmt.Sprintf(".node:nth-child(%d) input", node), text)
		tab.enter()
	}
	say(ann, 1, "Hello")
	sees(ann, 1, "You: Hello")
	sees(ann, 2, "Node A: Hello")
	say(phone, 2, "Hi")
	sees(ann, 1, "You: Hello|Node B: Hi")
	sees(phone, 2, "Node A: Hello|You: Hi")
	for node := 1; node <= 2; node++ {
		ann.until(fmt.Sprintf(nodeCounts+` === "2 here, 4 in all, 0 gaps"`, node))
	}
	ann.do("reloading", chromedp.Reload())
	sees(ann, 1, "You: Hello|Node B: Hi") // it knows its own messages

	ann.click(".node:nth-child(2) .top button")
	ann.until(fmt.Sprintf(nodeCutter+` === "Join again"`, 2))
	say(ann, 2, "Alone?")
	const alone = "Alone? – Only node B has this: ErrBrokerUnavailable"
	sees(ann, 2, "Node A: Hello|Node B: Hi|You: "+alone)
	sees(phone, 2, "Node A: Hello|You: Hi|Node B: Alone?")
	sees(phone, 1, "Node A: Hello|Node B: Hi")

	ann.click(".node:nth-child(2) .top button")
	ann.until(fmt.Sprintf(nodeCutter+` === "Cut off"`, 2))
	for node := 1; node <= 2; node++ {
		ann.until(fmt.Sprintf(nodeNotes+`.includes("Gap")`, node))
	}
	sees(ann, 2, "Node A: Hello|Node B: Hi|You: "+alone) // nothing is doubled or gone
	say(ann, 2, "Together")
	sees(phone, 1, "Node A: Hello|Node B: Hi|Node B: Together")
}
