package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// patience bounds every wait. It ends a test that has gone wrong, and is no
// measure of how long anything should take.
const patience = time.Minute

// chromium returns the browser to use.
func chromium(t *testing.T) string {
	t.Helper()
	names := []string{"chromium", "chromium-browser", "google-chrome"}
	if name := os.Getenv("CHROMIUM"); name != "" {
		names = []string{name}
	}
	for _, name := range names {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Fatalf("these tests need Chromium, and found none of %s: install it (apt-get install chromium) or set $CHROMIUM to its path",
		strings.Join(names, ", "))
	return ""
}

// newBrowser starts a browser that ends with the test. It returns the context
// that newTab needs.
func newBrowser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(chromium(t)),
		chromedp.NoSandbox, // root can't have one, and all pages are our own
		chromedp.DisableGPU,
		chromedp.Flag("disable-quic", true),
		chromedp.Flag("disable-component-update", true),
		chromedp.WSURLReadTimeout(patience),
	)
	// With t.Context() the browser would be killed. It should be closed.
	allocator, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	browser, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		defer cancel()
		ctx, cancel := context.WithTimeout(browser, patience)
		defer cancel()
		if err := chromedp.Cancel(ctx); err != nil {
			t.Errorf("closing the browser: %v", err)
		}
	})
	if err := chromedp.Do(browser); err != nil {
		t.Fatalf("starting the browser: %v", err)
	}
	return browser
}

// A tab is a page with its own cookies, storage and cache, like a page on
// another computer. The test fails if the browser complains about it: of an
// exception, a violation of the page's policy or a warning.
type tab struct {
	*testing.T
	name string
	ctx  context.Context
	shut context.CancelFunc // closes it

	mu         sync.Mutex
	complaints []string
	outage     bool // the server may be down: that is no complaint
}

func newTab(t *testing.T, browser context.Context, name string) *tab {
	t.Helper()
	return newTabIn(t, browser, name, chromedp.WithNewBrowserContext())
}

// newProfile returns a context for newTabIn, whose tabs have cookies, storage and
// cache in common, like those of one person.
func newProfile(t *testing.T, browser context.Context) context.Context {
	t.Helper()
	profile, cancel := chromedp.NewContext(browser, chromedp.WithNewBrowserContext())
	t.Cleanup(cancel)
	if err := chromedp.Do(profile); err != nil {
		t.Fatal(err)
	}
	return profile
}

func newTabIn(t *testing.T, profile context.Context, name string, more ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(profile, more...)
	tab := &tab{T: t, name: name, ctx: ctx}
	tab.shut = cancel
	t.Cleanup(func() {
		if t.Failed() && ctx.Err() == nil {
			tab.screenshot()
		}
		cancel()
		tab.checkComplaints(t)
	})
	if err := chromedp.Listen(ctx, tab.hear); err != nil {
		t.Fatalf("opening a tab for %s: %v", name, err)
	}
	return tab
}

// hear collects complaints. It runs on the goroutine that reads from the
// browser. So it has heard everything that happened before a command's answer.
func (tab *tab) hear(ev any) {
	var complaint string
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		complaint = "exception: " + ev.ExceptionDetails.Text
		if e := ev.ExceptionDetails.Exception; e != nil {
			complaint += " " + e.Description
		}
	case *runtime.EventConsoleAPICalled:
		if ev.Type != "error" && ev.Type != "warning" && ev.Type != "assert" {
			return
		}
		complaint = "console." + string(ev.Type)
		for _, arg := range ev.Args {
			complaint += fmt.Sprintf(" %s%s", arg.Value, arg.Description)
		}
	case *log.EventEntryAdded:
		if ev.Entry.Level != "error" && ev.Entry.Level != "warning" {
			return
		}
		complaint = fmt.Sprintf("%s %s: %s %s", ev.Entry.Source, ev.Entry.Level, ev.Entry.Text, ev.Entry.URL)
	default:
		return
	}
	if strings.Contains(complaint, "WebSocket is closed before the connection is established") {
		return // a tab that joins others gives its attempt up as soon as it can follow
	}
	tab.mu.Lock()
	defer tab.mu.Unlock()
	if tab.outage && (strings.HasPrefix(complaint, "network ") ||
		// The response was cut in its header.
		strings.HasPrefix(complaint, "javascript error: EventSource's response has ") ||
		strings.HasPrefix(complaint, "javascript error: Access to resource at ")) {
		return
	}
	tab.complaints = append(tab.complaints, complaint)
}

