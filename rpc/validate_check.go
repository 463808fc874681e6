package rpc

import (
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// checks returns the canonical form of an instance's checks, in their order.
func (f *faults) checks(field string, in []*registryv1.Check, of *registryv1.Instance) []*registryv1.Check {
	if !f.count(field, len(in), MaxChecks) {
		return nil
	}
	seen := make(map[string]bool, len(in))
	out := make([]*registryv1.Check, 0, len(in))
	for i, c := range in {
		at := index(field, i)
		f.word(at+".name", c.GetName(), MaxCheckNameLen, nameChars)
		if name := c.GetName(); name != "" && seen[name] {
			f.add(at+".name", "is there twice: %s", quote(name))
		}
		seen[c.GetName()] = true
		out = append(out, f.check(at, c, of))
	}
	return out
}

func (f *faults) check(at string, in *registryv1.Check, of *registryv1.Instance) *registryv1.Check {
	out := &registryv1.Check{Name: in.GetName(), Initial: in.GetInitial()}
	if out.GetInitial() == registryv1.CheckStatus_CHECK_STATUS_UNSPECIFIED {
		out.Initial = registryv1.CheckStatus_CHECK_STATUS_STARTING
	}
	if _, known := registryv1.CheckStatus_name[int32(in.GetInitial())]; !known {
		f.add(at+".initial", "is unknown: %d", in.GetInitial())
	}
	switch kind := in.GetKind().(type) {
	case *registryv1.Check_Http:
		out.Kind = &registryv1.Check_Http{Http: f.httpCheck(at+".http", kind.Http, of)}
	case *registryv1.Check_Tcp:
		address, port := f.target(at+".tcp", kind.Tcp.GetAddress(), kind.Tcp.GetPort(), of)
		out.Kind = &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: address, Port: port}}
	case *registryv1.Check_Grpc:
		address, port := f.target(at+".grpc", kind.Grpc.GetAddress(), kind.Grpc.GetPort(), of)
		f.text(at+".grpc.service", kind.Grpc.GetService(), MaxCheckURLLen)
		out.Kind = &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{
			Address: address, Port: port, Service: kind.Grpc.GetService(), Tls: f.checkTLS(at+".grpc.tls", kind.Grpc.GetTls()),
		}}
	case *registryv1.Check_Ttl:
		ttl := f.duration(at+".ttl.ttl", kind.Ttl.GetTtl(), span{least: MinCheckTTL, most: MaxCheckTTL})
		out.Kind = &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(ttl)}}
		return out // Nothing is probed, so there is no schedule.
	default:
		f.add(at+".kind", "is required: one of http, tcp, grpc, ttl")
	}
	f.schedule(at, in, out)
	return out
}

// schedule fills in when and how often is probed.
func (f *faults) schedule(at string, in, out *registryv1.Check) {
	interval := f.duration(at+".interval", in.GetInterval(),
		span{least: MinCheckInterval, most: MaxCheckInterval, byDefault: DefaultCheckInterval})
	timeout := f.duration(at+".timeout", in.GetTimeout(),
		span{least: MinCheckTimeout, most: interval, byDefault: min(DefaultCheckTimeout, interval)})
	out.Interval, out.Timeout = durationpb.New(interval), durationpb.New(timeout)
	out.Rise = f.number(at+".rise", in.GetRise(), 1, MaxCheckCount, DefaultRise)
	out.Fall = f.number(at+".fall", in.GetFall(), 1, MaxCheckCount, DefaultFall)
}

// target checks where a probe goes: an address of its own, or a port of the instance, by default the first one.
func (f *faults) target(at, address, port string, of *registryv1.Instance) (string, string) {
	if address == "" {
		return "", f.checkPort(at+".port", port, of)
	}
	if port != "" {
		f.add(at+".port", "must be empty when address is set: %s", quote(port))
	}
	f.hostPort(at+".address", address)
	return address, ""
}

