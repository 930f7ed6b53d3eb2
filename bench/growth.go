//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed" // for growth.md
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// growthRemarks says what the figures mean and why they are so.
//
//go:embed growth.md
var growthRemarks string

// growthParts are what -growth can measure. Each part's figures stay in a file
// until it is measured again, so parts can run at different times.
var growthParts = map[string]func(*comparison, context.Context, io.Writer) ([]string, error){
	"hub":      (*comparison).growthOfHub,
	"sockets":  (*comparison).growthOverSockets,
	"stampede": (*comparison).growthInStampedes,
}

const growthClients = 15_000 // the most; a process has 20,000 descriptors here

// measureGrowth measures parts, and writes a table and a chart of all parts.
func (c *comparison) measureGrowth(ctx context.Context, progress, out io.Writer) error {
	file := filepath.Join(c.out, "growth.txt")
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	lines := strings.Split(strings.TrimSpace(string(old)), "\n")
	for _, part := range c.growth {
		got, err := growthParts[part](c, ctx, progress)
		if err != nil {
			return err
		}
		stamp := fmt.Sprintf("%s: `%s`, %s, %s, load average %s afterwards.", part, c.command(), time.Now().Format("2 January 2006"), thisTree(), loadAverage())
		lines = slices.DeleteFunc(lines, func(line string) bool {
			return strings.HasPrefix(line, part+":") || growthPart(line) == part
		})
		lines = append(append(lines, stamp), got...)
	}
	text := strings.TrimSpace(strings.Join(lines, "\n")) + "\n"
	g := parseGrowth(text)
	report := g.report()
	if _, err := io.WriteString(out, report); err != nil || c.out == "" {
		return err
	}
	if err := os.MkdirAll(c.out, 0o777); err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(file, []byte(text), 0o666),
		os.WriteFile(filepath.Join(c.out, "growth.md"), []byte(report), 0o666),
		os.WriteFile(filepath.Join(c.out, "growth.svg"), g.chart(), 0o666))
}

// growthPart returns the part that a line's figures are of, or an empty string.
func growthPart(line string) string {
	switch name, _, _ := strings.Cut(line, "/"); {
	case name == "BenchmarkSockets":
		return "sockets"
	case name == "BenchmarkStampede":
		return "stampede"
	case strings.HasPrefix(name, "BenchmarkGrowth"):
		return "hub"
	}
	return ""
}

// growthOfHub runs the benchmarks of the package itself, where a function stands
// in for the kernel.
func (c *comparison) growthOfHub(ctx context.Context, progress io.Writer) (lines []string, err error) {
	for range c.rounds {
		test := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "^BenchmarkGrowth", "-benchtime", "300ms", ".")
		test.Dir = ".."
		var out bytes.Buffer
		test.Stdout, test.Stderr = io.MultiWriter(&out, progress), progress
		if err := test.Run(); err != nil {
			return nil, fmt.Errorf("the package's benchmarks: %w", err)
		}
		for line := range strings.Lines(out.String()) {
			if strings.HasPrefix(line, "Benchmark") {
				lines = append(lines, strings.TrimSpace(line))
			}
		}
	}
	return lines, nil
}

// growthOverSockets measures deliveries and memory with real sockets.
func (c *comparison) growthOverSockets(ctx context.Context, progress io.Writer) (lines []string, err error) {
	for range c.rounds {
		for _, clients := range []int{1_000, 10_000, growthClients} {
			for _, name := range []string{"floor", "realtime", "realtime-sse"} {
				w := c.work
				w.clients = clients
				f, err := w.measure(ctx, find(contenders, name))
				if err != nil {
					return nil, fmt.Errorf("%s, %d clients: %w", name, clients, err)
				}
				line := fmt.Sprintf("BenchmarkSockets/clients=%d/%s 1 %.0f cpu-ns/delivery %.1f cpu-ns/burst-delivery %.0f cpu-ns/connect %.0f B/client",
					clients, name, f.single.cpu*1e3, f.burst.cpu*1e3, f.connect.cpu*1e3, f.idle)
				lines = append(lines, line)
				fmt.Fprintln(progress, line, f.losses())
			}
		}
	}
	return lines, nil
}

// missed is how many events a client of a stampede has missed.
const missed = 10

// growthInStampedes lets all clients reconnect at once, with their last event id.
func (c *comparison) growthInStampedes(ctx context.Context, progress io.Writer) (lines []string, err error) {
	for range c.rounds {
		for i := range stampeders {
			line, err := c.work.stampede(ctx, &stampeders[i], growthClients)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", stampeders[i].name, err)
			}
			lines = append(lines, line)
			fmt.Fprintln(progress, line)
		}
	}
	return lines, nil
}

