package health

import "time"

const (
	// suspectHosts is the number of hosts below which the failure of most is believed.
	suspectHosts = 10
	// suspectShare of the hosts failing, in percent, is more likely this node's own failure than theirs.
	suspectShare = 60
	// fallenKept is how long a host counts as failing after its checks turned critical, so that checks which fall at
	// the first failure count too.
	fallenKept = 30 * time.Second
)

// mark is what the last probe of a check says about its host.
type mark uint8

const (
	unmarked mark = iota // Not probed yet, or critical already: says nothing.
	answers
	fails
)

// suspicion sees when most hosts fail at once. Only checks that passed before count, and a host fails only when none of
// its checks passes, so a broken service does not look like a broken network. It has no lock: its owner has.
type suspicion struct {
	abstain time.Duration
	hosts   map[string]*hostMarks
	failing int // Hosts that fail.
	// until is the end of the abstention, 0 when there is none. After it nothing is withheld until most hosts answer.
	until time.Duration
	spent bool
}

type hostMarks struct{ answers, fails int }

func (h *hostMarks) failing() bool { return h.fails > 0 && h.answers == 0 }

// move changes what one check says about host.
func (s *suspicion) move(host string, from, to mark) {
	if from == to {
		return
	}
	h := s.hosts[host]
	if h == nil {
		h = &hostMarks{}
		s.hosts[host] = h
	}
	was := h.failing()
	h.count(from, -1)
	h.count(to, 1)
	if is := h.failing(); is != was {
		if is {
			s.failing++
		} else {
			s.failing--
		}
	}
	if *h == (hostMarks{}) {
		delete(s.hosts, host)
	}
}

func (h *hostMarks) count(m mark, by int) {
	switch m {
	case answers:
		h.answers += by
	case fails:
		h.fails += by
	case unmarked:
	}
}

// most reports whether more hosts fail than can be believed.
func (s *suspicion) most() bool {
	return len(s.hosts) >= suspectHosts && s.failing*100 > len(s.hosts)*suspectShare
}

// calm forgets the last abstention once most hosts answer.
func (s *suspicion) calm() {
	if !s.most() {
		s.until, s.spent = 0, false
	}
}

// withhold reports whether nobody is to be turned critical now, and whether that has just begun.
func (s *suspicion) withhold(now time.Duration) (withhold, begun bool) {
	switch {
	case !s.most() || s.spent || s.abstain == 0:
		return false, false
	case s.until == 0:
		s.until = now + s.abstain
		return true, true
	case now < s.until:
		return true, false
	default:
		s.until, s.spent = 0, true
		return false, false
	}
}
