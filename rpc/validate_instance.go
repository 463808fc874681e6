package rpc

import (
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	raftlogv1 "github.com/regd-io/regd/proto/raftlog/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// DefaultNamespace is the namespace of a request that names none.
const DefaultNamespace = "default"

// instance checks a registration and returns its canonical specification: fields 1 to 19 only, defaults filled in, tags
// sorted, nothing unknown. Equal registrations become equal specifications. open is the session that is opened for it, nil
// for none.
func (f *faults) instance(field string, in *registryv1.Instance, open *raftlogv1.OpenSession) *registryv1.Instance {
	if in == nil {
		f.add(field, "is required")
		return nil
	}
	f.place.enter(field)
	defer f.place.leave()
	out := &registryv1.Instance{
		Namespace: f.namespace("namespace", in.GetNamespace()),
		Service:   in.GetService(),
		Id:        in.GetId(),
		Address:   in.GetAddress(),
		Ports:     f.ports("ports", in.GetPorts()),
		Tags:      f.tags("tags", in.GetTags(), MaxTags),
		Metadata:  f.metadata("metadata", in.GetMetadata(), MaxMetadata),
		Zone:      in.GetZone(),
		Region:    in.GetRegion(),
		Weight:    f.number("weight", in.GetWeight(), 1, MaxWeight, DefaultWeight),
		SessionId: f.owner("session_id", in.GetSessionId(), open),
		LeaseId:   in.GetLeaseId(),
	}
	f.service(out.GetService())
	f.path("id", out.GetId(), MaxInstanceIDLen)
	f.address("address", out.GetAddress())
	f.text("zone", out.GetZone(), MaxZoneLen)
	f.text("region", out.GetRegion(), MaxZoneLen)
	f.optionalName("lease_id", out.GetLeaseId(), MaxIDLen)
	out.Checks = f.checks("checks", in.GetChecks(), out)
	out.DeregisterCriticalAfter = f.criticalAfter("deregister_critical_after", in.GetDeregisterCriticalAfter())
	if len(out.GetChecks()) > 0 { // The limits of everything else together are far below.
		if n := proto.Size(out); n > MaxInstanceBytes {
			f.add("", "has %d bytes when encoded, the limit is %d", n, MaxInstanceBytes)
		}
	}
	return out
}

// owner returns the session of a registration: the one that it names, or the one that is opened for it.
func (f *faults) owner(field, named string, open *raftlogv1.OpenSession) string {
	f.optionalName(field, named, MaxIDLen)
	if open == nil {
		return named
	}
	if named != "" {
		f.add(field, "must be empty where open_session is set: %s", quote(named))
	}
	return open.GetId()
}

func (f *faults) namespace(field, value string) string {
	if value == "" {
		return DefaultNamespace
	}
	f.word(field, value, MaxNamespaceLen, lowerChars)
	return value
}

func (f *faults) service(value string) {
	const field = "service"
	if !f.word(field, value, MaxServiceLen, nameChars) {
		return
	}
	if strings.ContainsRune("._-", rune(value[0])) || strings.ContainsRune("._-", rune(value[len(value)-1])) {
		f.add(field, "must start and end with a letter or digit: %s", quote(value))
	}
}

// address checks a host name or an IP address without a port.
func (f *faults) address(field, value string) {
	switch {
	case value == "":
		f.add(field, "is required")
	case len(value) > MaxAddressLen:
		f.add(field, "has %d bytes, the limit is %d: %s", len(value), MaxAddressLen, quote(value))
	case !isHost(value):
		f.add(field, "is neither a host name nor an IP address: %s", quote(value))
	}
}

// isHost tells whether s is an IP address or can be a host name. Underscores are no part of host names by the book, but
// container networks give them out.
func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !nameChars.has(label[i]) {
				return false
			}
		}
	}
	return true
}

func (f *faults) ports(field string, in []*registryv1.Port) []*registryv1.Port {
	if len(in) == 0 || !f.count(field, len(in), MaxPorts) {
		return nil
	}
	seen := make(map[string]bool, len(in))
	out := make([]*registryv1.Port, 0, len(in))
	for i, p := range in {
		f.place.enterItem(field, i)
		name := p.GetName()
		if name == "" && len(in) == 1 {
			name = "main"
		}
		f.word("name", name, MaxPortNameLen, lowerChars)
		if name != "" && seen[name] {
			f.add("name", "is there twice: %s", quote(name))
		}
		seen[name] = true
		out = append(out, &registryv1.Port{Name: name, Number: f.number("number", p.GetNumber(), 1, MaxPort, 0)})
		f.place.leave()
	}
	return out
}

// tags returns the tags sorted.
func (f *faults) tags(field string, in []string, limit int) []string {
	if len(in) == 0 || !f.count(field, len(in), limit) {
		return nil
	}
	seen := make(map[string]bool, len(in))
	for i, tag := range in {
		f.place.enterItem(field, i)
		switch {
		case tag == "":
			f.add("", "is empty")
		case seen[tag]:
			f.add("", "is there twice: %s", quote(tag))
		default:
			f.text("", tag, MaxTagLen)
		}
		f.place.leave()
		seen[tag] = true
	}
	out := slices.Clone(in)
	slices.Sort(out)
	return out
}

func (f *faults) metadata(field string, in map[string]string, limit int) map[string]string {
	if len(in) == 0 || !f.count(field, len(in), limit) {
		return nil
	}
	total := 0
	for _, key := range sortedKeys(in) {
		value := in[key]
		total += len(key) + len(value)
		f.place.enterEntry(field, key)
		f.text("", key, MaxMetadataKeyLen)
		f.lines("", value, MaxMetadataValueLen)
		f.place.leave()
		if key == "" {
			f.add(field, "has an empty key")
		}
	}
	if total > MaxMetadataBytes {
		f.add(field, "has %d bytes of keys and values, the limit is %d", total, MaxMetadataBytes)
	}
	return in
}

func (f *faults) criticalAfter(field string, in *durationpb.Duration) *durationpb.Duration {
	if in.GetSeconds() == 0 && in.GetNanos() == 0 {
		return nil
	}
	switch {
	case in.CheckValid() != nil:
		f.add(field, "is not a duration: %d s, %d ns", in.GetSeconds(), in.GetNanos())
	case in.AsDuration() < MinDeregisterCriticalAfter:
		f.add(field, "must be at least %v, is %v", MinDeregisterCriticalAfter, in.AsDuration())
	}
	return durationpb.New(in.AsDuration())
}
