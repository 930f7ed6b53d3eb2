package realtime

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A logKind is a kind of log line. Of each, one a second is written.
type logKind uint8

const (
	logSetup   logKind = iota // somebody's setup is wrong
	logRefused                // a stranger was turned away
	logSlow
	logPanic
	logText
	logBroker
	logKinds
)

// maxLogLines is how many lines may wait for the Logger.
const maxLogLines = 64

// A logbook writes a hub's log lines, on a goroutine of its own that lives
// while there are any: a Logger may block, or call the hub. What it can't
// take is counted, and the next line of that kind says how many there were.
type logbook struct {
	logger *slog.Logger // set once, before the first line

	mu      sync.Mutex // guards the fields below
	lines   []func()
	writing bool
	idle    chan struct{} // closed when the goroutine ends; nil: nobody waits
	last    [logKinds]time.Time
	skipped [logKinds]int
}

func (l *logbook) warn(kind logKind, msg string, args ...any) {
	l.add(kind, slog.LevelWarn, msg, args)
}

func (l *logbook) error(kind logKind, msg string, args ...any) {
	l.add(kind, slog.LevelError, msg, args)
}

func (l *logbook) add(kind logKind, level slog.Level, msg string, args []any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last[kind]) < time.Second || len(l.lines) >= maxLogLines {
		l.skipped[kind]++
		return
	}
	l.last[kind] = now
	if n := l.skipped[kind]; n > 0 {
		l.skipped[kind] = 0
		args = append(args, "skipped", n)
	}
	l.lines = append(l.lines, func() {
		l.logger.Log(context.Background(), level, "realtime: "+msg, args...)
	})
	if !l.writing {
		l.writing = true
		go l.write()
	}
}

// write is the body of the logbook's goroutine.
func (l *logbook) write() {
	for {
		l.mu.Lock()
		lines := l.lines
		l.lines = nil
		if len(lines) == 0 {
			l.writing = false
			if l.idle != nil {
				close(l.idle)
				l.idle = nil
			}
			l.mu.Unlock()
			return
		}
		l.mu.Unlock()
		for _, line := range lines {
			line()
		}
	}
}

// written returns a channel that is closed when no line waits. It is for one
// caller, once nothing more is logged.
func (l *logbook) written() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := make(chan struct{})
	if l.writing {
		l.idle = done
	} else {
		close(done)
	}
	return done
}
