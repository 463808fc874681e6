package pods

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

// service is the Service for clients: each new connection goes to one of the pods that are ready and not about to end, and
// stays there.
type service struct {
	lis     net.Listener
	targets func() []string
	life    context.Context //nolint:containedctx // Lives until close.
	end     context.CancelFunc
	wg      sync.WaitGroup
}

func serveClients(at netip.Addr, port string, targets func() []string) (*service, error) {
	lis, err := net.Listen("tcp", net.JoinHostPort(at.String(), port))
	if err != nil {
		return nil, fmt.Errorf("serve clients: %w", err)
	}
	s := &service{lis: lis, targets: targets}
	s.life, s.end = context.WithCancel(context.Background())
	s.wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.forward(conn) })
		}
	})
	return s, nil
}

func (s *service) close() {
	s.end()
	_ = s.lis.Close() // Ends the accepting.
	s.wg.Wait()
}

// forward carries a connection until one side ends it. Without a target it is refused.
func (s *service) forward(client net.Conn) {
	defer func() { _ = client.Close() }() // It has ended already, mostly.
	targets := s.targets()
	if len(targets) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(s.life, 3*time.Second)
	defer cancel()
	pod, err := new(net.Dialer).DialContext(ctx, "tcp", targets[rand.IntN(len(targets))]) //nolint:gosec // Not a secret.
	if err != nil {
		return
	}
	stop := context.AfterFunc(s.life, func() { _ = pod.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(client, pod) // Whatever ends it.
		_ = client.Close()
	}()
	_, _ = io.Copy(pod, client)
	_ = pod.Close()
	<-done
}
