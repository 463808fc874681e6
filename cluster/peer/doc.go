// Package peer is the peer port: one TCP port on which the nodes of a cluster meet, for Raft and for peer gRPC alike.
//
// Every connection opens with one handshake in which both sides say which node and which cluster they are. A node of
// a foreign cluster is refused there, before it can say anything to Raft, which has no notion of a cluster itself. With
// Secure TLS comes before it: only peers of the own trust domain get to the handshake, and with the id of a member only the
// node of that member's name.
//
// The package knows connections, never the node behind them: it does not start Raft, serve gRPC or decide anything
// about membership. Start at Mux, which owns the port, and at Transport, which is what Raft sends and receives through.
package peer
