//go:build linux

package main

import (
	"context"
	_ "embed" // for nodes.md
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// nodesRemarks says what the figures mean and why they are so.
//
//go:embed nodes.md
var nodesRemarks string

// A nodeResult is the outcome of one contender on a number of nodes.
type nodeResult struct {
	contender *nodeContender
	nodes     int
	figures   []nodeFigures
	failures  []string
}

// median returns the median of a figure over the rounds.
func (r *nodeResult) median(of func(f nodeFigures) float64) float64 {
	var all []float64
	for _, f := range r.figures {
		all = append(all, of(f))
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

// compareNodes lets the contenders take turns on each number of nodes and writes
// a table. The order of the turns is reversed after each round.
func (c *comparison) compareNodes(ctx context.Context, progress, out io.Writer) error {
	before, began := loadAverage(), time.Now()
	var all []*nodeResult
	for _, nodes := range c.nodes {
		for i := range nodeContenders {
			all = append(all, &nodeResult{contender: &nodeContenders[i], nodes: nodes})
		}
	}
	order := slices.Clone(all)
	for round := range c.rounds {
		for turn, r := range order {
			fmt.Fprintf(progress, "[%d/%d] %d nodes, %s: ", round*len(all)+turn+1, c.rounds*len(all), r.nodes, r.contender.name)
			f, err := measureNodes(ctx, r.contender, r.nodes, c.work.duration)
			if ctx.Err() != nil {
				fmt.Fprintln(progress)
				return ctx.Err()
			}
			if err != nil {
				r.failures = append(r.failures, fmt.Sprintf("round %d: %v", round+1, err))
				fmt.Fprintln(progress, "FAILED:", err)
				continue
			}
			r.figures = append(r.figures, f)
			fmt.Fprintf(progress, "%s µs to other nodes, %s messages a second, %s and %s µs of CPU, %d lost, %d refused\n",
				digits3(f.far.p50), digits3(f.second), digits3(f.single), digits3(f.burst), f.lost, f.refused)
		}
		slices.Reverse(order)
	}
	table := c.nodeTable(all, before, time.Since(began))
	if _, err := io.WriteString(out, table); err != nil || c.out == "" {
		return err
	}
	if err := os.MkdirAll(c.out, 0o777); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.out, "nodes.md"), []byte(table), 0o666)
}

func (c *comparison) nodeTable(all []*nodeResult, loadBefore string, took time.Duration) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# Several nodes\n\nMade by `%s` on %s. Figures are medians of %d rounds, with %v for each figure and round, %d bytes a message and %d clients on each node. The run took %v.\n\nMachine: %s.\n",
		c.command(), time.Now().Format("2 January 2006"), c.rounds, c.work.duration, messageBytes, nodeClients, took.Round(time.Second), machine())
	fmt.Fprintf(&b, "Load average %s before the run, %s after it.\n", loadBefore, loadAverage())
	for _, nodes := range c.nodes {
		fmt.Fprintf(&b, "\n## %d nodes\n\n", nodes)
		b.WriteString("| | to another node's client p50, µs | p99, µs | to the same node's client p50, µs | CPU a message, µs | in bursts: messages a second | CPU a message, µs | lost deliveries | refused messages |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|\n")
		for _, r := range all {
			if r.nodes != nodes {
				continue
			}
			name := r.contender.name
			if r.contender.ours {
				name = "**" + name + "**"
			}
			if len(r.figures) == 0 {
				fmt.Fprintf(&b, "| %s | failed: %s | | | | | | | |\n", name, strings.Join(r.failures, "; "))
				continue
			}
			lost, refused := int64(0), 0
			for _, f := range r.figures {
				lost += f.lost
				refused += f.refused
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s | %s | %d | %d |\n", name,
				digits3(r.median(func(f nodeFigures) float64 { return f.far.p50 })),
				digits3(r.median(func(f nodeFigures) float64 { return f.far.p99 })),
				digits3(r.median(func(f nodeFigures) float64 { return f.near.p50 })),
				digits3(r.median(func(f nodeFigures) float64 { return f.single })),
				digits3(r.median(func(f nodeFigures) float64 { return f.second })),
				digits3(r.median(func(f nodeFigures) float64 { return f.burst })),
				lost, refused)
		}
	}
	b.WriteString("\n" + nodesRemarks)
	return b.String()
}
