package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// maxPast is the number of samples that the board keeps of each topic: as many as
// a chart shows.
const maxPast = 120

// A board holds all topics and metrics. Its samples are made up: it stands in
// for a real dashboard's database. Pages load it when they open, and again when
// they may have missed samples.
type board struct {
	Every  int64    `json:"every"` // milliseconds between two samples
	Topics []*topic `json:"topics"`

	mu sync.Mutex // guards the samples and the metrics' values
}

// A topic is a group of metrics that a page gets together.
type topic struct {
	Name    string    `json:"name"`
	Title   string    `json:"title"`
	Metrics []*metric `json:"metrics"`
	Past    []sample  `json:"past"` // oldest first
}

// A metric is a number that wanders around its usual value.
type metric struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Unit   string `json:"unit"`
	Digits int    `json:"digits"` // after the decimal point

	usual, step float64
	low, high   float64
	value       float64
	alerted     bool // it is far above the usual value
}

func newBoard(every time.Duration) *board {
	return &board{
		Every: max(1, every.Milliseconds()),
		Topics: []*topic{
			{Name: "traffic", Title: "Traffic", Metrics: []*metric{
				{Name: "requests", Title: "Requests", Unit: "/s", usual: 840, step: 45, low: 0, high: 5000},
				{Name: "latency", Title: "Latency (p95)", Unit: "ms", usual: 42, step: 3, low: 3, high: 2000},
			}},
			{Name: "servers", Title: "Servers", Metrics: []*metric{
				{Name: "cpu", Title: "Processors", Unit: "%", usual: 37, step: 2.5, low: 0, high: 100},
				{Name: "memory", Title: "Memory", Unit: "GB", Digits: 1, usual: 21.5, step: .3, low: 4, high: 64},
			}},
			{Name: "shop", Title: "Shop", Metrics: []*metric{
				{Name: "orders", Title: "Orders", Unit: "/min", usual: 26, step: 3, low: 0, high: 500},
				{Name: "basket", Title: "Average basket", Unit: "€", Digits: 2, usual: 48, step: 1.2, low: 5, high: 400},
			}},
		},
	}
}

// simulate takes a sample of every topic and publishes it. It repeats this until
// the hub is shut down.
func (b *board) simulate(hub *realtime.Hub) {
	ticker := time.NewTicker(time.Duration(b.Every) * time.Millisecond)
	defer ticker.Stop()
	for {
		now := time.Now().UnixMilli()
		for _, t := range b.Topics {
			// The board has the sample before it is published. So a page that
			// connects after the publishing has loaded it with the board.
			for _, e := range b.sample(t, now) {
				err := hub.Publish(context.Background(), t.Name, e)
				if errors.Is(err, realtime.ErrHubClosed) {
					return
				}
				if err != nil {
					log.Print(err)
				}
			}
		}
		select {
		case <-ticker.C:
		case <-hub.Done():
			return
		}
	}
}

// sample takes a sample of t. It returns what is to be published: the sample, and
// the alerts that begin or end with it.
func (b *board) sample(t *topic, now int64) []realtime.Event {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := sample{now, make(map[string]float64)}
	var alerts []realtime.Event
	for _, m := range t.Metrics {
		s.Values[m.Name] = m.next()
		switch {
		case !m.alerted && m.value > 1.5*m.usual:
			alerts = append(alerts, alert{m.Name, now}.begin())
			m.alerted = true
		case m.alerted && m.value < 1.25*m.usual:
			alerts = append(alerts, alert{m.Name, now}.end())
			m.alerted = false
		}
	}
	if len(t.Past) == maxPast {
		t.Past = t.Past[1:]
	}
	t.Past = append(t.Past, s)
	return append([]realtime.Event{s.event()}, alerts...)
}

// next moves m's value and returns it, rounded.
func (m *metric) next() float64 {
	if m.value == 0 {
		m.value = m.usual
	}
	m.value += (m.usual-m.value)/20 + rand.NormFloat64()*m.step
	if rand.IntN(60) == 0 {
		m.value += m.usual * rand.Float64() // something happens
	}
	m.value = min(max(m.value, m.low), m.high)
	digits := math.Pow10(m.Digits)
	return math.Round(m.value*digits) / digits
}

// encode returns the board as JSON, with the position in the hub's history from
// which a page continues, and the alerts.
func (b *board) encode(position string, alerts []json.RawMessage) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	data, _ := json.Marshal(struct { // always encodes
		*board
		Position string            `json:"position"`
		Alerts   []json.RawMessage `json:"alerts"`
	}{b, position, alerts})
	return data
}
