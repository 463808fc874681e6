package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// steady is the rate of the writes beside the snapshots: well below what the cluster can do.
	steady = 400
	// steadyBytes is the metadata of each: a snapshot is due after 64 MiB of log or 8,192 entries, so that one comes about
	// twice a minute.
	steadyBytes = 4000
	// steadyInstances are written over and over.
	steadyInstances = 1000
	// snapshotsWanted is how many snapshots of the leader are looked at, and mostWaiting how long that may take.
	snapshotsWanted = 4
	mostWaiting     = 5 * time.Minute
)

// atSnapshots fills a registry and has writes go on at a steady rate until its leader has taken some snapshots by itself.
// What is compared are the times with a snapshot of the leader under way and those without: how long a log entry took to
// apply, how long from the leader's append until it was applied, and how long a client waited.
func atSnapshots(ctx context.Context, c *cluster, size int, _ time.Duration) ([]measured, error) {
	leader, err := c.leader(ctx)
	if err != nil {
		return nil, err
	}
	conns, done, err := c.dialled(ctx, connections, leader)
	if err != nil {
		return nil, err
	}
	defer done()
	wires, hangUp, err := c.wired(ctx, openWires, leader)
	if err != nil {
		return nil, err
	}
	defer hangUp()
	if err = fill(ctx, conns, size); err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, mostWaiting)
	defer cancel()
	w := &beside{c: c, leader: leader, idle: newPause(), busy: newPause()}
	if err = w.untilIdle(ctx); err != nil {
		return nil, err
	}
	t := newTally()
	t.where = func(due time.Time) *times { return w.at(due).calls }
	write := &traffic{wires: wires, exchange: exchange{c.registering(steadyBytes, func(t *turn) instance {
		return instance{service: "steady", id: strconv.Itoa(t.n % steadyInstances), version: t.n}
	})}}
	stop := write.paced(ctx, steady, 0, t)
	err = w.watch(ctx)
	stop()
	if err == nil && t.lost() > 0 {
		err = fmt.Errorf("at %d writes a second: %v", steady, t)
	}
	if err != nil {
		return nil, err
	}
	return append(append(w.busy.measured("beside a snapshot"), w.idle.measured("without")...),
		measured{Name: "a snapshot", Unit: "s", Value: w.busy.lasted.Seconds() / snapshotsWanted}), nil
}

// beside tells what is done beside a snapshot from what is not.
type beside struct {
	c      *cluster
	leader int

	mu         sync.Mutex
	began      time.Time // of the last snapshot
	ended      time.Time // of the last snapshot; before began while it is under way
	idle, busy *pause
}

// at is where a call counts that was due then and has just ended: beside a snapshot if the two have met.
func (w *beside) at(due time.Time) *pause {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.began.After(w.ended) || w.ended.After(due) {
		return w.busy
	}
	return w.idle
}

// look is how often the leader's folder is looked at for a snapshot that begins or ends.
const look = 5 * time.Millisecond

// watch waits for the snapshots, and takes down what the leader says of its entries in between.
func (w *beside) watch(ctx context.Context) error {
	before, err := w.scrape(ctx)
	if err != nil {
		return err
	}
	since := time.Now()
	for n := 0; n < 2*snapshotsWanted; wait(ctx, look) {
		if ctx.Err() != nil {
			return fmt.Errorf("%d snapshots of %d: %w", n/2, snapshotsWanted, ctx.Err())
		}
		busy, err := w.snapshotting()
		if err != nil {
			return err
		}
		if busy == (n%2 == 1) {
			continue
		}
		now := time.Now()
		w.mu.Lock()
		p := w.idle
		if busy {
			w.began = now
		} else {
			w.ended, p = now, w.busy
		}
		w.mu.Unlock()
		after, err := w.scrape(ctx)
		if err != nil {
			return err
		}
		p.add(before, after, now.Sub(since))
		before, since, n = after, now, n+1
	}
	return nil
}

