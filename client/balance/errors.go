package balance

import (
	"errors"
	"fmt"
	"strings"
)

// Sentinels.
var (
	// ErrNoInstances says that the balancer has no instances: none was registered, or Update was not called yet.
	ErrNoInstances = errors.New("no instances")
	// ErrNoneHealthy says that there are instances, but none that may be picked.
	ErrNoneHealthy = errors.New("no healthy instances")
	// ErrNoMatch says that there are instances, but none that matches the filter of the request.
	ErrNoMatch = errors.New("no instance matches")
	// ErrNoPort says that an instance has no port of the name asked for.
	ErrNoPort = errors.New("no such port")
)

// UnavailableError says why Pick had nothing to give. It matches ErrNoInstances, ErrNoneHealthy or ErrNoMatch. Its counts
// are of the instances that match the request's filter; each is counted once, at the first reason that applies.
type UnavailableError struct {
	// Instances that the balancer has, and those of them that match the filter.
	Instances, Matching int
	// Maintenance and Draining, Unhealthy: below the least health.
	Maintenance, Draining, Unhealthy int
	// Open breakers, and instances put aside by ejection.
	Open, Ejected int
	// Probing is the number of half-open breakers, which let only a few calls through at a time.
	Probing int
	// Filter of the request, "" for none.
	Filter string
}

// Error implements error.
func (e *UnavailableError) Error() string {
	switch {
	case e.Instances == 0:
		return "pick an instance: the balancer has none: is the service registered, and the watch that feeds Update synced?"
	case e.Matching == 0:
		return fmt.Sprintf("pick an instance: none of %d matches %s", e.Instances, e.Filter)
	}
	var why []string
	for _, part := range []struct {
		n    int
		what string
	}{
		{e.Maintenance, "in maintenance"},
		{e.Draining, "draining"},
		{e.Unhealthy, "unhealthy"},
		{e.Open, "behind an open breaker"},
		{e.Ejected, "ejected"},
		{e.Probing, "on trial by a half-open breaker"},
	} {
		if part.n > 0 {
			why = append(why, fmt.Sprintf("%d %s", part.n, part.what))
		}
	}
	return fmt.Sprintf("pick an instance: none of %d is available: %s", e.Matching, strings.Join(why, ", "))
}

// Is makes the error match its sentinel.
func (e *UnavailableError) Is(target error) bool {
	switch {
	case e.Instances == 0:
		return target == ErrNoInstances
	case e.Matching == 0:
		return target == ErrNoMatch
	default:
		return target == ErrNoneHealthy
	}
}

// PortError says which port an instance lacks. It matches ErrNoPort.
type PortError struct {
	// Instance is its id, Port the name asked for, "" for the first.
	Instance, Port string
	// Have are the names of the ports that it has.
	Have []string
}

// Error implements error.
func (e *PortError) Error() string {
	if len(e.Have) == 0 {
		return fmt.Sprintf("address of instance %s: it was registered without ports", e.Instance)
	}
	return fmt.Sprintf("address of instance %s: no port %q, it has %s", e.Instance, e.Port, strings.Join(e.Have, ", "))
}

// Unwrap makes the error match ErrNoPort.
func (e *PortError) Unwrap() error { return ErrNoPort }
