package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/pflag"

	"github.com/regd-io/regd/client/balance"
	"github.com/regd-io/regd/client/discovery"
	"github.com/regd-io/regd/client/regdhttp"
)

// httpFlags say what is requested by HTTP.
type httpFlags struct {
	method, data string
	headers      []string
}

func (f *httpFlags) add(fs *pflag.FlagSet) {
	fs.StringVarP(&f.method, "method", "X", "", "the HTTP `method`; default: GET, or POST with --data")
	fs.StringArrayVarP(&f.headers, "header", "H", nil, "send this header, as `name: value`; repeatable")
	fs.StringVarP(&f.data, "data", "d", "", "send this `text`, or @FILE, or @- for stdin")
}

// httpFlagNames are the flags that mean nothing for gRPC.
func httpFlagNames() []string { return []string{"method", "header", "data"} }

// callTLS says how to trust instances.
type callTLS struct {
	caFile, serverName string
	insecure           bool
}

func (f *callTLS) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.caFile, "service-ca-cert", "", "trust the authorities in this PEM `file` to vouch for instances; default: the system's")
	fs.StringVar(&f.serverName, "service-server-name", "", "the `name` that certificates of instances must be for; default: the service's")
	fs.BoolVar(&f.insecure, "service-insecure", false, "trust any certificate of an instance")
}

// tlsFlagNames are the flags that need --scheme https.
func tlsFlagNames() []string {
	return []string{"service-ca-cert", "service-server-name", "service-insecure"}
}

// config makes the TLS configuration for a service of that name.
func (f *callTLS) config(name string) (*tls.Config, error) {
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: name, InsecureSkipVerify: f.insecure, //nolint:gosec // It was asked for in so many words.
	}
	if f.serverName != "" {
		c.ServerName = f.serverName
	}
	if f.caFile == "" {
		return c, nil
	}
	pem, err := os.ReadFile(f.caFile)
	if err != nil {
		return nil, usageErrorf("--service-ca-cert: %w", err)
	}
	if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
		return nil, usageErrorf("--service-ca-cert %s: it holds no certificate in PEM", f.caFile)
	}
	return c, nil
}

// prepare makes the request, but for the host that it goes to.
func (f *httpFlags) prepare(a *app, scheme string, args []string) (*http.Request, error) {
	path := "/"
	if len(args) > 1 {
		path = args[1]
	}
	if !strings.HasPrefix(path, "/") {
		return nil, usageErrorf("%s: a path begins with a slash, as in /%s", path, path)
	}
	u, err := url.Parse(scheme + "://service" + path)
	if err != nil {
		return nil, usageErrorf("path %s: %w", path, errors.Unwrap(err))
	}
	body, err := f.body(a)
	if err != nil {
		return nil, err
	}
	method := f.method
	switch {
	case method != "":
	case body != nil:
		method = http.MethodPost
	default:
		method = http.MethodGet
	}
	var sent io.Reader
	if body != nil {
		sent = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, u.String(), sent)
	if err != nil {
		return nil, usageErrorf("--method %s: %w", method, err)
	}
	req.Header.Set("User-Agent", "regd/"+a.build.Version)
	for _, h := range f.headers {
		name, value, ok := strings.Cut(h, ":")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return nil, usageErrorf("--header %q: must be a name, a colon and a value", h)
		}
		if value = strings.TrimSpace(value); strings.EqualFold(name, "Host") {
			req.Host = value
			continue
		}
		if _, given := req.Header[http.CanonicalHeaderKey(name)]; given && strings.EqualFold(name, "User-Agent") {
			req.Header.Del(name)
		}
		req.Header.Add(name, value)
	}
	return req, nil
}

// body returns what is sent, nil for nothing.
func (f *httpFlags) body(a *app) ([]byte, error) {
	name, file := strings.CutPrefix(f.data, "@")
	var from io.Reader
	switch {
	case f.data == "":
		return nil, nil
	case !file:
		return []byte(f.data), nil
	case name == "-":
		from = a.stdin
	default:
		opened, err := os.Open(name)
		if err != nil {
			return nil, usageErrorf("--data: %w", err)
		}
		defer opened.Close() //nolint:errcheck // It is only read.
		from = opened
	}
	body, err := io.ReadAll(io.LimitReader(from, maxBody+1))
	switch {
	case err != nil:
		return nil, usageErrorf("--data: %w", err)
	case len(body) > maxBody:
		return nil, usageErrorf("--data %s: more than %d MiB", f.data, maxBody>>20)
	}
	return body, nil
}