// stampeders are this package with a history.
var stampeders = []contender{
	{"websockets", ourModule, noEcho, serveWithHistory},
	{"event-streams", ourModule, eventStream, serveWithHistory},
}

func serveWithHistory() (http.Handler, func(int, func() []byte)) {
	hub := realtime.NewHub()
	hub.History = realtime.History{Events: 100}
	go hub.Run()
	return hub, publishTo(hub)
}

// stampede measures a stampede, from its beginning until each client has got what
// it missed.
func (w workload) stampede(ctx context.Context, c *contender, clients int) (line string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.limit, fmt.Errorf("not done after %v", w.limit))
	defer cancel()
	srv, err := startServer(ctx, c)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()
	first, err := newLoad(ctx, c.protocol, srv.port, clients, w.threads)
	if err != nil {
		return "", err
	}
	err = first.connect(w.stall)
	id, idErr := newestID(ctx, srv.port)
	first.close() // all at once
	if err := errors.Join(err, idErr); err != nil {
		return "", err
	}
	if err := srv.publish(missed); err != nil {
		return "", err
	}
	time.Sleep(w.settle)
	if err := srv.gc(); err != nil {
		return "", err
	}
	before, err := srv.resident()
	if err != nil {
		return "", err
	}
	srv.forgetPeak()

	p := c.protocol
	p.path += map[bool]string{true: "&", false: "?"}[strings.Contains(p.path, "?")] + "lastEventId=" + id
	l, err := newLoad(ctx, p, srv.port, clients, w.threads)
	if err != nil {
		return "", err
	}
	defer l.close()
	l.atOnce, l.storm = clients, true
	s := &stampede{began: time.Now().UnixNano(), back: make([]histogram, w.threads), done: make(chan struct{})}
	s.left.Store(int64(clients))
	l.enter(s)
	cpu := srv.cpu()
	if err := l.connect(w.stall); err != nil {
		return "", err
	}
	if err := l.wait(s.done, w.stall, func(t *thread) int64 { return s.back[t.index].count }); err != nil {
		return "", err
	}
	cpu = srv.cpu() - cpu
	peak := srv.peak()
	time.Sleep(w.settle)
	if err := srv.gc(); err != nil {
		return "", err
	}
	after, err := srv.resident()
	all := new(histogram)
	for i := range s.back {
		all.merge(&s.back[i])
	}
	return fmt.Sprintf("BenchmarkStampede/clients=%d/%s 1 %.0f p50-ms %.0f p99-ms %.0f last-ms %.0f cpu-ns/client %.0f B/client-at-peak %.0f B/client",
		clients, c.name, all.quantile(0.5)/1e6, all.quantile(0.99)/1e6, all.quantile(1-0.5/float64(clients))/1e6,
		float64(cpu)/float64(clients), float64(peak-before)/float64(clients), float64(after-before)/float64(clients)), err
}

// newestID returns the id of a server's newest event, or of its beginning.
func newestID(ctx context.Context, port int) (string, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			return id, nil
		}
	}
	return "", errors.New("the server tells no id")
}

// A stampede is the stage in which each client gets what it missed.
type stampede struct {
	began int64
	left  atomic.Int64  // clients that have yet to get something
	back  []histogram   // times from the beginning until a client had all, by thread; each thread owns its own
	done  chan struct{} // closed when all clients have all
}

func (s *stampede) got(c *client, m message, now int64) error {
	if m.seq != c.last+1 {
		return fmt.Errorf("message %d came after %d", m.seq, c.last)
	}
	if c.last = m.seq; m.seq == missed {
		s.back[c.thread.index].add(now - s.began)
		if s.left.Add(-1) == 0 {
			close(s.done)
		}
	}
	return nil
}

func (s *stampede) gone(*client) {}

// forgetPeak makes peak begin again.
func (s *server) forgetPeak() {
	os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", s.cmd.Process.Pid), []byte("5"), 0) // see proc_pid_clear_refs(5)
}

// peak returns the most resident memory of the process, in bytes.
func (s *server) peak() int64 {
	n, _ := s.status("VmHWM:")
	return n
}

// Growth has figures by the name of their benchmark and by unit, of each round.
type growth struct {
	stamps []string
	values map[string]map[string][]float64
}

