package workload

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
)

// lanes carry the calls of one program, each over a recorded connection that carries one call at a time: package client
// makes many at once and dials by itself, but a history has one call after the other for each client. Streams, which the
// history tells apart, share one lane for each node.
type lanes struct {
	w       *Workload
	program string
	nodes   map[string]string // by address

	mu      sync.Mutex                    // guards the fields below
	free    map[string][]*grpc.ClientConn // by node
	streams map[string]*grpc.ClientConn
	all     []*grpc.ClientConn
}

func (w *Workload) newLanes(program string) *lanes {
	l := &lanes{
		w: w, program: program, nodes: map[string]string{},
		free: map[string][]*grpc.ClientConn{}, streams: map[string]*grpc.ClientConn{},
	}
	for _, node := range w.cfg.Nodes {
		l.nodes[w.cfg.Address(node)] = node
	}
	return l
}

// options make the client's own connections hand everything to the lanes. They are never dialled.
func (l *lanes) options() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			return nil, errors.New("calls are made over recorded connections")
		}),
		grpc.WithChainUnaryInterceptor(l.unary),
		grpc.WithChainStreamInterceptor(l.stream),
	}
}

func (l *lanes) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, _ grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	node := l.node(cc)
	conn, err := l.take(node)
	if err != nil {
		return err
	}
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.free[node] = append(l.free[node], conn)
	}()
	return conn.Invoke(ctx, method, req, reply, opts...)
}

func (l *lanes) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, _ grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l.mu.Lock()
	node := l.node(cc)
	conn, err := l.streams[node], error(nil)
	if conn == nil {
		if conn, err = l.dial(node); err == nil {
			l.streams[node] = conn
		}
	}
	l.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return conn.NewStream(ctx, desc, method, opts...)
}

func (l *lanes) node(cc *grpc.ClientConn) string {
	return l.nodes[strings.TrimPrefix(cc.Target(), "passthrough:///")]
}

// take returns a lane to a node that nothing uses.
func (l *lanes) take(node string) (*grpc.ClientConn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if free := l.free[node]; len(free) > 0 {
		l.free[node] = free[:len(free)-1]
		return free[len(free)-1], nil
	}
	return l.dial(node)
}

// dial makes a further lane. The caller holds mu.
func (l *lanes) dial(node string) (*grpc.ClientConn, error) {
	name := fmt.Sprintf("%s.lane%d", l.program, len(l.all))
	conn, err := l.w.cfg.Dial(name, node, l.w.cfg.Recorder.DialOptions(name, node)...)
	if err == nil {
		l.all = append(l.all, conn)
	}
	return conn, err
}

func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, conn := range l.all {
		conn.Close()
	}
}
