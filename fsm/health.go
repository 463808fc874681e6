package fsm

import (
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// AggregateHealth returns the health of an instance: the least of what its checks, draining and maintenance say, passing
// when none says anything. A check without a known verdict counts as starting.
func AggregateHealth(checks []registryv1.CheckStatus, draining, maintenance bool) registryv1.Health {
	health := baseHealth(draining, maintenance)
	for _, status := range checks {
		health = min(health, checkHealth(status))
	}
	return health
}

// baseHealth is the health of an instance without checks.
func baseHealth(draining, maintenance bool) registryv1.Health {
	switch {
	case maintenance:
		return registryv1.Health_HEALTH_MAINTENANCE
	case draining:
		return registryv1.Health_HEALTH_DRAINING
	default:
		return registryv1.Health_HEALTH_PASSING
	}
}

// checkHealth is the health of an instance with this check alone.
func checkHealth(status registryv1.CheckStatus) registryv1.Health {
	switch status {
	case registryv1.CheckStatus_CHECK_STATUS_PASSING:
		return registryv1.Health_HEALTH_PASSING
	case registryv1.CheckStatus_CHECK_STATUS_WARNING:
		return registryv1.Health_HEALTH_WARNING
	case registryv1.CheckStatus_CHECK_STATUS_CRITICAL:
		return registryv1.Health_HEALTH_CRITICAL
	default:
		return registryv1.Health_HEALTH_STARTING
	}
}

func validVerdict(status registryv1.CheckStatus) bool {
	return status >= registryv1.CheckStatus_CHECK_STATUS_STARTING &&
		status <= registryv1.CheckStatus_CHECK_STATUS_CRITICAL
}
