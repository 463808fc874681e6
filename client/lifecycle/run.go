package lifecycle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/regd-io/regd/client"
)

const (
	defaultStartTimeout  = 30 * time.Second
	defaultLeaveTimeout  = 5 * time.Second
	defaultFinishTimeout = 20 * time.Second
	// readyPause is the time between two questions to Config.Ready.
	readyPause = 100 * time.Millisecond
	// onTheWay is how long servers serve on once the instance has left: for requests whose senders chose it just before they were
	// told, and which must be sent yet.
	onTheWay = 100 * time.Millisecond
)

var (
	errHurry   = errors.New("a second signal asked to hurry")
	errTooLong = errors.New("it took too long")
	errStopped = errors.New("it stopped by itself")
)

// Config says what Run runs. Servers are required. Leaving takes at most LeaveTimeout, or ServeOn if that is longer, FinishTimeout,
// a tenth of a second and, where the registry can't be reached, the client's request timeout: a supervisor's patience has to be
// longer than their sum.
type Config struct {
	// Servers of the process.
	Servers []Server
	// Register registers the process. Nil: it is not registered.
	Register Registrar
	// Ready is asked before the process is registered, again and again while it fails: caches may have to be filled. Default:
	// nothing is waited for.
	Ready func(ctx context.Context) error
	// Readiness is ready while the process is registered and was not asked to stop. It may be nil.
	Readiness *Readiness

	// StartTimeout bounds Ready and Register together. Default 30 s.
	StartTimeout time.Duration
	// LeaveTimeout bounds the wait until all who watch the instance have been told that it leaves. Default 5 s.
	LeaveTimeout time.Duration
	// ServeOn is the least time to serve on after readiness was lost, for those that ask for it now and then, or who are told by
	// others than the registry. Default 0.
	ServeOn time.Duration
	// FinishTimeout bounds finishing the requests under way. Default 20 s.
	FinishTimeout time.Duration

	// Signals ask to stop; the second one, to hurry. Default: SIGTERM and SIGINT of the process.
	Signals <-chan os.Signal
	// Logger gets what happens. Default: nothing is logged.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	var errs []error
	for name, d := range map[string]time.Duration{
		"start timeout": c.StartTimeout, "leave timeout": c.LeaveTimeout, "finish timeout": c.FinishTimeout, "serve on": c.ServeOn,
	} {
		if d < 0 {
			errs = append(errs, fmt.Errorf("%s %v: must not be negative", name, d))
		}
	}
	if len(c.Servers) == 0 {
		errs = append(errs, errors.New("servers: there are none"))
	}
	for i, s := range c.Servers {
		if s.serve == nil {
			errs = append(errs, fmt.Errorf("server %d: make it with HTTP, GRPC or Custom", i))
		}
	}
	c.StartTimeout = cmp.Or(c.StartTimeout, defaultStartTimeout)
	c.LeaveTimeout = cmp.Or(c.LeaveTimeout, defaultLeaveTimeout)
	c.FinishTimeout = cmp.Or(c.FinishTimeout, defaultFinishTimeout)
	if c.Readiness == nil {
		c.Readiness = new(Readiness)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := errors.Join(errs...); err != nil {
		return c, fmt.Errorf("run servers: %w", err)
	}
	return c, nil
}

// process is one Run.
type process struct {
	cfg  Config
	halt context.CancelCauseFunc // begins the end
	die  context.CancelCauseFunc // called when a server has failed: nothing is left to be waited for

	mu        sync.Mutex // guards the fields below
	finishing bool       // servers are asked to end
	failed    error      // of those that ended before
}

// Run runs the servers until ctx ends, a signal comes or one of them fails, in the order that the package describes. It
// returns nil when all ended as it should. Else the error joins what went wrong: configuration, readiness or registration
// at the start, a server's failure, a deregistration that failed (its session ends by itself), requests that had to be cut off.
// That some watchers could not be told in time is logged, and no error.
//
// All servers have stopped when it returns. What they use, the registry's client included, is the caller's to close then.
func Run(ctx context.Context, cfg Config) error {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return err
	}
	stopping, halt := context.WithCancelCause(ctx)
	defer halt(nil)
	hurried, hurry := context.WithCancelCause(context.WithoutCancel(ctx))
	defer hurry(nil)
	alive, die := context.WithCancelCause(hurried)
	defer die(nil)
	p := &process{cfg: cfg, halt: halt, die: die}
	unwatch := p.watchSignals(stopping, func() { hurry(errHurry) })
	defer unwatch()

	serving := p.serve()
	reg, err := p.begin(stopping)
	if err == nil {
		<-stopping.Done()
		cfg.Logger.InfoContext(ctx, "stopping", "reason", context.Cause(stopping))
	}
	p.setReady(false)
	unready := time.Now()
	errs := []error{p.leave(alive, reg)}
	switch {
	case err == nil && reg != nil:
		pause(alive, max(time.Until(unready.Add(cfg.ServeOn)), onTheWay))
	case err == nil:
		pause(alive, time.Until(unready.Add(cfg.ServeOn)))
	case stopping.Err() == nil: // Else it was asked to stop, or a server failed, which is told below.
		errs = append(errs, err)
	}
	errs = append(errs, p.finish(hurried))
	serving.Wait()
	return errors.Join(append(errs, p.failure())...)
}

