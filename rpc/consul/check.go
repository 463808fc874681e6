package consul

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"

	registryv1 "github.com/regd-io/regd/proto/registry/v1"
	"github.com/regd-io/regd/rpc"
)

// staticTTL is how long a check lives on that nobody makes: what the catalog is told of, and told again. It is the longest TTL.
const staticTTL = rpc.MaxCheckTTL

// checks gives an instance the checks of a registration.
func (f *faults) checks(in *registryv1.Instance, serviceID string, one *checkDefinition, many []checkDefinition, static bool) {
	fields := make([]string, 0, len(many)+1)
	var all []*checkDefinition
	if one != nil && !one.empty() {
		all, fields = append(all, one), append(fields, "Check")
	}
	for n := range many {
		if !many[n].empty() {
			all, fields = append(all, &many[n]), append(fields, fmt.Sprintf("Checks[%d]", n))
		}
	}
	if len(all) > rpc.MaxChecks {
		f.add("Checks", "there are %d, the limit is %d", len(all), rpc.MaxChecks)
		return
	}
	for n, def := range all {
		id := cmp.Or(def.CheckID, def.ID)
		if id == "" && len(all) == 1 {
			id = serviceCheck + serviceID
		} else if id == "" {
			id = serviceCheck + serviceID + ":" + strconv.Itoa(n+1)
		}
		f.addCheck(in, fields[n], serviceID, id, def, static)
	}
}

// empty tells whether nothing is said of a check.
func (c *checkDefinition) empty() bool {
	return c.kind() == "" && c.CheckID == "" && c.ID == "" && c.Name == "" && c.Status == "" && c.Notes == ""
}

// kind is how a check is made, empty if nobody makes it.
func (c *checkDefinition) kind() string {
	for _, k := range []struct {
		set  bool
		kind string
	}{
		{len(c.Args) > 0 || len(c.ScriptArgs) > 0 || c.Script != "", "script"},
		{c.DockerContainerID != "", "docker"},
		{c.HTTP != "", "http"},
		{c.GRPC != "", "grpc"},
		{c.TCP != "", "tcp"},
		{c.UDP != "", "udp"},
		{c.H2PING != "", "h2ping"},
		{c.OSService != "", "os_service"},
		{c.AliasNode != "" || c.AliasService != "", "alias"},
		{c.TTL.Duration != 0 || c.TTL.wrong != "", "ttl"},
	} {
		if k.set {
			return k.kind
		}
	}
	return ""
}

// addCheck gives an instance a check, in place of the one of the same id. field is where it stands in the body.
func (f *faults) addCheck(in *registryv1.Instance, field, serviceID, id string, def *checkDefinition, static bool) {
	f.place(field, func(f *faults) {
		c := f.checkOf(def, static)
		if c == nil {
			return
		}
		c.Name = checkNameFor(in, serviceID, id)
		fact := checkFact{Name: def.Name, Notes: def.Notes}
		if checkID(serviceID, c.GetName(), checkFact{}) != id {
			fact.ID = id
		}
		if fact.Name == "Service '"+in.GetService()+"' check" {
			fact.Name = ""
		}
		delete(in.GetMetadata(), factCheck+c.GetName())
		if fact != (checkFact{}) {
			text, err := json.Marshal(fact)
			if err != nil || len(text) > rpc.MaxMetadataValueLen {
				f.add("Notes", "id, name and notes have %d bytes together, the limit is %d", len(text), rpc.MaxMetadataValueLen)
			}
			in.Metadata[factCheck+c.GetName()] = string(text)
		}
		if after := def.DeregisterCriticalServiceAfter.Duration; after > 0 {
			after = max(after, rpc.MinDeregisterCriticalAfter)
			if was := in.GetDeregisterCriticalAfter(); was == nil || after < was.AsDuration() {
				in.DeregisterCriticalAfter = durationpb.New(after)
			}
		}
		for n, have := range in.GetChecks() {
			if have.GetName() == c.GetName() {
				in.Checks[n] = c
				return
			}
		}
		in.Checks = append(in.Checks, c)
	})
}

// place calls fn with faults whose fields are below a field.
func (f *faults) place(field string, fn func(*faults)) {
	var inner faults
	fn(&inner)
	for _, fault := range inner {
		if field != "" {
			fault = field + "." + fault
		}
		if len(*f) < maxFaults {
			*f = append(*f, fault)
		}
	}
}

// checkNameFor returns the name under which the registry has a check: the one it has, or one that is made of its id.
func checkNameFor(in *registryv1.Instance, serviceID, id string) string {
	taken := map[string]bool{}
	for _, c := range in.GetChecks() {
		if checkID(serviceID, c.GetName(), factOfCheck(in.GetMetadata(), c.GetName())) == id {
			return c.GetName()
		}
		taken[c.GetName()] = true
	}
	name := plainName(serviceID, id)
	const room = rpc.MaxCheckNameLen - 4
	if len(name) > room {
		name = name[:room]
	}
	for n, first := 2, name; taken[name]; n++ {
		name = first + "-" + strconv.Itoa(n)
	}
	return name
}

