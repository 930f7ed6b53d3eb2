//go:build linux

package main

import (
	"bytes"
	"cmp"
	_ "embed" // for remarks.md
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// remarks tells where this package's time and memory go. A run doesn't measure
// this. If you change the package, check whether it still holds.
//
//go:embed remarks.md
var remarks string

// Results are the outcome of a comparison.
type results struct {
	comparison *comparison
	all        []*result // grouped by the number of clients
	loadBefore string
	loadAfter  string
	took       time.Duration
	unfinished int // turns that were left when the time was up
}

// A result is the outcome of one contender with one number of clients.
type result struct {
	contender *contender
	clients   int
	figures   []figures // one for each round that did not fail
	failures  []string
}

func newResults(c *comparison) *results {
	r := &results{comparison: c, loadBefore: loadAverage()}
	for _, clients := range c.clients {
		for _, contender := range c.contenders {
			r.all = append(r.all, &result{contender: contender, clients: clients})
		}
	}
	return r
}

// A figure returns one of the numbers in figures.
type figure func(f *figures) float64

// values returns a figure of each round in which it was measured, sorted.
func (r *result) values(of figure) []float64 {
	var all []float64
	for i := range r.figures {
		if v := of(&r.figures[i]); v != 0 {
			all = append(all, v)
		}
	}
	slices.Sort(all)
	return all
}

// median returns the figure's median over the rounds, or 0 if it was never
// measured.
func (r *result) median(of figure) float64 {
	all := r.values(of)
	if len(all) == 0 {
		return 0
	}
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// ranking returns the results with that number of clients that have the figure,
// the lowest first.
func (r *results) ranking(clients int, of figure) []*result {
	var all []*result
	for _, one := range r.all {
		if one.clients == clients && one.median(of) != 0 {
			all = append(all, one)
		}
	}
	slices.SortStableFunc(all, func(a, b *result) int { return cmp.Compare(a.median(of), b.median(of)) })
	return all
}

// ratio returns the median of a figure divided by another result's median. It
// reports whether the other has one.
func (r *results) ratio(one *result, of figure, other *result) (float64, bool) {
	if other == nil || other.median(of) == 0 {
		return 0, false
	}
	return one.median(of) / other.median(of), true
}

// floor returns the floor's result with that number of clients, or nil.
func (r *results) floor(clients int) *result {
	for _, one := range r.all {
		if one.clients == clients && one.contender.name == "floor" {
			return one
		}
	}
	return nil
}

// own returns this package's result with the same number of clients as another,
// or nil. It prefers the same transport.
func (r *results) own(other *result) (own *result) {
	for _, one := range r.all {
		p, q := one.contender.protocol, other.contender.protocol
		if one.clients == other.clients && one.contender.ours() &&
			(own == nil || p.stream == q.stream && p.http2 == q.http2) {
			own = one
		}
	}
	return own
}

// A column of a table shows a figure's median.
type column struct {
	title string
	of    figure
	show  func(float64) string
}

// summary has the figures that matter most. Of each, less is better.
var summary = []column{
	{"CPU a delivery, µs", func(f *figures) float64 { return f.single.cpu }, digits3},
	{"in bursts, µs", func(f *figures) float64 { return f.burst.cpu }, digits3},
	{"to the last client p99, ms", func(f *figures) float64 { return f.single.toLast.p99 / 1e3 }, digits3},
	{"idle client, KB", func(f *figures) float64 { return f.idle / 1024 }, digits3},
	{"CPU a connect, µs", func(f *figures) float64 { return f.connect.cpu }, digits3},
	{"CPU an echo, µs", func(f *figures) float64 { return f.echo.cpu }, digits3},
}

// summarize writes the summary for that number of clients as a table.
func (r *results) summarize(w io.Writer, clients int) {
	fmt.Fprint(w, "| |")
	for _, c := range summary {
		fmt.Fprintf(w, " %s |", c.title)
	}
	fmt.Fprintf(w, " lost messages | lost clients |\n|---|%s\n", strings.Repeat("--:|", len(summary)+2))
	for _, row := range r.ranking(clients, summary[0].of) {
		fmt.Fprintf(w, "| %s |", row.label())
		for _, c := range summary {
			fmt.Fprintf(w, " %s", c.show(row.median(c.of)))
			own := r.own(row)
			if ratio, ok := r.ratio(row, c.of, own); ok && ratio > 0 && own != row {
				fmt.Fprintf(w, " (%s ×)", times(ratio))
			}
			fmt.Fprint(w, " |")
		}
		lost, disconnected := row.lost()
		fmt.Fprintf(w, " %s | %s |\n", thousands(float64(lost)), thousands(float64(disconnected)))
	}
	fmt.Fprintln(w)
}

// table writes the results with that number of clients, sorted by the first
// column. This column also has ratios to the floor's and this package's results.
func (r *results) table(w io.Writer, clients int, columns ...column) {
	by := columns[0]
	rows := r.ranking(clients, by.of)
	if len(rows) == 0 {
		return
	}
	fmt.Fprintf(w, "| | %s | lowest – highest | × floor | × realtime |", by.title)
	for _, c := range columns[1:] {
		fmt.Fprintf(w, " %s |", c.title)
	}
	fmt.Fprintf(w, "\n|---|%s\n", strings.Repeat("--:|", len(columns)+3))
	for _, row := range rows {
		all := row.values(by.of)
		fmt.Fprintf(w, "| %s | %s | %s – %s |", row.label(), by.show(row.median(by.of)), by.show(all[0]), by.show(all[len(all)-1]))
		for _, other := range []*result{r.floor(clients), r.own(row)} {
			shown := ""
			if ratio, ok := r.ratio(row, by.of, other); ok {
				shown = times(ratio)
			}
			fmt.Fprintf(w, " %s |", shown)
		}
		for _, c := range columns[1:] {
			fmt.Fprintf(w, " %s |", c.show(row.median(c.of)))
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w)
}

// title returns the contender's name for tables and charts.
func (r *result) title() string {
	switch {
	case !r.contender.stream:
		return r.contender.name
	case r.contender.http2:
		return strings.TrimSuffix(r.contender.name, "-http2") + " (SSE, HTTP/2)"
	case r.contender.ours():
		return "realtime (SSE)"
	default:
		return r.contender.name + " (SSE)"
	}
}

// label returns the title with emphasis.
func (r *result) label() string {
	switch title := r.title(); {
	case r.contender.ours():
		return "**" + title + "**"
	case title == "floor":
		return "*floor*"
	default:
		return title
	}
}

// lost returns how many messages and clients the contender has lost in all rounds
// together.
func (r *result) lost() (messages, clients int) {
	for _, f := range r.figures {
		messages += f.lost
		clients += f.disconnected
	}
	return messages, clients
}

// losses describes what was lost in a round. It is empty if nothing was lost.
func (f *figures) losses() string {
	if f.lost == 0 && f.disconnected == 0 {
		return ""
	}
	s := fmt.Sprintf("LOST messages: %s, clients: %s", thousands(float64(f.lost)), thousands(float64(f.disconnected)))
	if f.reason != nil {
		s += fmt.Sprintf(" (%v)", f.reason)
	}
	return s
}

// write writes the results as Markdown.
func (r *results) write(w io.Writer) {
	c := r.comparison
	title, floor, remarks := "Side by side", "write(2)", remarks
	if c.tls {
		title, floor, remarks = "Over TLS", "Write of a tls.Conn", tlsRemarks
	}
	fmt.Fprintf(w, "# %s\n\nMade by `%s` on %s. [doc.go](../doc.go) says what the figures mean.\n"+
		"Figures are medians of %d rounds, with %v for each figure and round and %d bytes a message. The run took %v.\n\n",
		title, c.command(), time.Now().Format("2 January 2006"), c.rounds, c.work.duration, messageBytes, r.took.Round(time.Second))
	if r.unfinished > 0 {
		fmt.Fprintf(w, "**%d turns were left** when the time was up.\n\n", r.unfinished)
	}
	fmt.Fprintf(w, "Machine: %s. Load average %s before the run, %s after it. The latter includes the run itself.\n\n", machine(), r.loadBefore, r.loadAfter)
	fmt.Fprintf(w, "Versions: %s.\n\n", c.versions())
	fmt.Fprintf(w, "*Floor* is %s and nothing else. SSE marks event streams; the others are WebSockets. CPU is the time of the server\n"+
		"process. × realtime, and × in parentheses, is the ratio to this package's figure on the same transport, or on WebSockets\n"+
		"if there is none. Load is how much of a core the load generator used. Lost messages are those that did not arrive, in\n"+
		"all rounds together. Lost clients are those that the server disconnected.\n\n", floor)
	for _, n := range c.clients {
		fmt.Fprintf(w, "## %s clients\n\n", thousands(float64(n)))
		r.summarize(w, n)
	}
	r.writeBehind(w)
	r.writeFailures(w)
	fmt.Fprintln(w, remarks)
	for _, n := range c.clients {
		fmt.Fprintf(w, "## %s clients in detail\n\n", thousands(float64(n)))
		fmt.Fprint(w, "### One broadcast at a time\n\n")
		r.table(w, n, deliveryColumns(func(f *figures) *delivery { return &f.single })...)
		fmt.Fprintf(w, "### Bursts of %d\n\n", burstSize)
		r.table(w, n, deliveryColumns(func(f *figures) *delivery { return &f.burst })...)
		fmt.Fprint(w, "### Memory of an idle client\n\n")
		r.table(w, n,
			column{"KB after a collection", func(f *figures) float64 { return f.idle / 1024 }, digits3},
			column{"KB before it", func(f *figures) float64 { return f.joined / 1024 }, digits3})
		fmt.Fprint(w, "### Connecting\n\n")
		r.table(w, n, rateColumns("CPU a client, µs", "connects/s", func(f *figures) *rate { return &f.connect })...)
		fmt.Fprint(w, "### Echo\n\n")
		r.table(w, n, rateColumns("CPU a round trip, µs", "round trips/s", func(f *figures) *rate { return &f.echo })...)
	}
}

func rateColumns(cpu, second string, of func(f *figures) *rate) []column {
	return []column{
		{cpu, func(f *figures) float64 { return of(f).cpu }, digits3},
		{"of it in the kernel", func(f *figures) float64 { return of(f).kernel }, percent},
		{second, func(f *figures) float64 { return of(f).second }, thousands},
		{"load", func(f *figures) float64 { return of(f).load }, percent},
	}
}

func deliveryColumns(of func(f *figures) *delivery) []column {
	return append(rateColumns("CPU a delivery, µs", "deliveries/s", func(f *figures) *rate { return &of(f).rate }),
		column{"to a client p50, ms", func(f *figures) float64 { return of(f).toAny.p50 / 1e3 }, digits3},
		column{"p99", func(f *figures) float64 { return of(f).toAny.p99 / 1e3 }, digits3},
		column{"to the last client p50, ms", func(f *figures) float64 { return of(f).toLast.p50 / 1e3 }, digits3},
		column{"p99", func(f *figures) float64 { return of(f).toLast.p99 / 1e3 }, digits3})
}

// writeBehind lists the figures in which others do better than this package.
func (r *results) writeBehind(w io.Writer) {
	var lines []string
	for _, n := range r.comparison.clients {
		for _, c := range summary {
			for _, one := range r.ranking(n, c.of) {
				own := r.own(one)
				ratio, ok := r.ratio(one, c.of, own)
				if ok && ratio < 1 && !one.contender.ours() && one.contender.name != "floor" {
					lines = append(lines, fmt.Sprintf("- %s, %s clients: %s has %s, %s has %s.\n",
						c.title, thousands(float64(n)), one.title(), c.show(one.median(c.of)), own.title(), c.show(own.median(c.of))))
				}
			}
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(w, "## Where others do better\n\n%s\n", strings.Join(lines, ""))
	}
}

// writeFailures lists the turns that failed, and the losses.
func (r *results) writeFailures(w io.Writer) {
	var lines []string
	for _, one := range r.all {
		who := fmt.Sprintf("%s, %s clients", one.title(), thousands(float64(one.clients)))
		for _, failure := range one.failures {
			lines = append(lines, fmt.Sprintf("- %s: **failed** in `%s`\n", who, oneLine(failure)))
		}
		for _, f := range one.figures {
			if losses := f.losses(); losses != "" {
				lines = append(lines, fmt.Sprintf("- %s: `%s`\n", who, oneLine(losses)))
			}
		}
	}
	if len(lines) > 0 {
		fmt.Fprintf(w, "## Failures and losses\n\n%s\n", strings.Join(lines, ""))
	}
}

// oneLine makes text fit between backquotes.
func oneLine(s string) string {
	return strings.ReplaceAll(strings.Join(strings.Fields(s), " "), "`", "'")
}

// publish prints the results. Unless dir is empty, it writes them to it, and the
// charts if they are not over TLS. The error also names contenders that failed.
func (r *results) publish(w io.Writer, dir string) error {
	var text bytes.Buffer
	r.write(&text)
	w.Write(text.Bytes())
	if dir != "" {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			return err
		}
		files := map[string][]byte{"tls.md": text.Bytes()}
		if !r.comparison.tls {
			files = map[string][]byte{
				"results.md":   text.Bytes(),
				"delivery.svg": r.deliveryChart(),
				"memory.svg":   r.memoryChart(),
			}
		}
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o666); err != nil {
				return err
			}
		}
	}
	var failed []string
	for _, one := range r.all {
		if len(one.failures) > 0 && !slices.Contains(failed, one.contender.name) {
			failed = append(failed, one.contender.name)
		}
	}
	if len(failed) > 0 {
		return fmt.Errorf("failed: %s", strings.Join(failed, ", "))
	}
	return nil
}

// command returns the command that was run.
func (c *comparison) command() string {
	return strings.TrimSpace("cd bench && go run . " + strings.Join(c.args, " "))
}

// versions lists the contenders' modules and their versions.
func (c *comparison) versions() string {
	var all []string
	for _, contender := range c.contenders {
		if contender.module == "" {
			continue
		}
		version := contender.version()
		if version == "this tree" {
			version = thisTree()
		}
		if one := contender.module + " " + version; !slices.Contains(all, one) {
			all = append(all, one)
		}
	}
	return strings.Join(all, ", ")
}

// thisTree names the commit that is checked out, if git knows it. Changes that
// are not committed are measured too, and make it dirty.
func thisTree() string {
	commit, err := exec.Command("git", "describe", "--always", "--dirty").Output()
	if err != nil {
		return "of this tree"
	}
	return "of this tree, " + strings.TrimSpace(string(commit))
}

// machine describes the machine of the run.
func machine() string {
	model := "unknown processor"
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	var name unix.Utsname
	unix.Uname(&name)
	var memory unix.Sysinfo_t
	unix.Sysinfo(&memory)
	return fmt.Sprintf("%s, %d cores, %.0f GB, Linux %s, %s", model, runtime.NumCPU(),
		float64(memory.Totalram)*float64(memory.Unit)/(1<<30), unix.ByteSliceToString(name.Release[:]), runtime.Version())
}

// loadAverage returns the load of the last minute.
func loadAverage() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// digits3 shows a number with three digits. Zero was not measured and is a dash.
func digits3(v float64) string {
	switch {
	case v == 0:
		return "–"
	case v >= 99.95 || v <= -99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995 || v <= -9.995:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.9995 || v <= -0.9995:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

// times shows a ratio. Near 1 it has two decimals, so that it shows which of two
// is ahead.
func times(v float64) string {
	switch {
	case v >= 9.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 1.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// thousands shows a large number: 12,345.
func thousands(v float64) string {
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func percent(v float64) string { return fmt.Sprintf("%.0f %%", v*100) }