// pause waits for a time, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// watchSignals halts at the first signal. At the next, or the first when stopping has begun otherwise, it calls hurry. The
// caller ends it by what it returns.
func (p *process) watchSignals(stopping context.Context, hurry func()) (end func()) {
	signals := p.cfg.Signals
	unnotify := func() {}
	if signals == nil {
		own := make(chan os.Signal, 2)
		signal.Notify(own, syscall.SIGTERM, syscall.SIGINT)
		signals, unnotify = own, func() { signal.Stop(own) }
	}
	done := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		for {
			select {
			case s, open := <-signals:
				switch {
				case !open:
					return
				case stopping.Err() == nil:
					p.halt(fmt.Errorf("signal: %v", s))
				default:
					hurry()
				}
			case <-done:
				return
			}
		}
	})
	return func() {
		unnotify()
		close(done)
		watching.Wait()
	}
}

// serve starts the servers. One that ends before it is asked to has failed.
func (p *process) serve() *sync.WaitGroup {
	var serving sync.WaitGroup
	for _, s := range p.cfg.Servers {
		serving.Go(func() { p.ended(s.name, s.serve()) })
	}
	return &serving
}

// ended takes in how a server has ended.
func (p *process) ended(name string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil && !p.finishing {
		err = errStopped
	}
	if err != nil {
		err = fmt.Errorf("serve %s: %w", name, err)
		p.failed = errors.Join(p.failed, err)
		p.die(err) // First: leave looks at it as soon as halt has begun the end.
		p.halt(err)
	}
}

// failure returns why servers ended without being asked.
func (p *process) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// begin registers the process once it is ready.
func (p *process) begin(ctx context.Context) (Registration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.StartTimeout, errTooLong)
	defer cancel()
	if err := p.awaitReady(ctx); err != nil {
		return nil, fmt.Errorf("wait until ready: %w", err)
	}
	var reg Registration
	if p.cfg.Register != nil {
		var err error
		if reg, err = p.cfg.Register(ctx, portsOf(p.cfg.Servers)); err != nil {
			return nil, fmt.Errorf("register: %w", err)
		}
	}
	p.setReady(true)
	p.cfg.Logger.InfoContext(ctx, "serving")
	return reg, nil
}

// awaitReady asks until it is ready.
func (p *process) awaitReady(ctx context.Context) error {
	for p.cfg.Ready != nil {
		err := p.cfg.Ready(ctx)
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		if err == nil {
			return nil
		}
		pause(ctx, readyPause)
	}
	return context.Cause(ctx)
}

func (p *process) setReady(ready bool) {
	p.cfg.Readiness.ready.Store(ready)
	for _, s := range p.cfg.Servers {
		s.ready(ready)
	}
}

// leave ends the registration: after all were told, or at once when ctx ends.
func (p *process) leave(ctx context.Context, reg Registration) error {
	if reg == nil {
		return nil
	}
	var err error
	if ctx.Err() != nil {
		err = reg.Deregister(context.WithoutCancel(ctx)) // Bounded by the client's request timeout.
	} else {
		telling, cancel := context.WithTimeout(ctx, p.cfg.LeaveTimeout)
		defer cancel()
		var d client.Departure
		if d, err = reg.Leave(telling); d.Err != nil {
			p.cfg.Logger.WarnContext(ctx, "not all watchers are known to know that the instance leaves", "err", d.Err)
		}
	}
	if err == nil || errors.Is(err, client.ErrSuperseded) {
		return nil // A successor has the instance: it is that one's now.
	}
	return fmt.Errorf("deregister: %w", err)
}

// finish has all servers finish, at once.
func (p *process) finish(ctx context.Context) error {
	p.mu.Lock()
	p.finishing = true
	p.mu.Unlock()
	ctx, cancel := context.WithTimeoutCause(ctx, p.cfg.FinishTimeout, errTooLong)
	defer cancel()
	errs := make([]error, len(p.cfg.Servers))
	var finishing sync.WaitGroup
	for i, s := range p.cfg.Servers {
		finishing.Go(func() {
			if err := s.shutdown(ctx); err != nil {
				errs[i] = fmt.Errorf("stop %s: %w", s.name, err)
			}
		})
	}
	finishing.Wait()
	return errors.Join(errs...)
}
