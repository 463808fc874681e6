package regdotel

import (
	"fmt"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// kind is the kind of an instrument.
type kind string

const (
	counter   kind = "counter"       // a sum that only grows
	upDown    kind = "updowncounter" // a sum
	gauge     kind = "gauge"         // a number that makes no sense as a sum
	histogram kind = "histogram"
)

// Attributes.
const (
	namespaceKey         = attribute.Key("regd.namespace")
	serviceKey           = attribute.Key("regd.service")
	instanceKey          = attribute.Key("regd.instance.id")
	zoneKey              = attribute.Key("regd.instance.zone")
	operationKey         = attribute.Key("regd.operation")
	transportKey         = attribute.Key("regd.transport")
	sourceKey            = attribute.Key("regd.view.source")
	breakerKey           = attribute.Key("regd.breaker.state")
	registrationStateKey = attribute.Key("regd.registration.state")
	connectionStateKey   = attribute.Key("regd.connection.state")
)

// Names of metrics.
const (
	operationDuration = "regd.client.operation.duration"

	registryCalls          = "regd.client.registry.calls"
	registryAttempts       = "regd.client.registry.attempts"
	registryFailedAttempts = "regd.client.registry.failed_attempts"
	registryWatches        = "regd.client.registry.watches"
	registryBrokenStreams  = "regd.client.registry.broken_streams"
	registryEndpoints      = "regd.client.registry.endpoints"
	registryAvoided        = "regd.client.registry.avoided_endpoints"

	sessionOpenings       = "regd.client.session.openings"
	sessionLosses         = "regd.client.session.losses"
	sessionRenewals       = "regd.client.session.renewals"
	sessionFailedRenewals = "regd.client.session.failed_renewals"
	sessionRenewalAge     = "regd.client.session.renewal_age"
	sessionTimeLeft       = "regd.client.session.time_left"

	registrationState       = "regd.client.registration.state"
	registrationIncarnation = "regd.client.registration.incarnation"
	registrationLosses      = "regd.client.registration.losses"
	registrationRecoveries  = "regd.client.registration.recoveries"
	registrationSuperseded  = "regd.client.registration.superseded"

	viewAge         = "regd.client.view.age"
	viewStaleness   = "regd.client.view.staleness"
	viewSource      = "regd.client.view.source"
	viewFirstSync   = "regd.client.view.first_sync"
	viewLookups     = "regd.client.view.lookups"
	viewMisses      = "regd.client.view.misses"
	viewChanges     = "regd.client.view.changes"
	viewResyncs     = "regd.client.view.resyncs"
	viewStalls      = "regd.client.view.stalls"
	viewProtections = "regd.client.view.protections"
	viewInstances   = "regd.client.view.instances"
	viewHealthy     = "regd.client.view.healthy_instances"
	viewProtected   = "regd.client.view.protected_instances"
	viewHandles     = "regd.client.view.handles"

	httpRequests      = "regd.client.http.requests"
	httpRetries       = "regd.client.http.retries"
	httpDeniedRetries = "regd.client.http.denied_retries"

	balancerCalls     = "regd.client.balancer.calls"
	balancerFailures  = "regd.client.balancer.failures"
	balancerInFlight  = "regd.client.balancer.in_flight"
	balancerBreakers  = "regd.client.balancer.breakers"
	balancerOpenings  = "regd.client.balancer.breaker_openings"
	balancerEjected   = "regd.client.balancer.ejected_instances"
	balancerEjections = "regd.client.balancer.ejections"

	instanceCalls    = "regd.client.instance.calls"
	instanceFailures = "regd.client.instance.failures"
	instanceInFlight = "regd.client.instance.in_flight"
	instanceLatency  = "regd.client.instance.latency"
	instanceBreaker  = "regd.client.instance.breaker"
)

// description is what a metric is. docs/client.md has the same.
type description struct {
	name       string
	kind       kind
	unit       string
	help       string
	attributes []attribute.Key
}

// onlyByInstance tells whether the metric is made only if WithInstances asks for it.
func (d description) onlyByInstance() bool {
	switch d.name {
	case instanceCalls, instanceFailures, instanceInFlight, instanceLatency, instanceBreaker:
		return true
	default:
		return false
	}
}

// descriptions are all metrics, in the order of the documentation.
func descriptions() []description {
	operation := []attribute.Key{operationKey, namespaceKey, serviceKey, semconv.ErrorTypeKey}
	all := []description{{operationDuration, histogram, "s", "How long what waits for the registry took.", operation}}
	all = append(all, clientDescriptions()...)
	all = append(all, viewDescriptions()...)
	return append(all, callDescriptions()...)
}

func clientDescriptions() []description {
	state := []attribute.Key{connectionStateKey}
	own := []attribute.Key{namespaceKey, serviceKey, instanceKey}
	ownState := append(own[:3:3], registrationStateKey)
	return []description{
		{registryCalls, counter, "{call}", "Calls to the registry, without streams.", nil},
		{registryAttempts, counter, "{attempt}", "Attempts that calls made at nodes.", nil},
		{registryFailedAttempts, counter, "{attempt}", "Attempts after which a node was asked again, or another one.", nil},
		{registryWatches, upDown, "{watch}", "Watches that are open.", nil},
		{registryBrokenStreams, counter, "{stream}", "Streams of watches that broke and were replaced.", nil},
		{registryEndpoints, upDown, "{endpoint}", "Nodes that are known, by the state of the connection.", state},
		{registryAvoided, upDown, "{endpoint}", "Nodes that are only the last choice, as they failed or are leaving.", nil},
		{sessionOpenings, counter, "{session}", "Sessions opened.", nil},
		{sessionLosses, counter, "{session}", "Sessions that ended, or could no longer be proved to be alive.", nil},
		{sessionRenewals, counter, "{renewal}", "Renewals that the registry confirmed.", nil},
		{sessionFailedRenewals, counter, "{renewal}", "Failures to renew, after which another node was asked.", nil},
		{sessionRenewalAge, gauge, "s", "Time since the last confirmed renewal was sent.", nil},
		{sessionTimeLeft, gauge, "s", "Time until the session may end, 0 or less when it may have.", nil},
		{registrationState, upDown, "{registration}", "1 for the state that a registration is in: registered or lost.", ownState},
		{registrationIncarnation, gauge, "{revision}", "Number of the newest registration of the instance.", own},
		{registrationLosses, counter, "{loss}", "Times that a registration was lost.", own},
		{registrationRecoveries, counter, "{recovery}", "Times that it was regained.", own},
		{registrationSuperseded, counter, "{registration}", "Registrations that others took over.", nil},
	}
}

func viewDescriptions() []description {
	service := []attribute.Key{namespaceKey, serviceKey}
	source := append(service[:2:2], sourceKey)
	return []description{
		{viewAge, gauge, "s", "Time since a node last confirmed the view.", service},
		{viewStaleness, gauge, "s", "How old the node's own state could be then: the lag of the watch.", service},
		{viewSource, upDown, "{view}", "1 for where the view is from: live, cached or file.", source},
		{viewFirstSync, gauge, "s", "Time that the registry's first answer took.", service},
		{viewLookups, counter, "{lookup}", "Views that were asked for.", service},
		{viewMisses, counter, "{lookup}", "Those of them that had to wait for the registry.", service},
		{viewChanges, counter, "{change}", "Views with other instances than the one before.", service},
		{viewResyncs, counter, "{resync}", "Changes that were made out by comparing, as history was lost.", service},
		{viewStalls, counter, "{stall}", "Times that the watch was no longer served.", service},
		{viewProtections, counter, "{protection}", "Times that lost instances began to be kept.", service},
		{viewInstances, upDown, "{instance}", "Instances in the view.", service},
		{viewHealthy, upDown, "{instance}", "Those of them that can serve.", service},
		{viewProtected, upDown, "{instance}", "Those of them that the registry has lost.", service},
		{viewHandles, upDown, "{handle}", "Open handles on the service.", service},
	}
}

func callDescriptions() []description {
	balancer := []attribute.Key{namespaceKey, serviceKey, transportKey}
	instance := append(balancer[:3:3], instanceKey)
	return []description{
		{httpRequests, counter, "{request}", "Requests over HTTP, retries not counted.", balancer},
		{httpRetries, counter, "{request}", "Retries of requests over HTTP.", balancer},
		{httpDeniedRetries, counter, "{request}", "Retries that the budget did not allow.", balancer},
		{balancerCalls, counter, "{call}", "Attempts that ended in success or failure.", balancer},
		{balancerFailures, counter, "{call}", "Those of them that spoke against the instance.", balancer},
		{balancerInFlight, upDown, "{call}", "Attempts under way.", balancer},
		{balancerBreakers, upDown, "{instance}", "Instances by the state of their breaker.", append(balancer[:3:3], breakerKey)},
		{balancerOpenings, counter, "{opening}", "Breakers that opened.", balancer},
		{balancerEjected, upDown, "{instance}", "Instances that are put aside.", balancer},
		{balancerEjections, counter, "{ejection}", "Times that instances were put aside.", balancer},
		{instanceCalls, counter, "{call}", "As regd.client.balancer.calls, of one instance.", instance},
		{instanceFailures, counter, "{call}", "As regd.client.balancer.failures, of one instance.", instance},
		{instanceInFlight, upDown, "{call}", "As regd.client.balancer.in_flight, of one instance.", instance},
		{instanceLatency, gauge, "s", "Smoothed time that successful attempts took.", instance},
		{instanceBreaker, upDown, "{instance}", "1 for the state that the breaker is in.", append(instance[:4:4], breakerKey)},
	}
}

// instruments are those that are observed, by name.
type instruments map[string]metric.Observable

// newInstruments makes them.
func newInstruments(meter metric.Meter, byInstance bool) (instruments, error) {
	made := make(instruments)
	for _, d := range descriptions() {
		if d.kind == histogram || d.onlyByInstance() && !byInstance {
			continue
		}
		var err error
		help, unit := metric.WithDescription(d.help), metric.WithUnit(d.unit)
		switch {
		case d.kind == counter:
			made[d.name], err = meter.Int64ObservableCounter(d.name, help, unit)
		case d.kind == upDown:
			made[d.name], err = meter.Int64ObservableUpDownCounter(d.name, help, unit)
		case d.unit == "s":
			made[d.name], err = meter.Float64ObservableGauge(d.name, help, unit)
		default:
			made[d.name], err = meter.Int64ObservableGauge(d.name, help, unit)
		}
		if err != nil {
			return nil, fmt.Errorf("metric %s: %w", d.name, err)
		}
	}
	return made, nil
}

// newDurations makes the histogram of operations. Its bounds, in seconds, reach from a healthy registry's answer to the
// default request timeout.
func newDurations(meter metric.Meter) (metric.Float64Histogram, error) {
	d := descriptions()[0]
	h, err := meter.Float64Histogram(d.name, metric.WithDescription(d.help), metric.WithUnit(d.unit),
		metric.WithExplicitBucketBoundaries(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10))
	if err != nil {
		return nil, fmt.Errorf("metric %s: %w", d.name, err)
	}
	return h, nil
}

// observables are all of them.
func (i instruments) observables() []metric.Observable {
	all := make([]metric.Observable, 0, len(i))
	for _, instrument := range i {
		all = append(all, instrument)
	}
	return all
}

// observe hands samples on. Those that there is no instrument for were not asked for.
func (i instruments) observe(o metric.Observer, s samples) {
	for at, sample := range s.all {
		set := metric.WithAttributeSet(sample.attributes)
		switch instrument := i[at.name].(type) {
		case metric.Float64Observable:
			o.ObserveFloat64(instrument, sample.value, set)
		case metric.Int64Observable:
			o.ObserveInt64(instrument, int64(sample.value), set)
		}
	}
}
