package prommetrics_test

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/prommetrics"
)

// used returns a hub of which one client has left, after one event.
func used(t *testing.T) *realtime.Hub {
	t.Helper()
	hub := realtime.NewHub()
	left := make(chan struct{})
	hub.OnDisconnect = func(*realtime.Client, error) { close(left) }
	server := httptest.NewServer(hub)
	t.Cleanup(server.Close)
	req, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/event-stream")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if err := hub.PublishAll(t.Context(), realtime.Event{Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	for got := ""; !strings.Contains(got, "data: x\n"); {
		b := make([]byte, 100)
		n, err := resp.Body.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		got += string(b[:n])
	}
	resp.Body.Close()
	<-left
	if err := hub.Shutdown(context.Background()); err != nil { // so that all is counted
		t.Fatal(err)
	}
	return hub
}

// gathered returns the metrics of a collector, in Prometheus' text format.
func gathered(t *testing.T, c *prommetrics.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	rec := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("%d %s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

// Each hub has all metrics, with its figures.
func TestCollect(t *testing.T) {
	c := prommetrics.New(maps.All(map[string]*realtime.Hub{"chat": used(t), "prices": realtime.NewHub()}))
	got := gathered(t, c)
	for _, want := range []string{
		`realtime_events_published_total{hub="chat"} 1`,
		`realtime_events_published_total{hub="prices"} 0`,
		`realtime_messages_delivered_total{hub="chat"} 1`,
		`realtime_clients{hub="chat"} 0`,
		`realtime_broker_down{hub="chat"} 0`,
		`realtime_clients_left_total{hub="chat",reason="closed"} 1`,
		`realtime_clients_left_total{hub="chat",reason="too_large"} 0`,
		`realtime_event_latency_seconds_count{hub="chat"} 1`,
		`realtime_event_latency_seconds_bucket{hub="chat",le="+Inf"} 1`,
		`realtime_event_latency_seconds_bucket{hub="chat",le="3"} 1`,
		`realtime_event_latency_seconds_bucket{hub="prices",le="0.0001"} 0`,
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("no line %s in\n%s", want, got)
		}
	}
}

func TestLint(t *testing.T) {
	problems, err := testutil.CollectAndLint(prommetrics.New(maps.All(map[string]*realtime.Hub{"chat": used(t)})))
	if err != nil || len(problems) > 0 {
		t.Errorf("%v, %v", problems, err)
	}
}

// Every figure of Stats is a metric, and the package's comment has all of them and
// no others.
func TestAllFigures(t *testing.T) {
	series := 0
	for line := range strings.SplitSeq(gathered(t, prommetrics.New(maps.All(map[string]*realtime.Hub{"a": realtime.NewHub()}))), "\n") {
		if strings.HasPrefix(line, "realtime_") && !strings.HasPrefix(line, "realtime_event_latency") {
			series++
		}
	}
	figures := reflect.TypeFor[realtime.Stats]().NumField() - 2 + reflect.TypeFor[realtime.Left]().NumField() // Left and Latency aren't figures
	if series != figures {
		t.Errorf("%d series without the histogram, for %d figures", series, figures)
	}
	source, err := os.ReadFile("prommetrics.go")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, match := range regexp.MustCompile(`(?m)^//\t(realtime_\w+) `).FindAllSubmatch(source, -1) {
		documented = append(documented, string(match[1]))
	}
	c := prommetrics.New(maps.All(map[string]*realtime.Hub{"a": realtime.NewHub()}))
	descs := make(chan *prometheus.Desc, 100)
	c.Describe(descs)
	close(descs)
	var described []string
	for desc := range descs {
		described = append(described, regexp.MustCompile(`realtime_\w+`).FindString(desc.String()))
	}
	slices.Sort(documented)
	slices.Sort(described)
	if !slices.Equal(documented, described) {
		t.Errorf("documented are\n%q, described\n%q", documented, described)
	}
}

// A scrape shows the hubs that are there, and fails where two have one name.
func TestHubsComeAndGo(t *testing.T) {
	hubs := map[string]*realtime.Hub{}
	c := prommetrics.New(func(yield func(string, *realtime.Hub) bool) { maps.All(hubs)(yield) })
	if got := gathered(t, c); strings.Contains(got, "realtime_") {
		t.Errorf("without hubs got %s", got)
	}
	hubs["room"] = realtime.NewHub()
	if got := gathered(t, c); !strings.Contains(got, `realtime_clients{hub="room"} 0`) {
		t.Errorf("got %s", got)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(prommetrics.New(func(yield func(string, *realtime.Hub) bool) {
		for range 2 {
			yield("a", realtime.NewHub())
		}
	}))
	if _, err := registry.Gather(); err == nil {
		t.Error("two hubs of one name are no error")
	}
}

func ExampleNew() {
	chat, prices := realtime.NewHub(), realtime.NewHub()

	registry := prometheus.NewRegistry()
	registry.MustRegister(prommetrics.New(maps.All(map[string]*realtime.Hub{"chat": chat, "prices": prices})))
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	defer server.Close()

	resp, err := http.Get(server.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "realtime_clients{") {
			fmt.Print(line)
		}
	}
	// Output:
	// realtime_clients{hub="chat"} 0
	// realtime_clients{hub="prices"} 0
}
