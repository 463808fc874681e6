package main

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// Limits of a load. They keep a slip of the finger from being an attack.
const (
	maxBenchRate    = 100_000
	maxBenchClients = 1000
	maxBenchTime    = 10 * time.Minute
)

// bench is a load on a cluster.
type bench struct {
	namespace string
	rate      int
	clients   int
	last      time.Duration
	writes    int // percent
}

// opView says how long calls of one kind took.
type opView struct {
	Op     string `json:"op"`
	Done   int64  `json:"done"`
	Failed int64  `json:"failed"`
	// PerSecond is how many were done a second.
	PerSecond float64 `json:"per_second"`
	// Milliseconds from when a call was due, so that what waits for a slow one counts.
	P50Ms float64 `json:"p50_ms"`
	P90Ms float64 `json:"p90_ms"`
	P99Ms float64 `json:"p99_ms"`
	MaxMs float64 `json:"max_ms"`
	// Error is the last one.
	Error string `json:"error,omitempty"`
}

func newBenchCmd(a *app) *cobra.Command {
	var b bench
	cmd := &cobra.Command{
		Use:   "bench [flags]",
		Short: "Load the cluster a little, and tell how long it takes to answer.",
		Example: `  regd bench

  # As much as 64 clients can, writes only.
  regd bench --rate 100000 --clients 64 --writes 100`,
		Long: `Writes change the metadata of instances that this command registers, one for each client, in a namespace of their own;
reads list them, linearizable. They hang on a session and are gone when the command ends, however it ends.

Calls are begun at a steady rate, whether or not earlier ones were answered, by a limited number of clients. The time of a
call counts from when it was due: a cluster that can't keep up is seen to be slow, and to do less than --rate.`,
		Args: arguments(),
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.IntVar(&b.rate, "rate", 100, "calls a second, 1 to 100000")
	fs.IntVar(&b.clients, "clients", 8, "how many calls may be under way, 1 to 1000")
	fs.DurationVar(&b.last, "duration", 10*time.Second, "how long, 1s to 10m")
	fs.IntVar(&b.writes, "writes", 50, "percent of the calls that write, 0 to 100; the others read")
	out := a.addOutput(cmd, formatTable, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	fs.StringVarP(&b.namespace, "namespace", "n", "regd-bench", "namespace of the instances")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := b.check(); err != nil {
			return err
		}
		cl, err := conn.dial(client.WithNamespace(b.namespace))
		if err != nil {
			return err
		}
		defer cl.Close() //nolint:errcheck // The session that is left behind then ends by its TTL.
		ops, err := b.run(cmd, conn, cl)
		if err != nil {
			return err
		}
		doc := struct {
			Ops []opView `json:"ops"`
		}{ops}
		return printList(out, doc, ops, opTable())
	}
	return cmd
}

func (b *bench) check() error {
	switch {
	case b.rate < 1 || b.rate > maxBenchRate:
		return usageErrorf("--rate %d: must be 1 to %d", b.rate, maxBenchRate)
	case b.clients < 1 || b.clients > maxBenchClients:
		return usageErrorf("--clients %d: must be 1 to %d", b.clients, maxBenchClients)
	case b.last < time.Second || b.last > maxBenchTime:
		return usageErrorf("--duration %v: must be 1s to 10m", b.last)
	case b.writes < 0 || b.writes > 100:
		return usageErrorf("--writes %d: must be 0 to 100", b.writes)
	}
	return nil
}

// service is what the instances are of: several loads at a time don't mix.
func (b *bench) service() string { return "bench-" + strconv.Itoa(os.Getpid()) }

func (b *bench) run(cmd *cobra.Command, conn *connection, cl *client.Client) ([]opView, error) {
	registrations, err := b.register(cmd, conn, cl)
	if err != nil {
		return nil, err
	}
	if isTerminal(conn.stderr) {
		p := conn.newProgress()
		defer p.end()
		p.phase("%d calls a second for %v", b.rate, b.last)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), b.last)
	defer cancel()
	writes, reads := newOp("write"), newOp("read")
	due := make(chan call)
	var working sync.WaitGroup
	for _, reg := range registrations {
		working.Go(func() {
			for c := range due {
				op, f := reads, func(ctx context.Context) error { return b.read(ctx, cl) }
				if c.number*b.writes/100 != (c.number+1)*b.writes/100 {
					op, f = writes, func(ctx context.Context) error { return update(ctx, reg, c.number) }
				}
				callCtx, done := context.WithTimeout(context.WithoutCancel(ctx), conn.limit)
				op.note(c.due, f(callCtx))
				done()
			}
		})
	}
	begun := time.Now()
	b.dispatch(ctx, due)
	close(due)
	working.Wait()
	took := time.Since(begun)
	return slices.DeleteFunc([]opView{writes.view(took), reads.view(took)}, func(v opView) bool { return v.Done+v.Failed == 0 }), nil
}

