package peer

import (
	"errors"
	"fmt"
)

var (
	// ErrForeignCluster means that both sides belong to a cluster, and not to the same one.
	ErrForeignCluster = errors.New("node of a foreign cluster")
	// ErrNoCluster means that a side that must belong to a cluster does not yet.
	ErrNoCluster = errors.New("node belongs to no cluster yet")
	// ErrNotPeer means that what answered does not speak the peer protocol.
	ErrNotPeer = errors.New("not a peer port")
	// ErrVersion means that the sides speak different versions of the peer protocol.
	ErrVersion = errors.New("peer protocol version not supported")
	// ErrWrongNode means that another node answered at the address than the one that was meant.
	ErrWrongNode = errors.New("another node answered")
	// ErrUntrusted means that the other side does not speak TLS, or that one side does not trust the other's certificate.
	ErrUntrusted = errors.New("not trusted")
	// ErrWrongName means that the certificate is of another node than the one that its holder says to be.
	ErrWrongName = errors.New("certificate of another node")
	// ErrRefused means that the other side refused for a reason that this version does not know.
	ErrRefused = errors.New("connection refused by peer")
	// ErrClosed means that the Mux or the Transport is closed.
	ErrClosed = errors.New("peer port closed")
)

// HandshakeError tells why two nodes did not come together, with what each said about itself. It unwraps to one of
// the package's sentinels.
type HandshakeError struct {
	// Addr is the address of the other side.
	Addr string
	// Local is this side.
	Local Identity
	// Remote is the other side, as far as it said.
	Remote Identity
	// Wanted is the id of the node that was meant; empty: any.
	Wanted string
	// Err is the sentinel, or an error that wraps it.
	Err error
}

// Error names both sides where that helps.
func (e *HandshakeError) Error() string {
	switch {
	case errors.Is(e.Err, ErrForeignCluster):
		return fmt.Sprintf("peer %s (node %q) belongs to cluster %q, this node to cluster %q: %v",
			e.Addr, e.Remote.NodeID, e.Remote.ClusterID, e.Local.ClusterID, e.Err)
	case errors.Is(e.Err, ErrNoCluster):
		return fmt.Sprintf("peer %s (node %q) has cluster %q, this node has cluster %q: %v",
			e.Addr, e.Remote.NodeID, e.Remote.ClusterID, e.Local.ClusterID, e.Err)
	case errors.Is(e.Err, ErrWrongNode):
		return fmt.Sprintf("peer %s is node %q, wanted node %q: %v", e.Addr, e.Remote.NodeID, e.Wanted, e.Err)
	case errors.Is(e.Err, ErrWrongName):
		return fmt.Sprintf("peer %s says that it is node %q, and shows the certificate of %q: %v", e.Addr, e.Remote.NodeID, e.Remote.Name, e.Err)
	default:
		return fmt.Sprintf("peer %s: %v", e.Addr, e.Err)
	}
}

// Unwrap returns the sentinel.
func (e *HandshakeError) Unwrap() error { return e.Err }
