package build

// Mutant is a regd that breaks one promise on purpose: a run that does not notice proves nothing.
type Mutant struct {
	// Name is short: M1, M2, ...
	Name string
	// Promise is what it breaks.
	Promise string
	// Rule is the rule of package check that must find it. Others may, too.
	Rule string
	// Edits are made in this order.
	Edits []Edit
}

// Mutants are all there are. Each is one slip, as a developer might make it. Most do no harm until a fault comes; the
// comments say which. What a mutant applied is replayed with the code of the source tree, so that it is held against
// regd as it should be.
func Mutants() []Mutant {
	return []Mutant{
		ackBeforeFsync(), readWithoutRound(), verifyLeader(), silentInstall(), forgetfulSnapshot(),
		wallClock(), shortGrace(), renewWithoutRound(), tokenAgain(), mapOrder(),
	}
}

// ackBeforeFsync answers before the log is on disk. Shown by a loss of power of a majority at once: it takes what was
// acknowledged since the last snapshot, and other entries come in its place.
func ackBeforeFsync() Mutant {
	return Mutant{
		Name: "M1", Promise: "G1: nothing acknowledged is lost", Rule: "replica-clash",
		Edits: []Edit{{File: "cluster/node.go", Old: "NoSync: cfg.NoSync", New: "NoSync: true"}},
	}
}

// readWithoutRound has a leader answer linearizable reads from what it has, without asking whether it leads. Shown by a
// pause of the leader: reads that were sent to it meanwhile are answered as soon as it goes on, before it has heard of
// its successor.
func readWithoutRound() Mutant {
	return Mutant{
		Name: "M2", Promise: "G2: a linearizable read sees all that was acknowledged before", Rule: "order-read",
		Edits: []Edit{{File: "cluster/read.go", Old: "l.rounds.ride(ctx)", New: "ctx.Err()"}},
	}
}

// verifyLeader has the leader ask in Raft's way, which counts answers to heartbeats that were sent before the question.
// Shown by a pause of the leader, of one second or two, while many reads are under way, so that there are such answers in
// its sockets: not each time, so it takes dozens of pauses.
func verifyLeader() Mutant {
	return Mutant{
		Name: "M3", Promise: "G2: a linearizable read sees all that was acknowledged before", Rule: "order-read",
		Edits: []Edit{{
			File: "cluster/read.go", Old: "l.rounds.ride(ctx)", New: "applyError(await(ctx, n.raft.Load().VerifyLeader()))",
		}},
	}
}

// silentInstall makes the State of a snapshot the current one as if nothing lay between. Shown by whatever keeps a
// follower away for longer than the trailing logs last: its watchers are told that they have all, and what the snapshot
// brought is missing. So it is after a restart, for those that resume.
func silentInstall() Mutant {
	return Mutant{
		Name: "M4", Promise: "G4: a watch has no gap", Rule: "W4",
		Edits: []Edit{{File: "cluster/machine.go", Old: "m.feed.Reset(st)", New: "m.feed.Publish(st, nil)"}},
	}
}

// forgetfulSnapshot restores a snapshot without the outcomes of requests. Shown by a snapshot that is installed, or
// that a node starts from: the replicas differ, and this one would apply a retried request a second time.
func forgetfulSnapshot() Mutant {
	return Mutant{
		Name: "M5", Promise: "G6: a retried request is applied once", Rule: "replica-hash",
		Edits: []Edit{{
			File: "fsm/restore.go", Old: "\treturn l.st, nil\n",
			New: "\tl.st.clients, l.st.idle, l.st.sums[tableClients] = table[*client]{}, table[struct{}]{}, sum{}\n\treturn l.st, nil\n",
		}},
	}
}

// wallClock has the leader keep deadlines by the wall clock. Shown by moving it on by more than a TTL: everything
// expires at once.
func wallClock() Mutant {
	return Mutant{
		Name: "M6", Promise: "G5: a lease is never cut short", Rule: "lease-early",
		Edits: []Edit{
			{File: "health/ledger.go", Old: "return time.Since(l.start) - l.lost", New: "return time.Now().Round(0).Sub(l.start) - l.lost"},
			{File: "health/ledger.go", Old: "return elapsed - l.lost", New: "return l.now()"},
			{File: "health/ledger.go", Old: "taken.Sub(l.start)", New: "taken.Round(0).Sub(l.start)"},
		},
	}
}

// shortGrace has a new leader count the time of a session from when it was opened, which is all that the State tells.
// Shown by any change of leader: sessions older than their TTL end although they were renewed just before.
func shortGrace() Mutant {
	return Mutant{
		Name: "M7", Promise: "G5: a lease is never cut short", Rule: "lease-early",
		Edits: []Edit{
			{File: "health/ledger.go", Old: "next.due = l.now() + next.ttl", New: "next.due += l.now() + next.ttl"},
			{
				File: "health/tracker.go", Old: "ttl: millis(s.TTLMs), since: s.CreateRevision}",
				New: "ttl: millis(s.TTLMs), since: s.CreateRevision, due: time.Until(time.UnixMilli(s.OpenedUnixMs))}",
			},
		},
	}
}

// renewWithoutRound has a leader take renewals without asking whether it leads. Shown by a pause of the leader, if there
// are clients that ask no other node: renewals that were sent to it meanwhile are acknowledged as soon as it goes on, and
// its successor, which never hears of them, ends what they were for. Only some pauses show it.
func renewWithoutRound() Mutant {
	return Mutant{
		Name: "M8", Promise: "G5: an acknowledged renewal holds", Rule: "lease-early",
		Edits: []Edit{{File: "cluster/renew.go", Old: "l.rounds.ride(ctx)", New: "ctx.Err()"}},
	}
}

// tokenAgain counts the tokens of each lock from one, and forgets the count with a lock that nobody holds. Shown without
// a fault, by a lock that is released and acquired anew.
func tokenAgain() Mutant {
	return Mutant{
		Name: "M9", Promise: "fencing tokens only grow", Rule: "lock-order",
		Edits: []Edit{{File: "fsm/lock.go", Old: "Token: t.nextNumber()", New: "Token: l.Token + 1"}},
	}
}

// mapOrder gives a lock to whichever of those that wait a map names first. Shown without a fault, by a lock that is
// handed over while two wait for it: its owner, and the queue, are not the same on all nodes.
func mapOrder() Mutant {
	return Mutant{
		Name: "M10", Promise: "G10: all replicas are equal", Rule: "replica-hash",
		Edits: []Edit{{
			File: "fsm/lock.go", Old: "\t\tnext.Waiters = old.Waiters[1:]\n\t\tt.own(&next, old.Waiters[0])\n",
			New: `		waiting := map[string]int{}
		for i := range old.Waiters {
			waiting[old.Waiters[i].SessionID] = i
		}
		for _, at := range waiting {
			next.Waiters = slices.Concat(old.Waiters[:at], old.Waiters[at+1:])
			t.own(&next, old.Waiters[at])
			break
		}
`,
		}},
	}
}
