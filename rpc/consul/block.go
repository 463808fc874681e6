package consul

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
)

// How a query waits.
//
// The index of an answer is the revision at which a topic of the query last changed. A query with an index waits until a topic
// has changed after it, or its time is over; then it is answered as if it had just come, with the index that it has now. The
// index is that of the content: it is taken from no later State, so what changes meanwhile is a change after it.
//
// While it waits it is a goroutine, a timer and a place in the ledger. It holds no State and no place among those that work.
// It waits for what this node has, whatever consistency it asked for: when that has changed it is told so, and when its time is
// over a query that is not stale is answered from a State that is sure to be current, or not at all.

// read is a query: the topics that it is about, and what is answered for a State.
type read struct {
	topics []topic
	// whole says that the answer may be as large as the registry.
	whole bool
	// body returns the answer, and how much was left out because the caller may not see it.
	body func(st *fsm.State) (value any, hidden bool, err error)
}

// ask answers a read, at once or when there is something new.
func (s *Server) ask(w *answer, a *request, q read) error {
	v, err := s.first(a)
	if err != nil {
		return err
	}
	index, err := s.indexOf(a, v, q)
	if err != nil {
		return err
	}
	if a.index > 0 && index <= a.index {
		began := time.Now()
		v, index, err = s.await(a, v, q)
		w.waited = time.Since(began)
		if err != nil {
			return err
		}
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(maxSend)) // Not every writer has one.
	}
	if q.whole {
		select {
		case s.wholes <- struct{}{}:
			defer func() { <-s.wholes }()
		case <-a.Context().Done():
			return a.Context().Err()
		}
	}
	value, hidden, err := q.body(v.State)
	if err != nil {
		return err
	}
	s.setMeta(w, index, v)
	if hidden {
		w.Header().Set("X-Consul-Results-Filtered-By-Acls", "true")
	}
	if a.cached {
		w.Header().Set("X-Cache", "HIT")
		w.Header().Set("Age", strconv.Itoa(int(max(0, v.Staleness).Seconds())))
	}
	if itself, ok := value.(answerer); ok {
		return itself.answer(w)
	}
	return reply(w, http.StatusOK, value)
}

// first returns the State to begin with. A query that may wait begins with what this node has, if that is not behind what the
// client has seen.
func (s *Server) first(a *request) (cluster.View, error) {
	ctx, cancel := context.WithTimeout(a.Context(), maxWork)
	defer cancel()
	mode := a.mode
	if a.index > 0 && s.current.Load() && s.node.Feed().State().Revision() >= a.index {
		mode = cluster.ModeStale
	}
	v, err := s.node.View(ctx, cluster.Freshness{Mode: mode})
	if err == nil {
		err = s.informed(v)
	}
	if err == nil && a.index > v.State.Revision() && mode == cluster.ModeStale {
		// The client was at a node that is ahead of this one, most likely. If not, the index is of another cluster: only a State
		// that is current can tell. Without a leader neither is known, and to answer as if it were so would turn time back.
		soon, over := context.WithTimeout(ctx, catchUp)
		defer over()
		if v, err = s.node.View(soon, cluster.Freshness{Mode: cluster.ModeAtLeast, MinRevision: a.index}); err != nil {
			v, err = s.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
		}
	}
	if err == nil && a.index > v.State.Revision() {
		a.index = 0 // No revision of this cluster: the client begins anew.
	}
	return v, err
}

// informed refuses the State of a node that has just started, and so knows next to nothing, until it has been up to date once: even
// for a stale query it is no answer that there is nothing. From then on such a State may be of any age.
func (s *Server) informed(v cluster.View) error {
	if s.current.Load() {
		return nil
	}
	if v.Mode == cluster.ModeStale && (v.Staleness < 0 || v.Staleness > upToDate) {
		return &failure{http.StatusServiceUnavailable, "this node has not been up to date since it started: ask another one, or later"}
	}
	s.current.Store(true)
	return nil
}

// upToDate is how old a State may be that shows that the node has caught up.
const upToDate = 10 * time.Second

// catchUp is how long a stale query waits for a node that is behind what the client has seen, before the leader is asked.
const catchUp = time.Second

// indexOf returns the index of a query in a State.
func (s *Server) indexOf(a *request, v cluster.View, q read) (uint64, error) {
	if err := s.ledger.reach(a.Context(), v.State.Revision()); err != nil {
		return 0, err
	}
	return s.ledger.index(v.State, q.topics...), nil
}

// await waits until a topic has changed after the index that the client has, or its time is over. The index that it returns is
// not below the client's.
func (s *Server) await(a *request, v cluster.View, q read) (_ cluster.View, index uint64, err error) {
	resume, err := s.rest(a)
	if err != nil {
		return v, 0, err
	}
	defer func() { err = resume(err) }()
	timer := time.NewTimer(a.jitter())
	defer timer.Stop()
	for {
		woken, err := s.sleep(a, q.topics, timer.C)
		if err != nil {
			return v, 0, err
		}
		fresh := cluster.Freshness{Mode: cluster.ModeStale}
		if !s.leaving() && (!woken || a.on("consistent")) {
			fresh.Mode = a.mode
		}
		v, err = s.view(a, fresh)
		if err != nil {
			return v, 0, err
		}
		index, err = s.indexOf(a, v, q)
		switch {
		case err != nil:
			return v, 0, err
		case index > a.index:
			s.metrics.wakes.Inc()
			return v, index, nil
		case !woken:
			return v, a.index, nil
		}
	}
}

func (s *Server) view(a *request, fresh cluster.Freshness) (cluster.View, error) {
	ctx, cancel := context.WithTimeout(a.Context(), maxWork)
	defer cancel()
	return s.node.View(ctx, fresh)
}

// sleep waits for a change of one of two topics at most, and returns false when it is to wait no longer.
func (s *Server) sleep(a *request, topics []topic, timeout <-chan time.Time) (woken bool, err error) {
	first, leave := s.ledger.wait(a.index, topics[0])
	defer leave()
	var second <-chan struct{} // nil: it never comes
	if len(topics) > 1 {
		var leaveToo func()
		second, leaveToo = s.ledger.wait(a.index, topics[1])
		defer leaveToo()
	}
	select {
	case <-first:
		return true, nil
	case <-second:
		return true, nil
	case <-timeout:
		return false, nil
	case <-s.closing:
		return false, nil
	case <-a.Context().Done():
		return false, a.Context().Err()
	}
}

// rest gives back a query's place among those that work, while it waits. resume takes one again, unless there is an error, which it
// returns.
func (s *Server) rest(a *request) (resume func(error) error, err error) {
	select {
	case s.waiters <- struct{}{}:
	default:
		return nil, &failure{http.StatusTooManyRequests, fmt.Sprintf("%d queries wait for a change, the limit: try again later or against a different server", maxWaiters)}
	}
	a.visit.Wait()
	return func(err error) error {
		<-s.waiters
		if err != nil {
			return err
		}
		return a.visit.Resume()
	}, nil
}

// leaving tells whether Shutdown has begun.
func (s *Server) leaving() bool {
	select {
	case <-s.closing:
		return true
	default:
		return false
	}
}
