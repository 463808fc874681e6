package rpc

import (
	"context"
	"slices"
	"time"

	"github.com/regd-io/regd/cluster"
)

const (
	// proveWithin is how long the first state of a subscription that asks for a linearizable one is held back.
	proveWithin = 3 * time.Second
	// provePause is the time between two questions while the answer is that nothing can be proved.
	provePause = time.Second
)

// unproven are the subscriptions of a stream whose state shall be linearizable and is not known to be.
//
// One question at a time is asked for all that wait when it begins, as a linearizable read asks. It proves the state of
// those. When it fails, as without a leader, all begin with what the node has, and so do those that come until one
// succeeds: a list that may be old is better than none. They are asked for on and on, and told when it is proved.
type unproven struct {
	claims  []*claim
	asking  bool
	failing bool // the last question failed
	answers chan proof
}

// claim is a subscription that asks for a linearizable state.
type claim struct {
	awaited

	asked bool // the question under way is for it, too
	begun bool // it is no longer held back
}

// proof is the answer to a question: what this node has holds all that was acknowledged before it was asked.
type proof struct {
	asked time.Time
	err   error
}

// claim holds a new subscription back until its state is proved to be linearizable, or can't be.
func (w *watchStream) claim(ctx context.Context, a awaited) error {
	if w.unproven == nil {
		w.unproven = &unproven{answers: make(chan proof, 1)}
	}
	u := w.unproven
	c := &claim{awaited: a, begun: u.failing}
	u.claims = append(u.claims, c)
	if !u.asking {
		w.prove(ctx, 0)
	}
	if c.begun {
		return w.begin(ctx, a)
	}
	return nil
}

// prove asks for all claims that there are, after a pause.
func (w *watchStream) prove(ctx context.Context, pause time.Duration) {
	u := w.unproven
	u.asking = true
	for _, c := range u.claims {
		c.asked = true
	}
	w.core.tasks.Go(func() {
		wait := time.NewTimer(pause)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
			return
		}
		p := proof{asked: time.Now()}
		p.err = w.core.prove(ctx)
		u.answers <- p
		w.wake(newsProved)
	})
}

// prove returns once all watchers of this node have been given what was acknowledged before, or why that is not known.
func (c *core) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, proveWithin)
	defer cancel()
	v, err := c.node.View(ctx, cluster.Freshness{Mode: cluster.ModeLinearizable})
	if err != nil {
		return err
	}
	return c.node.Feed().WaitQueued(ctx, v.State.Revision())
}

// takeProof begins the subscriptions that waited for an answer, and tells those that have begun without one.
func (w *watchStream) takeProof(ctx context.Context) error {
	u := w.unproven
	p := <-u.answers
	u.asking, u.failing = false, p.err != nil
	for _, c := range u.claims {
		if err := w.settle(ctx, c, p); err != nil {
			return err
		}
	}
	pause := provePause
	if p.err == nil {
		u.claims = slices.DeleteFunc(u.claims, func(c *claim) bool { return c.asked })
		pause = 0 // For those that came meanwhile.
	}
	if len(u.claims) > 0 {
		w.prove(ctx, pause)
	}
	return nil
}

// settle does for a claim what an answer calls for.
func (w *watchStream) settle(ctx context.Context, c *claim, p proof) error {
	proved := c.asked && p.err == nil
	if proved {
		c.sub.proved = p.asked
	}
	switch {
	case !c.begun && (proved || p.err != nil):
		c.begun = true
		return w.begin(ctx, c.awaited)
	case proved && c.sub.routed:
		return w.confirm(ctx, c.sub)
	default:
		return nil // It goes on waiting: for an answer, or to begin, and is proved then.
	}
}

// confirm tells of a subscription that has begun that its state is linearizable now.
func (w *watchStream) confirm(ctx context.Context, sub *subscription) error {
	if err := w.deliver(ctx); err != nil {
		return err
	}
	v, err := w.viewOf(ctx, sub)
	if err != nil {
		return err
	}
	return w.sendSynced(ctx, sub, v, max(sub.from, w.delivered))
}

// viewOf is view, with what is proved of the subscription's state.
func (w *watchStream) viewOf(ctx context.Context, sub *subscription) (cluster.View, error) {
	v, err := w.view(ctx)
	if !sub.proved.IsZero() {
		v.Mode, v.Staleness = cluster.ModeLinearizable, time.Since(sub.proved)
	}
	return v, err
}

// disclaim drops what a subscription that has ended asked for.
func (w *watchStream) disclaim(sub *subscription) {
	if w.unproven != nil {
		w.unproven.claims = slices.DeleteFunc(w.unproven.claims, func(c *claim) bool { return c.sub == sub })
	}
}
