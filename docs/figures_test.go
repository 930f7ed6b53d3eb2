package docs

import (
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// row returns the numbers of a table's row that begins with a cell, behind a
// heading.
func row(t *testing.T, path, heading, cell string) (numbers []float64) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut("\n"+string(text), "\n"+heading+"\n")
	_, line, ok := strings.Cut(section, "\n| "+cell+" |")
	if !ok {
		t.Fatalf("%s: there is no row %q under %q", path, cell, heading)
	}
	line, _, _ = strings.Cut(line, "\n")
	for field := range strings.SplitSeq(line, "|") {
		if n, err := strconv.ParseFloat(regexp.MustCompile(`^[\d.]+`).FindString(strings.TrimSpace(field)), 64); err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers
}

// The figures of sizing.md are those of the last results, or near them.
func TestFigures(t *testing.T) {
	const results, tls, page = "../bench/results/results.md", "../bench/results/tls.md", "sizing.md"
	few, many := row(t, results, "## 1,000 clients", "**realtime**"), row(t, results, "## 10,000 clients", "**realtime**")
	overTLS, http2 := row(t, tls, "## 2,000 clients", "**realtime**"), row(t, tls, "## 2,000 clients", "**realtime (SSE, HTTP/2)**")
	const delivery, burst, idle, connect, echo = 0, 1, 3, 4, 5 // columns
	for _, f := range []struct {
		heading, cell string
		want          []float64
	}{
		{"## Memory", "an idle client, 10,000 of them", []float64{many[idle]}},
		{"## Memory", "the same, if this process ends TLS", []float64{overTLS[idle]}},
		{"## Memory", "an event stream over HTTP/2, if this process ends TLS", []float64{http2[idle]}},
		{"## Processors", "a delivery, each event by itself", []float64{few[delivery], many[delivery]}},
		{"## Processors", "a delivery, in bursts of 64 events", []float64{few[burst], many[burst]}},
		{"## Processors", "an echo: a message read, and one sent", []float64{few[echo], many[echo]}},
		{"## Processors", "to connect", []float64{few[connect], many[connect]}},
		{"## Processors", "to connect, if this process ends TLS", []float64{overTLS[connect]}},
	} {
		got := row(t, page, f.heading, f.cell)
		if len(got) != len(f.want) {
			t.Fatalf("%s: %q has %v, want %v", page, f.cell, got, f.want)
		}
		for i := range got {
			if math.Abs(got[i]-f.want[i]) > f.want[i]/5 {
				t.Errorf("%s: %q has %v, and the results have %v", page, f.cell, got, f.want)
			}
		}
	}
}