// parseGrowth reads lines in the format of Go's benchmarks.
func parseGrowth(text string) growth {
	g := growth{values: make(map[string]map[string][]float64)}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if growthPart(line) == "" {
			if len(fields) > 0 {
				g.stamps = append(g.stamps, strings.TrimSpace(line))
			}
			continue
		}
		name := fields[0]
		if i := strings.LastIndexByte(name, '-'); growthPart(line) == "hub" && i > 0 {
			name = name[:i] // without GOMAXPROCS
		}
		if g.values[name] == nil {
			g.values[name] = make(map[string][]float64)
		}
		for i := 2; i+1 < len(fields); i += 2 {
			if v, err := strconv.ParseFloat(fields[i], 64); err == nil {
				g.values[name][fields[i+1]] = append(g.values[name][fields[i+1]], v)
			}
		}
	}
	return g
}

// median returns a figure's median over the rounds, or 0 if it wasn't measured.
func (g growth) median(name, unit string) float64 {
	all := slices.Sorted(slices.Values(g.values[name][unit]))
	if len(all) == 0 {
		return 0
	}
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// A growthTable shows figures for several sizes.
type growthTable struct {
	title string
	sizes []int
	rows  []growthRow
}

// A growthRow is one figure. name has %d for the size.
type growthRow struct{ label, name, unit string }

var (
	hubSizes    = []int{1_000, 10_000, 100_000, 1_000_000}
	topicSizes  = []int{100, 10_000, 1_000_000}
	socketSizes = []int{1_000, 10_000, growthClients}
)

var growthTables = []growthTable{
	{"Clients, over sockets", socketSizes, []growthRow{
		{"**WebSocket**: CPU a delivery, ns", "BenchmarkSockets/clients=%d/realtime", "cpu-ns/delivery"},
		{"**event stream**: CPU a delivery, ns", "BenchmarkSockets/clients=%d/realtime-sse", "cpu-ns/delivery"},
		{"*floor*: CPU a delivery, ns", "BenchmarkSockets/clients=%d/floor", "cpu-ns/delivery"},
		{"**WebSocket**: in bursts, ns", "BenchmarkSockets/clients=%d/realtime", "cpu-ns/burst-delivery"},
		{"*floor*: in bursts, ns", "BenchmarkSockets/clients=%d/floor", "cpu-ns/burst-delivery"},
		{"**WebSocket**: CPU a connect, ns", "BenchmarkSockets/clients=%d/realtime", "cpu-ns/connect"},
		{"**WebSocket**: idle, bytes", "BenchmarkSockets/clients=%d/realtime", "B/client"},
		{"**event stream**: idle, bytes", "BenchmarkSockets/clients=%d/realtime-sse", "B/client"},
	}},
	{"Clients, the hub alone", hubSizes, []growthRow{
		{"CPU a delivery, ns", "BenchmarkGrowth/clients=%d/broadcast", "cpu-ns/delivery"},
		{"*floor*: the same walk through memory, ns", "BenchmarkGrowth/clients=%d/floor", "cpu-ns/delivery"},
		{"in bursts of 64, ns", "BenchmarkGrowth/clients=%d/burst", "cpu-ns/delivery"},
		{"to one topic that all have, ns", "BenchmarkGrowth/clients=%d/topic", "cpu-ns/delivery"},
		{"bytes a client", "BenchmarkGrowth/clients=%d/broadcast", "B/client"},
		{"CPU a second and idle client, ns", "BenchmarkGrowth/clients=%d/sweep", "cpu-ns/client"},
		{"Hub.Clients, CPU a client, ns", "BenchmarkGrowth/clients=%d/list", "cpu-ns/client"},
		{"Hub.Client, CPU a call, ns", "BenchmarkGrowth/clients=%d/find", "cpu-ns/client"},
		{"Shutdown, CPU a client, ns", "BenchmarkGrowthOfShutdown/clients=%d", "cpu-ns/client"},
		{"Shutdown, bytes a client on top", "BenchmarkGrowthOfShutdown/clients=%d", "B/client-on-top"},
		{"bytes a client left after it", "BenchmarkGrowthOfShutdown/clients=%d", "B/client-left"},
	}},
	{"Topics with four clients each, the hub alone", topicSizes, []growthRow{
		{"CPU a delivery, ns", "BenchmarkGrowth/topics=%d/publish", "cpu-ns/delivery"},
		{"*floor*: the same walk through memory, ns", "BenchmarkGrowth/topics=%d/floor", "cpu-ns/delivery"},
		{"Subscribe or Unsubscribe, CPU, ns", "BenchmarkGrowth/topics=%d/subscribe", "cpu-ns/change"},
		{"bytes a subscription", "BenchmarkGrowth/topics=%d/publish", "B/subscription"},
		{"History, CPU an event, ns", "BenchmarkGrowthOfHistory/topics=%d", "cpu-ns/event"},
	}},
	{"One client's topics, the hub alone", []int{100, 1_000, 10_000, 100_000}, []growthRow{
		{"one more or less, CPU, ns", "BenchmarkGrowthOfOne/topics=%d/subscribe", "cpu-ns/change"},
		{"all at once, CPU a topic, ns", "BenchmarkGrowthOfOne/topics=%d/unsubscribe", "cpu-ns/change"},
	}},
}

// report returns the tables as Markdown.
func (g growth) report() string {
	var b strings.Builder
	b.WriteString("# How cost grows\n\n![CPU and memory by number of clients](growth.svg)\n\n")
	for _, stamp := range g.stamps {
		fmt.Fprintf(&b, "- %s\n", stamp)
	}
	fmt.Fprintf(&b, "\nMachine: %s. Figures are medians over the rounds.\n", machine())
	for _, t := range growthTables {
		fmt.Fprintf(&b, "\n## %s\n\n| |", t.title)
		for _, n := range t.sizes {
			fmt.Fprintf(&b, " %s |", thousands(float64(n)))
		}
		fmt.Fprintf(&b, " last / first |\n|---|%s\n", strings.Repeat("--:|", len(t.sizes)+1))
		for _, row := range t.rows {
			fmt.Fprintf(&b, "| %s |", row.label)
			var all []float64
			for _, n := range t.sizes {
				name := fmt.Sprintf(row.name, n)
				all = append(all, g.median(name, row.unit))
				if slices.Max(append(g.values[name][row.unit], -1)) == 0 {
					b.WriteString(" 0 |") // no dash, because it was measured
				} else {
					fmt.Fprintf(&b, " %s |", growthDigits(all[len(all)-1]))
				}
			}
			if slices.Contains(all, 0) {
				b.WriteString(" – |\n")
			} else {
				fmt.Fprintf(&b, " %s |\n", times(all[len(all)-1]/all[0]))
			}
		}
	}
	fmt.Fprintf(&b, "\n## A stampede of %s clients\n\n| | back p50, ms | p99 | last | CPU a client, µs | at the peak, KB a client | afterwards, KB |\n|---|--:|--:|--:|--:|--:|--:|\n", thousands(growthClients))
	for _, s := range stampeders {
		name := fmt.Sprintf("BenchmarkStampede/clients=%d/%s", growthClients, s.name)
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s |\n", s.name,
			growthDigits(g.median(name, "p50-ms")), growthDigits(g.median(name, "p99-ms")), growthDigits(g.median(name, "last-ms")),
			digits3(g.median(name, "cpu-ns/client")/1e3), digits3(g.median(name, "B/client-at-peak")/1024), digits3(g.median(name, "B/client")/1024))
	}
	b.WriteString("\n" + growthRemarks)
	return b.String()
}

