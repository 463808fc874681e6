package regdotel

import (
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"google.golang.org/grpc/connectivity"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdgrpc"
	"github.com/regd-io/regd/client/regdhttp"
)

// samples are values of metrics, one of each series: OpenTelemetry wants no more. Of gauges of the same series it is the
// greatest, of others the sum.
type samples struct {
	all   map[series]sample
	extra []attribute.KeyValue
}

// series is what a value is of.
type series struct {
	name       string
	attributes attribute.Distinct
}

// sample is a value. Counts are exact up to 2^53.
type sample struct {
	attributes attribute.Set
	value      float64
}

func newSamples() samples { return samples{all: make(map[series]sample)} }

// with returns the same samples, to which values with further attributes are added.
func (s samples) with(attributes []attribute.KeyValue) samples {
	s.extra = append(slices.Clip(s.extra), attributes...)
	return s
}

// add adds a value.
func (s samples) add(name string, value float64, attributes ...attribute.KeyValue) {
	set := attribute.NewSet(append(slices.Clip(s.extra), attributes...)...)
	at := series{name, set.Equivalent()}
	s.all[at] = sample{set, s.all[at].value + value}
}

// count adds a number.
func (s samples) count(name string, n uint64) { s.add(name, float64(n)) }

// number adds a number.
func (s samples) number(name string, n int, attributes ...attribute.KeyValue) {
	s.add(name, float64(n), attributes...)
}

// gauge notes the value of a gauge.
func (s samples) gauge(name string, value float64) {
	set := attribute.NewSet(s.extra...)
	at := series{name, set.Equivalent()}
	if last, ok := s.all[at]; !ok || value > last.value {
		s.all[at] = sample{set, value}
	}
}

// state adds 1 for the state that something is in, and 0 for the others.
func (s samples) state(name string, key attribute.Key, state string, states ...string) {
	for _, other := range states {
		value := 0.0
		if other == state {
			value = 1
		}
		s.add(name, value, key.String(other))
	}
}

// sampleClient samples a client.
func sampleClient(s samples, stats client.Stats) {
	s.count(registryCalls, stats.Calls)
	s.count(registryAttempts, stats.Attempts)
	s.count(registryFailedAttempts, stats.FailedAttempts)
	s.number(registryWatches, stats.Watches)
	s.count(registryBrokenStreams, stats.BrokenWatchStreams)
	states := map[connectivity.State]int{
		connectivity.Idle: 0, connectivity.Connecting: 0, connectivity.Ready: 0, connectivity.TransientFailure: 0,
	}
	avoided := 0
	for _, e := range stats.Endpoints {
		states[e.Connection]++
		if e.Avoided {
			avoided++
		}
	}
	for state, n := range states {
		s.number(registryEndpoints, n, connectionStateKey.String(connectionState(state)))
	}
	s.number(registryAvoided, avoided)
	s.count(sessionOpenings, stats.SessionsOpened)
	s.count(sessionLosses, stats.SessionsLost)
	s.count(sessionRenewals, stats.Renewals)
	s.count(sessionFailedRenewals, stats.FailedRenewals)
	if !stats.LastRenewal.IsZero() {
		s.gauge(sessionRenewalAge, time.Since(stats.LastRenewal).Seconds())
		s.gauge(sessionTimeLeft, time.Until(stats.Session.Deadline).Seconds())
	}
	for _, r := range stats.Registrations {
		own := s.with([]attribute.KeyValue{
			namespaceKey.String(r.Key.Namespace), serviceKey.String(r.Key.Service), instanceKey.String(r.Key.ID),
		})
		own.state(registrationState, registrationStateKey, r.State.String(),
			client.StateRegistered.String(), client.StateLost.String())
		own.gauge(registrationIncarnation, float64(r.Incarnation))
		own.count(registrationLosses, r.Losses)
		own.count(registrationRecoveries, r.Recoveries)
	}
	s.count(registrationSuperseded, stats.Superseded)
}

