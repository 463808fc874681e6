package main

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/cluster/certs"
	"github.com/regd-io/regd/cmd/regd/internal/pki"
)

func newTLSCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tls COMMAND",
		Short: "Make and look at certificates.",
		Example: `  # An authority, three nodes and a client, in ./tls.
  regd tls init --out tls --trust-domain prod.example --client admin \
    --node n1=n1.example --node n2=n2.example --node n3=n3.example

  # A further node, later.
  regd tls node n4 --out tls --hosts n4.example,10.0.0.4

  regd tls show tls/n1.crt`,
		Long: `For those who have no authority of their own. Whoever has one issues certificates with it that name their holder by a
URI SAN: spiffe://<trust domain>/regd/peer/<node> or spiffe://<trust domain>/regd/client/<name>; see docs/security.md.`,
		Args: cobra.ArbitraryArgs,
		RunE: onlySubcommands,
	}
	cmd.AddCommand(newTLSInitCmd(a), newTLSNodeCmd(a), newTLSClientCmd(a), newTLSShowCmd(a))
	return cmd
}

// issuing is what the commands have in common that make certificates.
type issuing struct {
	*app
	out, ca string
	days    int
	force   bool
}

func (i *issuing) addFlags(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&i.out, "out", ".", "`folder` for the files")
	fs.IntVar(&i.days, "days", int(pki.DefaultLife/(24*time.Hour)), "days for which certificates are valid")
	fs.BoolVar(&i.force, "force", false, "overwrite files")
}

func (i *issuing) addCA(cmd *cobra.Command) {
	cmd.Flags().StringVar(&i.ca, "ca", "", "`folder` of the authority's ca.crt and ca.key; default: --out")
}

func (i *issuing) life() time.Duration { return time.Duration(i.days) * 24 * time.Hour }

// authority loads the one that was made by init.
func (i *issuing) authority() (*pki.Authority, error) {
	dir := i.ca
	if dir == "" {
		dir = i.out
	}
	ca, err := pki.LoadAuthority(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, withHint(err, "--ca says where the authority is; regd tls init  makes one")
	}
	return ca, err
}

// issued is a certificate that is to be written.
type issued struct {
	pki.Pair
	title, name string
}

// write writes all or, when one is there already, none, and says what is where.
func (i *issuing) write(all []issued) error {
	path := func(one issued, ext string) string { return filepath.Join(i.out, one.name+ext) }
	var names []string
	for _, one := range all {
		if slices.Contains(names, one.name) {
			return usageErrorf("two certificates would be called %s", one.name)
		}
		names = append(names, one.name)
		for _, file := range []string{path(one, ".crt"), path(one, ".key")} {
			if _, err := os.Lstat(file); err == nil && !i.force {
				return withHint(&exitError{code: exitConflict, err: fmt.Errorf("%s %w", file, pki.ErrExists)},
					"give another folder by --out, or --force to replace it")
			}
		}
	}
	for _, one := range all {
		if err := one.Write(path(one, ".crt"), path(one, ".key"), i.force); err != nil {
			return err
		}
		fmt.Fprintf(i.answer(), "%-24s %s and .key, until %s\n", one.title, path(one, ".crt"), one.Cert.NotAfter.Format(time.DateOnly))
	}
	return nil
}