// untilIdle waits until no snapshot of what has filled the registry is under way.
func (w *beside) untilIdle(ctx context.Context) error {
	for quiet := 0; quiet < int(settling/look); wait(ctx, look) {
		busy, err := w.snapshotting()
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if quiet++; busy {
			quiet = 0
		}
	}
	return nil
}

// snapshotting tells whether the leader writes a snapshot: its folder has an unfinished one then.
func (w *beside) snapshotting() (bool, error) {
	found, err := filepath.Glob(filepath.Join(w.c.dir, strconv.Itoa(w.leader), "data", "snapshots", "*.tmp"))
	return len(found) > 0, err
}

// pause is how long writes took in some stretches of time.
type pause struct {
	calls         *times
	apply, commit histogram // of the leader, in s
	lasted        time.Duration
}

func newPause() *pause { return &pause{calls: newTimes()} }

func (p *pause) add(before, after map[string]histogram, lasted time.Duration) {
	p.apply.add(after["regd_apply_seconds"].since(before["regd_apply_seconds"]))
	p.commit.add(after["regd_commit_seconds"].since(before["regd_commit_seconds"]))
	p.lasted += lasted
}

func (p *pause) measured(when string) []measured {
	calls := p.calls.take()
	list := []measured{{Name: "writes " + when, Unit: "", Value: float64(calls.TotalCount())}}
	for _, q := range []float64{50, 99} {
		list = append(list,
			measured{Name: fmt.Sprintf("apply of an entry %s, p%.0f, at most", when, q), Unit: "ms", Value: 1000 * p.apply.quantile(q/100)},
			measured{Name: fmt.Sprintf("commit of an entry %s, p%.0f, at most", when, q), Unit: "ms", Value: 1000 * p.commit.quantile(q/100)},
			measured{Name: fmt.Sprintf("write %s, p%.0f", when, q), Unit: "ms", Value: milliseconds(calls, q)})
	}
	return append(list, measured{Name: "slowest write " + when, Unit: "ms", Value: float64(calls.Max()) / 1e6})
}

// histogram is one of Prometheus: how many values were at most as large as each bound.
type histogram struct {
	bounds []float64
	counts []float64
}

// add adds the values of another one with the same bounds.
func (h *histogram) add(o histogram) {
	if h.counts == nil {
		*h = histogram{o.bounds, make([]float64, len(o.counts))}
	}
	for i, n := range o.counts {
		h.counts[i] += n
	}
}

// since is what has come since an earlier look.
func (h histogram) since(before histogram) histogram {
	counts := slices.Clone(h.counts)
	for i := range before.counts {
		counts[i] -= before.counts[i]
	}
	return histogram{h.bounds, counts}
}

// quantile is the least bound that so great a share of the values does not exceed: of those beyond all the greatest one,
// and 0 if there are no values.
func (h histogram) quantile(share float64) float64 {
	last := len(h.counts) - 1 // Its bound is infinite.
	if last < 1 || h.counts[last] == 0 {
		return 0
	}
	for i, n := range h.counts[:last] {
		if n >= share*h.counts[last] {
			return h.bounds[i]
		}
	}
	return h.bounds[last-1]
}

// scrape reads the histograms of the leader.
func (w *beside) scrape(ctx context.Context) (map[string]histogram, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.c.addresses[w.leader].metrics+"/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	reply, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer reply.Body.Close()
	return histograms(reply.Body)
}

// histograms reads those without labels, in the text format of Prometheus.
func histograms(r io.Reader) (map[string]histogram, error) {
	list := map[string]histogram{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, rest, found := strings.Cut(lines.Text(), `_bucket{le="`)
		bound, count, split := strings.Cut(rest, `"} `)
		if !found || !split {
			continue
		}
		b, err1 := strconv.ParseFloat(bound, 64)
		n, err2 := strconv.ParseFloat(count, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("metrics: line %q: %w", lines.Text(), err)
		}
		h := list[name]
		list[name] = histogram{append(h.bounds, b), append(h.counts, n)}
	}
	return list, lines.Err()
}
