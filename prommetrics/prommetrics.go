// Package prommetrics tells Prometheus what hubs do.
//
//	prometheus.MustRegister(prommetrics.New(maps.All(map[string]*realtime.Hub{
//		"chat":   chat,
//		"prices": prices,
//	})))
//
// Each metric has the label "hub". They are the figures of [realtime.Stats]:
//
//	realtime_clients                  clients that are connected to this node
//	realtime_cluster_clients          clients that are connected to any node
//	realtime_queued_messages          messages that wait for a client
//	realtime_broker_down              1 while the broker can't be reached, else 0
//	realtime_events_published_total   events accepted from publishers
//	realtime_messages_delivered_total messages written to a client's connection
//	realtime_messages_received_total  messages from clients
//	realtime_messages_replaced_total  messages that a newer one of their Key replaced
//	realtime_values_forgotten_total   latest values dropped because there were too many
//	realtime_messages_dropped_total   messages still queued when their client went, or sent too late
//	realtime_clients_resumed_total    replays that gave a client every event since an id
//	realtime_clients_reset_total      resets that told a client that it may have lost events
//	realtime_clients_left_total       clients that have left, by "reason"
//	realtime_clients_slow_total       clients that were too slow, those that had not joined yet included
//	realtime_requests_refused_total   requests that did not become clients
//	realtime_gaps_total               times that events of other nodes may have been lost
//	realtime_events_unsent_total      events that could not be handed to the broker
//	realtime_events_invalid_total     events that were sent as binary, as they were not UTF-8
//	realtime_handler_panics_total     panics of handlers
//	realtime_event_latency_seconds    how long events took to be written, a histogram
//
// The reasons are closed, lost, silent, slow, protocol, too_large, disconnected,
// expired, shutdown and panicked; see [realtime.Left]. [realtime.Latency] says what
// the histogram measures.
//
// The folder alerts has four alerts that are worth having.
package prommetrics

import (
	"iter"
	"math"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
)

// A Collector collects the metrics of hubs. It is safe for concurrent use.
type Collector struct {
	hubs iter.Seq2[string, *realtime.Hub]
}

var _ prometheus.Collector = (*Collector)(nil)

// New returns a collector of hubs, by the names that the label "hub" gets. Each
// collection iterates over them again. So hubs may come and go, if hubs is safe for
// concurrent use. Two hubs of one name make the collection fail.
func New(hubs iter.Seq2[string, *realtime.Hub]) *Collector { return &Collector{hubs} }

// A metric is one figure of a hub.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	get  func(*realtime.Stats) float64
}

func gauge[T int | int64](name, help string, get func(*realtime.Stats) T) metric {
	desc := prometheus.NewDesc("realtime_"+name, help, []string{"hub"}, nil)
	return metric{desc, prometheus.GaugeValue, func(s *realtime.Stats) float64 { return float64(get(s)) }}
}

func counter(name, help string, get func(*realtime.Stats) int64) metric {
	m := gauge(name+"_total", help, get)
	m.kind = prometheus.CounterValue
	return m
}

var metrics = []metric{
	gauge("clients", "Clients that are connected to this node.", func(s *realtime.Stats) int { return s.Clients }),
	gauge("cluster_clients", "Clients that are connected to any node.", func(s *realtime.Stats) int { return s.ClusterClients }),
	gauge("queued_messages", "Messages that wait for a client.", func(s *realtime.Stats) int64 { return s.Queued }),
	gauge("broker_down", "1 while the broker can't be reached, else 0.", func(s *realtime.Stats) int {
		if s.BrokerDown {
			return 1
		}
		return 0
	}),
	counter("events_published", "Events accepted from publishers.", func(s *realtime.Stats) int64 { return s.Published }),
	counter("messages_delivered", "Messages written to a client's connection.", func(s *realtime.Stats) int64 { return s.Delivered }),
	counter("messages_received", "Messages from clients.", func(s *realtime.Stats) int64 { return s.Received }),
	counter("messages_replaced", "Messages that a newer one of their Key replaced.", func(s *realtime.Stats) int64 { return s.Replaced }),
	counter("values_forgotten", "Latest values dropped because there were too many.", func(s *realtime.Stats) int64 { return s.Forgotten }),
	counter("messages_dropped", "Messages still queued when their client went, or sent too late.", func(s *realtime.Stats) int64 { return s.Dropped }),
	counter("clients_resumed", "Replays that gave a client every event since an id.", func(s *realtime.Stats) int64 { return s.Resumed }),
	counter("clients_reset", "Resets that told a client that it may have lost events.", func(s *realtime.Stats) int64 { return s.Resets }),
	counter("clients_slow", "Clients that were too slow, those that had not joined yet included.", func(s *realtime.Stats) int64 { return s.SlowClients }),
	counter("requests_refused", "Requests that did not become clients.", func(s *realtime.Stats) int64 { return s.Refused }),
	counter("gaps", "Times that events of other nodes may have been lost.", func(s *realtime.Stats) int64 { return s.Gaps }),
	counter("events_unsent", "Events that could not be handed to the broker.", func(s *realtime.Stats) int64 { return s.Unsent }),
	counter("events_invalid", "Events that were sent as binary, as they were not UTF-8.", func(s *realtime.Stats) int64 { return s.InvalidText }),
	counter("handler_panics", "Panics of handlers.", func(s *realtime.Stats) int64 { return s.Panics }),
}

var (
	left    = prometheus.NewDesc("realtime_clients_left_total", "Clients that have left, by the reason.", []string{"hub", "reason"}, nil)
	latency = prometheus.NewDesc("realtime_event_latency_seconds", "How long events took to be written.", []string{"hub"}, nil)
)

// Describe is called by Prometheus.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range metrics {
		ch <- m.desc
	}
	ch <- left
	ch <- latency
}

// Collect is called by Prometheus. It waits for no hub.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	for name, hub := range c.hubs {
		s := hub.Stats()
		for _, m := range metrics {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.get(&s), name)
		}
		for reason, n := range reasons(&s.Left) {
			ch <- prometheus.MustNewConstMetric(left, prometheus.CounterValue, float64(n), name, reason)
		}
		buckets, count := make(map[float64]uint64), uint64(0)
		for most, n := range s.Latency.Buckets() {
			count += uint64(n)
			if most < math.MaxInt64 { // the bucket of all is made of count
				buckets[most.Seconds()] = count
			}
		}
		ch <- prometheus.MustNewConstHistogram(latency, count, s.Latency.Sum.Seconds(), buckets, name)
	}
}

func reasons(l *realtime.Left) iter.Seq2[string, int64] {
	return func(yield func(reason string, n int64) bool) {
		_ = yield("closed", l.Closed) && yield("lost", l.Lost) && yield("silent", l.Silent) && yield("slow", l.Slow) &&
			yield("protocol", l.Protocol) && yield("too_large", l.TooLarge) && yield("disconnected", l.Disconnected) &&
			yield("expired", l.Expired) && yield("shutdown", l.Shutdown) && yield("panicked", l.Panicked)
	}
}
