package pods

import (
	"context"
	"net/http"
	"time"
)

// probe does what the kubelet does: the startup probe until it passes, then liveness and readiness. A pod that is not alive
// would be restarted: that fails the test.
func (p *Pod) probe(ctx context.Context) {
	c := p.set.m.container()
	if !p.passes(ctx, c.StartupProbe) {
		return
	}
	p.probes.Go(func() {
		alive := newVerdict(c.LivenessProbe, true)
		for p.pause(ctx, c.LivenessProbe) {
			if !alive.take(p.ask(ctx, c.LivenessProbe)) && ctx.Err() == nil {
				p.set.tb.Errorf("%s fails its liveness probe: it would be restarted", p.Name)
				return
			}
		}
	})
	ready := newVerdict(c.ReadinessProbe, false)
	for {
		p.ready.Store(ready.take(p.ask(ctx, c.ReadinessProbe)))
		if !p.pause(ctx, c.ReadinessProbe) {
			return
		}
	}
}

// passes asks until the probe passes. It fails the test when that takes as long as Kubernetes would wait.
func (p *Pod) passes(ctx context.Context, what probe) bool {
	for range what.FailureThreshold {
		if p.ask(ctx, what) {
			return true
		}
		if !p.pause(ctx, what) {
			return false
		}
	}
	p.set.tb.Errorf("%s fails its startup probe: it would be restarted", p.Name)
	return false
}

// pause waits for the period of a probe; false: the pod has ended.
func (p *Pod) pause(ctx context.Context, what probe) bool {
	select {
	case <-ctx.Done():
		return false
	case <-p.done:
		return false
	case <-time.After(what.period()):
		return true
	}
}

func (p *Pod) ask(ctx context.Context, what probe) bool {
	port, err := p.set.m.port(what.HTTPGet.Port)
	if err != nil {
		p.set.tb.Error(err)
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, what.timeout())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.Addr.String()+":"+port+what.HTTPGet.Path, nil)
	if err != nil {
		p.set.tb.Error(err)
		return false
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close() // Only the status counts.
	return resp.StatusCode >= 200 && resp.StatusCode < 400
}

// verdict is what comes of the answers to a probe: one is enough to pass, failing takes FailureThreshold in a row.
type verdict struct {
	passes bool
	failed int
	most   int
}

func newVerdict(p probe, passes bool) *verdict {
	return &verdict{passes: passes, most: p.FailureThreshold}
}

func (v *verdict) take(ok bool) bool {
	if ok {
		v.passes, v.failed = true, 0
	} else if v.failed++; v.failed >= v.most {
		v.passes = false
	}
	return v.passes
}
