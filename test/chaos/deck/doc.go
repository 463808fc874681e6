// Package deck tortures five nodes, each a process on a network and a disk of its own, with a deck of faults under load,
// and judges what came of it. Start at TestDeck; a fault is added to one of the lists that newWorld puts together.
package deck