// growthDigits shows three digits of a small number, and no fraction of a large
// one.
func growthDigits(v float64) string {
	if v < 100 {
		return digits3(v)
	}
	return thousands(v)
}

// chart shows a delivery and a client by the number of clients.
func (g growth) chart() []byte {
	of := func(title string, sizes []int, scale float64, rows ...growthRow) panel {
		p := panel{title: title}
		for _, n := range sizes {
			for _, row := range rows {
				one := bar{label: thousands(float64(n)) + row.label, class: "realtime", value: g.median(fmt.Sprintf(row.name, n), row.unit) / scale}
				if strings.HasSuffix(row.name, "/floor") {
					one.class = "floor"
				}
				if one.value != 0 {
					p.bars = append(p.bars, one)
				}
			}
		}
		return p
	}
	panels := []panel{
		of("CPU a delivery over sockets, µs", socketSizes, 1e3,
			growthRow{"", "BenchmarkSockets/clients=%d/realtime", "cpu-ns/delivery"}, growthRow{", floor", "BenchmarkSockets/clients=%d/floor", "cpu-ns/delivery"}),
		of("CPU a delivery, the hub alone, ns", hubSizes, 1,
			growthRow{"", "BenchmarkGrowth/clients=%d/broadcast", "cpu-ns/delivery"}, growthRow{", floor", "BenchmarkGrowth/clients=%d/floor", "cpu-ns/delivery"}),
		of("Memory of an idle client over sockets, KB", socketSizes, 1024, growthRow{"", "BenchmarkSockets/clients=%d/realtime", "B/client"}),
		of("Memory of a client, the hub alone, KB", hubSizes, 1024, growthRow{"", "BenchmarkGrowth/clients=%d/broadcast", "B/client"}),
	}
	panels = slices.DeleteFunc(panels, func(p panel) bool { return len(p.bars) == 0 })
	return chart("How cost grows with the number of clients (shorter is better)", panels...)
}
