package regdotel_test

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/prometheus"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
	"github.com/regd-io/regd/client/regdotel"
)

// What a process sets up, once: OpenTelemetry's providers, here with a reader for Prometheus, and then regd's client.
func Example() {
	main := func() (err error) {
		exporter, err := prometheus.New() // serve it: http.Handle("/metrics", promhttp.Handler())
		if err != nil {
			return err
		}
		otel.SetMeterProvider(metric.NewMeterProvider(metric.WithReader(exporter)))
		otel.SetTracerProvider(trace.NewTracerProvider()) // with an exporter, as a rule
		otel.SetTextMapPropagator(propagation.TraceContext{})

		telemetry, err := regdotel.New()
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, telemetry.Close()) }()
		c, err := client.New([]string{"n1:7400", "n2:7400", "n3:7400"}, client.WithTracer(telemetry))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		d, err := discovery.New(c, discovery.WithTracer(telemetry))
		if err != nil {
			return err
		}
		defer d.Close()
		transport, err := regdhttp.New(d, regdhttp.WithTracer(telemetry))
		if err != nil {
			return err
		}
		defer transport.Close()
		telemetry.ObserveClient(c)
		telemetry.ObserveDiscovery(d)
		telemetry.ObserveHTTP(transport)

		web := &http.Client{Transport: transport, Timeout: 5 * time.Second}
		fmt.Println(web.Timeout) // Use it.
		return nil
	}
	if err := main(); err != nil {
		fmt.Println(err)
	}
	// Output: 5s
}
