package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// tokenFileAge is how long what a token file had is used before it is looked at again.
const tokenFileAge = 10 * time.Second

// WithToken has every call show a token, "regd_ID_SECRET". It is a secret: over connections without TLS it is sent only to
// this machine, unless WithPlaintextToken allows more. Default: none; a client certificate may name the caller instead.
func WithToken(token string) Option {
	return func(c *config) error {
		if err := checkToken(token); err != nil {
			return err
		}
		c.token = func() (string, error) { return token, nil }
		return nil
	}
}

// WithTokenFile is WithToken with a token that is in a file, alone but for white space. The file is read again every 10 s when
// calls are made, so that a token can be replaced while the program runs; while it can't be read, or has no token in it, the
// last one stays in use.
func WithTokenFile(path string) Option {
	return func(c *config) error {
		f := &tokenFile{path: path}
		if _, err := f.get(); err != nil {
			return err
		}
		c.token = f.get
		return nil
	}
}

// WithPlaintextToken has the token sent also over connections that are not encrypted, to any machine: whoever sees the traffic
// has it then.
func WithPlaintextToken() Option {
	return func(c *config) error {
		c.plaintextToken = true
		return nil
	}
}

// checkToken checks the form of a token. The token is not repeated in the error.
func checkToken(token string) error {
	id, secret, ok := strings.Cut(strings.TrimPrefix(token, tokenPrefix), "_")
	if !strings.HasPrefix(token, tokenPrefix) || !ok || id == "" || secret == "" {
		return fmt.Errorf("token of %d bytes: it must look like regd_ID_SECRET", len(token))
	}
	if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("token of %d bytes: it has white space or other characters that no token has", len(token))
	}
	return nil
}

const tokenPrefix = "regd_"

// tokenFile is a token in a file. Safe for concurrent use.
type tokenFile struct {
	path string

	mu     sync.Mutex // guards all below
	token  string
	looked time.Time
}

// get returns the token, and an error only while there never was one.
func (f *tokenFile) get() (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.token != "" && time.Since(f.looked) < tokenFileAge {
		return f.token, nil
	}
	content, err := os.ReadFile(f.path)
	token := strings.TrimSpace(string(content))
	if err == nil {
		err = checkToken(token)
	}
	f.looked = time.Now()
	switch {
	case err == nil:
		f.token = token
	case f.token == "":
		return "", fmt.Errorf("token file %s: %w", f.path, err)
	}
	return f.token, nil
}

// tokenCredentials shows a token with each call.
type tokenCredentials struct {
	token     func() (string, error)
	plaintext bool
}

// GetRequestMetadata implements credentials.PerRPCCredentials.
func (t tokenCredentials) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := t.token()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t tokenCredentials) RequireTransportSecurity() bool { return !t.plaintext }

// callCredentials are what each call shows, nil for nothing.
func (c *config) callCredentials() (credentials.PerRPCCredentials, error) {
	if c.token == nil {
		return nil, nil //nolint:nilnil // Nothing is shown.
	}
	plaintext := c.plaintextToken
	if !plaintext && c.credentials.Info().SecurityProtocol == "insecure" {
		for _, endpoint := range c.endpoints {
			if !isLoopback(endpoint) {
				return nil, fmt.Errorf("token: it would be sent to %s without encryption: use TLS, or WithPlaintextToken", endpoint)
			}
		}
		plaintext = true
	}
	return tokenCredentials{token: c.token, plaintext: plaintext}, nil
}

// isLoopback tells whether an address is surely on this machine.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// Secret is that of a token which is about to be created: 256 random bits.
type Secret struct{ text string }

// NewSecret makes one.
func NewSecret() Secret {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // Never fails.
	return Secret{base64.RawURLEncoding.EncodeToString(b)}
}

// Hash is what the registry gets to see of it.
func (s Secret) Hash() []byte {
	h := sha256.Sum256([]byte(s.text))
	return h[:]
}

// Token is what a client shows, once the registry has given the token an id.
func (s Secret) Token(id string) string { return tokenPrefix + id + "_" + s.text }

// String hides it: a secret must not get into logs by accident.
func (s Secret) String() string { return "(secret)" }

// errNoSecret says that a secret was not made by NewSecret.
var errNoSecret = errors.New("secret: empty, make one with NewSecret")

func (s Secret) check() error {
	if s.text == "" {
		return errNoSecret
	}
	return nil
}
