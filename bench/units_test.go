//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// The kernel reports the CPU time in two ways. They must agree, because the tables
// have the sum from one and its parts from the other.
func TestProcessorTime(t *testing.T) {
	before := processCPU(0)
	userBefore, systemBefore := processTicks(os.Getpid())
	for processCPU(0)-before < 200*time.Millisecond {
	}
	user, system := processTicks(os.Getpid())
	exact, ticks := processCPU(0)-before, user+system-userBefore-systemBefore
	if diff := (exact - ticks).Abs(); diff > 50*time.Millisecond {
		t.Errorf("got %v from the clock and %v from /proc", exact, ticks)
	}
}

// A collector is a sink that records what it gets.
type collector []string

func (c *collector) open() error               { *c = append(*c, "open"); return nil }
func (c *collector) text(b []byte) error       { *c = append(*c, "text "+string(b)); return nil }
func (c *collector) ping(payload []byte) error { *c = append(*c, "ping "+string(payload)); return nil }
func (c *collector) http2Answer(frame []byte) error {
	*c = append(*c, "answer "+string(frame))
	return nil
}

// TestDecoder decodes a server's bytes in pieces of every size.
func TestDecoder(t *testing.T) {
	long := strings.Repeat("long ", 60)
	for _, test := range []struct {
		name   string
		stream bool
		http2  bool
		in     string
		want   []string
	}{
		{
			name: "frames",
			in: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n" +
				"\x81\x05first" + "\x89\x02hi" + "\x82\x7e\x01\x2c" + long +
				"\x01\x03fra" + "\x89\x00" + "\x00\x01g" + "\x80\x04ment" + "\x81\x00" + "\x02\x01a" + "\x80\x06nother",
			want: []string{"open", "text first", "ping hi", "text " + long, "ping ", "text fragment", "text ", "text another"},
		},
		{
			name:   "chunked stream",
			stream: true,
			in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" +
				"8\r\ndata: a\n\r\n" + "A\r\n\ndata: b\n\n\r\n" + "3\r\n: c\r\n2\r\n\n\n\r\n",
			want: []string{"open", "text data: a", "text data: b", "text : c"},
		},
		{
			name:   "stream until the end",
			stream: true,
			in:     "HTTP/1.1 200 OK\r\n\r\nid: 1\ndata: a\n\ndata: b\n\n",
			want:   []string{"open", "text id: 1\ndata: a", "text data: b"},
		},
		{
			name:  "HTTP/2",
			http2: true,
			in: "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + // settings
				"\x00\x00\x00\x04\x01\x00\x00\x00\x00" + // the answer to the client's
				"\x00\x00\x02\x01\x04\x00\x00\x00\x01\x88x" +
				"\x00\x00\x08\x00\x00\x00\x00\x00\x01data: a\n" +
				"\x00\x00\x08\x06\x00\x00\x00\x00\x00datagram" + // a ping
				"\x00\x00\x0a\x00\x00\x00\x00\x00\x01\ndata: b\n\n",
			want: []string{"answer \x00\x00\x00\x04\x01\x00\x00\x00\x00", "open",
				"answer \x00\x00\x08\x06\x01\x00\x00\x00\x00datagram", "text data: a", "text data: b"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			for size := 1; size <= len(test.in); size++ {
				d := decoder{stream: test.stream, http2: test.http2}
				var got collector
				var waiting []byte
				for piece := range slices.Chunk([]byte(test.in), size) {
					waiting = append(waiting, piece...)
					n, err := d.decode(waiting, &got)
					if err != nil {
						t.Fatalf("pieces of %d: %v", size, err)
					}
					waiting = slices.Clone(waiting[n:]) // a decoder must not keep the bytes it was given
				}
				if !slices.Equal(got, test.want) || len(waiting) > 0 {
					t.Fatalf("pieces of %d: got %q and %q, want %q", size, got, waiting, test.want)
				}
			}
		})
	}
}

func TestDecoderRefuses(t *testing.T) {
	opened := "HTTP/1.1 101 Switching Protocols\r\n\r\n"
	for _, in := range []string{
		"HTTP/1.1 403 Forbidden\r\n\r\n",
		opened + "\x88\x02\x03\xe8", // a close frame
		opened + "\x81\x80mask",     // masked
		opened + "\xc1\x00",         // compressed
		opened + "\x83\x00",         // no such opcode
	} {
		if _, err := new(decoder).decode([]byte(in), new(collector)); err == nil {
			t.Errorf("%q: got no error", in)
		}
	}
}

func TestMessage(t *testing.T) {
	want := message{42, time.Now().UnixNano()}
	text := want.appendTo(nil)
	if len(text) != messageBytes {
		t.Fatalf("%d bytes, want %d", len(text), messageBytes)
	}
	got, rest, ok := nextMessage(fmt.Appendf(nil, "data: %s\nmore", text))
	if got != want || string(rest) != "\nmore" || !ok {
		t.Errorf("got %v, %q, %t", got, rest, ok)
	}
	for i := range text {
		changed := slices.Clone(text)
		changed[i] = '#'
		if m, _, ok := nextMessage(changed); ok {
			t.Errorf("got %v from %s", m, changed)
		}
	}
	if _, _, ok := nextMessage(text[:messageBytes-1]); ok {
		t.Error("got a message that was cut short")
	}
}

