package realtime

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"time"
)

// A logKind is a kind of log line. At most one a second of each is written.
type logKind uint8

const (
	logSetup   logKind = iota // somebody's setup is wrong
	logRefused                // a stranger was refused
	logFull                   // a stranger was refused, because there are too many
	logSlow
	logPanic
	logText
	logHistory
	logBroker
	logOutage
	logBack // it may come right after the outage
	logKinds
)

const maxLogLines = 64 // that may wait for the Logger

// A logbook writes a hub's log lines. A Logger may block or call the hub, so a
// goroutine of the logbook writes them. It ends when no line waits. The next
// line of a kind tells how many were skipped before it.
type logbook struct {
	logger *slog.Logger // set once, before the first line

	mu      sync.Mutex // guards the fields below
	lines   []func()
	writing chan struct{} // closed when the goroutine ends; nil: none runs
	last    [logKinds]time.Time
	skipped [logKinds]int
}

func (l *logbook) warn(kind logKind, msg string, args ...any) {
	l.add(kind, slog.LevelWarn, msg, args)
}

func (l *logbook) error(kind logKind, msg string, args ...any) {
	l.add(kind, slog.LevelError, msg, args)
}

// add reports whether the line is going to be written.
func (l *logbook) add(kind logKind, level slog.Level, msg string, args []any) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last[kind]) < time.Second || len(l.lines) >= maxLogLines {
		l.skipped[kind]++
		return false
	}
	l.last[kind] = now
	if n := l.skipped[kind]; n > 0 {
		l.skipped[kind] = 0
		args = append(args, "skipped", n)
	}
	l.lines = append(l.lines, func() {
		l.logger.Log(context.Background(), level, "realtime: "+msg, args...)
	})
	if l.writing == nil {
		l.writing = make(chan struct{})
		go l.write()
	}
	return true
}

// write is the body of the logbook's goroutine.
func (l *logbook) write() {
	l.mu.Lock()
	for len(l.lines) > 0 {
		lines := l.lines
		l.lines = nil
		l.mu.Unlock()
		for _, line := range lines {
			line()
		}
		l.mu.Lock()
	}
	close(l.writing)
	l.writing = nil
	l.mu.Unlock()
}

// written returns a channel that is closed when no line waits. Call it once
// nothing more is logged.
func (l *logbook) written() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cmp.Or(l.writing, ended)
}

// An outage logs that something is away: when that begins, then at growing
// intervals, and when it is over. Call failed for each failure that shows it,
// and over for each success. It is safe for concurrent use.
type outage struct {
	log  *logbook
	what string // the thing that may be away

	mu    sync.Mutex // guards the fields below
	since time.Time  // zero: it isn't away
	pause time.Duration
	next  time.Time // when the next line is due
}

const (
	minOutagePause = 10 * time.Second // between the first line and the second; then twice as long each time
	maxOutagePause = time.Hour
)

func (o *outage) failed(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	msg, args := o.what+" lost", []any{"err", err}
	if o.since.IsZero() {
		o.since, o.pause, o.next = now, minOutagePause, now
	} else if o.pause > minOutagePause {
		msg, args = o.what+" still lost", append(args, "for", now.Sub(o.since).Round(time.Second))
	}
	if !now.Before(o.next) && o.log.add(logOutage, slog.LevelError, msg, args) {
		o.next, o.pause = now.Add(o.pause), min(2*o.pause, maxOutagePause)
	}
}

func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.since.IsZero() {
		o.log.add(logBack, slog.LevelInfo, o.what+" is back", []any{"after", time.Since(o.since).Round(time.Second)})
		o.since = time.Time{}
	}
}