// register registers the instances, within --timeout.
func (b *bench) register(cmd *cobra.Command, conn *connection, cl *client.Client) ([]*client.Registration, error) {
	ctx, cancel := conn.bounded(cmd)
	defer cancel()
	var list []*client.Registration
	for i := range b.clients {
		reg, err := cl.Register(ctx, &registryv1.Instance{
			Namespace: b.namespace, Service: b.service(), Id: strconv.Itoa(i), Address: "127.0.0.1", Metadata: map[string]string{"call": "0"},
		})
		if err != nil {
			return nil, err
		}
		list = append(list, reg)
	}
	return list, nil
}

// call is one call of the load.
type call struct {
	number int
	due    time.Time
}

// dispatch hands out calls when they are due, or late when all clients are busy, until ctx ends or none is due before b.last.
func (b *bench) dispatch(ctx context.Context, due chan<- call) {
	begun := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for k := 0; ; k++ {
		after := time.Duration(k) * time.Second / time.Duration(b.rate)
		if after >= b.last {
			return
		}
		c := call{number: k, due: begun.Add(after)}
		if early := time.Until(c.due); early > 0 {
			timer.Reset(early)
			select {
			case <-ctx.Done():
				return
			case <-timer.C:
			}
		}
		select {
		case <-ctx.Done():
			return
		case due <- c:
		}
	}
}

func (b *bench) read(ctx context.Context, cl *client.Client) error {
	_, err := cl.Instances(ctx, client.Filter{Namespace: b.namespace, Service: b.service()})
	return err
}

// update writes once.
func update(ctx context.Context, reg *client.Registration, number int) error {
	return reg.Update(ctx, func(i *registryv1.Instance) { i.Metadata["call"] = strconv.Itoa(number) })
}

// op gathers the times of one kind of call. Safe for concurrent use.
type op struct {
	name string

	mu     sync.Mutex
	times  *hdrhistogram.Histogram // ns
	failed int64
	err    error // the last one
}

func newOp(name string) *op {
	const digits = 3
	return &op{name: name, times: hdrhistogram.New(1, int64(time.Hour), digits)}
}

// note takes down what became of a call that was due then.
func (o *op) note(due time.Time, err error) {
	took := min(time.Since(due), time.Hour)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		o.failed++
		o.err = err
		return
	}
	_ = o.times.RecordValue(int64(took)) // In range.
}

// view sums up what took so long in all.
func (o *op) view(took time.Duration) opView {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := func(quantile float64) float64 { return milliseconds(time.Duration(o.times.ValueAtQuantile(quantile))) }
	v := opView{
		Op: o.name, Done: o.times.TotalCount(), Failed: o.failed, PerSecond: float64(o.times.TotalCount()) / took.Seconds(),
		P50Ms: at(50), P90Ms: at(90), P99Ms: at(99), MaxMs: milliseconds(time.Duration(o.times.Max())),
	}
	if o.err != nil {
		v.Error = o.err.Error()
	}
	return v
}

func opTable() tableOf[opView] {
	count := func(get func(opView) int64) func(opView) string {
		return func(v opView) string { return strconv.FormatInt(get(v), 10) }
	}
	ms := func(get func(opView) float64) func(opView) string {
		return func(v opView) string { return strconv.FormatFloat(get(v), 'f', 2, 64) + "ms" }
	}
	return tableOf[opView]{
		name: func(v opView) string { return v.Op },
		columns: []column[opView]{
			{title: "CALLS", text: func(v opView) string { return v.Op }},
			{title: "DONE", right: true, text: count(func(v opView) int64 { return v.Done })},
			{title: "FAILED", right: true, text: count(func(v opView) int64 { return v.Failed })},
			{title: "PER SECOND", right: true, text: func(v opView) string { return strconv.FormatFloat(v.PerSecond, 'f', 1, 64) }},
			{title: "P50", right: true, text: ms(func(v opView) float64 { return v.P50Ms })},
			{title: "P90", right: true, text: ms(func(v opView) float64 { return v.P90Ms })},
			{title: "P99", right: true, text: ms(func(v opView) float64 { return v.P99Ms })},
			{title: "MAX", right: true, text: ms(func(v opView) float64 { return v.MaxMs })},
			{title: "LAST ERROR", text: func(v opView) string { return cmp.Or(v.Error, none) }},
		},
	}
}