// hostPort checks a host:port.
func (f *faults) hostPort(field, value string) {
	if len(value) > MaxCheckURLLen {
		f.add(field, "has %d bytes, the limit is %d: %s", len(value), MaxCheckURLLen, quote(value))
		return
	}
	host, port, err := net.SplitHostPort(value)
	if err == nil && isHost(host) {
		if n, numErr := strconv.ParseUint(port, 10, 16); numErr == nil && n > 0 {
			return
		}
	}
	f.add(field, "is not host:port: %s", quote(value))
}

func (f *faults) checkPort(field, name string, of *registryv1.Instance) string {
	if name == "" {
		if len(of.GetPorts()) == 0 {
			f.add(field, "the instance has no port to probe")
			return ""
		}
		return of.GetPorts()[0].GetName()
	}
	if !slices.ContainsFunc(of.GetPorts(), func(p *registryv1.Port) bool { return p.GetName() == name }) {
		f.add(field, "the instance has no port of this name: %s", quote(name))
	}
	return name
}

func (f *faults) httpCheck(at string, in *registryv1.HTTPCheck, of *registryv1.Instance) *registryv1.HTTPCheck {
	out := &registryv1.HTTPCheck{
		Url: in.GetUrl(), Port: in.GetPort(), Path: in.GetPath(), Method: strings.ToUpper(in.GetMethod()),
		Headers:      in.GetHeaders(),
		StatusMin:    f.number(at+".status_min", in.GetStatusMin(), 100, 599, 200),
		StatusMax:    f.number(at+".status_max", in.GetStatusMax(), 100, 599, 299),
		BodyContains: in.GetBodyContains(),
		Tls:          f.checkTLS(at+".tls", in.GetTls()),
	}
	f.httpTarget(at, out, of)
	if out.GetStatusMin() > out.GetStatusMax() {
		f.add(at+".status_min", "is %d, above status_max %d", out.GetStatusMin(), out.GetStatusMax())
	}
	switch out.GetMethod() {
	case "":
		out.Method = "GET"
	case "GET", "HEAD", "POST", "PUT", "OPTIONS":
	default:
		f.add(at+".method", "must be one of GET, HEAD, POST, PUT, OPTIONS: %s", quote(in.GetMethod()))
	}
	f.lines(at+".body_contains", out.GetBodyContains(), MaxCheckBodyLen)
	if f.count(at+".headers", len(out.GetHeaders()), MaxCheckHeaders) {
		for _, name := range slices.Sorted(maps.Keys(out.GetHeaders())) {
			f.word(at+".headers", name, MaxCheckHeaderLen, nameChars)
			f.text(at+".headers["+quote(name)+"]", out.GetHeaders()[name], MaxCheckHeaderLen)
		}
	}
	return out
}

// httpTarget checks the URL, or fills in what a URL is built from.
func (f *faults) httpTarget(at string, c *registryv1.HTTPCheck, of *registryv1.Instance) {
	if c.GetUrl() == "" {
		c.Port = f.checkPort(at+".port", c.GetPort(), of)
		if c.GetPath() == "" {
			c.Path = "/"
		}
		f.text(at+".path", c.GetPath(), MaxCheckURLLen)
		if !strings.HasPrefix(c.GetPath(), "/") {
			f.add(at+".path", "must start with a slash: %s", quote(c.GetPath()))
		}
		return
	}
	if c.GetPort() != "" || c.GetPath() != "" {
		f.add(at+".url", "excludes port and path: %s", quote(c.GetUrl()))
	}
	if len(c.GetUrl()) > MaxCheckURLLen {
		f.add(at+".url", "has %d bytes, the limit is %d: %s", len(c.GetUrl()), MaxCheckURLLen, quote(c.GetUrl()))
		return
	}
	u, err := url.Parse(c.GetUrl())
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil {
		f.add(at+".url", "is not an absolute http or https URL without credentials: %s", quote(c.GetUrl()))
	}
}

func (f *faults) checkTLS(at string, in *registryv1.CheckTLS) *registryv1.CheckTLS {
	if in == nil {
		return nil
	}
	if name := in.GetServerName(); name != "" && (len(name) > MaxAddressLen || !isHost(name)) {
		f.add(at+".server_name", "is not a host name: %s", quote(name))
	}
	return &registryv1.CheckTLS{ServerName: in.GetServerName(), SkipVerify: in.GetSkipVerify()}
}
