// Package rpc serves regd's public API on gRPC, and the HTTP endpoints for operations.
//
// It is the edge: requests are validated and brought into their canonical form here, whatever is random is settled here,
// and errors become statuses here, through one table. What an order does is decided by the state machine (package fsm),
// and how it gets there by a cluster node, of which this package sees the interface Node. It keeps nothing of its own
// that a client could miss after a restart, and it never decides by a clock.
//
// Start with Server for the API, Ops for the HTTP endpoints, Faults for what can go wrong and limits.go for what a
// request may hold.
package rpc
