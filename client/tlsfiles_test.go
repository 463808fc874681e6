package client_test

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/regd-io/regd/client"
	"github.com/regd-io/regd/cluster/certs/certstest"
)

func TestTLSFilesAreReadForEachConnection(t *testing.T) {
	t.Parallel()
	before, after := certstest.NewAuthority(t), certstest.NewAuthority(t)
	dir := t.TempDir()
	files := certstest.Write(t, dir, before.Client("shop"), before.PEM())
	serial := make(chan string, 1)
	server := func(ca *certstest.Authority) string {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
			Certificates: []tls.Certificate{ca.Peer("n1").TLS(t)}, ClientCAs: ca.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
			VerifyConnection: func(cs tls.ConnectionState) error {
				serial <- cs.PeerCertificates[0].SerialNumber.String()
				return nil
			},
		})))
		healthpb.RegisterHealthServer(s, healthpb.UnimplementedHealthServer{})
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(lis) }()
		t.Cleanup(func() {
			s.Stop()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return lis.Addr().String()
	}
	old, fresh := server(before), server(after)
	c, err := client.New([]string{old, fresh}, client.WithTLSFiles(client.TLSFiles{CA: files.CA, Cert: files.Cert, Key: files.Key}),
		client.WithRequestTimeout(10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Cluster().LocalStatus(t.Context(), old).Err; !answered(err) {
		t.Fatalf("with the first files: %v", err)
	}
	<-serial
	second := after.Client("shop")
	certstest.Write(t, dir, second, after.PEM())
	if err := c.Cluster().LocalStatus(t.Context(), fresh).Err; !answered(err) {
		t.Fatalf("with the second files: %v", err)
	}
	if got, want := <-serial, second.TLS(t).Leaf.SerialNumber.String(); got != want {
		t.Errorf("it showed %s, want %s", got, want)
	}
}

// answered tells whether a server said that it does not serve this.
func answered(err error) bool {
	var said *client.Error
	return errors.As(err, &said) && strings.Contains(said.Message, "unknown service")
}

func TestTLSFilesThatCannotBeUsedAreAnErrorOfNew(t *testing.T) {
	t.Parallel()
	ca := certstest.NewAuthority(t)
	dir := t.TempDir()
	good := certstest.Write(t, dir, ca.Client("shop"), ca.PEM())
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		files client.TLSFiles
		says  string
	}{
		"no key":         {client.TLSFiles{Cert: good.Cert}, "one of the files is missing"},
		"no certificate": {client.TLSFiles{Key: good.Key}, "one of the files is missing"},
		"nothing there":  {client.TLSFiles{CA: dir + "/x"}, "no such file"},
		"empty":          {client.TLSFiles{CA: empty}, "no certificate in PEM form"},
		"wrong way":      {client.TLSFiles{Cert: good.Key, Key: good.Cert}, "certificate " + good.Key},
	} {
		if c, err := client.New([]string{"127.0.0.1:1"}, client.WithTLSFiles(tt.files)); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				c.Close()
			}
		}
	}
}
