package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/regd-io/regd/client"
)

func newDebugCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "debug [flags]",
		Short:   "Gather what a bug report needs.",
		Example: "  regd debug bundle",
		Args:    cobra.ArbitraryArgs,
		RunE:    onlySubcommands,
	}
	cmd.AddCommand(newBundleCmd(a))
	return cmd
}

const (
	// maxBundleTime bounds a whole bundle.
	maxBundleTime = 5 * time.Minute
	// maxCPUProfile bounds --cpu: the nodes answer nothing that takes longer than a minute.
	maxCPUProfile = 30 * time.Second
	// maxBundledNodes bounds how many nodes are asked at once.
	maxBundledNodes = 4
)

// bundleOptions are what the user says of a bundle.
type bundleOptions struct {
	file           string
	http           []string
	cpu            time.Duration
	plaintextToken bool
}

func newBundleCmd(a *app) *cobra.Command {
	var opts bundleOptions
	cmd := &cobra.Command{
		Use:   "bundle [flags]",
		Short: "Save what is known of all nodes in one archive, for a bug report.",
		Example: `  regd debug bundle

  # On a node that answers no client.
  regd debug bundle --http 127.0.0.1:7402 -f n1.tar.gz`,
		Long: `The archive holds, of each node: status, metrics, settings, the last 1,000 lines of its log, what Raft says, names and sizes of the
files in its data folder, and profiles: heap, goroutines, processor. It holds no token, no key and nothing that is
registered; names and addresses of nodes, and what the log says of them, are in it. manifest.json tells what is missing and why: a node that
is down is no reason to fail.

Most comes from the ports for operations. With access control off they show profiles, settings and log to their own machine
alone; with it on, the token has to have the permission to operate. It is sent to other machines only with
--plaintext-token, as these ports have no TLS.`,
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 saved, 5 no node has told anything."},
		Args:        arguments(),
	}
	fs := cmd.Flags()
	fs.StringVarP(&opts.file, "file", "f", "", "`file` to write; default: regd-bundle-TIME.tar.gz")
	fs.StringSliceVar(&opts.http, "http", nil, "further `addresses` of ports for operations; default: "+defaultHTTP+" if nobody else answers")
	fs.DurationVar(&opts.cpu, "cpu", 5*time.Second, "how long processor use is profiled, 0s to 30s")
	fs.BoolVar(&opts.plaintextToken, "plaintext-token", false, "send the token to other machines without TLS")
	out := a.addOutput(cmd, formatText, formatJSON, formatYAML)
	conn := a.addConnection(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if opts.cpu < 0 || opts.cpu > maxCPUProfile {
			return usageErrorf("--cpu %v: must be 0s to %v", opts.cpu, maxCPUProfile)
		}
		cl, err := conn.dial()
		if err != nil {
			return err
		}
		defer cl.Close() //nolint:errcheck // It has no session.
		token, err := conn.token()
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), maxBundleTime)
		defer cancel()
		return a.saveBundle(ctx, &bundler{connection: conn, client: cl, options: opts, token: token}, out)
	}
	return cmd
}