func newTLSInitCmd(a *app) *cobra.Command {
	i := &issuing{app: a}
	var domain string
	var nodes, clients []string
	cmd := &cobra.Command{
		Use:   "init --trust-domain NAME [flags]",
		Short: "Make an authority, and certificates of nodes and clients.",
		Example: `  regd tls init --out tls --trust-domain prod.example --node n1=n1.example,10.0.0.1 --client admin

  # An authority alone; its ca.key can stay on a machine without a network.
  regd tls init --out ca --trust-domain prod.example`,
		Long: `Each certificate NAME.crt comes with its key NAME.key, mode 0600. A node needs ca.crt and its own two files, a client the
same. Nobody needs ca.key but  regd tls node  and  regd tls client: whoever has it can be any node. The authority is valid
for ten years.`,
		Args: arguments(),
		RunE: func(*cobra.Command, []string) error {
			if domain == "" {
				return usageErrorf("--trust-domain: must be set, to the name of the cluster or the company, such as prod.example")
			}
			now := time.Now()
			ca, err := pki.NewAuthority(domain, now)
			if err != nil {
				return usageErrorf("--trust-domain: %w", err)
			}
			all := []issued{{ca.Pair, "authority", "ca"}}
			for _, node := range nodes {
				name, hosts, _ := strings.Cut(node, "=")
				p, err := ca.Node(name, splitList(hosts), now, i.life())
				if err != nil {
					return usageErrorf("--node %s: %w", node, err)
				}
				all = append(all, issued{p, "node " + name, name})
			}
			for _, name := range clients {
				p, err := ca.Client(name, now, i.life())
				if err != nil {
					return usageErrorf("--client %s: %w", name, err)
				}
				all = append(all, issued{p, "client " + name, name})
			}
			if err := i.write(all); err != nil {
				return err
			}
			i.note("next: give each node ca.crt and its own two files, and start it with\n" +
				"  regd serve --tls-ca ca.crt --tls-cert NAME.crt --tls-key NAME.key ...")
			return nil
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringVar(&domain, "trust-domain", "", "`name` of the cluster or company in all certificates; required")
	cmd.Flags().StringArrayVar(&nodes, "node", nil, "`name=hosts` of a node, hosts as in: regd tls node; repeatable")
	cmd.Flags().StringArrayVar(&clients, "client", nil, "`name` of a client; repeatable")
	i.addFlags(cmd)
	return cmd
}

// splitList splits a list by commas; empty: nothing.
func splitList(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func newTLSNodeCmd(a *app) *cobra.Command {
	i := &issuing{app: a}
	var hosts []string
	cmd := &cobra.Command{
		Use:     "node NAME [flags]",
		Short:   "Make the certificate of a node.",
		Example: "  regd tls node n4 --out tls --hosts n4.example,10.0.0.4",
		Long: `The hosts are the names and IP addresses under which clients reach the node; localhost is always among them. Other nodes
know it by its name alone, which must be that of  regd serve --name.`,
		Args: arguments("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := i.authority()
			if err != nil {
				return err
			}
			p, err := ca.Node(args[0], hosts, time.Now(), i.life())
			if err != nil {
				return usageErrorf("certificate of node %s: %w", args[0], err)
			}
			return i.write([]issued{{p, "node " + args[0], args[0]}})
		},
	}
	cmd.Flags().SortFlags = false
	cmd.Flags().StringSliceVar(&hosts, "hosts", nil, "names and IP `addresses` of the node, without ports")
	i.addFlags(cmd)
	i.addCA(cmd)
	return cmd
}

func newTLSClientCmd(a *app) *cobra.Command {
	i := &issuing{app: a}
	cmd := &cobra.Command{
		Use:     "client NAME [flags]",
		Short:   "Make the certificate of a client.",
		Example: "  regd tls client shop --out tls --days 30",
		Args:    arguments("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			ca, err := i.authority()
			if err != nil {
				return err
			}
			p, err := ca.Client(args[0], time.Now(), i.life())
			if err != nil {
				return usageErrorf("certificate of client %s: %w", args[0], err)
			}
			return i.write([]issued{{p, "client " + args[0], args[0]}})
		},
	}
	cmd.Flags().SortFlags = false
	i.addFlags(cmd)
	i.addCA(cmd)
	return cmd
}

// expiresSoon is how long before its end a certificate is to be renewed.
const expiresSoon = 30 * 24 * time.Hour

// certificatesView are the certificates of a file.
type certificatesView struct {
	Certificates []certificateView `json:"certificates"`
}

// certificateView is a certificate as it is shown.
type certificateView struct {
	File         string    `json:"file"`
	Is           string    `json:"is"` // peer, client, authority, or empty: nobody that regd knows
	TrustDomain  string    `json:"trust_domain"`
	Name         string    `json:"name"`
	Subject      string    `json:"subject"`
	Issuer       string    `json:"issuer"`
	Hosts        []string  `json:"hosts"`
	Uses         []string  `json:"uses"`
	NotBefore    time.Time `json:"not_before"`
	NotAfter     time.Time `json:"not_after"`
	SerialNumber string    `json:"serial_number"`
	SHA256       string    `json:"sha256"`
	Problem      string    `json:"problem,omitempty"`
}

func newTLSShowCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:         "show FILE [flags]",
		Short:       "Tell who a certificate is of, and until when.",
		Example:     "  regd tls show /etc/regd/n1.crt\n\n  # In a script: renew it?\n  regd tls show /etc/regd/n1.crt -o json",
		Annotations: map[string]string{helpAnnotation: "Exit codes: 0 good for 30 days or more, 8 expired, about to, or not valid yet."},
		Args:        arguments("FILE"),
	}
	out := a.addOutput(cmd, formatTable, formatJSON, formatYAML)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		views, err := readCertificates(args[0], time.Now())
		if err != nil {
			return err
		}
		if out.isDocument() {
			err = out.printDocument(certificatesView{views})
		} else {
			for _, v := range views {
				v.print(out)
			}
		}
		if err == nil && slices.ContainsFunc(views, func(v certificateView) bool { return v.Problem != "" }) {
			return &silentError{exitDegraded}
		}
		return err
	}
	return cmd
}