// connectionState names a state as attributes are written.
func connectionState(state connectivity.State) string {
	switch state {
	case connectivity.Idle:
		return "idle"
	case connectivity.Connecting:
		return "connecting"
	case connectivity.Ready:
		return "ready"
	case connectivity.TransientFailure:
		return "transient_failure"
	default:
		return "shutdown"
	}
}

// sampleViews samples views.
func sampleViews(s samples, stats []discovery.Stats) {
	for _, v := range stats {
		own := s.with([]attribute.KeyValue{namespaceKey.String(v.Namespace), serviceKey.String(v.Service)})
		own.state(viewSource, sourceKey, v.Source.String(),
			discovery.SourceLive.String(), discovery.SourceCached.String(), discovery.SourceFile.String())
		if v.Source != 0 {
			own.gauge(viewAge, v.Age.Seconds())
		}
		if v.Staleness != client.UnknownStaleness {
			own.gauge(viewStaleness, v.Staleness.Seconds())
		}
		if v.FirstSync > 0 {
			own.gauge(viewFirstSync, v.FirstSync.Seconds())
		}
		own.count(viewLookups, v.Lookups)
		own.count(viewMisses, v.Misses)
		own.count(viewChanges, v.Changes)
		own.count(viewResyncs, v.Resyncs)
		own.count(viewStalls, v.Stalls)
		own.count(viewProtections, v.Protections)
		own.number(viewInstances, v.Instances)
		own.number(viewHealthy, v.Healthy)
		own.number(viewProtected, v.Protected)
		own.number(viewHandles, v.Users)
	}
}

// sampleHTTP samples a transport.
func sampleHTTP(s samples, stats []regdhttp.Stats) {
	for _, v := range stats {
		own := s.of(v.Namespace, v.Service, v.Scheme)
		own.count(httpRequests, v.TotalRequests)
		own.count(httpRetries, v.TotalRetries)
		own.count(httpDeniedRetries, v.DeniedRetries)
		sampleBalancer(own, v.Counts, v.Instances)
	}
}

// sampleGRPC samples channels.
func sampleGRPC(s samples, stats []regdgrpc.Stats) {
	for _, v := range stats {
		sampleBalancer(s.of(v.Namespace, v.Service, "grpc"), v.Counts, v.Instances)
	}
}

// of is with what a balancer is of.
func (s samples) of(namespace, service, transport string) samples {
	return s.with([]attribute.KeyValue{
		namespaceKey.String(namespace), serviceKey.String(service), transportKey.String(transport),
	})
}

// sampleBalancer samples a balancer.
func sampleBalancer(s samples, counts balance.Counts, instances []balance.Status) {
	s.count(balancerCalls, counts.Calls)
	s.count(balancerFailures, counts.Failures)
	s.count(balancerOpenings, counts.Openings)
	s.count(balancerEjections, counts.Ejections)
	states := breakerStates()
	for _, state := range states {
		s.number(balancerBreakers, 0, breakerKey.String(state))
	}
	s.number(balancerInFlight, 0)
	s.number(balancerEjected, 0)
	for _, i := range instances {
		s.number(balancerBreakers, 1, breakerKey.String(breakerState(i.Breaker)))
		s.number(balancerInFlight, int(i.InFlight))
		if i.Reason == balance.ReasonEjected {
			s.number(balancerEjected, 1)
		}
		own := s.with([]attribute.KeyValue{instanceKey.String(i.Instance.GetId())})
		own.count(instanceCalls, i.Calls)
		own.count(instanceFailures, i.Failures)
		own.number(instanceInFlight, int(i.InFlight))
		own.state(instanceBreaker, breakerKey, breakerState(i.Breaker), states...)
		if i.Latency > 0 {
			own.gauge(instanceLatency, i.Latency.Seconds())
		}
	}
}

// breakerState names a state as attributes are written.
func breakerState(state balance.BreakerState) string {
	if state == balance.BreakerHalfOpen {
		return "half_open"
	}
	return state.String()
}

func breakerStates() []string {
	return []string{
		breakerState(balance.BreakerClosed), breakerState(balance.BreakerOpen), breakerState(balance.BreakerHalfOpen),
	}
}