func TestHistogram(t *testing.T) {
	for _, scale := range []int64{1, 1000, 1e6, 1e9} {
		h := new(histogram)
		for i := int64(1); i <= 1000; i++ {
			h.add(i * scale)
		}
		for _, q := range []float64{0.01, 0.5, 0.99} {
			want := q * 1000 * float64(scale)
			if got := h.quantile(q); got < want*0.98 || got > want*1.02+float64(scale) {
				t.Errorf("quantile %v of 1..1000 × %d: got %v, want %v", q, scale, got, want)
			}
		}
	}
}

// madeUp returns made-up results of a run.
func madeUp(t *testing.T) *results {
	t.Helper()
	c, err := parse([]string{"-quick", "-clients", "10,20", "-contenders", "floor,realtime,gws,go-sse"})
	if err != nil {
		t.Fatal(err)
	}
	r := newResults(c)
	for i, one := range r.all {
		for round := range 3 {
			f := figures{idle: 1024 * float64(i+1), joined: 2048 * float64(i+1)}
			f.single.cpu = float64(4 + i + 10*round)
			f.burst.cpu = 1 / float64(1+i)
			one.figures = append(one.figures, f)
		}
	}
	return r
}

func TestResults(t *testing.T) {
	r := madeUp(t)
	gws := r.all[2]
	gws.figures[1].lost, gws.figures[1].disconnected = 1234, 1
	gws.figures[1].reason = fmt.Errorf("%w by <chance>", errDisconnected)
	gws.failures = append(gws.failures, "round 4: no\nport")
	out := t.TempDir()
	if err := r.publish(io.Discard, out); err == nil || !strings.Contains(err.Error(), "gws") {
		t.Errorf("got %v, want an error that names gws", err)
	}
	text, err := os.ReadFile(filepath.Join(out, "results.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| gws | 16.0 (1.07 ×) | 0.333 (0.67 ×) |", // medians, and their ratios to realtime's 15 and 0.5
		"| 1,234 | 1 |", // losses
		"- gws, 10 clients: **failed** in `round 4: no port`", // on one line
		"- gws, 10 clients: `LOST messages: 1,234, clients: 1 (disconnected by <chance>)`",
		"- in bursts, µs, 10 clients: gws has 0.333, realtime has 0.500.",
		"| go-sse (SSE) | 17.0 | 7.00 – 27.0 | 1.21 | 1.13 |",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	for _, name := range []string{"delivery.svg", "memory.svg"} {
		checkXML(t, filepath.Join(out, name))
	}
}

func TestTLSResults(t *testing.T) {
	c, err := parse([]string{"-tls", "-quick"})
	if err != nil {
		t.Fatal(err)
	}
	r := newResults(c)
	for i, one := range r.all {
		var f figures
		f.single.cpu = float64(4 + i)
		one.figures = append(one.figures, f)
	}
	out := t.TempDir()
	if err := r.publish(io.Discard, out); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(out, "tls.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"# Over TLS\n",
		"| go-sse (SSE, HTTP/2) | 11.0 (1.57 ×) |", // realtime's is 7 on the same protocol
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if files, _ := os.ReadDir(out); len(files) != 1 {
		t.Errorf("got %v, want one file", files)
	}
}

func checkXML(t *testing.T, file string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for d := xml.NewDecoder(f); ; {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
}

// A part's figures stay until it is measured again.
func TestGrowth(t *testing.T) {
	out := t.TempDir()
	old := "hub: measured before.\nBenchmarkGrowth/clients=1000/broadcast-2 9 9 ns/op 50 cpu-ns/delivery 700 B/client\n" +
		"sockets: stays.\nBenchmarkSockets/clients=1000/realtime 1 6000 cpu-ns/delivery\n" +
		"BenchmarkSockets/clients=1000/realtime 1 8000 cpu-ns/delivery\nBenchmarkSockets/clients=15000/realtime 1 7700 cpu-ns/delivery\n"
	if err := os.WriteFile(filepath.Join(out, "growth.txt"), []byte(old), 0o666); err != nil {
		t.Fatal(err)
	}
	hub := growthParts["hub"]
	defer func() { growthParts["hub"] = hub }()
	growthParts["hub"] = func(*comparison, context.Context, io.Writer) ([]string, error) {
		return []string{"BenchmarkGrowth/clients=1000/broadcast-2 9 9 ns/op 60 cpu-ns/delivery"}, nil
	}
	c, err := parse([]string{"-growth", "hub", "-out", out})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.measureGrowth(t.Context(), io.Discard, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(out, "growth.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"- sockets: stays.\n",
		"| **WebSocket**: CPU a delivery, ns | 7,000 | – | 7,700 | – |", // a median
		"| CPU a delivery, ns | 60.0 | – | – | – | – |",
	} {
		if !bytes.Contains(text, []byte(want)) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}
	if bytes.Contains(text, []byte("measured before")) || bytes.Count(text, []byte("- hub:")) != 1 {
		t.Errorf("a part is there twice:\n%s", text)
	}
	checkXML(t, filepath.Join(out, "growth.svg"))
}
