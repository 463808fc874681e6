package dns

import (
	"net/netip"
	"time"

	miekg "github.com/miekg/dns"

	"github.com/regd-io/regd/cluster"
	"github.com/regd-io/regd/fsm"
)

// worker has what answering takes, for one query after another.
type worker struct {
	q    question
	c    composer
	in   []byte
	out  []byte
	oob  []byte
	from arrival
}

// maxQuery is the largest query that is read, in bytes. A name has at most 255.
const maxQuery = 4096

func (s *Server) newWorker() *worker {
	return &worker{
		c:  composer{rendezvous: s.cfg.Order == OrderRendezvous, recursion: s.forward != nil, udpSize: s.cfg.UDPSize, pick: random},
		in: make([]byte, maxQuery), out: make([]byte, 0, s.cfg.UDPSize),
	}
}

// outcome is what becomes of a query besides being answered.
type outcome int

const (
	outcomeAnswered outcome = iota
	outcomeDropped
	outcomeForward // It is for other servers.
)

// respond answers a packet. The answer is the worker's, until the next.
func (s *Server) respond(w *worker, packet []byte, client netip.Addr, stream bool) (reply []byte, o outcome) {
	began := time.Now()
	defer func() {
		// A fault in here must not take the node with it.
		if fault := recover(); fault != nil {
			s.log.Error("a DNS query could not be answered: this is a bug", "panic", fault, "query", packet)
			s.metrics.drop(reasonFault)
			reply, o = nil, outcomeDropped
		}
	}()
	limited := !stream && !s.limiter.allow(client, began)
	if limited && !s.limiter.slip() {
		s.metrics.drop(reasonRate)
		return nil, outcomeDropped
	}
	rcode := 0
	switch v := w.q.parse(packet, s.domains); {
	case v == verdictDrop:
		s.metrics.drop(reasonMalformed)
		return nil, outcomeDropped
	case limited:
		s.metrics.partial(false)
		w.out = w.c.refuse(w.out[:0], &w.q, rcode, true)
	default:
		w.out, rcode, o = s.reply(w, v, asker{client: client, zone: s.zoneOf(client), stream: stream})
	}
	if o == outcomeAnswered {
		s.metrics.answered(w.q.qtype, rcode)
		s.metrics.took.Observe(time.Since(began).Seconds())
	}
	return w.out, o
}

// refusals are the codes of what is not answered.
var refusals = map[verdict]int{ //nolint:gochecknoglobals // a constant table
	verdictFormat: miekg.RcodeFormatError, verdictOpcode: miekg.RcodeNotImplemented, verdictVersion: miekg.RcodeBadVers,
}

// reply makes the message that answers a question.
func (s *Server) reply(w *worker, v verdict, who asker) (message []byte, rcode int, o outcome) {
	q := &w.q
	refuse := func(rcode int) ([]byte, int, outcome) {
		return w.c.refuse(w.out[:0], q, rcode, false), rcode, outcomeAnswered
	}
	switch {
	case v != verdictAnswer:
		return refuse(refusals[v])
	case q.class != miekg.ClassINET && q.class != miekg.ClassANY:
		return refuse(miekg.RcodeRefused)
	case q.qtype == miekg.TypeAXFR, q.qtype == miekg.TypeIXFR:
		return refuse(miekg.RcodeRefused)
	case q.domain == nil && s.forward.serves(who.client):
		return w.out, 0, outcomeForward
	case q.domain == nil:
		return refuse(miekg.RcodeRefused)
	}
	st := s.state()
	if st == nil {
		return refuse(miekg.RcodeServerFailure)
	}
	a := s.cache.answer(s.translator, st, q)
	if q.domain.reverse && a.rcode != 0 && s.forward.serves(who.client) {
		return w.out, 0, outcomeForward
	}
	if a.denied {
		s.metrics.denied.Inc()
	}
	message, cut := w.c.compose(w.out[:0], q, a, who, uint32(st.Revision()))
	if cut {
		s.metrics.partial(who.stream)
	}
	return message, a.rcode, outcomeAnswered
}

// state returns what is answered from, nil if nothing may be.
func (s *Server) state() *fsm.State {
	v, err := s.node.View(s.ctx, cluster.Freshness{Mode: cluster.ModeStale})
	switch {
	case err != nil:
		return nil
	case v.Staleness >= 0 && v.Staleness <= s.cfg.MaxStale:
		if !s.current.Load() {
			s.current.Store(true)
		}
		return v.State
	case s.cfg.Stale == StaleFail, !s.current.Load():
		return nil
	}
	s.metrics.stale.Inc()
	return v.State
}

// zoneOf returns the zone of a client, empty if it is in none.
func (s *Server) zoneOf(client netip.Addr) string {
	for _, z := range s.zones {
		if z.Network.Contains(client) {
			return z.Name
		}
	}
	return ""
}
