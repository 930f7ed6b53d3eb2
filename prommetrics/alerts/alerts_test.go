package alerts

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	"github.com/shashiranjanraj/kashvi/pkg/realtime"
	"github.com/shashiranjanraj/kashvi/pkg/realtime/prommetrics"
)

// exported returns the names of all series of a hub, and their labels.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(prommetrics.New(maps.All(map[string]*realtime.Hub{"chat": realtime.NewHub()})))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	names := make(map[string][]string)
	for _, family := range families {
		labels := []string{"instance"}
		for _, label := range family.Metric[0].Label {
			labels = append(labels, label.GetName())
		}
		names[family.GetName()] = labels
		if family.Metric[0].Histogram != nil {
			names[family.GetName()+"_bucket"] = append(labels, "le")
		}
	}
	return names
}

// Prometheus accepts the rules. They ask for metrics and labels that there are.
func TestAlerts(t *testing.T) {
	groups, errs := rulefmt.ParseFile("alerts.yml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	names, alerts := exported(t), 0
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			alerts++
			expr, err := parser.NewParser(parser.Options{}).ParseExpr(rule.Expr)
			if err != nil {
				t.Fatal(err)
			}
			asked := 0
			parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
				if v, ok := node.(*parser.VectorSelector); ok {
					asked++
					if names[v.Name] == nil {
						t.Errorf("%s asks for %s, which no hub has", rule.Alert, v.Name)
					}
					for _, m := range v.LabelMatchers {
						if m.Name != model.MetricNameLabel && !slices.Contains(names[v.Name], m.Name) {
							t.Errorf("%s asks for the label %s of %s, which it doesn't have", rule.Alert, m.Name, v.Name)
						}
					}
				}
				return nil
			})
			if asked == 0 || !strings.Contains(rule.Annotations["summary"], "$labels.hub") {
				t.Errorf("%s asks for %d series, and says %q", rule.Alert, asked, rule.Annotations["summary"])
			}
		}
	}
	if alerts != 4 {
		t.Errorf("%d alerts, want 4", alerts)
	}
}
