package client

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/connectivity"
)

// Stats are figures of a Client, for metrics. Counts only grow.
type Stats struct {
	// Calls to the registry; streams are not among them.
	Calls uint64
	// Attempts that calls made at nodes.
	Attempts uint64
	// FailedAttempts are those after which a node was asked again or another one was, as the first could not answer.
	FailedAttempts uint64
	// Watches that are open.
	Watches int
	// BrokenWatchStreams counts streams of watches, those of locks included, that ended otherwise than by this client or by
	// an orderly word of their node. Each was followed by another one.
	BrokenWatchStreams uint64
	// Session that is open. The zero value: none.
	Session Session
	// SessionsOpened counts them.
	SessionsOpened uint64
	// SessionsLost counts how often a session ended, or could no longer be proved to be alive.
	SessionsLost uint64
	// Renewals of sessions that the registry has confirmed.
	Renewals uint64
	// FailedRenewals counts how often renewing at a node failed, so that another one was asked.
	FailedRenewals uint64
	// LastRenewal is when the last confirmed renewal of the open session was sent, or its opening. Zero: there is no session.
	LastRenewal time.Time
	// Registrations that the client keeps, by key.
	Registrations []RegistrationStats
	// Superseded counts registrations that others took over. They are no longer among Registrations.
	Superseded uint64
	// Endpoints that are known, the configured ones first.
	Endpoints []EndpointStats
}

// RegistrationStats are figures of a Registration.
type RegistrationStats struct {
	// Key of the instance.
	Key Key
	// State it is in.
	State State
	// Incarnation is the number of the newest registration. 0: there was none yet.
	Incarnation uint64
	// Losses counts how often it went from StateRegistered to StateLost.
	Losses uint64
	// Recoveries counts how often it came back from there.
	Recoveries uint64
}

// EndpointStats tell how an endpoint does.
type EndpointStats struct {
	// Address, host:port.
	Address string
	// Connection is its state. Idle: it is not needed, or was not yet.
	Connection connectivity.State
	// Avoided: it failed, or is leaving, and is only the last choice for a while.
	Avoided bool
}

// counts are what a client has lived through.
type counts struct {
	calls, attempts, failedAttempts, brokenWatchStreams, superseded atomic.Uint64
}

// Stats returns the client's figures.
func (c *Client) Stats() Stats {
	s := Stats{
		Calls: c.counts.calls.Load(), Attempts: c.counts.attempts.Load(), FailedAttempts: c.counts.failedAttempts.Load(),
		BrokenWatchStreams: c.counts.brokenWatchStreams.Load(), Superseded: c.counts.superseded.Load(),
		Watches: len(c.hub.all()), Endpoints: c.pool.stats(),
	}
	c.keeper.count(&s)
	return s
}

// count fills in what is known of the session and of registrations.
func (k *keeper) count(s *Stats) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.session != nil {
		s.Session = Session{ID: k.session.id, TTL: k.session.ttl, Deadline: k.session.deadline}
		s.LastRenewal = k.session.deadline.Add(-k.session.ttl)
	}
	s.SessionsOpened, s.SessionsLost, s.Renewals, s.FailedRenewals = k.sessionsOpened, k.sessionsLost, k.renewals, k.failedRenewals
	for _, r := range k.registrations {
		r.mu.Lock()
		s.Registrations = append(s.Registrations, RegistrationStats{
			Key: r.key, State: r.state, Incarnation: r.incarnation, Losses: r.losses, Recoveries: r.recoveries,
		})
		r.mu.Unlock()
	}
	slices.SortFunc(s.Registrations, func(a, b RegistrationStats) int {
		return cmp.Or(cmp.Compare(a.Key.Namespace, b.Key.Namespace), cmp.Compare(a.Key.Service, b.Key.Service),
			cmp.Compare(a.Key.ID, b.Key.ID))
	})
}

// stats returns how all endpoints do.
func (p *pool) stats() []EndpointStats {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	stats := make([]EndpointStats, len(p.endpoints))
	for i, ep := range p.endpoints {
		stats[i] = EndpointStats{Address: ep.address, Connection: connectivity.Idle, Avoided: now.Before(ep.shunned)}
		if ep.conn != nil {
			stats[i].Connection = ep.conn.GetState()
		}
	}
	return stats
}
