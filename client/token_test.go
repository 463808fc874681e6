package client_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// shown is an access service that tells what callers show.
type shown struct {
	apiv1.UnimplementedAccessServiceServer
}

func (shown) WhoAmI(ctx context.Context, _ *apiv1.WhoAmIRequest) (*apiv1.WhoAmIResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	return &apiv1.WhoAmIResponse{Credential: strings.Join(md.Get("authorization"), ",")}, nil
}

// serveShown serves it on this machine and returns its address.
func serveShown(t *testing.T) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	apiv1.RegisterAccessServiceServer(server, shown{})
	go server.Serve(lis) //nolint:errcheck // It ends with the test.
	t.Cleanup(server.Stop)
	return lis.Addr().String()
}

// tells returns what a client shows.
func tells(t *testing.T, address string, opts ...client.Option) string {
	t.Helper()
	c, err := client.New([]string{address}, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	who, err := c.Access().WhoAmI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return who.GetCredential()
}

func TestTokensAreShown(t *testing.T) {
	address := serveShown(t)
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("  regd_b_y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, opts := range map[string][]client.Option{
		"":                nil,
		"Bearer regd_a_x": {client.WithToken("regd_a_x")},
		"Bearer regd_b_y": {client.WithTokenFile(file)},
	} {
		if got := tells(t, address, opts...); got != want {
			t.Errorf("shown is %q, want %q", got, want)
		}
	}
}

// A token is a secret: it is neither sent where others can read it, nor repeated in an error.
func TestTokensAreKeptSecret(t *testing.T) {
	const secret = "S3CR3T"
	for name, tt := range map[string]struct {
		endpoint, token string
		more            []client.Option
		says            string // "" when it is taken
	}{
		"this machine":          {"127.0.0.1:7400", "regd_a_" + secret, nil, ""},
		"this machine by IPv6":  {"[::1]:7400", "regd_a_" + secret, nil, ""},
		"this machine by name":  {"localhost:7400", "regd_a_" + secret, nil, ""},
		"elsewhere":             {"10.0.0.1:7400", "regd_a_" + secret, nil, "would be sent to 10.0.0.1:7400 without encryption"},
		"elsewhere by name":     {"registry:7400", "regd_a_" + secret, nil, "without encryption"},
		"elsewhere, on purpose": {"registry:7400", "regd_a_" + secret, []client.Option{client.WithPlaintextToken()}, ""},
		"no prefix":             {"127.0.0.1:7400", secret, nil, "regd_ID_SECRET"},
		"no secret":             {"127.0.0.1:7400", "regd_" + secret, nil, "regd_ID_SECRET"},
		"two lines":             {"127.0.0.1:7400", "regd_a_" + secret + "\nx", nil, "white space"},
	} {
		c, err := client.New([]string{tt.endpoint}, append(tt.more, client.WithToken(tt.token))...)
		if c != nil {
			c.Close()
		}
		switch {
		case tt.says == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says)):
			t.Errorf("%s: %v, want that it says %q", name, err, tt.says)
		case err != nil && strings.Contains(err.Error(), secret):
			t.Errorf("%s: the secret is in the error: %v", name, err)
		}
	}
	s := client.NewSecret()
	full := s.Token("a")
	if text := fmt.Sprint(s) + fmt.Sprintf("%v %s", s, s); strings.Contains(text, full[len("regd_a_"):]) {
		t.Errorf("a secret is printed as %s", text)
	}
	if hash := sha256.Sum256([]byte(full[len("regd_a_"):])); string(hash[:]) != string(s.Hash()) {
		t.Error("the hash is not that of what is shown")
	}
	if _, err := client.New([]string{"127.0.0.1:1"}, client.WithTokenFile(filepath.Join(t.TempDir(), "none"))); err == nil {
		t.Error("a token file that is not there is taken")
	}
}
