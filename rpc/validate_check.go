package rpc

import (
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
	if len(in) == 0 || !f.count(field, len(in), MaxChecks) {
		return nil
	}
	seen := make(map[string]bool, len(in))
	out := make([]*registryv1.Check, 0, len(in))
	for i, c := range in {
		f.place.enterItem(field, i)
		f.word("name", c.GetName(), MaxCheckNameLen, nameChars)
		if name := c.GetName(); name != "" && seen[name] {
			f.add("name", "is there twice: %s", quote(name))
		}
		seen[c.GetName()] = true
		out = append(out, f.check(c, of))
		f.place.leave()
	}
	return out
}

func (f *faults) check(in *registryv1.Check, of *registryv1.Instance) *registryv1.Check {
	out := &registryv1.Check{Name: in.GetName(), Initial: in.GetInitial()}
	if out.GetInitial() == registryv1.CheckStatus_CHECK_STATUS_UNSPECIFIED {
		out.Initial = registryv1.CheckStatus_CHECK_STATUS_STARTING
	}
	if _, known := registryv1.CheckStatus_name[int32(in.GetInitial())]; !known {
		f.add("initial", "is unknown: %d", in.GetInitial())
	}
	switch kind := in.GetKind().(type) {
	case *registryv1.Check_Http:
		out.Kind = &registryv1.Check_Http{Http: f.httpCheck("http", kind.Http, of)}
	case *registryv1.Check_Tcp:
		address, port := f.target("tcp", kind.Tcp.GetAddress(), kind.Tcp.GetPort(), of)
		out.Kind = &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: address, Port: port}}
	case *registryv1.Check_Grpc:
		address, port := f.target("grpc", kind.Grpc.GetAddress(), kind.Grpc.GetPort(), of)
		f.text("grpc.service", kind.Grpc.GetService(), MaxCheckURLLen)
		out.Kind = &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{
			Address: address, Port: port, Service: kind.Grpc.GetService(), Tls: f.checkTLS("grpc.tls", kind.Grpc.GetTls()),
		}}
	case *registryv1.Check_Ttl:
		ttl := f.duration("ttl.ttl", kind.Ttl.GetTtl(), span{least: MinCheckTTL, most: MaxCheckTTL})
		out.Kind = &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(ttl)}}
		return out // Nothing is probed, so there is no schedule.
	default:
		f.add("kind", "is required: one of http, tcp, grpc, ttl")
	}
	f.schedule(in, out)
	return out
}

// schedule fills in when and how often is probed.
func (f *faults) schedule(in, out *registryv1.Check) {
	interval := f.duration("interval", in.GetInterval(),
		span{least: MinCheckInterval, most: MaxCheckInterval, byDefault: DefaultCheckInterval})
	timeout := f.duration("timeout", in.GetTimeout(),
		span{least: MinCheckTimeout, most: interval, byDefault: min(DefaultCheckTimeout, interval)})
	out.Interval, out.Timeout = durationpb.New(interval), durationpb.New(timeout)
	out.Rise = f.number("rise", in.GetRise(), 1, MaxCheckCount, DefaultRise)
	out.Fall = f.number("fall", in.GetFall(), 1, MaxCheckCount, DefaultFall)
}

// target checks where a probe goes: an address of its own, or a port of the instance, by default the first one.
func (f *faults) target(field, address, port string, of *registryv1.Instance) (string, string) {
	f.place.enter(field)
	defer f.place.leave()
	if address == "" {
		return "", f.checkPort("port", port, of)
	}
	if port != "" {
		f.add("port", "must be empty when address is set: %s", quote(port))
	}
	f.hostPort("address", address)
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

func (f *faults) httpCheck(field string, in *registryv1.HTTPCheck, of *registryv1.Instance) *registryv1.HTTPCheck {
	f.place.enter(field)
	defer f.place.leave()
	out := &registryv1.HTTPCheck{
		Url: in.GetUrl(), Port: in.GetPort(), Path: in.GetPath(), Method: strings.ToUpper(in.GetMethod()),
		Headers:      in.GetHeaders(),
		StatusMin:    f.number("status_min", in.GetStatusMin(), 100, 599, 200),
		StatusMax:    f.number("status_max", in.GetStatusMax(), 100, 599, 299),
		BodyContains: in.GetBodyContains(),
		Tls:          f.checkTLS("tls", in.GetTls()),
	}
	f.httpTarget(out, of)
	if out.GetStatusMin() > out.GetStatusMax() {
		f.add("status_min", "is %d, above status_max %d", out.GetStatusMin(), out.GetStatusMax())
	}
	switch out.GetMethod() {
	case "":
		out.Method = "GET"
	case "GET", "HEAD", "POST", "PUT", "OPTIONS":
	default:
		f.add("method", "must be one of GET, HEAD, POST, PUT, OPTIONS: %s", quote(in.GetMethod()))
	}
	f.lines("body_contains", out.GetBodyContains(), MaxCheckBodyLen)
	if f.count("headers", len(out.GetHeaders()), MaxCheckHeaders) {
		for _, name := range sortedKeys(out.GetHeaders()) {
			f.word("headers", name, MaxCheckHeaderLen, nameChars)
			f.place.enterEntry("headers", name)
			f.text("", out.GetHeaders()[name], MaxCheckHeaderLen)
			f.place.leave()
		}
	}
	return out
}

// httpTarget checks the URL, or fills in what a URL is built from.
func (f *faults) httpTarget(c *registryv1.HTTPCheck, of *registryv1.Instance) {
	if c.GetUrl() == "" {
		c.Port = f.checkPort("port", c.GetPort(), of)
		if c.GetPath() == "" {
			c.Path = "/"
		}
		f.text("path", c.GetPath(), MaxCheckURLLen)
		if !strings.HasPrefix(c.GetPath(), "/") {
			f.add("path", "must start with a slash: %s", quote(c.GetPath()))
		}
		return
	}
	if c.GetPort() != "" || c.GetPath() != "" {
		f.add("url", "excludes port and path: %s", quote(c.GetUrl()))
	}
	if len(c.GetUrl()) > MaxCheckURLLen {
		f.add("url", "has %d bytes, the limit is %d: %s", len(c.GetUrl()), MaxCheckURLLen, quote(c.GetUrl()))
		return
	}
	u, err := url.Parse(c.GetUrl())
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.User != nil {
		f.add("url", "is not an absolute http or https URL without credentials: %s", quote(c.GetUrl()))
	}
}

func (f *faults) checkTLS(field string, in *registryv1.CheckTLS) *registryv1.CheckTLS {
	if in == nil {
		return nil
	}
	if name := in.GetServerName(); name != "" && (len(name) > MaxAddressLen || !isHost(name)) {
		f.add(field+".server_name", "is not a host name: %s", quote(name))
	}
	return &registryv1.CheckTLS{ServerName: in.GetServerName(), SkipVerify: in.GetSkipVerify()}
}