// readCertificates reads all certificates of a file.
func readCertificates(path string, now time.Time) ([]certificateView, error) {
	rest, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var views []certificateView
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		views = append(views, viewCertificate(path, cert, now))
	}
	if len(views) == 0 {
		return nil, fmt.Errorf("%s: has no certificate in PEM form", path)
	}
	return views, nil
}

func viewCertificate(path string, cert *x509.Certificate, now time.Time) certificateView {
	sum := sha256.Sum256(cert.Raw)
	v := certificateView{
		File: path, Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Hosts: slices.Clone(cert.DNSNames),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, SerialNumber: cert.SerialNumber.Text(16), SHA256: hex.EncodeToString(sum[:]),
	}
	for _, ip := range cert.IPAddresses {
		v.Hosts = append(v.Hosts, ip.String())
	}
	for use, name := range map[x509.ExtKeyUsage]string{x509.ExtKeyUsageServerAuth: "server auth", x509.ExtKeyUsageClientAuth: "client auth"} {
		if slices.Contains(cert.ExtKeyUsage, use) {
			v.Uses = append(v.Uses, name)
		}
	}
	slices.Sort(v.Uses)
	if id, err := certs.IDOf(cert); err == nil {
		v.Is, v.TrustDomain, v.Name = string(id.Role), id.Domain, id.Name
	} else if cert.IsCA {
		v.Is = "authority"
		if len(cert.URIs) == 1 {
			v.TrustDomain = cert.URIs[0].Host
		}
	}
	switch left := cert.NotAfter.Sub(now); {
	case left < 0:
		v.Problem = "it has expired"
	case now.Before(cert.NotBefore):
		v.Problem = "it is not valid yet"
	case left < expiresSoon:
		v.Problem = "it is about to expire: renew it"
	}
	return v
}

// who tells in words whose certificate it is.
func (v certificateView) who() string {
	switch v.Is {
	case "authority":
		return strings.TrimSuffix("an authority of "+v.TrustDomain, " of ")
	case string(certs.RolePeer):
		return "node " + v.Name + " of " + v.TrustDomain
	case string(certs.RoleClient):
		return "client " + v.Name + " of " + v.TrustDomain
	default:
		return "nobody that regd knows: it has no URI SAN of the form spiffe://<trust domain>/regd/peer/<name> (or client)"
	}
}

func (v certificateView) print(out *output) {
	w, p := out.answer(), out.paintFor(out.stdout)
	row := func(title, text string) { fmt.Fprintf(w, "  %-10s %s\n", title, clean(text)) }
	fmt.Fprintln(w, p.as(colourBold, clean(v.who())))
	days := int(time.Until(v.NotAfter) / (24 * time.Hour))
	row("valid", fmt.Sprintf("%s to %s, %s left", v.NotBefore.Format(time.DateOnly), v.NotAfter.Format(time.RFC3339), plural(max(0, days), "day")))
	if v.Problem != "" {
		fmt.Fprintf(w, "  %-10s %s\n", "PROBLEM", p.as(colourBad, v.Problem))
	}
	if len(v.Hosts) > 0 {
		row("hosts", strings.Join(v.Hosts, ", "))
	}
	if len(v.Uses) > 0 {
		row("uses", strings.Join(v.Uses, ", "))
	}
	row("subject", v.Subject)
	row("issuer", v.Issuer)
	row("serial", v.SerialNumber)
	row("sha256", v.SHA256)
}
