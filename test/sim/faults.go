package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// fault is something that can be done to a cluster and is undone later.
type fault struct {
	kind string
	// strike does it and tells to whom, what shows that it happened, and how it is undone; cuts are undone anyway. No
	// nodes: it can't be done now.
	strike func(*world) (struck []string, evidence string, undo func())
}

// faults are all kinds.
var faults = []fault{
	{"isolate", (*world).isolate},
	{"partition", (*world).partition},
	{"split", (*world).split},
	{"bridge", (*world).bridge},
	{"one-way", (*world).oneWay},
	{"late-replies", (*world).lateReplies},
	{"hold", (*world).hold},
	{"mute-to-clients", (*world).muteToClients},
	{"cut-clients", (*world).cutClients},
	{"slow", (*world).slow},
	{"reset", (*world).reset},
	{"kill", (*world).kill},
	{"kill-several", (*world).killSeveral},
	{"kill-all", (*world).killAll},
	{"rolling", (*world).rolling},
	{"transfer", (*world).transfer},
	{"wipe", (*world).wipe},
	{"demote", (*world).demote},
	{"remove", (*world).remove},
	{"join", (*world).join},
	{"snapshot", (*world).snapshot},
}

func kinds() []string {
	var all []string
	for _, f := range faults {
		all = append(all, f.kind)
	}
	return all
}

// victim chooses a running node, mostly the leader; empty: none runs.
func (w *world) victim() string {
	if leader := w.leader(); leader != "" && w.rng.IntN(3) > 0 {
		return leader
	}
	return w.any(w.Names())
}

// any chooses one of the names; empty: there is none.
func (w *world) any(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[w.rng.IntN(len(names))]
}

// others are the running nodes but those named.
func (w *world) others(names ...string) []string {
	return slices.DeleteFunc(w.Names(), func(name string) bool { return slices.Contains(names, name) })
}

// isolate cuts a node from all, its clients too.
func (w *world) isolate() ([]string, string, func()) {
	name := w.victim()
	if name == "" {
		return nil, "", nil
	}
	w.Net.Isolate(name)
	return []string{name}, "cut from all", nil
}

// partition cuts a node from its peers, while clients still reach it.
func (w *world) partition() ([]string, string, func()) {
	name := w.victim()
	others := w.others(name)
	if len(others) == 0 {
		return nil, "", nil
	}
	for _, other := range others {
		w.Net.Cut(name, other)
	}
	return []string{name}, "cut from " + strings.Join(others, ", "), nil
}

// split cuts two groups of nodes from one another.
func (w *world) split() ([]string, string, func()) {
	names := w.Names()
	if len(names) < 3 {
		return nil, "", nil
	}
	w.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	half := names[:len(names)/2]
	for _, a := range half {
		for _, b := range names[len(half):] {
			w.Net.Cut(a, b)
		}
	}
	return half, "cut from " + strings.Join(names[len(half):], ", "), nil
}

// bridge cuts two groups of nodes from one another, but one node sees both.
func (w *world) bridge() ([]string, string, func()) {
	names := w.Names()
	if len(names) < 3 {
		return nil, "", nil
	}
	w.rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	middle, rest := names[0], names[1:]
	half := rest[:len(rest)/2]
	for _, a := range half {
		for _, b := range rest[len(half):] {
			w.Net.Cut(a, b)
		}
	}
	return half, fmt.Sprintf("cut from %s, %s sees all", strings.Join(rest[len(half):], ", "), middle), nil
}

// oneWay cuts one direction between a node and some of its peers.
func (w *world) oneWay() ([]string, string, func()) {
	name := w.victim()
	others := w.others(name)
	if len(others) == 0 {
		return nil, "", nil
	}
	others = others[:1+w.rng.IntN(len(others))]
	verb := "is not heard by "
	for _, other := range others {
		w.Net.CutOneWay(name, other)
	}
	return []string{name}, verb + strings.Join(others, ", "), nil
}

// lateReplies holds back what the leader's peers say to it: when it arrives, somebody else may lead.
func (w *world) lateReplies() ([]string, string, func()) {
	leader := w.leader()
	others := w.others(leader)
	if leader == "" || len(others) == 0 {
		return nil, "", nil
	}
	for _, other := range others {
		w.Net.CutOneWay(other, leader)
	}
	return []string{leader}, "does not hear " + strings.Join(others, ", "), nil
}

// hold holds back all that a node says; its clients wait too.
func (w *world) hold() ([]string, string, func()) {
	name := w.victim()
	if name == "" {
		return nil, "", nil
	}
	return []string{name}, "all that it says is held back", w.Net.HoldFrom(name)
}

// muteToClients holds back the answers of a node: what it was asked for is done.
func (w *world) muteToClients() ([]string, string, func()) {
	name, hosts := w.victim(), w.clientHosts()
	if name == "" || len(hosts) == 0 {
		return nil, "", nil
	}
	for _, host := range hosts {
		w.Net.CutOneWay(name, host)
	}
	return []string{name}, fmt.Sprintf("does not answer %d clients", len(hosts)), nil
}

// cutClients cuts some clients from all nodes, or from all but one.
func (w *world) cutClients() ([]string, string, func()) {
	var cut []string
	nodes := w.Names()
	if w.rng.IntN(2) == 0 && len(nodes) > 1 {
		nodes = nodes[1:]
	}
	for _, host := range w.clientHosts() {
		if w.rng.IntN(2) == 0 {
			continue
		}
		cut = append(cut, host)
		for _, node := range nodes {
			w.Net.Cut(host, node)
		}
	}
	return cut, "cut from " + strings.Join(nodes, ", "), nil
}

// slow makes some links slow, each direction for itself.
func (w *world) slow() ([]string, string, func()) {
	type link struct{ from, to string }
	var links []link
	for _, from := range w.Names() {
		for _, to := range w.others(from) {
			if w.rng.IntN(2) == 0 {
				links = append(links, link{from, to})
			}
		}
	}
	var said []string
	for _, l := range links {
		d := time.Duration(50+w.rng.IntN(250)) * time.Millisecond
		w.Net.Delay(l.from, l.to, d)
		said = append(said, fmt.Sprintf("%s>%s %v", l.from, l.to, d))
	}
	if len(links) == 0 {
		return nil, "", nil
	}
	return w.Names(), strings.Join(said, ", "), func() {
		for _, l := range links {
			w.Net.Delay(l.from, l.to, w.latency(l.from, l.to))
		}
	}
}

// reset breaks all connections of a node.
func (w *world) reset() ([]string, string, func()) {
	name := w.victim()
	if name == "" {
		return nil, "", nil
	}
	w.Net.Reset(name)
	return []string{name}, "its connections were reset", func() { w.Net.Reset(name) }
}
