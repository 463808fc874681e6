package certs_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
)

// open opens the files of a node n1, looked at each second, until the test ends.
func open(t *testing.T, files certs.Files) *certs.Source {
	t.Helper()
	s, err := certs.Open(certs.Config{
		Files: files, Port: "peer", Node: "n1", Every: time.Second, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// value reads a metric of a source.
func value(t *testing.T, s *certs.Source, name, kind string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	for _, c := range s.Collectors() {
		r.MustRegister(c)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name && (kind == "" || hasLabel(m, kind)) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	t.Fatalf("no metric %s %s", name, kind)
	return 0
}

func hasLabel(m *dto.Metric, value string) bool {
	for _, l := range m.GetLabel() {
		if l.GetValue() == value {
			return true
		}
	}
	return false
}

const (
	failures = "regd_tls_reload_failures_total"
	expiry   = "regd_tls_certificate_expiry_seconds"
)

// looked lets a source look at its files n times.
func looked(n int) {
	time.Sleep(time.Duration(n)*time.Second + time.Millisecond)
	synctest.Wait()
}

// serves makes a handshake with a source as a server and returns the serial number of what it showed, or why not.
func serves(t *testing.T, s *certs.Source, cfg *tls.Config) (serial string, err error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	ended := make(chan error, 1)
	go func() {
		// The word of a pipe is taken only while somebody reads.
		err := certs.Accept(context.WithoutCancel(t.Context()), tls.Server(far, s.PeerServer()))
		if err != nil {
			far.Close()
		}
		ended <- err
	}()
	cfg = cfg.Clone()
	cfg.ServerName = "localhost"
	c := tls.Client(near, cfg)
	defer c.NetConn().Close()
	if err := c.Handshake(); err != nil {
		return "", err
	}
	go func() { _, _ = c.Read(make([]byte, 1)) }()
	if err := <-ended; err != nil {
		return "", err
	}
	return c.ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func dialler(t *testing.T, ca *certstest.Authority, p certstest.Pair) *tls.Config {
	t.Helper()
	return &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{p.TLS(t)}}
}

func TestNewFilesAreUsedAndBadOnesAreNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certstest.NewAuthority(t)
		dir := t.TempDir()
		first, second := ca.Peer("n1"), ca.Peer("n1", certstest.Between(time.Now().Add(-time.Hour), time.Now().Add(50*time.Minute)))
		s := open(t, certstest.Write(t, dir, first, ca.PEM()))
		want := dialler(t, ca, ca.Peer("n2"))
		shows := func(when string, p certstest.Pair) {
			t.Helper()
			got, err := serves(t, s, want)
			if err != nil || got != p.TLS(t).Leaf.SerialNumber.String() {
				t.Errorf("%s it shows %s, %v", when, got, err)
			}
			if at := value(t, s, expiry, "certificate"); at != float64(p.TLS(t).Leaf.NotAfter.Unix()) {
				t.Errorf("%s the metric says that it expires at %v", when, at)
			}
		}
		shows("at first", first)
		certstest.Write(t, dir, second, ca.PEM())
		looked(1)
		shows("after a change", second)
		if n := value(t, s, failures, ""); n != 0 {
			t.Errorf("%v failures", n)
		}

		certstest.Write(t, dir, certstest.Pair{Cert: second.Cert, Key: first.Key}, ca.PEM())
		looked(1)
		if n := value(t, s, failures, ""); n != 0 {
			t.Errorf("files that are being replaced count as %v failures", n)
		}
		looked(3)
		shows("while the files are bad", second)
		if n := value(t, s, failures, ""); n != 3 {
			t.Errorf("%v failures after three more looks", n)
		}
		for name, p := range map[string]certstest.Pair{
			"expired": ca.Peer("n1", certstest.Between(time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))),
			"of n2":   ca.Peer("n2"), "a client's": ca.Client("n1"),
			"of another trust domain": ca.Peer("n1", certstest.URIs("spiffe://elsewhere/regd/peer/n1")),
			"of a stranger":           certstest.NewAuthority(t).Peer("n1"),
		} {
			before := value(t, s, failures, "")
			certstest.Write(t, dir, p, ca.PEM())
			looked(2)
			shows("while the new certificate is "+name, second)
			if n := value(t, s, failures, ""); n <= before {
				t.Errorf("a certificate that is %s is no failure", name)
			}
		}
		third := ca.Peer("n1")
		certstest.Write(t, dir, third, ca.PEM())
		looked(1)
		shows("once they are good again", third)
		after := value(t, s, failures, "")
		looked(5)
		if n := value(t, s, failures, ""); n != after {
			t.Errorf("failures grow while the files are good: %v, then %v", after, n)
		}
	})
}

