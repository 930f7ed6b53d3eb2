// Package alerts has four alerts for Prometheus, in alerts.yml. Its test checks them
// with Prometheus' own parser. So it is a module of its own: users of prommetrics
// don't get that as a requirement.
package alerts
