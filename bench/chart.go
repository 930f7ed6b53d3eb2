//go:build linux

package main

import (
	"bytes"
	"fmt"
	"html"
	"slices"
)

// deliveryChart shows the CPU time of a delivery, with the lowest number of
// clients.
func (r *results) deliveryChart() []byte {
	n := slices.Min(r.comparison.clients)
	return chart(
		fmt.Sprintf("CPU a delivery, µs: %s clients, %d bytes a message (shorter is better)", thousands(float64(n)), messageBytes),
		r.panel("One broadcast at a time", n, func(f *figures) float64 { return f.single.cpu }, nil),
		r.panel(fmt.Sprintf("Bursts of %d", burstSize), n, func(f *figures) float64 { return f.burst.cpu }, nil))
}

// memoryChart shows the memory of a client, with the highest number of clients.
func (r *results) memoryChart() []byte {
	n := slices.Max(r.comparison.clients)
	return chart(
		fmt.Sprintf("Memory of an idle client, KB: %s clients (shorter is better)", thousands(float64(n))),
		r.panel("After a garbage collection (pale and in parentheses: before it)", n,
			func(f *figures) float64 { return f.idle / 1024 }, func(f *figures) float64 { return f.joined / 1024 }))
}

// A panel is one set of bars.
type panel struct {
	title string
	bars  []bar
}

// A bar shows the figure of one contender.
type bar struct {
	label, class string
	value, pale  float64
}

// panel returns a bar for each contender, the lowest figure first. pale, if not
// nil, is another figure that is shown behind it.
func (r *results) panel(title string, clients int, of, pale figure) panel {
	p := panel{title: title}
	for _, one := range r.ranking(clients, of) {
		b := bar{label: one.title(), class: "peer", value: one.median(of)}
		switch {
		case one.contender.ours():
			b.class = "realtime"
		case one.contender.name == "floor":
			b.class = "floor"
		}
		if pale != nil {
			b.pale = one.median(pale)
		}
		p.bars = append(p.bars, b)
	}
	return p
}

// Charts are shown on light and on dark pages and can't tell which. So they have
// a background of their own.
const chartStyle = `<style>
.ground { fill: #ffffff; stroke: #d0d7de }
text { fill: #1f2328; font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
.title { font-size: 15px; font-weight: 600 }
.panel { fill: #59636e }
.realtime { fill: #0969da }
.peer { fill: #8c959f }
.floor { fill: #c8ced5 }
.pale { opacity: 0.4 }
text.realtime { font-weight: 600 }
@media (prefers-color-scheme: dark) {
.ground { fill: #0d1117; stroke: #3d444d }
text { fill: #f0f6fc }
.panel { fill: #9198a1 }
.realtime { fill: #4493f8 }
.peer { fill: #6e7681 }
.floor { fill: #464e58 }
}
</style>
`

const (
	chartWidth = 760
	barLeft    = 130
	barRight   = 640 // leaves room for the values
	barHeight  = 14
	rowHeight  = 22
)

// chart returns an SVG of the panels, one below the other.
func chart(title string, panels ...panel) []byte {
	var b bytes.Buffer
	y := 32
	fmt.Fprintf(&b, `<text class="title" x="20" y="%d">%s</text>`+"\n", y, html.EscapeString(title))
	for _, p := range panels {
		y += 32
		fmt.Fprintf(&b, `<text class="panel" x="20" y="%d">%s</text>`+"\n", y, html.EscapeString(p.title))
		y += 12
		longest := 0.0
		for _, one := range p.bars {
			longest = max(longest, one.value, one.pale)
		}
		for _, one := range p.bars {
			one.draw(&b, y, (barRight-barLeft)/longest)
			y += rowHeight
		}
	}
	y += 16
	return fmt.Appendf(nil, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img">`+"\n"+
		"<title>%s</title>\n%s"+`<rect class="ground" x="0.5" y="0.5" width="%d" height="%d" rx="6"/>`+"\n%s</svg>\n",
		chartWidth, y, html.EscapeString(title), chartStyle, chartWidth-1, y-1, b.Bytes())
}

func (one *bar) draw(b *bytes.Buffer, y int, scale float64) {
	fmt.Fprintf(b, `<text class="%s" x="%d" y="%d" text-anchor="end">%s</text>`, one.textClass(), barLeft-10, y+barHeight-3, html.EscapeString(one.label))
	value := digits3(one.value)
	if one.pale != 0 {
		value += " (" + digits3(one.pale) + ")"
	}
	if one.pale > one.value {
		fmt.Fprintf(b, `<rect class="%s pale" x="%d" y="%d" width="%.1f" height="%d"/>`, one.class, barLeft, y, one.pale*scale, barHeight)
	}
	fmt.Fprintf(b, `<rect class="%s" x="%d" y="%d" width="%.1f" height="%d"/>`, one.class, barLeft, y, one.value*scale, barHeight)
	fmt.Fprintf(b, `<text class="%s" x="%.1f" y="%d">%s</text>`+"\n", one.textClass(), barLeft+max(one.value, one.pale)*scale+8, y+barHeight-3, value)
}

// textClass returns the class of the bar's texts. Only this package's texts have
// the colour of their bar.
func (one *bar) textClass() string {
	if one.class == "realtime" {
		return "realtime"
	}
	return "label"
}
