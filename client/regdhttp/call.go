package regdhttp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/regd-io/regd/client/balance"
)

// Why there is no further attempt.
var (
	errNoOther = errors.New("no other instance is left to try")
	errBudget  = errors.New("the retry budget is spent")
)

// call is a request on its way through instances.
type call struct {
	t        *Transport
	s        *service
	req      *http.Request
	request  balance.Request
	attempts []Attempt  // that have failed
	why      error      // there is no further one
	trace    CallTracer // nil: nobody traces
	sent     int        // attempts that were traced
}

// choice is an instance that is to be tried, and the body to send it.
type choice struct {
	pick    *balance.Pick
	address string
	body    io.ReadCloser
	ended   func(Ended) // who traces the attempt, nil: nobody
	cancel  func()      // ends the attempt's context, nil: it has none of its own
}

// run tries instances until there is a response to return, or no sense in going on.
func (c *call) run() (*http.Response, error) {
	to, err := c.choose()
	if err != nil {
		c.why = err
		closeBody(c.req)
		return nil, c.fail()
	}
	to.body = c.req.Body
	for {
		resp, err := c.send(&to)
		next, ok := c.next(to, resp, err)
		if !ok {
			return c.finish(to, resp, err)
		}
		if err == nil {
			discard(resp)
		}
		c.done(to, resp, err)
		to = next
	}
}

// choose picks an instance that was not tried yet. One that lacks the port counts as tried.
func (c *call) choose() (choice, error) {
	for len(c.attempts) < c.t.cfg.attempts {
		pick, err := c.s.pick(c.req.Context(), c.request)
		if err != nil {
			return choice{}, err
		}
		id := pick.Instance().GetId()
		if c.tried(id) {
			pick.Done(balance.Neutral)
			break
		}
		address, err := c.s.address(pick.Instance(), c.t.cfg.port)
		if err == nil {
			return choice{pick: &pick, address: address}, nil
		}
		c.request.Avoid.Add(pick)
		pick.Done(balance.Neutral)
		c.attempts = append(c.attempts, Attempt{Instance: id, Err: err})
	}
	return choice{}, errNoOther
}

// tried tells whether an attempt on an instance has failed.
func (c *call) tried(id string) bool {
	return slices.ContainsFunc(c.attempts, func(a Attempt) bool { return a.Instance == id })
}

// send makes an attempt. A RoundTripper must not change the request that it was given.
func (c *call) send(to *choice) (*http.Response, error) {
	out, target := *c.req, *c.req.URL
	target.Host = to.address
	out.URL, out.Body = &target, to.body
	switch {
	case c.t.cfg.instanceHost:
		out.Host = to.address
	case out.Host == "":
		out.Host = c.req.URL.Host
	}
	sent, ctx := &out, c.req.Context()
	if c.trace != nil {
		if out.Header = out.Header.Clone(); out.Header == nil {
			out.Header = http.Header{}
		}
		c.sent++
		ctx, to.ended = c.trace.Attempt(Sent{Request: &out, Instance: to.pick.Instance(), Number: c.sent, Breaker: to.pick.Breaker()})
		sent = out.WithContext(ctx)
	}
	if c.t.cfg.attempt == 0 {
		return c.s.inner.RoundTrip(sent)
	}
	ctx, to.cancel = context.WithCancel(ctx)
	timer := time.AfterFunc(c.t.cfg.attempt, to.cancel)
	resp, err := c.s.inner.RoundTrip(out.WithContext(ctx))
	if timer.Stop() || c.req.Context().Err() != nil {
		return resp, err
	}
	// What has come after all has a body that can't be read any more.
	if err == nil {
		_ = resp.Body.Close()
	}
	return nil, ErrAttemptTimeout
}

// next chooses where to try again after what has come of an attempt. It tells whether to.
func (c *call) next(to choice, resp *http.Response, err error) (next choice, ok bool) {
	pause, ok := c.t.cfg.retry(c.req, resp, err)
	if !ok {
		return choice{}, false
	}
	if err == nil {
		err = &StatusError{Code: resp.StatusCode}
	}
	c.attempts = append(c.attempts, Attempt{Instance: to.pick.Instance().GetId(), Address: to.address, Err: err})
	c.request.Avoid.Add(*to.pick)
	ctx := c.req.Context()
	if len(c.attempts) >= c.t.cfg.attempts || !fits(ctx, pause) || wait(ctx, pause) != nil {
		return choice{}, false
	}
	if next, c.why = c.choose(); c.why != nil {
		return choice{}, false
	}
	if c.req.GetBody != nil {
		next.body, c.why = c.req.GetBody()
	}
	if c.why == nil && !c.s.budget.retry(time.Since(c.t.start)) {
		c.why = errBudget
		if next.body != nil {
			_ = next.body.Close()
		}
	}
	if c.why != nil {
		next.pick.Done(balance.Neutral)
		return choice{}, false
	}
	return next, true
}

// finish returns what came of the last attempt.
func (c *call) finish(to choice, resp *http.Response, err error) (*http.Response, error) {
	if err != nil {
		c.done(to, nil, err)
		if id := to.pick.Instance().GetId(); !c.tried(id) {
			c.attempts = append(c.attempts, Attempt{Instance: id, Address: to.address, Err: err})
		}
		return nil, c.fail()
	}
	resp.Request = c.req
	watchBody(resp, func(err error) {
		c.done(to, resp, err)
		if c.trace != nil {
			c.trace.Done(err)
		}
	})
	return resp, nil
}

// done reports how an attempt went.
func (c *call) done(to choice, resp *http.Response, err error) {
	outcome := c.judge(resp, err)
	to.pick.Done(outcome)
	if to.cancel != nil {
		to.cancel()
	}
	if to.ended != nil {
		to.ended(Ended{Response: resp, Err: err, Outcome: outcome, Breaker: to.pick.Breaker()})
	}
}

// judge says how an attempt went for the instance.
func (c *call) judge(resp *http.Response, err error) balance.Outcome {
	if err != nil {
		resp = nil // It is the error that ended the attempt.
	}
	switch {
	case err != nil && (errors.Is(err, context.Canceled) || errors.Is(c.req.Context().Err(), context.Canceled)):
		return balance.Neutral
	case err != nil && unsent(err) && c.req.Context().Err() == nil:
		return balance.Unreachable
	case c.t.cfg.failure(resp, err):
		return balance.Failure
	default:
		return balance.Success
	}
}

// fail is the error of the call.
func (c *call) fail() error {
	err := &Error{Namespace: c.s.target.namespace, Service: c.s.target.service, Attempts: c.attempts, Err: c.why}
	if c.trace != nil {
		c.trace.Done(err)
	}
	return err
}

// closeBody closes the body of a request that is not sent.
func closeBody(req *http.Request) {
	if req.Body != nil {
		_ = req.Body.Close()
	}
}
