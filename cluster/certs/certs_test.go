package certs_test

import (
	"crypto/x509"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cluster/certs/certstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAnIDHasOneSpelling(t *testing.T) {
	t.Parallel()
	want := certs.ID{Domain: "a-b.example", Role: certs.RolePeer, Name: "n1"}
	if got, err := certs.ParseID(want.String()); err != nil || got != want {
		t.Errorf("%s is read as %+v, %v", want, got, err)
	}
	if want.URL().String() != want.String() {
		t.Errorf("as a URL it is %s", want.URL())
	}
	for _, uri := range []string{
		"", "spiffe://", "spiffe://d/regd/peer", "spiffe://d/regd/peer/", "spiffe://d/regd/peer/n1/", "spiffe://d/regd/peer/n1/x",
		"spiffe://d//peer/n1", "spiffe:///regd/peer/n1", "spiffe://D/regd/peer/n1", "spiffe://d:1/regd/peer/n1",
		"spiffe://u@d/regd/peer/n1", "spiffe://d/regd/peer/n%31", "spiffe://d/regd/peer/n1?x", "spiffe://d/regd/peer/n1#x",
		"spiffe://d/regd/peer/..", "spiffe://d/regd/admin/n1", "spiffe://d/Regd/peer/n1", "https://d/regd/peer/n1",
		"spiffe://d/ns/default/sa/regd", "spiffe://d/regd/peer/n1\n", "spiffe://d/regd/peer/" + strings.Repeat("n", 129),
		"spiffe://" + strings.Repeat("d", 256) + "/regd/peer/n1",
	} {
		if id, err := certs.ParseID(uri); !errors.Is(err, certs.ErrNoID) {
			t.Errorf("%q is read as %+v, %v", uri, id, err)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("spiffe://d/regd/peer/n1")
	f.Add("spiffe://a.b/regd/client/shop")
	f.Add("spiffe://d/regd/peer/n%31")
	f.Add("spiffe://u@d:1/regd/peer/n?x#y")
	f.Fuzz(func(t *testing.T, uri string) {
		id, err := certs.ParseID(uri)
		if err != nil {
			if !errors.Is(err, certs.ErrNoID) {
				t.Fatal(err)
			}
			return
		}
		if id.String() != uri {
			t.Fatalf("%q is read as %s", uri, id)
		}
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatalf("%q is no URL: %v", uri, err)
		}
		if got, err := certs.IDOf(&x509.Certificate{URIs: []*url.URL{u}}); err != nil || got != id {
			t.Fatalf("in a certificate %q is %s, %v", uri, got, err)
		}
	})
}

func TestFilesThatAreOfNoUseAreRefusedWithAReason(t *testing.T) {
	t.Parallel()
	ca, other := certstest.NewAuthority(t), certstest.NewAuthority(t)
	good := ca.Peer("n1")
	now := time.Now()
	for name, tt := range map[string]struct {
		pair  certstest.Pair
		ca    string
		spoil func(t *testing.T, f *certs.Files)
		want  error
		says  string
	}{
		"missing key":       {spoil: func(_ *testing.T, f *certs.Files) { f.Key += "x" }, want: os.ErrNotExist, says: "tls.keyx"},
		"no authority":      {spoil: func(_ *testing.T, f *certs.Files) { f.CA = "" }, says: "by an authority: its file is missing"},
		"readable key":      {spoil: chmod(0o644), want: certs.ErrKeyMode, says: "tls.key has mode 0644: chmod 06"},
		"key of another":    {pair: certstest.Pair{Cert: good.Cert, Key: ca.Peer("n1").Key}, says: "private key does not match"},
		"no PEM":            {pair: certstest.Pair{Cert: "x", Key: good.Key}, says: "failed to find any PEM data"},
		"large":             {pair: certstest.Pair{Cert: strings.Repeat("x", 2<<20), Key: good.Key}, says: "more than 1048576 bytes"},
		"authority no PEM":  {ca: "nothing", says: "no certificate in PEM form"},
		"authority a leaf":  {ca: good.Cert, says: "is not one of an authority"},
		"authority a key":   {ca: good.Key, says: `a block "PRIVATE KEY" among the certificates`},
		"other authority":   {ca: other.PEM(), says: "signed by unknown authority"},
		"expired":           {pair: ca.Peer("n1", certstest.Between(now.Add(-2*time.Hour), now.Add(-time.Hour))), says: "expired at"},
		"not yet":           {pair: ca.Peer("n1", certstest.Between(now.Add(time.Hour), now.Add(2*time.Hour))), says: "is this machine's clock right?"},
		"no SAN":            {pair: ca.Peer("n1", certstest.URIs()), want: certs.ErrNoID, says: "needs spiffe://<trust domain>/regd/peer/n1"},
		"two SANs":          {pair: ca.Peer("n1", certstest.URIs("spiffe://d/regd/peer/n1", "spiffe://d/regd/client/a")), want: certs.ErrNoID, says: "2 URI SANs"},
		"client":            {pair: ca.Client("n1"), want: certs.ErrWrongRole, says: "needs spiffe://test.example/regd/peer/n1"},
		"another node":      {pair: ca.Peer("n2"), want: certs.ErrWrongRole, says: "this is the node n1"},
		"for servers only":  {pair: ca.Peer("n1", certstest.For(x509.ExtKeyUsageServerAuth)), says: "as client auth"},
		"for clients only":  {pair: ca.Peer("n1", certstest.For(x509.ExtKeyUsageClientAuth)), says: "as server auth"},
		"another authority": {pair: other.Peer("n1"), says: "signed by unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if tt.pair.Cert == "" {
				tt.pair = good
			}
			if tt.ca == "" {
				tt.ca = ca.PEM()
			}
			files := certstest.Write(t, t.TempDir(), tt.pair, tt.ca)
			if tt.spoil != nil {
				tt.spoil(t, &files)
			}
			s, err := certs.Open(certs.Config{Files: files, Port: "peer", Node: "n1"})
			if err == nil {
				s.Close()
				t.Fatal("accepted")
			}
			if !strings.Contains(err.Error(), tt.says) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("%v, want %q", err, tt.says)
			}
		})
	}
}

func chmod(mode os.FileMode) func(*testing.T, *certs.Files) {
	return func(t *testing.T, f *certs.Files) {
		t.Helper()
		if err := os.Chmod(f.Key, mode); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAKeyIsReadThroughLinks(t *testing.T) {
	t.Parallel()
	ca := certstest.NewAuthority(t)
	dir := t.TempDir()
	files := certstest.Write(t, dir, ca.Peer("n1"), ca.PEM())
	link := filepath.Join(dir, "link")
	if err := os.Symlink(files.Key, link); err != nil {
		t.Fatal(err)
	}
	if err := certs.CheckKey(link); err != nil {
		t.Errorf("the mode of a link is taken for the file's: %v", err)
	}
}
