package e2e

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

var screenshots = flag.String("screenshots", "", "`directory` for the screenshots of the README")

// maxScreenshotBytes is how large a screenshot may be.
const maxScreenshotBytes = 60 << 10

// TestScreenshots takes the screenshots of the README. The package's comment says
// how to renew them.
func TestScreenshots(t *testing.T) {
	t.Parallel()
	dir := cmp.Or(*screenshots, t.TempDir())
	browser := newBrowser(t)
	t.Run("chat", func(t *testing.T) {
		server := start(t, build(t, "chat"), "localhost:0")
		ann, bob, eve := newTab(t, browser, "Ann"), newTab(t, browser, "Bob"), newTab(t, browser, "Eve")
		for _, tab := range []*tab{ann, bob, eve} {
			tab.join(server.url)
		}
		ann.say("Good morning! Did the release go well?")
		bob.say("It did. All nodes have it, and nobody was disconnected.")
		eve.say("My train went through three tunnels. I have each of your messages once, in order.")
		ann.say("So did my page when I reloaded it. Who has the figures?")
		bob.say("Look at the dashboard.")
		ann.say("Oh, that is a good morning.")
		bob.write("#text", "Breakfast?")
		ann.until(typing + ` !== ""`)
		ann.save(dir, "chat")
		server.interrupt(ann, bob, eve)
	})
	t.Run("dashboard", func(t *testing.T) {
		server := start(t, build(t, "dashboard"), "localhost:0", "-every", "50ms")
		ann := newTab(t, browser, "Ann")
		ann.do("resizing", chromedp.EmulateViewport(1280, 800))
		ann.open(server.url)
		ann.moves()
		ann.until(`parseFloat(` + curve + `.slice(1)) < 5`) // its left end: the chart is full
		x := eval[float64](ann, `(r => r.left + .7 * r.width)(document.querySelector(".plot").getBoundingClientRect())`)
		ann.do("pointing", chromedp.MouseEvent(input.DispatchMouseEventTypeMouseMoved, x, 350))
		ann.until(`!` + tip + `.hidden`)
		ann.save(dir, "dashboard")
		server.interrupt(ann)
	})
}

// save saves a screenshot of the tab in dir, in each scheme of colours.
func (tab *tab) save(dir, name string) {
	tab.Helper()
	tab.do("resizing", chromedp.EmulateViewport(1280, 800))
	for _, scheme := range []string{"light", "dark"} {
		tab.do("choosing colours", chromedp.Func(func(ctx context.Context, target *chromedp.Target) error {
			_, err := cdp.Call(ctx, target, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
			})
			return err
		}))
		ctx, cancel := context.WithTimeout(tab.ctx, patience)
		shot, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
		cancel()
		if err != nil {
			tab.Fatal(err)
		}
		shot = small(tab.T, shot)
		if err := os.WriteFile(filepath.Join(dir, name+"-"+scheme+".png"), shot, 0o644); err != nil {
			tab.Fatal(err)
		}
	}
}

// small returns the picture with its most frequent colours alone: as many as
// maxScreenshotBytes allows. Our pages have few, and shades of them at the edges of
// letters.
func small(t *testing.T, shot []byte) []byte {
	t.Helper()
	picture, err := png.Decode(bytes.NewReader(shot))
	if err != nil {
		t.Fatal(err)
	}
	box := picture.Bounds()
	count := make(map[color.Color]int)
	for y := range box.Dy() {
		for x := range box.Dx() {
			count[picture.At(x, y)]++
		}
	}
	colours := slices.SortedFunc(maps.Keys(count), func(a, b color.Color) int { return cmp.Compare(count[b], count[a]) })
	encoder := png.Encoder{CompressionLevel: png.BestCompression}
	for n := 256; n > 1; n /= 2 {
		paletted := image.NewPaletted(box, color.Palette(colours[:min(n, len(colours))]))
		draw.Draw(paletted, box, picture, image.Point{}, draw.Src)
		var out bytes.Buffer
		if err := encoder.Encode(&out, paletted); err != nil {
			t.Fatal(err)
		}
		if out.Len() <= maxScreenshotBytes {
			return out.Bytes()
		}
	}
	t.Fatalf("the screenshot has more than %d bytes with two colours", maxScreenshotBytes)
	return nil
}