// saveBundle makes the archive beside the file, and gives it its name once it is complete.
func (a *app) saveBundle(ctx context.Context, b *bundler, out *output) error {
	now := time.Now().UTC()
	path := cmp.Or(b.options.file, "regd-bundle-"+now.Format("20060102T150405Z")+".tar.gz")
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-") // Mode 0600.
	if err != nil {
		return fmt.Errorf("save bundle: %w", err)
	}
	defer func() {
		_ = f.Close()           // Closed already if all went well.
		_ = os.Remove(f.Name()) // Renamed already if all went well.
	}()
	b.progress = a.newProgress()
	defer b.progress.end()
	b.archive = newArchive(f, strings.TrimSuffix(filepath.Base(path), ".tar.gz"), now)
	b.gather(ctx)
	manifest, err := b.archive.finish(a.build)
	if err = errors.Join(err, ctx.Err(), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("save bundle: %w", err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("save bundle: %w", err)
	}
	manifest.File = path
	if err = printBundle(out, manifest); err == nil && manifest.Nodes == 0 {
		err = &silentError{exitUnreachable}
	}
	return err
}

func printBundle(out *output, m bundleManifest) error {
	if out.isDocument() {
		return out.printDocument(m)
	}
	_, err := fmt.Fprintf(out.answer(), "%s saved, %s of %s\n", clean(m.File), plural(len(m.Entries), "file"), plural(m.Nodes, "node"))
	for _, missing := range m.Missing {
		out.note("  missing %s: %s", clean(missing.File), clean(missing.Why))
	}
	return wrapWrite(err)
}

// bundler gathers what a bundle holds.
type bundler struct {
	*connection

	client   *client.Client
	options  bundleOptions
	token    string
	archive  *archive
	progress *progress
}

// bundledNode is a node as far as it is known: its name in the archive, and where it answers. Empty: not known.
type bundledNode struct{ name, grpc, http string }

// gather asks everybody for everything. What it does not get the archive says.
func (b *bundler) gather(ctx context.Context) {
	b.archive.addJSON("version.json", b.build, nil)
	nodes := b.nodes(ctx)
	var asking errgroup.Group
	asking.SetLimit(maxBundledNodes)
	for _, n := range nodes {
		asking.Go(func() error {
			b.gatherNode(ctx, n)
			return nil
		})
	}
	_ = asking.Wait() // None returns an error.
}

// nodes are those that the cluster has, or the addresses that were given if it can't say.
func (b *bundler) nodes(ctx context.Context) []bundledNode {
	b.progress.phase("asking the cluster for its nodes")
	asking, cancel := context.WithTimeout(ctx, b.limit)
	defer cancel()
	status, err := b.status(asking, b.client)
	b.archive.addJSON("status.json", status, err)
	var nodes []bundledNode
	for _, m := range status.Members {
		nodes = append(nodes, bundledNode{cmp.Or(m.Name, m.ID), m.GRPCAddress, m.HTTPAddress})
	}
	if err != nil {
		for _, address := range b.addresses() {
			nodes = append(nodes, bundledNode{name: address, grpc: address})
		}
	}
	further := b.options.http
	if err != nil && len(further) == 0 {
		further = []string{defaultHTTP}
	}
	for _, address := range further {
		nodes = append(nodes, bundledNode{name: address, http: address})
	}
	return nodes
}

// gatherNode asks one node.
func (b *bundler) gatherNode(ctx context.Context, n bundledNode) {
	folder := "nodes/" + pathWord(n.name) + "/"
	if n.grpc != "" {
		asking, cancel := context.WithTimeout(ctx, b.limit)
		status := b.client.Cluster().LocalStatus(asking, n.grpc)
		cancel()
		view := viewStatus(status.Status)
		b.archive.addJSON(folder+"status.json", view, status.Err)
		for _, m := range view.Members {
			if m.GRPCAddress == n.grpc || len(view.Members) == 1 {
				n.http = cmp.Or(n.http, m.HTTPAddress)
			}
		}
	}
	if n.http == "" {
		b.archive.miss(folder, errors.New("its port for operations is not known: say it by --http"))
		return
	}
	pages := []struct{ file, path string }{
		{"readyz.txt", "/readyz?verbose"},
		{"metrics.txt", "/metrics"},
		{"settings.json", pageSettings},
		{"log.jsonl", pageLog},
		{"files.json", pageFiles},
		{"raft.json", pageRaft},
		{"goroutines.txt", "/debug/pprof/goroutine?debug=1"},
		{"heap.pb.gz", "/debug/pprof/heap"},
	}
	if b.options.cpu >= time.Second {
		pages = append(pages, struct{ file, path string }{"cpu.pb.gz", fmt.Sprintf("/debug/pprof/profile?seconds=%d", int(b.options.cpu.Seconds()))})
	}
	for _, p := range pages {
		b.progress.phase("asking %s for %s", n.name, p.file)
		body, err := b.fetch(ctx, n.http, p.path)
		var dead *url.Error
		if errors.As(err, &dead) && p == pages[0] {
			b.archive.miss(folder, err) // Whoever does not answer the first question answers no other.
			return
		}
		b.archive.add(folder+p.file, body, err)
	}
}

// fetch asks a port for operations for a page.
func (b *bundler) fetch(ctx context.Context, address, path string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, b.limit+b.options.cpu)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(address) // Else it is not loopback.
	withheld := b.token != "" && !isLoopback(host) && !b.options.plaintextToken
	if b.token != "" && !withheld {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	// Nobody is followed elsewhere: the token is for this address.
	asker := http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := asker.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	defer asker.CloseIdleConnections()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBundleFile+1))
	switch {
	case err != nil:
		return nil, err
	case resp.StatusCode == http.StatusOK, strings.HasPrefix(path, "/readyz"):
		return body, nil
	}
	err = fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body[:min(len(body), 256)])))
	if withheld {
		err = fmt.Errorf("%w; the token was not sent, as this port has no TLS: --plaintext-token sends it", err)
	}
	return nil, err
}

// pathWord makes a name one element of a path.
func pathWord(name string) string {
	word := strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' || ('0' <= r && r <= '9') || ('a' <= r && r <= 'z') || ('A' <= r && r <= 'Z') {
			return r
		}
		return '_'
	}, name)
	if strings.Trim(word, ".") == "" {
		return "_" + word
	}
	return word
}

// toJSON encodes a document for people.
func toJSON(doc any) ([]byte, error) {
	text, err := json.MarshalIndent(doc, "", "  ")
	return append(text, '\n'), err
}