// Kubernetes replaces a secret by turning a link from one folder to the next.
func TestASwappedLinkIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certstest.NewAuthority(t)
		dir := t.TempDir()
		for _, version := range []string{"v1", "v2"} {
			if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		certstest.Write(t, filepath.Join(dir, "v1"), ca.Peer("n1"), ca.PEM())
		second := ca.Peer("n1")
		certstest.Write(t, filepath.Join(dir, "v2"), second, ca.PEM())
		data := filepath.Join(dir, "..data")
		if err := os.Symlink("v1", data); err != nil {
			t.Fatal(err)
		}
		s := open(t, certs.Files{
			Cert: filepath.Join(data, "tls.crt"), Key: filepath.Join(data, "tls.key"), CA: filepath.Join(data, "ca.crt"),
		})
		if err := os.Symlink("v2", data+"_tmp"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(data+"_tmp", data); err != nil {
			t.Fatal(err)
		}
		looked(1)
		got, err := serves(t, s, dialler(t, ca, ca.Peer("n2")))
		if err != nil || got != second.TLS(t).Leaf.SerialNumber.String() {
			t.Errorf("it shows %s, %v", got, err)
		}
	})
}

func TestConnectionsEndWithTheTrustInThem(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		before, after := certstest.NewAuthority(t), certstest.NewAuthority(t)
		dir := t.TempDir()
		s := open(t, certstest.Write(t, dir, before.Peer("n1"), before.PEM()))
		watch := func(p certstest.Pair, dialled bool) *atomic.Bool {
			var ended atomic.Bool
			state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{p.TLS(t).Leaf}}
			s.Watch(state, dialled, func() { ended.Store(true) })
			return &ended
		}
		ended := func(when string, want map[string]bool, conns map[string]*atomic.Bool) {
			t.Helper()
			for name, c := range conns {
				if c.Load() != want[name] {
					t.Errorf("%s: the connection of %s has ended: %v", when, name, c.Load())
				}
			}
		}
		conns := map[string]*atomic.Bool{
			"old":   watch(before.Peer("n2"), false),
			"new":   watch(after.Peer("n2"), false), // As if it came while both were trusted.
			"short": watch(before.Peer("n3", certstest.Between(time.Now().Add(-time.Hour), time.Now().Add(5*time.Second))), true),
		}
		ended("a stranger", map[string]bool{"new": true}, conns)
		certstest.Write(t, dir, before.Peer("n1"), before.PEM()+after.PEM())
		looked(1)
		conns["new"] = watch(after.Peer("n2"), true)
		ended("both are trusted", nil, conns)
		looked(6)
		ended("a certificate has expired", map[string]bool{"short": true}, conns)
		certstest.Write(t, dir, after.Peer("n1"), after.PEM())
		looked(1)
		ended("the old authority is gone", map[string]bool{"short": true, "old": true}, conns)
	})
}

func TestAConnectionThatEndedIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, other := certstest.NewAuthority(t), certstest.NewAuthority(t)
		dir := t.TempDir()
		s := open(t, certstest.Write(t, dir, ca.Peer("n1"), ca.PEM()))
		stop := s.Watch(tls.ConnectionState{PeerCertificates: []*x509.Certificate{ca.Peer("n2").TLS(t).Leaf}}, false, func() {
			t.Error("it was ended again")
		})
		stop()
		certstest.Write(t, dir, other.Peer("n1"), other.PEM())
		looked(1)
	})
}

// journal is a log that tests can read.
type journal struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

func TestACertificateThatIsAboutToExpireIsLoggedOnceADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certstest.NewAuthority(t)
		p := ca.Peer("n1", certstest.Between(time.Now(), time.Now().Add(100*24*time.Hour)))
		var log journal
		s, err := certs.Open(certs.Config{
			Files: certstest.Write(t, t.TempDir(), p, ca.PEM()), Port: "client", Every: time.Hour, Logger: slog.New(slog.NewTextHandler(&log, nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		time.Sleep(90*24*time.Hour - time.Minute)
		synctest.Wait()
		if n := strings.Count(log.String(), "about to expire"); n != 0 {
			t.Errorf("said %d times while a tenth of its life is left", n)
		}
		time.Sleep(3 * 24 * time.Hour)
		synctest.Wait()
		if n := strings.Count(log.String(), "about to expire"); n != 3 {
			t.Errorf("said %d times in three days", n)
		}
	})
}

func TestARefusalNamesWhoWasRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := certstest.NewAuthority(t)
		s := open(t, certstest.Write(t, t.TempDir(), ca.Peer("n1"), ca.PEM()))
		_, err := serves(t, s, dialler(t, ca, certstest.NewAuthority(t).Peer("n9")))
		if err == nil || !strings.Contains(err.Error(), `certificate of "spiffe://test.example/regd/peer/n9" by "CN=authority"`) {
			t.Errorf("refused with %v", err)
		}
	})
}
