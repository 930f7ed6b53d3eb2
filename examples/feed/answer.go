package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Strangers may ask. These limits bound what they can make the server do.
const (
	maxPromptRunes = 300
	maxWords       = 400             // of an answer
	maxDuration    = 2 * time.Minute // of writing it
	maxWriting     = 20              // answers at a time
	maxKept        = 200             // answers that are over
	keepFor        = 10 * time.Minute
)

// A desk has the answers, each under its id.
type desk struct {
	// Set at construction, never changed.
	ctx   context.Context // ends all writing
	pause time.Duration   // before a word

	writing sync.WaitGroup // goroutines that write an answer

	mu      sync.Mutex // guards the fields below
	answers map[string]*answer
	over    []*answer // those that are over, in the order of their ends
}

// An answer is written once, by one goroutine, whether anybody reads it or not.
// Readers each have a place in it, so that they may come late, or come back.
type answer struct {
	// Set at construction, never changed.
	id, prompt string
	stop       context.CancelCauseFunc

	mu       sync.Mutex // guards the fields below
	words    []string   // each with the space before it
	end      string     // why no more words come; empty: they do
	ended    time.Time
	changed  chan struct{} // closed when words or end change, and replaced
	watching int           // readers
}

// Why an answer is over. Pages know these words. The program's end is another
// reason.
var (
	errFinished = errors.New("finished")
	errStopped  = errors.New("stopped")
	errTooLong  = errors.New("too long")
)

// Why there is no answer.
var (
	errPrompt = fmt.Errorf("a prompt has 1 to %d characters", maxPromptRunes)
	errBusy   = errors.New("too many answers are being written: try again soon")
)

func newDesk(ctx context.Context, pause time.Duration) *desk {
	return &desk{ctx: ctx, pause: pause, answers: make(map[string]*answer)}
}

// ask starts an answer. Its error is errPrompt or errBusy.
func (d *desk) ask(prompt string) (*answer, error) {
	prompt = strings.TrimSpace(prompt)
	if n := utf8.RuneCountInString(prompt); n == 0 || n > maxPromptRunes {
		return nil, errPrompt
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	if len(d.answers)-len(d.over) >= maxWriting {
		return nil, errBusy
	}
	ctx, stop := context.WithCancelCause(d.ctx)
	a := &answer{id: rand.Text(), prompt: prompt, stop: stop, changed: make(chan struct{})}
	d.answers[a.id] = a
	d.writing.Go(func() {
		defer stop(nil)
		a.finish(a.write(ctx, newWriter(prompt), d.pause))
		d.mu.Lock()
		defer d.mu.Unlock()
		d.over = append(d.over, a)
		d.forget()
	})
	return a, nil
}

// forget forgets answers that have been over for long, or if there are many.
// Its caller holds d.mu.
func (d *desk) forget() {
	for len(d.over) > maxKept || len(d.over) > 0 && time.Since(d.over[0].ended) > keepFor {
		delete(d.answers, d.over[0].id)
		d.over[0] = nil // the array stays
		d.over = d.over[1:]
	}
}

// find returns the answer with that id, nil if there is none.
func (d *desk) find(id string) *answer {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.forget()
	return d.answers[id]
}

// write writes the answer, a word after each pause. It returns why it ended.
func (a *answer) write(ctx context.Context, w *writer, pause time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, maxDuration, errTooLong)
	defer cancel()
	for {
		word, pauses, ok := w.next()
		if !ok {
			return errFinished
		}
		select {
		case <-time.After(time.Duration(pauses) * pause):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		a.add(word)
	}
}

func (a *answer) add(word string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.words = append(a.words, word)
	a.change()
}

func (a *answer) finish(why error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.end, a.ended = why.Error(), time.Now()
	a.change()
}

// change wakes the readers. Its caller holds a.mu.
func (a *answer) change() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// after returns the words behind the first seen ones, joined, and how many words
// there are by then. It returns why no more come, or "", and a channel that is
// closed at the next change. If there are no such words, seen is no count that
// this answer gave to a page. Then it begins from the start.
func (a *answer) after(seen int) (text string, words int, end string, changed <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if seen < 0 || seen > len(a.words) {
		seen = 0
	}
	return strings.Join(a.words[seen:], ""), len(a.words), a.end, a.changed
}

// watch counts a reader, or with -1 one that leaves, and returns their number.
func (a *answer) watch(n int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.watching += n
	return a.watching
}
