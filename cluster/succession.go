package cluster

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	peerv1 "github.com/regd-io/regd/proto/peer/v1"
)

// succession wakes what looks after the leader.
//
// Raft finds by timeouts that a leader is gone, as it can't know why one is silent: that takes one to two of them. A process
// that has ended is a case of its own, and the most frequent: the system closes its connections at once, and refuses new
// ones. So who sees a leader's connection end dials it. If it is refused, and a majority of all voters was refused as well,
// one of them asks for votes at once: the first in the order of their ids, unless another one has a longer log. Whether the
// election is right is left to Raft. A leader that lives behind a firewall which refuses in its name is not deposed while a
// majority reaches it.
type succession struct {
	look  chan struct{} // capacity 1
	first chan struct{} // capacity 1
}

func newSuccession() succession { return succession{make(chan struct{}, 1), make(chan struct{}, 1)} }

// lookUp has the node look after its leader.
func (s succession) lookUp() { poke(s.look) }

// goFirst has the node wait for no other one.
func (s succession) goFirst() { poke(s.first) }

// poke puts into a channel with room for one, unless one is in it.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// reign is one leader that is followed in one term.
type reign struct {
	leaderAt

	term uint64
}

// follows tells whom this node follows; false: nobody.
func (n *Node) follows() (reign, bool) {
	r := n.raft.Load()
	if r == nil || r.State() != raft.Follower || n.serving() != nil {
		return reign{}, false
	}
	term := r.CurrentTerm()
	at, err := n.leaderAt()
	return reign{at, term}, err == nil && r.CurrentTerm() == term
}

// succeedLeaders looks at the leader whenever there is a reason, until ctx ends.
func (n *Node) succeedLeaders(ctx context.Context) {
	n.electFirst(ctx)
	for {
		select {
		case <-n.succession.first: // It was for the election that is over.
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-n.succession.look:
			n.succeed(ctx)
		}
	}
}

// electFirst has a cluster elect its first leader, since it was founded or all of it was started, when a majority has come up
// and not one to two timeouts later. Who was started alone is told by the others that there is a leader.
func (n *Node) electFirst(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*n.cfg.HeartbeatTimeout)
	defer cancel()
	nobody := reign{}
	n.awaitTurn(ctx, nobody, n.voters())
	for ; ctx.Err() == nil; sleep(ctx, n.cfg.HeartbeatTimeout/20) {
		r, voters := n.raft.Load(), n.voters()
		if leader, _ := r.LeaderWithID(); leader != "" || n.serving() != nil {
			return
		}
		if r.State() != raft.Follower || !slices.Contains(voters, raft.ServerID(n.id)) || n.gate() != nil {
			continue
		}
		if n.agreed(ctx, nobody, voters) {
			n.campaign(ctx)
		}
	}
}

func (n *Node) campaign(ctx context.Context) {
	if err := n.port.transport.Load().Campaign(ctx); err != nil {
		n.log.Warn("asking for votes", "err", err)
	}
}

// succeed finds out whether the leader has ended, and if so has this node be elected, or another one. After the time after
// which Raft may notice by itself it leaves it to Raft.
func (n *Node) succeed(ctx context.Context) {
	gone, following := n.follows()
	voters := n.voters()
	if !following || !slices.Contains(voters, raft.ServerID(n.id)) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatTimeout)
	defer cancel()
	// It may have lost its leadership or a connection only, or be about to end.
	for !refused(n.probe(ctx, gone)) {
		if !n.stillFollows(ctx, gone) {
			return
		}
	}
	n.awaitTurn(ctx, gone, voters)
	for n.gate() != nil || !n.agreed(ctx, gone, voters) {
		if !n.stillFollows(ctx, gone) {
			return
		}
	}
	if now, _ := n.follows(); now != gone {
		return
	}
	n.log.Info("the leader's process has ended: asking for votes at once",
		"leader", n.feed.State().Member(gone.id).GetName(), "term", gone.term)
	n.campaign(ctx)
}

