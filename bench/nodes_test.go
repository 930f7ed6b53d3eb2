//go:build linux

package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestNodes measures each contender on two nodes. Every client must get every
// message.
func TestNodes(t *testing.T) {
	if _, err := exec.LookPath("redis-server"); err != nil && os.Getenv("CI") == "" {
		t.Skip("this test needs redis-server in the PATH: apt-get install redis-server")
	}
	for i := range nodeContenders {
		c := &nodeContenders[i]
		t.Run(c.name, func(t *testing.T) {
			f, err := measureNodes(t.Context(), c, 2, 100*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			if f.lost != 0 || f.refused != 0 {
				t.Errorf("lost %d deliveries and refused %d messages", f.lost, f.refused)
			}
			for _, v := range []float64{f.near.p50, f.far.p50, f.far.p99, f.single, f.burst, f.second} {
				if v <= 0 || v > 1e7 {
					t.Errorf("got %+v", f)
				}
			}
		})
	}
}

func TestNodeTable(t *testing.T) {
	c := &comparison{nodes: []int{2}, rounds: 3}
	ours := &nodeResult{contender: &nodeContenders[0], nodes: 2}
	for _, v := range []float64{5, 1, 3} {
		ours.figures = append(ours.figures, nodeFigures{far: latency{p50: v, p99: 10 * v}, second: 100 * v, lost: 2})
	}
	other := &nodeResult{contender: &nodeContenders[3], nodes: 2, failures: []string{"round 1: it fell over"}}
	table := c.nodeTable([]*nodeResult{ours, other}, "0.5", time.Second)
	for _, want := range []string{"| **realtime on NATS** | 3.00 | 30.0 | – | – | 300 | – | 6 | 0 |", "| centrifuge on Redis | failed: round 1: it fell over |"} {
		if !strings.Contains(table, want) {
			t.Errorf("the table doesn't have %q:\n%s", want, table)
		}
	}
}
