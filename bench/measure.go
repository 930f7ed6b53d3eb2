//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Figures are the figures of one contender in one round. Zero was not measured.
type figures struct {
	connect rate
	joined  float64 // bytes of memory a client, before a garbage collection
	idle    float64 // the same after a garbage collection
	single  delivery
	burst   delivery
	echo    rate

	lost         int   // deliveries and echoes
	disconnected int   // clients
	reason       error // why the first client was disconnected
}

// A rate describes something that was done many times.
type rate struct {
	cpu    float64 // the server's CPU time for each, in microseconds
	kernel float64 // the part of it that was system time
	second float64 // how many a second
	load   float64 // cores that the load generator used
}

// A delivery is a rate of deliveries, and their latencies.
type delivery struct {
	rate
	toAny, toLast latency
}

// A latency is in microseconds.
type latency struct{ p50, p99 float64 }

// A workload is the work for each contender.
type workload struct {
	clients  int
	threads  int           // of the load generator
	duration time.Duration // of each stage
	settle   time.Duration // the server becomes idle within it
	stall    time.Duration // after so long without a message the missing ones are lost
	limit    time.Duration // for the whole turn
	profiles string        // a folder for CPU profiles, or empty for none
}

const burstSize = 64

// measure measures a contender once. It returns at most some seconds after the
// limit.
func (w workload) measure(ctx context.Context, c *contender) (f figures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.limit, fmt.Errorf("not done after %v", w.limit))
	defer cancel()
	srv, err := startServer(ctx, c)
	if err != nil {
		return f, because(ctx, err)
	}
	defer func() {
		if stopped := srv.stop(); stopped != nil {
			err = because(ctx, errors.Join(err, stopped))
		}
	}()
	if err := w.comeAndGo(ctx, srv, c.protocol); err != nil {
		return f, fmt.Errorf("first clients: %w", err)
	}
	l, err := newLoad(ctx, c.protocol, srv.port, w.clients, w.threads)
	if err != nil {
		return f, err
	}
	defer l.close()
	if err := w.join(srv, l, &f); err != nil {
		return f, fmt.Errorf("connect: %w", err)
	}

	p := &publisher{load: l, command: srv.publish, stall: w.stall}
	if err := p.greet(); err != nil {
		return f, fmt.Errorf("greet: %w", err)
	}
	for _, batch := range []int{1, burstSize} { // warms up: stacks, queues and pools grow to their size
		if _, err := p.broadcast(batch, w.duration/10); err != nil {
			return f, fmt.Errorf("warm up: %w", err)
		}
	}
	if err := w.broadcast(c, srv, p, 1, "single", &f, &f.single); err != nil {
		return f, fmt.Errorf("one at a time: %w", err)
	}
	if err := w.broadcast(c, srv, p, burstSize, "burst", &f, &f.burst); err != nil {
		return f, fmt.Errorf("bursts: %w", err)
	}
	if c.echoes {
		m, err := w.start(srv, c, "echo")
		if err != nil {
			return f, err
		}
		trips, lost, err := l.echo(w.duration, w.stall)
		if err != nil {
			return f, fmt.Errorf("echo: %w", err)
		}
		f.echo = m.stop(trips)
		f.lost += lost
	}
	f.disconnected, f.reason = l.disconnected()
	return f, nil
}

// because returns the cause of ctx instead of err if ctx is done.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// comeAndGo lets some clients connect and leave. A server's first clients cost
// extra memory, such as pages of code. It must not count for the later ones.
func (w workload) comeAndGo(ctx context.Context, srv *server, p protocol) error {
	l, err := newLoad(ctx, p, srv.port, min(w.clients, atOnce), w.threads)
	if err != nil {
		return err
	}
	err = l.connect(w.stall)
	l.close()
	time.Sleep(w.settle)
	return err
}

// join connects the clients and measures the CPU time of that and the memory of
// idle clients.
func (w workload) join(srv *server, l *load, f *figures) error {
	if err := srv.gc(); err != nil {
		return err
	}
	before, err := srv.resident()
	if err != nil {
		return err
	}
	m := newMeter(srv)
	if err := l.connect(w.stall); err != nil {
		return err
	}
	f.connect = m.stop(w.clients)
	time.Sleep(w.settle)
	joined, err := srv.resident()
	if err != nil {
		return err
	}
	if err := srv.gc(); err != nil {
		return err
	}
	idle, err := srv.resident()
	f.joined = float64(joined-before) / float64(w.clients)
	f.idle = float64(idle-before) / float64(w.clients)
	return err
}

// broadcast measures deliveries into d and adds the losses to f.
func (w workload) broadcast(c *contender, srv *server, p *publisher, batch int, stage string, f *figures, d *delivery) error {
	m, err := w.start(srv, c, stage)
	if err != nil {
		return err
	}
	s, err := p.broadcast(batch, w.duration)
	if err != nil {
		return err
	}
	latencies := s.latencies()
	if latencies.count == 0 {
		return errors.New("nothing was delivered")
	}
	d.rate = m.stop(int(latencies.count))
	d.toAny, d.toLast = latencies.latency(), s.toLast.latency()
	f.lost += s.lost()
	return nil
}

// start returns a meter for a stage. If profiles are wanted, it starts one.
func (w workload) start(srv *server, c *contender, stage string) (meter, error) {
	if w.profiles == "" {
		return newMeter(srv), nil
	}
	file := fmt.Sprintf("%s-%d-%s.pprof", c.name, w.clients, stage)
	err := srv.profile(filepath.Join(w.profiles, file))
	m := newMeter(srv)
	m.profiled = true
	return m, err
}

// A meter measures a rate.
type meter struct {
	server       *server
	profiled     bool // stop ends the profile
	began        time.Time
	cpu, own     time.Duration
	user, system time.Duration
}

func newMeter(s *server) meter {
	user, system := s.ticks()
	return meter{server: s, began: time.Now(), cpu: s.cpu(), own: processCPU(0), user: user, system: system}
}

// stop returns the rate of something that was done n times since the start.
func (m meter) stop(n int) rate {
	took, cpu, own := time.Since(m.began), m.server.cpu()-m.cpu, processCPU(0)-m.own
	user, system := m.server.ticks()
	user, system = user-m.user, system-m.system
	if m.profiled {
		m.server.profile("") // if the server is gone, a later step fails
	}
	return rate{
		cpu:    cpu.Seconds() * 1e6 / float64(n),
		kernel: system.Seconds() / max(user+system, time.Millisecond).Seconds(),
		second: float64(n) / took.Seconds(),
		load:   own.Seconds() / took.Seconds(),
	}
}

func (h *histogram) latency() latency {
	return latency{h.quantile(0.50) / 1e3, h.quantile(0.99) / 1e3}
}
