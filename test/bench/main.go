// Command bench measures regd beside etcd: three processes of each on this machine, the same load on both, one system
// after the other in each round, so that a machine that drifts drifts for both. Only ratios of one run mean anything.
// Start at jobs.go for what is measured, at curves.go for how regd does with its size, and at system.go for what a
// registry must be able to do.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

// options are those of the command line.
type options struct {
	regd, etcd string // binaries
	logStore   string
	rounds     int
	last       time.Duration // of each measurement
	overload   time.Duration // of the overload
	only       *regexp.Regexp
	curves     *regexp.Regexp // nil: none
	most       int            // of a curve's sizes
	out        string         // folder of the report
	commit     string
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	only := flag.String("only", ".", "measure only the jobs whose names match this regular expression; '^$' for none")
	drawn := flag.String("curves", "", "measure the scale curves whose names match this regular expression, too; empty for none")
	flag.IntVar(&o.most, "most", 1_000_000, "largest size on a curve, 1 to 1000000")
	flag.StringVar(&o.regd, "regd", "", "binary of regd (required)")
	flag.StringVar(&o.logStore, "log-store", "boltdb", "log store of regd: boltdb or wal")
	flag.StringVar(&o.etcd, "etcd", "", "binary of etcd (none: regd alone)")
	flag.IntVar(&o.rounds, "rounds", 3, "how often each job is measured on each system, 1 to 20")
	flag.DurationVar(&o.last, "last", 3*time.Second, "how long a measurement takes, 100ms to 1m")
	flag.DurationVar(&o.overload, "overload", 10*time.Second, "how long the overload takes, 1s to 10m")
	flag.StringVar(&o.out, "out", ".bench", "folder for the report")
	flag.StringVar(&o.commit, "commit", "unknown", "what is measured, for the report")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	case o.regd == "":
		return errors.New("-regd is missing: the binary to measure")
	case o.rounds < 1 || o.rounds > 20:
		return fmt.Errorf("-rounds %d: must be 1 to 20", o.rounds)
	case o.last < 100*time.Millisecond || o.last > time.Minute:
		return fmt.Errorf("-last %v: must be 100ms to 1m", o.last)
	case o.most < 1 || o.most > 1_000_000:
		return fmt.Errorf("-most %d: must be 1 to 1000000", o.most)
	case o.overload < time.Second || o.overload > 10*time.Minute:
		return fmt.Errorf("-overload %v: must be 1s to 10m", o.overload)
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if *drawn != "" {
		if o.curves, err = regexp.Compile(*drawn); err != nil {
			return fmt.Errorf("-curves: %w", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r, err := measure(ctx, o)
	var drawErr error
	if ctx.Err() == nil {
		r.Curves, drawErr = draw(ctx, o)
	}
	return errors.Join(err, drawErr, r.write(o.out))
}

// measure runs all jobs. One that fails is left, and the others go on: the report has what could be measured.
func measure(ctx context.Context, o options) (*report, error) {
	r := newReport(o)
	var failed error
	for _, j := range jobs(o.overload) {
		if !j.asked(o) {
			continue
		}
		if err := rounds(ctx, o, j, r); err != nil {
			failed = errors.Join(failed, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return r, failed
}

// rounds measures a job on each system in turn, as often as asked for.
func rounds(ctx context.Context, o options, j job, r *report) error {
	for round := range o.rounds {
		for _, create := range systems(o, j.alone) {
			if err := once(ctx, create, j, round+1, o, r); err != nil {
				return fmt.Errorf("%s, round %d: %w", j.name, round+1, err)
			}
		}
	}
	return nil
}

// once measures a job, and what comes after it, on a fresh cluster.
func once(ctx context.Context, create func() system, first job, round int, o options, r *report) error {
	return onCluster(ctx, create(), nodes, o.out, func(c *cluster) error {
		for j := &first; j != nil; j = j.then {
			got, err := j.run(ctx, c, o.last)
			if err != nil && j != &first {
				err = fmt.Errorf("%s: %w", j.name, err)
			}
			if err != nil {
				return err
			}
			if !o.only.MatchString(j.name) {
				continue // It had to be done for another.
			}
			f := newFigure(c.name(), got, c.usage().memory)
			r.add(*j, f)
			fmt.Fprintf(os.Stderr, "%-40s %-5s round %d: %s\n", j.name, f.System, round, j.text(f.Value))
		}
		return nil
	})
}

// onCluster measures on a fresh cluster, of which nothing is left behind but, when it fails, the nodes' logs in a folder.
func onCluster(ctx context.Context, s system, nodes int, out string, measure func(c *cluster) error) error {
	dir, err := os.MkdirTemp("", "regd-bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	c, err := newCluster(ctx, s, nodes, dir)
	if err != nil {
		return fmt.Errorf("start %s: %w", s.name(), err)
	}
	defer c.stop()
	if err = measure(c); err != nil {
		err = fmt.Errorf("%s: %w", s.name(), err)
		logs, keepErr := c.keepLogs(out)
		if keepErr != nil {
			return errors.Join(err, keepErr)
		}
		return fmt.Errorf("%w (logs of the nodes: %s)", err, logs)
	}
	return nil
}
