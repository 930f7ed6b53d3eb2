//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"
)

// Figures are what one contender did in one round. A zero was not measured.
type figures struct {
	connect rate
	joined  float64 // bytes of memory a client, as it was
	idle    float64 // the same after a garbage collection
	single  delivery
	burst   delivery
	echo    rate

	lost         int   // deliveries and echoes
	disconnected int   // clients
	reason       error // why the first one was
}

// A rate is something that was done many times.
type rate struct {
	cpu    float64 // of the server, in microseconds each
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

// A workload is what each contender is put to.
type workload struct {
	clients  int
	threads  int           // of the load generator
	duration time.Duration // of each stage
	settle   time.Duration // for the server to come to rest
	stall    time.Duration // without a message, after which what is still to come is lost
	limit    time.Duration // for all of it
	profiles string        // a folder for CPU profiles, or empty for none
}

const burstSize = 64

// measure has a contender do the work once. It takes no longer than the limit
// and some seconds.
func (w workload) measure(ctx context.Context, c *contender) (f figures, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.limit, fmt.Errorf("not done after %v", w.limit))
	defer cancel()
	srv, err := startServer(ctx, c.name)
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
	for _, batch := range []int{1, burstSize} { // so that stacks, queues and pools have their size
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

// because returns why ctx is done instead of an error that comes from it.
func because(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// comeAndGo has some clients connect and leave, so that what any first client
// costs, such as pages of code, is not taken for the memory of those to come.
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

// join connects the clients and measures what they cost while they are idle.
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

// broadcast measures deliveries into d, and counts in f what was lost.
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

// start returns a meter for a stage, which is profiled if that is wanted.
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
	profiled     bool // until it stops
	began        time.Time
	cpu, own     time.Duration
	user, system time.Duration
}

func newMeter(s *server) meter {
	user, system := s.ticks()
	return meter{server: s, began: time.Now(), cpu: s.cpu(), own: processCPU(0), user: user, system: system}
}

// stop returns the rate of what has been done n times since the start.
func (m meter) stop(n int) rate {
	took, cpu, own := time.Since(m.began), m.server.cpu()-m.cpu, processCPU(0)-m.own
	user, system := m.server.ticks()
	user, system = user-m.user, system-m.system
	if m.profiled {
		m.server.profile("") // a server that is gone will be noticed
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