// stillFollows waits a moment and tells whether this node still follows that leader.
func (n *Node) stillFollows(ctx context.Context, leader reign) bool {
	sleep(ctx, n.cfg.HeartbeatTimeout/20)
	now, _ := n.follows()
	return ctx.Err() == nil && now == leader
}

// awaitTurn gives each of the voters before this node in the succession some time, unless it is to go first.
func (n *Node) awaitTurn(ctx context.Context, gone reign, voters []raft.ServerID) {
	before := 0
	for _, id := range voters {
		if string(id) < n.id && string(id) != gone.id {
			before++
		}
	}
	wait := time.NewTimer(time.Duration(before) * n.cfg.HeartbeatTimeout / 5)
	defer wait.Stop()
	select {
	case <-ctx.Done():
	case <-wait.C:
	case <-n.succession.first:
	}
}

// probe dials the leader. Only the answer to the handshake proves that a process is there: the system accepts connections
// for one that ends until its port is closed.
func (n *Node) probe(ctx context.Context, leader reign) error {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatTimeout/5)
	defer cancel()
	_, err := n.port.mux.Probe(ctx, leader.address)
	return err
}

// refused tells whether a dial ended with the word of the host that nobody listens there.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// agreed asks the other voters, all at once, and tells whether a majority with this node finds that the leader has ended. Of
// nobody as the leader: that there is none, and that not one knows better.
func (n *Node) agreed(ctx context.Context, gone reign, voters []raft.ServerID) bool {
	ctx, cancel := context.WithTimeout(ctx, n.cfg.HeartbeatTimeout/5)
	defer cancel()
	index, term := n.lastEntry()
	question := &peerv1.LeaderGoneRequest{LeaderId: gone.id, Term: gone.term, LastIndex: index, LastTerm: term}
	others := slices.DeleteFunc(slices.Clone(voters), func(id raft.ServerID) bool {
		return string(id) == n.id || string(id) == gone.id
	})
	answers := make(chan *peerv1.LeaderGoneResponse, len(others))
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel() // The rest need not answer.
	for _, id := range others {
		asking.Go(func() {
			client, err := n.peerByID(id)
			if err != nil {
				answers <- nil
				return
			}
			reply, err := client.LeaderGone(ctx, question)
			if err != nil { // It is not there, or of an older version that does not know the question.
				reply = nil
			}
			answers <- reply
		})
	}
	missing := len(voters) / 2 // This node agrees.
	for range others {
		reply := <-answers
		if reply.GetAgreed() {
			missing--
		}
		if reply.GetLed() && gone.id == "" {
			return false
		}
		if missing <= 0 && gone.id != "" {
			return true
		}
	}
	return missing <= 0
}

// lastEntry is the last of this node's log.
func (n *Node) lastEntry() (index, term uint64) {
	r := n.raft.Load()
	term, _ = strconv.ParseUint(r.Stats()["last_log_term"], 10, 64) // Raft prints what it reads here.
	return r.LastIndex(), term
}

// LeaderGone tells whether this node finds so too. It would not vote for one whose log is older, and goes before it.
func (s *peerServer) LeaderGone(ctx context.Context, req *peerv1.LeaderGoneRequest) (*peerv1.LeaderGoneResponse, error) {
	n := s.node
	answer := &peerv1.LeaderGoneResponse{}
	if n.serving() != nil {
		return answer, nil //nolint:nilerr // It would not vote.
	}
	index, term := n.lastEntry()
	switch {
	case !n.gone(ctx, req.GetLeaderId(), req.GetTerm()):
		leader, _ := n.raft.Load().LeaderWithID()
		answer.Led = leader != ""
	case term > req.GetLastTerm() || term == req.GetLastTerm() && index > req.GetLastIndex():
		n.succession.goFirst()
	default:
		answer.Agreed = true
	}
	return answer, nil
}

// gone tells whether this node too has lost that leader in that term, or follows none as well.
func (n *Node) gone(ctx context.Context, leader string, term uint64) bool {
	if leader == "" {
		known, _ := n.raft.Load().LeaderWithID()
		return known == "" && n.raft.Load().State() == raft.Follower
	}
	following, ok := n.follows()
	return ok && following.id == leader && following.term == term && refused(n.probe(ctx, following))
}