// printHeaders prints the headers of an answer.
func (f *httpFlags) printHeaders(out *output, v *callView) {
	for _, name := range slices.Sorted(maps.Keys(v.Headers)) {
		for _, value := range v.Headers[name] {
			out.note("%s: %s", clean(name), clean(value))
		}
	}
}

// httpCaller calls by HTTP.
type httpCaller struct {
	transport *regdhttp.Transport
	inner     *http.Transport
	req       *http.Request
}

func (f *callFlags) newHTTPCaller(d *discovery.Discovery, to *callTarget, req *http.Request) (caller, error) {
	host := to.service + "." + to.namespace + ".service"
	secure, err := f.tls.config(host)
	if err != nil {
		return nil, err
	}
	c := &httpCaller{inner: &http.Transport{TLSClientConfig: secure, ForceAttemptHTTP2: true}, req: req}
	opts := []regdhttp.Option{
		regdhttp.WithTransport(&attempter{c.inner}), regdhttp.WithBalancing(f.choice.chosen()),
		regdhttp.WithPick(func(*http.Request) balance.Request { return to.request }), regdhttp.WithAttempts(1 + f.retries),
	}
	if f.choice.port != "" {
		opts = append(opts, regdhttp.WithPort(f.choice.port))
	}
	if c.transport, err = regdhttp.New(d, opts...); err != nil {
		return nil, err
	}
	c.req.URL.Host = host
	if c.req.Host == "service" {
		c.req.Host = host
	}
	return c, nil
}

func (c *httpCaller) close() {
	c.transport.Close()
	c.inner.CloseIdleConnections()
}

// call implements caller.
func (c *httpCaller) call(ctx context.Context, v *callView) {
	tries := &attempts{}
	req := c.req.Clone(context.WithValue(ctx, attemptsKey{}, tries))
	if c.req.GetBody != nil {
		if req.Body, v.err = c.req.GetBody(); v.err != nil {
			return
		}
	}
	resp, err := c.transport.RoundTrip(req) //nolint:contextcheck // What follows the service outlives a call.
	v.Attempts = append(v.Attempts, tries.list...)
	if err != nil {
		v.err, v.vain = err, true
		return
	}
	defer resp.Body.Close()
	v.Status, v.Code, v.Headers = resp.Status, resp.StatusCode, resp.Header
	v.good = resp.StatusCode < http.StatusBadRequest
	v.body, err = io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	switch {
	case err != nil:
		v.err = fmt.Errorf("read the answer of %s, %s: %w", v.last().name(), v.Status, err)
	case len(v.body) > maxBody:
		v.body, v.err = v.body[:maxBody], fmt.Errorf("the answer is cut off after %d MiB", maxBody>>20)
	}
	if utf8.Valid(v.body) {
		v.Body = string(v.body)
	} else {
		v.BodyBase64 = v.body
	}
}

// attempts are the tries of one call.
type attempts struct{ list []attemptView }

type attemptsKey struct{}

// attempter is a round tripper that notes each try.
type attempter struct{ inner *http.Transport }

// RoundTrip implements http.RoundTripper.
func (t *attempter) RoundTrip(req *http.Request) (*http.Response, error) {
	begun := time.Now()
	resp, err := t.inner.RoundTrip(req)
	at := attemptView{Address: req.URL.Host, TookMs: milliseconds(time.Since(begun))}
	if err != nil {
		at.Error = err.Error()
	} else {
		at.Status = resp.Status
	}
	if tries, ok := req.Context().Value(attemptsKey{}).(*attempts); ok {
		tries.list = append(tries.list, at)
	}
	return resp, err
}

// guess says what to do about what the transport says when another protocol answers. net/http has no types for these.
func (f *callFlags) guess(err error) string {
	_, untrusted := errors.AsType[*tls.CertificateVerificationError](err)
	text := err.Error()
	switch {
	case f.grpc && strings.Contains(text, "looked like an HTTP/1.1 header"):
		return "it speaks HTTP there: leave --grpc out, or name the gRPC port by --port"
	case untrusted || strings.Contains(text, "failed to verify certificate"):
		return "--service-ca-cert FILE  names whom to trust, --service-server-name NAME  what the certificate is for, --service-insecure  trusts any"
	case strings.Contains(text, "server gave HTTP response to HTTPS client"), strings.Contains(text, "first record does not look like a TLS handshake"):
		return "it does not use TLS: leave --scheme https out"
	case f.secure == "http" && (strings.Contains(text, "malformed HTTP") || strings.Contains(text, "error reading server preface")):
		return "it speaks another protocol there: try --scheme https, --grpc, or another --port"
	default:
		return ""
	}
}
