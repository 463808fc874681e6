package main

import (
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/regd-io/regd/cluster/certs/certstest"
)

// metricRow is what the reference says of a metric.
type metricRow struct {
	name, kind, help string
	labels           []string
}

// unit is the unit of a metric, as its name says it by the conventions of Prometheus.
func (r metricRow) unit() string {
	for _, unit := range []string{"seconds", "bytes"} {
		if strings.HasSuffix(strings.TrimSuffix(r.name, "_total"), "_"+unit) {
			return unit
		}
	}
	return ""
}

// describedMetric takes a description apart, which has no other way to be asked.
var describedMetric = regexp.MustCompile(`^Desc\{fqName: (".*"), help: (".*"), unit: ".*", constLabels: \{(.*)\}, variableLabels: \{(.*)\}\}$`)

// metricRows are what collectors describe, by name. The kind is that of the series which are gathered, or for a metric that
// has none yet that of the collector, or what its name says.
func metricRows(all []prometheus.Collector) (map[string]metricRow, error) {
	registry := prometheus.NewRegistry()
	rows := map[string]metricRow{}
	for _, c := range all {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
		descs := make(chan *prometheus.Desc)
		go func() { c.Describe(descs); close(descs) }()
		for d := range descs {
			parts := describedMetric.FindStringSubmatch(d.String())
			if parts == nil {
				return nil, fmt.Errorf("not understood: %v", d)
			}
			name, _ := strconv.Unquote(parts[1])
			help, _ := strconv.Unquote(parts[2])
			row := metricRow{name: name, help: help, kind: kindOf(c)}
			for label := range strings.SplitSeq(parts[3]+","+parts[4], ",") {
				if label, _, _ = strings.Cut(label, "="); label != "" {
					row.labels = append(row.labels, label)
				}
			}
			rows[name] = row
		}
	}
	families, err := registry.Gather()
	for _, f := range families {
		row := rows[f.GetName()]
		row.kind = strings.ToLower(f.GetType().String())
		rows[f.GetName()] = row
	}
	for name, row := range rows {
		if row.kind == "" { // Made when it is asked for, and now there is nothing to tell of.
			row.kind = "gauge"
			if strings.HasSuffix(name, "_total") {
				row.kind = "counter"
			}
			rows[name] = row
		}
	}
	return rows, err
}

// kindOf is the kind of the metrics of a collector that has those of one kind only.
func kindOf(c prometheus.Collector) string {
	switch c.(type) {
	case *prometheus.CounterVec:
		return "counter"
	case *prometheus.GaugeVec:
		return "gauge"
	case *prometheus.HistogramVec:
		return "histogram"
	default:
		return ""
	}
}

const metricsHead = `<!-- Made from the metrics of a running node by: go test ./cmd/regd -run Reference -rewrite -->

# Metrics

What ` + "`/metrics`" + ` of a node has, on the port for operations (` + "`--http-listen`" + `), beside the ` + "`go_`" + ` and ` + "`process_`" + ` metrics of any Go
program. Names and labels stay from release to release. Which of them to look at is in [operations.md](../operations.md),
those that alerts go by are in [runbooks.md](../runbooks.md); the metrics of the Go client are in [client.md](../client.md).

A histogram has the series ` + "`_bucket`" + `, with the label ` + "`le`" + `, ` + "`_sum` and `_count`" + `. What has no unit is a number of things.

| metric | kind | unit | labels | meaning |
|---|---|---|---|---|
`

// metricsPage is the reference of the metrics.
func metricsPage(rows map[string]metricRow) string {
	var b strings.Builder
	b.WriteString(metricsHead)
	for _, name := range slices.Sorted(maps.Keys(rows)) {
		r := rows[name]
		labels := ""
		if len(r.labels) > 0 {
			labels = "`" + strings.Join(r.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| <a id=%q></a>`%s` | %s | %s | %s | %s |\n", name, name, r.kind, r.unit(), labels, cell(r.help))
	}
	return b.String()
}

// TestMetricReferenceIsFresh opens a node with all that it may have.
func TestMetricReferenceIsFresh(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := certstest.NewAuthority(t)
	f := certstest.Write(t, dir, ca.Peer("n1"), ca.PEM())
	cfg := serveConfig{
		Name: "n1", DataDir: filepath.Join(dir, "data"), GRPCListen: "127.0.0.1:0", HTTPListen: "127.0.0.1:0", PeerListen: "127.0.0.1:0",
		HeartbeatTimeout: time.Second, NoSync: true, Logger: slog.New(slog.DiscardHandler), Limits: defaultLimits(),
		TLS:    tlsSettings{Cert: f.Cert, Key: f.Key, CA: f.CA, Every: time.Hour},
		Trace:  traceSettings{OTLP: "http://127.0.0.1:4317"}, // Nothing is sent.
		Backup: backupSettings{Dir: filepath.Join(dir, "backups"), Every: time.Hour, Keep: 1},
	}.withDefaults()
	cfg.Doors = doors()
	for _, d := range cfg.Doors {
		fs := pflag.NewFlagSet(d.name(), pflag.ContinueOnError)
		d.addFlags(fs)
		if err := fs.Set(d.name()+"-listen", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
	}
	s := &server{cfg: cfg, log: cfg.Logger, fatal: make(chan error, 1), manager: newSupervisor(cfg.Logger)}
	err := s.open(t.Context())
	t.Cleanup(func() {
		if closeErr := s.close(t.Context()); closeErr != nil {
			t.Error(closeErr)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	rows, err := metricRows(s.collectors())
	if err != nil {
		t.Fatal(err)
	}
	for name, r := range rows {
		if r.kind == "" || r.kind == "untyped" || !strings.HasSuffix(r.help, ".") {
			t.Errorf("%s: its kind is %q and its help %q, want one and a sentence", name, r.kind, r.help)
		}
		if (r.kind == "counter") != strings.HasSuffix(name, "_total") {
			t.Errorf("%s is a %s: counters, and nothing else, end in _total", name, r.kind)
		}
	}
	asReviewed(t, referencePath("metrics.md"), metricsPage(rows))
}
