package deck

import (
	"fmt"
	"strings"
	"time"

	"github.com/regd-io/regd/test/chaos/internal/nodes"
)

// fault is one kind of thing that happens to clusters.
type fault struct {
	kind string
	// gentle faults leave every node able to work: they may accompany another.
	gentle bool
	// alone keeps other faults away: with them, more would be broken than a cluster promises to stand.
	alone bool
	// stops leaves no majority that can work: nothing is written until it is undone.
	stops bool
	// begin does it, to nodes of its choice, and returns what undoes it.
	begin func(w *world) undo
}

// undo ends a fault. It tells what it was done to, and what shows that it really happened; no evidence means that it did
// not.
type undo func() done

type done struct {
	nodes    []string
	evidence string
}

// to makes what is told of a fault.
func to(evidence string, list ...*nodes.Node) done {
	return done{nodes: names(list), evidence: evidence}
}

func names(list []*nodes.Node) []string {
	var all []string
	for _, n := range list {
		all = append(all, n.Name)
	}
	return all
}

// restarting starts nodes again that were killed. Their processes' ends are the evidence.
func restarting(list ...*nodes.Node) undo {
	var ends []string
	for _, n := range list {
		ends = append(ends, fmt.Sprintf("%s: %s", n.Name, n.Ended()))
	}
	return func() done {
		for _, n := range list {
			n.Start()
		}
		return to(strings.Join(ends, ", "), list...)
	}
}

// processFaults are done to processes; they need nothing special of the machine.
func processFaults() []fault {
	kill := func(list ...*nodes.Node) undo {
		for _, n := range list {
			n.Kill()
		}
		return restarting(list...)
	}
	pause := func(w *world, n *nodes.Node) undo {
		answered := w.loyals(n) // What lies in its sockets is served by a leader that does not know yet what it missed.
		n.Pause()               // It returns once the kernel says so.
		since := time.Now()
		return func() done {
			n.Resume()
			answered()
			return to(fmt.Sprintf("process state T for %v", time.Since(since).Round(time.Millisecond)), n)
		}
	}
	return []fault{
		{kind: "kill follower", begin: func(w *world) undo { return kill(w.follower()) }},
		{kind: "kill leader", begin: func(w *world) undo { return kill(w.c.Leader()) }},
		{kind: "kill two, the leader too", alone: true, begin: func(w *world) undo { return kill(w.c.Leader(), w.follower()) }},
		{kind: "kill all", alone: true, stops: true, begin: func(w *world) undo { return kill(w.c.Nodes()...) }},
		{kind: "pause leader", begin: func(w *world) undo { return pause(w, w.c.Leader()) }},
		{kind: "pause follower", begin: func(w *world) undo { return pause(w, w.follower()) }},
		{kind: "starve leader", begin: func(w *world) undo { return starve(w.c.Leader()) }},
		{kind: "rolling restart", alone: true, begin: rollingRestart},
		{kind: "transfer leadership", gentle: true, begin: transfer},
	}
}

// starve leaves a node a twentieth of a processor.
func starve(n *nodes.Node) undo {
	end := n.Starve(0.05)
	return func() done {
		held := end()
		if held == 0 {
			return to("", n)
		}
		return to(fmt.Sprintf("held back %d times", held), n)
	}
}

// rollingRestart stops and starts every node in order, one after the other, as an upgrade does.
func rollingRestart(w *world) undo {
	var ends []string
	for _, n := range w.c.Nodes() {
		n.Terminate(20 * time.Second)
		ends = append(ends, n.Ended())
		n.Start()
		w.c.Ready()
	}
	return func() done { return to(strings.Join(ends, ", "), w.c.Nodes()...) }
}

// transfer hands leadership over twice.
func transfer(w *world) undo {
	var moves []string
	for range 2 {
		from := w.c.Leader()
		if leader, err := w.transfer(from); err == nil {
			moves = append(moves, from.Name+" to "+leader)
		}
	}
	return func() done { return to(strings.Join(moves, ", ")) }
}
