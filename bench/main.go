//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	if is, err := beServer(os.Args[1:]); is {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	c, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(c.growth) > 0 {
		err = c.measureGrowth(ctx, os.Stderr, os.Stdout)
	} else if len(c.nodes) > 0 {
		err = c.compareNodes(ctx, os.Stderr, os.Stdout)
	} else {
		var r *results
		if r, err = c.run(ctx, os.Stderr); err == nil {
			err = r.publish(os.Stdout, c.out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// beServer runs a server if this program was started as one, and reports whether
// it was. Otherwise this process is the load generator.
func beServer(args []string) (is bool, err error) {
	switch {
	case len(args) == 2 && args[0] == serveFlag:
		return true, serve(find(slices.Concat(contenders, stampeders), args[1]), os.Stdin, os.Stdout)
	case len(args) == 2 && args[0] == tlsFlag:
		return true, serve(find(tlsContenders, args[1]), os.Stdin, os.Stdout)
	case len(args) == 3 && args[0] == nodeFlag:
		return true, serveAsNode(args[1], args[2], os.Stdin, os.Stdout)
	case len(args) == 3 && args[0] == natsFlag:
		return true, serveNATS(args[1], args[2], os.Stdin)
	}
	return false, nil
}

// A comparison is the task of one run of this program.
type comparison struct {
	args       []string // from the command line
	contenders []*contender
	clients    []int
	nodes      []int    // numbers of nodes; empty: compare on one, without an engine
	growth     []string // parts of growthParts to measure instead
	tls        bool
	rounds     int
	limit      time.Duration // for the whole run
	work       workload      // of each turn; the number of clients is set later
	out        string        // a folder, or empty for none
}

func parse(args []string) (*comparison, error) {
	c := &comparison{args: args}
	c.work = workload{settle: time.Second, stall: 5 * time.Second, limit: 2 * time.Minute}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	chosen := f.String("contenders", "", "`names` of the contenders to measure; empty: all")
	clients := f.String("clients", "1000,10000", "`numbers` of clients")
	nodes := f.String("nodes", "", "`numbers` of nodes to compare on; empty: one node without an engine")
	growth := f.String("growth", "", "`parts` of how cost grows to measure: hub,sockets,stampede; empty: compare")
	f.BoolVar(&c.tls, "tls", false, "compare over TLS; the default of -clients is 2000 then")
	f.IntVar(&c.rounds, "rounds", 5, "turns of each contender")
	f.DurationVar(&c.work.duration, "duration", 1200*time.Millisecond, "time to measure each figure in each turn")
	f.DurationVar(&c.limit, "limit", 40*time.Minute, "time after which to stop with the turns so far")
	f.IntVar(&c.work.threads, "threads", max(1, min(4, runtime.NumCPU()/2)), "threads of the load generator")
	f.StringVar(&c.out, "out", "results", "`folder` for the table and the charts; empty writes none")
	f.StringVar(&c.work.profiles, "cpuprofile", "", "`folder` for CPU profiles of the servers; empty writes none")
	quick := f.Bool("quick", false, "other defaults for these flags: -clients 1000 -rounds 1 -duration 500ms -out ''")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("%q is not a flag: see -h", f.Arg(0))
	}
	other := make(map[string]string) // defaults
	all := contenders
	if c.tls {
		all = tlsContenders
		other["clients"] = "2000"
	}
	if *quick {
		maps.Copy(other, map[string]string{"clients": "1000", "rounds": "1", "duration": "500ms", "out": ""})
	}
	f.Visit(func(given *flag.Flag) { delete(other, given.Name) })
	for name, value := range other {
		if err := f.Set(name, value); err != nil {
			return nil, err
		}
	}
	for name := range strings.SplitSeq(cmp.Or(*chosen, names(all)), ",") {
		found := find(all, name)
		if found == nil {
			return nil, fmt.Errorf("no contender is called %q: choose from %s", name, names(all))
		}
		c.contenders = append(c.contenders, found)
	}
	for number := range strings.SplitSeq(*clients, ",") {
		n, err := strconv.Atoi(number)
		if err != nil || n <= 0 {
			return nil, fmt.Errorf("%q is not a valid number of clients", number)
		}
		c.clients = append(c.clients, n)
	}
	for number := range strings.SplitSeq(*nodes, ",") {
		n, err := strconv.Atoi(number)
		if err != nil && *nodes == "" {
			break
		}
		if err != nil || n <= 1 {
			return nil, fmt.Errorf("%q is not a valid number of nodes: at least 2", number)
		}
		c.nodes = append(c.nodes, n)
	}
	for part := range strings.SplitSeq(*growth, ",") {
		if growthParts[part] == nil && *growth != "" {
			return nil, fmt.Errorf("%q is no part of -growth: choose from hub,sockets,stampede", part)
		}
		if *growth != "" {
			c.growth = append(c.growth, part)
		}
	}
	if len(c.growth) > 0 {
		c.clients = []int{growthClients}
	}
	if c.rounds <= 0 || c.work.threads <= 0 || c.work.duration <= 0 || c.limit <= 0 {
		return nil, errors.New("-rounds, -threads, -duration and -limit must be positive")
	}
	var limit syscall.Rlimit // Go has raised the soft one
	need := uint64(slices.Max(c.clients)) + 100
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil && limit.Max < need {
		return nil, fmt.Errorf("%d clients need %d descriptors for each process, but ulimit -Hn allows %d", need-100, need, limit.Max)
	}
	return c, nil
}

// names lists contenders.
func names(all []contender) string {
	var names []string
	for _, c := range all {
		names = append(names, c.name)
	}
	return strings.Join(names, ",")
}

// run lets the contenders take turns and reports on progress. The order of the
// turns is reversed after each round, so that no contender always comes after
// the same one.
func (c *comparison) run(ctx context.Context, progress io.Writer) (*results, error) {
	if c.work.profiles != "" {
		if err := os.MkdirAll(c.work.profiles, 0o777); err != nil {
			return nil, err
		}
	}
	r := newResults(c)
	began := time.Now()
	took := make(map[*result]time.Duration) // by the last turn
	var turns []*result
	order := slices.Clone(r.all)
	for range c.rounds {
		turns = append(turns, order...)
		slices.Reverse(order)
	}
	for turn, at := range turns {
		left := time.Duration(0)
		for _, later := range turns[turn:] {
			left += c.guess(later, took)
		}
		if time.Since(began) > c.limit {
			r.unfinished = len(turns) - turn
			break
		}
		fmt.Fprintf(progress, "[%d/%d] %v left; %d clients, %s: ", turn+1, len(turns), left.Round(time.Second), at.clients, at.contender.name)
		w := c.work
		w.clients = at.clients
		start := time.Now()
		f, err := w.measure(ctx, at.contender)
		took[at] = time.Since(start)
		switch {
		case ctx.Err() != nil:
			fmt.Fprintln(progress)
			return nil, ctx.Err()
		case err != nil:
			at.failures = append(at.failures, fmt.Sprintf("round %d: %v", turn/len(r.all)+1, err))
			fmt.Fprintln(progress, "FAILED:", err)
		default:
			at.figures = append(at.figures, f)
			fmt.Fprintf(progress, "%s and %s µs a delivery, %s KB a client, echo %s µs\n",
				digits3(f.single.cpu), digits3(f.burst.cpu), digits3(f.idle/1024), digits3(f.echo.cpu))
			if losses := f.losses(); losses != "" {
				fmt.Fprintln(progress, losses)
			}
		}
	}
	r.took = time.Since(began)
	r.loadAfter = loadAverage()
	return r, nil
}

// guess returns how long a turn will probably take: as long as the last one of
// its kind, if there was one.
func (c *comparison) guess(r *result, took map[*result]time.Duration) time.Duration {
	if t := took[r]; t > 0 {
		return t
	}
	return 4*c.work.duration + 2*c.work.settle + time.Duration(r.clients)*time.Millisecond/2
}
