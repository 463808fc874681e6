package nodes

// StarveByTurns is Starve where no quota can be set.
func (n *Node) StarveByTurns(share float64) (end func() (held int)) { return n.starveByTurns(share) }