// checkComplaints fails t if the browser has complained since the last call.
func (tab *tab) checkComplaints(t *testing.T) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	for _, complaint := range tab.complaints {
		t.Errorf("%s's browser complains: %s", tab.name, complaint)
	}
	tab.complaints = nil
}

// expectOutage sets whether the server may be down.
func (tab *tab) expectOutage(down bool) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.outage = down
}

// do runs actions in the tab.
func (tab *tab) do(what string, actions ...chromedp.Action[chromedp.Void]) {
	tab.Helper()
	ctx, cancel := context.WithTimeout(tab.ctx, patience)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		tab.Fatalf("%s: %s: %v", tab.name, what, err)
	}
}

// crash ends the tab's process. Nothing of the page runs then.
func (tab *tab) crash() {
	tab.Helper()
	ctx, cancel := context.WithTimeout(tab.ctx, time.Second)
	defer cancel()
	chromedp.Do(ctx, chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, page.Crash, cdp.Empty{})
		return err // there is no answer
	}))
}

// freeze stops the page as a browser does with one in the background, or lets it
// go on.
func (tab *tab) freeze(frozen bool) {
	tab.Helper()
	state := page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateActive}
	if frozen {
		state.State = page.SetWebLifecycleStateStateFrozen
	}
	tab.do("freezing", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		_, err := cdp.Call(ctx, target, page.SetWebLifecycleState, state)
		return err
	}))
}

func (tab *tab) open(url string) {
	tab.Helper()
	tab.do("opening "+url, chromedp.Navigate(url))
}

func (tab *tab) click(selector string) {
	tab.Helper()
	tab.do("clicking on "+selector, chromedp.Click(chromedp.CSS(selector)))
}

func (tab *tab) write(selector, text string) {
	tab.Helper()
	tab.do("writing into "+selector, chromedp.SendKeys(chromedp.CSS(selector), text))
}

// enter presses the Enter key. SendKeys would type a line break even if the page
// prevents that.
func (tab *tab) enter() {
	tab.Helper()
	press := input.DispatchKeyEventParams{
		Type: input.DispatchKeyEventTypeKeyDown, Key: "Enter", Code: "Enter", Text: "\r",
		WindowsVirtualKeyCode: 13, NativeVirtualKeyCode: 13,
	}
	release := press
	release.Type, release.Text = input.DispatchKeyEventTypeKeyUp, ""
	tab.do("pressing Enter", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
		if _, err := cdp.Call(ctx, target, input.DispatchKeyEvent, press); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, target, input.DispatchKeyEvent, release)
		return err
	}))
}

// eval returns the value of JavaScript in the tab.
func eval[T any](tab *tab, js string) T {
	tab.Helper()
	v, err := tryEval[T](tab, js)
	if err != nil {
		tab.Fatalf("%s: %s: %v", tab.name, js, err)
	}
	return v
}

func tryEval[T any](tab *tab, js string) (T, error) {
	ctx, cancel := context.WithTimeout(tab.ctx, patience)
	defer cancel()
	return chromedp.Run(ctx, chromedp.Evaluate[T](js))
}

// until waits for the JavaScript condition to become true. It polls from
// outside. chromedp.Poll makes code from a string inside the page, which the
// page's policy forbids. The tab may go from one page to another.
func (tab *tab) until(condition string) {
	tab.Helper()
	again := time.NewTicker(25 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(patience); ; <-again.C {
		holds, err := tryEval[bool](tab, "Boolean("+condition+")")
		switch {
		case holds:
			return
		case err != nil && !strings.Contains(err.Error(), "Inspected target navigated"):
			tab.Fatalf("%s: %s: %v", tab.name, condition, err)
		case time.Now().After(deadline):
			tab.Fatalf("%s: timed out waiting for %s; the page's text is:\n%s", tab.name, condition, eval[string](tab, "document.body.innerText"))
		}
	}
}

// screenshot saves a picture of the tab.
func (tab *tab) screenshot() {
	ctx, cancel := context.WithTimeout(tab.ctx, patience)
	defer cancel()
	png, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	path := filepath.Join(tab.ArtifactDir(), tab.name+".png")
	if err == nil {
		err = os.WriteFile(path, png, 0o644)
	}
	if err != nil {
		tab.Logf("no screenshot of %s: %v", tab.name, err)
		return
	}
	tab.Logf("screenshot of %s: %s", tab.name, path)
}
