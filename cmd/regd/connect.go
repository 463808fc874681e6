package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

const (
	// defaultTimeout is how long a command tries.
	defaultTimeout = 10 * time.Second
	// guessTimeout is how long it tries an address that nobody has named.
	guessTimeout = 2 * time.Second
)

// connection is how one command finds the cluster.
type connection struct {
	*app
	endpoints []string
	limit     time.Duration
	tls       tlsFlags
	tokenFile string
}

// addConnection gives a command --endpoint and --timeout.
func (a *app) addConnection(cmd *cobra.Command) *connection {
	c := &connection{app: a}
	fs := cmd.Flags()
	fs.StringSliceVar(&c.endpoints, "endpoint", nil,
		"gRPC `address` of a node, repeatable; default: the running dev cluster, else "+defaultGRPC)
	bindEnv(fs, "endpoint", "REGD_ENDPOINTS")
	fs.DurationVar(&c.limit, "timeout", 0, "how long to try; default: 10s, or 2s if no address is known")
	bindEnv(fs, "timeout", "REGD_TIMEOUT")
	c.tls.addFlags(fs)
	fs.StringVar(&c.tokenFile, "token-file", "", "`file` with the token to show; $REGD_TOKEN is the token itself")
	bindEnv(fs, "token-file", "REGD_TOKEN_FILE")
	return c
}

// addNamespace gives a command --namespace.
func addNamespace(cmd *cobra.Command, namespace *string, usage string) {
	cmd.Flags().StringVarP(namespace, "namespace", "n", "default", usage)
	bindEnv(cmd.Flags(), "namespace", "REGD_NAMESPACE")
}

// addresses are the addresses to try, from the first source that has any: flag or environment, the running dev cluster,
// the default. It notes the source for errors.
func (c *connection) addresses() []string {
	if len(c.endpoints) > 0 {
		c.origin = ""
		return c.endpoints
	}
	if s, where, found := c.findDev(""); found {
		c.origin = where
		c.tls.orDev(s.TLS)
		return s.grpcAddresses()
	}
	c.origin = "the default"
	if c.limit == 0 {
		c.limit = guessTimeout
	}
	return []string{defaultGRPC}
}

// token is what is shown to the cluster; empty: nothing is. It is not given by a flag: others can see the command lines of a machine.
func (c *connection) token() (string, error) {
	if c.tokenFile == "" {
		return c.getenv("REGD_TOKEN"), nil
	}
	text, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return "", &exitError{code: exitUsage, err: fmt.Errorf("--token-file: %w", err)}
	}
	return strings.TrimSpace(string(text)), nil
}

// dial makes a client. The caller closes it.
func (c *connection) dial(opts ...client.Option) (*client.Client, error) {
	if c.limit < 0 {
		return nil, usageErrorf("--timeout %v: must be more than 0", c.limit)
	}
	addresses := c.addresses()
	if c.limit == 0 {
		c.limit = defaultTimeout
	}
	name := "regd"
	if host, err := os.Hostname(); err == nil {
		name = "regd on " + host
	}
	secure, err := c.tls.options()
	if err != nil {
		return nil, err
	}
	opts = append(append(secure, client.WithName(name), client.WithRequestTimeout(c.limit)), opts...)
	// Not by a flag: others can see the command lines of a machine.
	if token := c.getenv("REGD_TOKEN"); c.tokenFile != "" {
		opts = append(opts, client.WithTokenFile(c.tokenFile))
	} else if token != "" {
		opts = append(opts, client.WithToken(token))
	}
	cl, err := client.New(addresses, opts...)
	if err != nil {
		return nil, &exitError{code: exitUsage, err: cmp.Or(errors.Unwrap(err), err)}
	}
	return cl, nil
}

// call runs fn with a client, for at most --timeout.
func (c *connection) call(cmd *cobra.Command, fn func(ctx context.Context, cl *client.Client) error) error {
	cl, err := c.dial()
	if err != nil {
		return err
	}
	defer cl.Close() //nolint:errcheck // It has no session that could be left behind.
	if isTerminal(c.stderr) {
		p := c.newProgress()
		defer p.end()
		p.phase("waiting for an answer of the cluster")
	}
	ctx, cancel := c.bounded(cmd)
	defer cancel()
	return fn(ctx, cl)
}

// bounded is the command's context, for at most --timeout.
func (c *connection) bounded(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	c.timeout = c.limit
	return context.WithTimeout(cmd.Context(), c.limit)
}

// reach finds out within --timeout whether anybody answers, before something is begun that has no time limit.
func (c *connection) reach(cmd *cobra.Command, cl *client.Client) error {
	ctx, cancel := c.bounded(cmd)
	defer cancel()
	_, err := cl.Instance(ctx, client.Key{Service: "regd", ID: "regd"}, client.Stale())
	if errors.Is(err, client.ErrInstanceNotFound) || errors.Is(err, client.ErrPermissionDenied) {
		return nil
	}
	return err
}

// callFreely runs fn with a client and without a time limit, once somebody has answered within --timeout.
func (c *connection) callFreely(cmd *cobra.Command, fn func(ctx context.Context, cl *client.Client) error) error {
	cl, err := c.dial()
	if err != nil {
		return err
	}
	defer cl.Close() //nolint:errcheck // It has no session that could be left behind.
	if err := c.reach(cmd, cl); err != nil {
		return err
	}
	c.timeout = 0
	return fn(cmd.Context(), cl)
}