// plainName is an id as the registry can name a check.
func plainName(serviceID, id string) string {
	if rest, ok := strings.CutPrefix(id, serviceCheck+serviceID); ok {
		n, numbered := strings.CutPrefix(rest, ":")
		switch {
		case rest == "":
			return ownCheck
		case numbered && number(n):
			return ownCheck + "-" + n
		}
	}
	return strings.Map(func(r rune) rune {
		if r < utf8.RuneSelf && (r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || strings.ContainsRune("._-", r)) {
			return r
		}
		return '-'
	}, id)
}

// checkOf turns a definition into a check of the registry, without a name. static says that it may be one that nobody makes.
func (f *faults) checkOf(def *checkDefinition, static bool) *registryv1.Check {
	c := &registryv1.Check{
		Initial: f.status(def.Status), Rise: f.times("SuccessBeforePassing", def.SuccessBeforePassing),
		Fall: f.times("FailuresBeforeCritical", def.FailuresBeforeCritical),
	}
	for _, span := range []struct {
		field string
		looseSpan
	}{
		{"TTL", def.TTL},
		{"Interval", def.Interval},
		{"Timeout", def.Timeout},
		{"DeregisterCriticalServiceAfter", def.DeregisterCriticalServiceAfter},
	} {
		if span.wrong != "" {
			f.add(span.field, "%q: must be a duration, such as 10s", span.wrong)
			return nil
		}
	}
	kind := def.kind()
	switch kind {
	case "http", "tcp", "grpc":
		if def.Interval.Duration <= 0 {
			f.add("Interval", "must be > 0 for Script, HTTP, H2PING, TCP, UDP or OSService checks")
			return nil
		}
		c.Interval = durationpb.New(def.Interval.Duration)
		c.Timeout = durationpb.New(min(cmp.Or(def.Timeout.Duration, defaultTimeout), def.Interval.Duration))
		f.probe(c, kind, def)
	case "ttl":
		c.Kind = &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(def.TTL.Duration)}}
		c.Rise, c.Fall = 0, 0
	case "":
		if !static {
			f.add("Check", "must have one of HTTP, TCP, GRPC with an Interval, or a TTL")
			return nil
		}
		c.Kind = &registryv1.Check_Ttl{Ttl: &registryv1.TTLCheck{Ttl: durationpb.New(staticTTL)}}
		c.Rise, c.Fall = 0, 0
	case "script", "docker":
		f.add("Args", "Scripts are disabled: regd runs no programs for a check; use HTTP, TCP, GRPC or TTL")
		return nil
	default:
		f.add("Check", "regd has no checks of the kind %s; use HTTP, TCP, GRPC or TTL", kind)
		return nil
	}
	return c
}

// defaultTimeout is how long Consul waits for the answer to a check.
const defaultTimeout = 10 * time.Second

func (f *faults) times(field string, n int) uint32 {
	if n < 0 || n > rpc.MaxCheckCount {
		f.add(field, "%d: must be 0 to %d", n, rpc.MaxCheckCount)
	}
	return uint32(max(1, n)) //nolint:gosec // It is in range, or refused.
}

// probe fills in what is probed.
func (f *faults) probe(c *registryv1.Check, kind string, def *checkDefinition) {
	var tls *registryv1.CheckTLS
	if def.TLSServerName != "" || def.TLSSkipVerify || def.GRPCUseTLS {
		tls = &registryv1.CheckTLS{ServerName: def.TLSServerName, SkipVerify: def.TLSSkipVerify}
	}
	switch kind {
	case "http":
		if def.Body != "" {
			f.add("Body", "the registry's probes send none")
		}
		h := &registryv1.HTTPCheck{Url: def.HTTP, Method: strings.ToUpper(def.Method), Tls: tls}
		for name, values := range def.Header {
			if h.Headers == nil {
				h.Headers = map[string]string{}
			}
			h.Headers[name] = strings.Join(values, ", ")
		}
		c.Kind = &registryv1.Check_Http{Http: h}
	case "tcp":
		if def.TCPUseTLS {
			f.add("TCPUseTLS", "the registry's probes of TCP speak no TLS; use HTTP or GRPC")
		}
		c.Kind = &registryv1.Check_Tcp{Tcp: &registryv1.TCPCheck{Address: def.TCP}}
	case "grpc":
		address, service, _ := strings.Cut(def.GRPC, "/")
		if !def.GRPCUseTLS {
			tls = nil
		}
		c.Kind = &registryv1.Check_Grpc{Grpc: &registryv1.GRPCCheck{Address: address, Service: service, Tls: tls}}
	}
}

// status reads a status. A check without one starts critical.
func (f *faults) status(text string) registryv1.CheckStatus {
	switch text {
	case "", critical:
		return registryv1.CheckStatus_CHECK_STATUS_CRITICAL
	case passing:
		return registryv1.CheckStatus_CHECK_STATUS_PASSING
	case warning:
		return registryv1.CheckStatus_CHECK_STATUS_WARNING
	default:
		f.add("Status", "%q: Status for checks must 'passing', 'warning', 'critical'", cut(text))
		return registryv1.CheckStatus_CHECK_STATUS_CRITICAL
	}
}
