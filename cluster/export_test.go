package cluster

import "github.com/hashicorp/raft"

// Disk is what a test can put before the disk of a node.
type Disk = disk

// WithDisk makes a node store through what wrap returns.
func WithDisk(cfg *Config, wrap func(Disk) Disk) { cfg.disk = wrap }

// WithLevel makes a node as old as the versions that knew of no later feature level.
func WithLevel(cfg *Config, level uint32) { cfg.level = level }

// Raft is the Raft of a node, nil until it has a cluster.
func (n *Node) Raft() *raft.Raft { return n.raft.Load() }

// PromoteStable is what raft-autopilot does at this leader with a member that it has seen to be stable.
func (n *Node) PromoteStable(id, address string) error {
	return n.pilot.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(address), 0, 0).Error()
}
