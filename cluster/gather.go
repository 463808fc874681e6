package cluster

import "time"

// gathering makes batches of the proposals in a queue, of which one entry after the other is made.
//
// A batch waits a moment for the callers whom the last entry answered: who writes one thing after the other is back at once.
// Otherwise a batch is only those who came while the last entry was under way, and callers fall into two halves that take
// turns: twice the entries, and each caller waits for two of them. A lone caller is all that are expected, and never waits;
// and callers who don't come back are soon waited for no more.
type gathering struct {
	queue <-chan *proposal
	late  *time.Timer // ends the wait of a batch

	expected int           // proposals in the next batch
	patience time.Duration // with which it waits for them
	missing  int           // proposals when it began to wait, 0: it has not
	vain     int           // batches that don't wait after the last one that waited in vain
	skip     int           // of these, those to come
}

const (
	// maxPatience bounds the time in which callers have to come back.
	maxPatience = 2 * time.Millisecond
	// maxVain bounds how many batches don't wait after one that waited in vain.
	maxVain = 64
)

// stopped is a timer that waits to be reset.
func stopped() *time.Timer {
	t := time.NewTimer(0)
	<-t.C
	return t
}

// expect tells that an entry was under way for so long, and how many proposals are likely to be there soon: as many as it
// answered, and those that waited meanwhile. Half the time of an entry is worth waiting, since whoever comes too late for
// the next one waits for all of it.
func (g *gathering) expect(proposals int, took time.Duration) {
	g.expected = min(proposals, maxEntryCommands)
	g.patience = min(took/2, maxPatience)
}

// gather takes what waits, and what is expected, up to the bounds of an entry; what no longer fits is handed back.
func (g *gathering) gather(first *proposal) (batch []*proposal, held *proposal) {
	batch, size := []*proposal{first}, len(first.command)
	for len(batch) < maxEntryCommands {
		q := g.next(len(batch))
		if q == nil {
			break
		}
		if !q.taken.CompareAndSwap(false, true) {
			continue // Its caller has given up.
		}
		if size+len(q.command) > maxEntryBytes {
			held = q
			break
		}
		batch, size = append(batch, q), size+len(q.command)
	}
	g.learn(len(batch))
	return batch, held
}

// next returns what is added to a batch of n, nil if that is complete.
func (g *gathering) next(n int) *proposal {
	select {
	case q := <-g.queue:
		return q
	default:
	}
	if n >= g.expected || g.skip > 0 {
		return nil
	}
	if g.missing == 0 {
		g.missing = g.expected - n
		g.late.Reset(g.patience)
	}
	select {
	case q := <-g.queue:
		return q
	case <-g.late.C:
		return nil
	}
}

// learn notes how many a batch has got. If it waited, and most of those did not come, the next batches don't wait, twice as
// many each time.
func (g *gathering) learn(n int) {
	switch {
	case g.skip > 0:
		g.skip--
	case g.missing == 0: // It did not have to wait.
	case 2*(g.expected-n) > g.missing:
		g.vain = min(max(2*g.vain, 1), maxVain)
		g.skip = g.vain
	default:
		g.vain = 0
	}
	g.missing = 0
}
