package main

import (
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// The views are what -o json prints. Their field names are those of the API and stable: fields may be added, none is
// renamed or removed. Enumerations are words in lower case, numbers are numbers, durations say their unit.

// headerView tells how fresh an answer is and who gave it.
type headerView struct {
	ClusterID   string   `json:"cluster_id"`
	Epoch       uint64   `json:"epoch"`
	Revision    uint64   `json:"revision"`
	StalenessMs *float64 `json:"staleness_ms,omitempty"` // unset: not known
	Mode        string   `json:"mode,omitempty"`
	Node        string   `json:"node"`
	Leader      string   `json:"leader,omitempty"`
}

func viewHeader(h *apiv1.ResponseHeader) headerView {
	v := headerView{
		ClusterID: h.GetClusterId(), Epoch: h.GetEpoch(), Revision: h.GetRevision(),
		Mode: enumWord(h.GetMode().String(), "MODE_"), Node: h.GetNode(), Leader: h.GetLeader(),
	}
	if h.GetStaleness() != nil {
		ms := milliseconds(h.GetStaleness().AsDuration())
		v.StalenessMs = &ms
	}
	return v
}

// viewInfo is viewHeader for what the client tells of a read.
func viewInfo(i client.ReadInfo) headerView {
	v := headerView{
		ClusterID: i.ClusterID, Epoch: i.Epoch, Revision: i.Revision, Node: i.Node, Mode: enumWord(i.Mode.String(), "MODE_"),
	}
	if i.Staleness != client.UnknownStaleness {
		ms := milliseconds(i.Staleness)
		v.StalenessMs = &ms
	}
	return v
}

// enumWord turns HEALTH_PASSING into passing, and an unspecified value into nothing.
func enumWord(name, prefix string) string {
	word := strings.ToLower(strings.TrimPrefix(name, prefix))
	if word == "unspecified" {
		return ""
	}
	return word
}

// instanceView is one instance.
type instanceView struct {
	Namespace      string            `json:"namespace"`
	Service        string            `json:"service"`
	ID             string            `json:"id"`
	Health         string            `json:"health"`
	Address        string            `json:"address"`
	Ports          []portView        `json:"ports"`
	Zone           string            `json:"zone,omitempty"`
	Region         string            `json:"region,omitempty"`
	Weight         uint32            `json:"weight"`
	Tags           []string          `json:"tags"`
	Metadata       map[string]string `json:"metadata"`
	Checks         []checkView       `json:"checks"`
	Draining       bool              `json:"draining"`
	Maintenance    bool              `json:"maintenance"`
	SessionID      string            `json:"session_id,omitempty"`
	LeaseID        string            `json:"lease_id,omitempty"`
	Incarnation    uint64            `json:"incarnation"`
	CreateRevision uint64            `json:"create_revision"`
	ModifyRevision uint64            `json:"modify_revision"`
	RegisteredAt   string            `json:"registered_at,omitempty"`
}

type portView struct {
	Name   string `json:"name"`
	Number uint32 `json:"number"`
}

type checkView struct {
	Name      string `json:"name"`
	Status    string `json:"status"`
	Output    string `json:"output,omitempty"`
	ChangedAt string `json:"changed_at,omitempty"`
}

func viewInstance(i *registryv1.Instance) instanceView {
	v := instanceView{
		Namespace: i.GetNamespace(), Service: i.GetService(), ID: i.GetId(),
		Health: enumWord(i.GetHealth().String(), "HEALTH_"), Address: i.GetAddress(), Zone: i.GetZone(),
		Region: i.GetRegion(), Weight: i.GetWeight(), Draining: i.GetDraining(), Maintenance: i.GetMaintenance(),
		SessionID: i.GetSessionId(), LeaseID: i.GetLeaseId(), Incarnation: i.GetIncarnation(),
		CreateRevision: i.GetCreateRevision(), ModifyRevision: i.GetModifyRevision(),
		RegisteredAt: timestamp(i.GetRegisteredUnixMs()),
		// Lists are lists also when they are empty: programs need not ask.
		Tags: append([]string{}, i.GetTags()...), Metadata: maps.Clone(i.GetMetadata()),
		Ports: []portView{}, Checks: []checkView{},
	}
	if v.Metadata == nil {
		v.Metadata = map[string]string{}
	}
	for _, p := range i.GetPorts() {
		v.Ports = append(v.Ports, portView{p.GetName(), p.GetNumber()})
	}
	for _, c := range i.GetCheckStates() {
		v.Checks = append(v.Checks, checkView{
			Name: c.GetName(), Status: enumWord(c.GetStatus().String(), "CHECK_STATUS_"), Output: c.GetOutput(),
			ChangedAt: timestamp(c.GetChangedUnixMs()),
		})
	}
	return v
}

func timestamp(unixMs int64) string {
	if unixMs == 0 {
		return ""
	}
	return time.UnixMilli(unixMs).UTC().Format("2006-01-02T15:04:05.000Z07:00")
}

// endpoint is where an instance is reached: its first port, and how many more there are.
func (v instanceView) endpoint() string {
	if len(v.Ports) == 0 {
		return v.Address
	}
	return net.JoinHostPort(v.Address, strconv.FormatUint(uint64(v.Ports[0].Number), 10))
}

func (v instanceView) key() string { return v.Service + "/" + v.ID }

// healthColour is the colour of a health or check status.
func healthColour(word string) string {
	switch word {
	case "passing":
		return colourGood
	case "warning", "starting", "draining":
		return colourWarn
	case "critical", "maintenance":
		return colourBad
	}
	return ""
}

// age is how long ago something was, in two digits or so.
func age(timestamp string, now time.Time) string {
	t, err := time.Parse(time.RFC3339Nano, timestamp)
	if err != nil {
		return ""
	}
	return short(now.Sub(t))
}

// short prints a duration for people.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// metadataText prints metadata in the order of its keys.
func metadataText(m map[string]string) string {
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		pairs = append(pairs, k+"="+m[k])
	}
	return strings.Join(pairs, ",")
}

func instanceTable(now time.Time, namespaced bool) tableOf[instanceView] {
	t := tableOf[instanceView]{
		name: func(v instanceView) string { return "instance/" + v.key() },
		columns: []column[instanceView]{
			{title: "ID", text: func(v instanceView) string { return v.ID }},
			{title: "SERVICE", text: func(v instanceView) string { return v.Service }},
			{title: "HEALTH", text: func(v instanceView) string { return v.Health }, colour: func(v instanceView) string { return healthColour(v.Health) }},
			{title: "ADDRESS", text: instanceView.endpoint},
			{title: "ZONE", text: func(v instanceView) string { return v.Zone }},
			{title: "TAGS", text: func(v instanceView) string { return strings.Join(v.Tags, ",") }},
			{title: "PORTS", wide: true, text: func(v instanceView) string {
				var ports []string
				for _, p := range v.Ports {
					ports = append(ports, fmt.Sprintf("%s=%d", p.Name, p.Number))
				}
				return strings.Join(ports, ",")
			}},
			{title: "CHECKS", wide: true, text: func(v instanceView) string {
				var checks []string
				for _, c := range v.Checks {
					checks = append(checks, c.Name+"="+c.Status)
				}
				return strings.Join(checks, ",")
			}},
			{title: "WEIGHT", wide: true, text: func(v instanceView) string { return strconv.FormatUint(uint64(v.Weight), 10) }},
			{title: "SESSION", wide: true, text: func(v instanceView) string { return v.SessionID }},
			{title: "META", wide: true, text: func(v instanceView) string { return metadataText(v.Metadata) }},
			{title: "REVISION", wide: true, text: func(v instanceView) string { return strconv.FormatUint(v.ModifyRevision, 10) }},
			{title: "AGE", text: func(v instanceView) string { return age(v.RegisteredAt, now) }},
		},
	}
	if namespaced {
		t.columns = slices.Insert(t.columns, 0, column[instanceView]{
			title: "NAMESPACE", text: func(v instanceView) string { return v.Namespace },
		})
	}
	return t
}

// serviceView is one service.
type serviceView struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Instances uint32 `json:"instances"`
	Passing   uint32 `json:"passing"`
	Warning   uint32 `json:"warning"`
	Critical  uint32 `json:"critical"`
	Other     uint32 `json:"other"`
	Revision  uint64 `json:"revision"`
}

func viewService(s *apiv1.ServiceSummary) serviceView {
	return serviceView{
		Namespace: s.GetNamespace(), Name: s.GetName(), Instances: s.GetInstances(), Passing: s.GetPassing(),
		Warning: s.GetWarning(), Critical: s.GetCritical(), Other: s.GetOther(), Revision: s.GetRevision(),
	}
}

func serviceTable(namespaced bool) tableOf[serviceView] {
	count := func(title, colour string, of func(serviceView) uint32) column[serviceView] {
		return column[serviceView]{
			title: title, right: true,
			text: func(v serviceView) string { return strconv.FormatUint(uint64(of(v)), 10) },
			colour: func(v serviceView) string {
				if of(v) == 0 {
					return ""
				}
				return colour
			},
		}
	}
	t := tableOf[serviceView]{
		name: func(v serviceView) string { return "service/" + v.Name },
		columns: []column[serviceView]{
			{title: "NAME", text: func(v serviceView) string { return v.Name }},
			count("INSTANCES", "", func(v serviceView) uint32 { return v.Instances }),
			count("PASSING", colourGood, func(v serviceView) uint32 { return v.Passing }),
			count("WARNING", colourWarn, func(v serviceView) uint32 { return v.Warning }),
			count("CRITICAL", colourBad, func(v serviceView) uint32 { return v.Critical }),
			count("OTHER", "", func(v serviceView) uint32 { return v.Other }),
			{title: "REVISION", wide: true, right: true, text: func(v serviceView) string { return strconv.FormatUint(v.Revision, 10) }},
		},
	}
	if namespaced {
		t.columns = slices.Insert(t.columns, 0, column[serviceView]{
			title: "NAMESPACE", text: func(v serviceView) string { return v.Namespace },
		})
	}
	return t
}

// memberView is one node.
type memberView struct {
	Name          string   `json:"name"`
	ID            string   `json:"id"`
	Address       string   `json:"address"` // of the peer port
	GRPCAddress   string   `json:"grpc_address"`
	HTTPAddress   string   `json:"http_address,omitempty"`
	Role          string   `json:"role"`
	Suffrage      string   `json:"suffrage"`
	Reachable     bool     `json:"reachable"`
	AppliedIndex  uint64   `json:"applied_index"`
	Term          uint64   `json:"term"`
	Revision      uint64   `json:"revision"`
	StalenessMs   *float64 `json:"staleness_ms,omitempty"`
	LogStore      string   `json:"log_store"`
	DiskFreeBytes uint64   `json:"disk_free_bytes"`
	AppendP50Ms   float64  `json:"append_p50_ms"`
	AppendP99Ms   float64  `json:"append_p99_ms"`
	UptimeSeconds float64  `json:"uptime_seconds"`
	Version       string   `json:"version,omitempty"`
	FeatureLevel  uint32   `json:"feature_level"`
	Problems      []string `json:"problems"`

	lag uint64 // entries behind the furthest member
}

func viewMembers(members []*apiv1.MemberStatus) []memberView {
	views := []memberView{}
	var furthest uint64
	for _, s := range members {
		m := s.GetMember()
		v := memberView{
			Name: m.GetName(), ID: m.GetId(), Address: m.GetPeerAddress(), GRPCAddress: m.GetGrpcAddress(),
			HTTPAddress: m.GetHttpAddress(), Role: enumWord(s.GetRole().String(), "ROLE_"),
			Suffrage: enumWord(s.GetSuffrage().String(), "SUFFRAGE_"), Reachable: s.GetReachable(),
			AppliedIndex: s.GetAppliedIndex(), Term: s.GetTerm(), Revision: s.GetRevision(),
			LogStore: s.GetLogStore(), DiskFreeBytes: s.GetDiskFreeBytes(), AppendP50Ms: milliseconds(s.GetAppendP50().AsDuration()),
			AppendP99Ms: milliseconds(s.GetAppendP99().AsDuration()), UptimeSeconds: s.GetUptime().AsDuration().Seconds(),
			Version: m.GetVersion(), FeatureLevel: m.GetFeatureLevel(), Problems: append([]string{}, s.GetProblems()...),
		}
		if s.GetStaleness() != nil {
			ms := milliseconds(s.GetStaleness().AsDuration())
			v.StalenessMs = &ms
		}
		furthest = max(furthest, v.AppliedIndex)
		views = append(views, v)
	}
	for i := range views {
		if views[i].Reachable {
			views[i].lag = furthest - views[i].AppliedIndex
		}
	}
	return views
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func memberTable() tableOf[memberView] {
	reached := func(text func(memberView) string) func(memberView) string {
		return func(v memberView) string {
			if !v.Reachable {
				return ""
			}
			return text(v)
		}
	}
	return tableOf[memberView]{
		name: func(v memberView) string { return "member/" + v.Name },
		columns: []column[memberView]{
			{title: "NAME", text: func(v memberView) string { return v.Name }},
			{title: "ROLE", text: func(v memberView) string {
				if !v.Reachable {
					return "unreachable"
				}
				return v.Role
			}, colour: func(v memberView) string {
				switch {
				case !v.Reachable:
					return colourBad
				case v.Role == "leader":
					return colourGood
				}
				return ""
			}},
			{title: "SUFFRAGE", text: func(v memberView) string { return v.Suffrage }},
			{title: "ADDRESS", text: func(v memberView) string { return v.GRPCAddress }},
			{title: "PEER-ADDRESS", wide: true, text: func(v memberView) string { return v.Address }},
			{title: "APPLIED", right: true, text: reached(func(v memberView) string { return strconv.FormatUint(v.AppliedIndex, 10) })},
			{title: "LAG", right: true, text: reached(func(v memberView) string { return strconv.FormatUint(v.lag, 10) })},
			{title: "TERM", wide: true, right: true, text: reached(func(v memberView) string { return strconv.FormatUint(v.Term, 10) })},
			{title: "LOG-STORE", wide: true, text: func(v memberView) string { return v.LogStore }},
			{title: "DISK-FREE", text: reached(func(v memberView) string { return bytesText(v.DiskFreeBytes) })},
			{title: "FSYNC-P99", text: reached(func(v memberView) string { return fmt.Sprintf("%.1fms", v.AppendP99Ms) })},
			{title: "VERSION", wide: true, text: func(v memberView) string { return v.Version }},
			{title: "ID", wide: true, text: func(v memberView) string { return v.ID }},
			{title: "UPTIME", text: reached(func(v memberView) string { return short(time.Duration(v.UptimeSeconds * float64(time.Second))) })},
		},
	}
}

// bytesText prints a size for people.
func bytesText(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	size, unit := float64(n), 0
	for size >= 1024 && unit < len(units)-1 {
		size /= 1024
		unit++
	}
	if unit == 0 {
		return fmt.Sprintf("%dB", n)
	}
	return fmt.Sprintf("%.1f%s", size, units[unit])
}

// plural counts things.
func plural[N int | uint64](n N, thing string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", thing)
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// sessionView is one session.
type sessionView struct {
	ID             string  `json:"id"`
	ClientName     string  `json:"client_name"`
	TTLSeconds     float64 `json:"ttl_seconds"`
	Instances      uint32  `json:"instances"`
	Locks          uint32  `json:"locks"`
	Keys           uint32  `json:"keys"`
	CreateRevision uint64  `json:"create_revision"`
	OpenedAt       string  `json:"opened_at"`
	// Behavior says what becomes of its keys when it ends, LockDelaySeconds how long nobody may acquire them then.
	Behavior         string  `json:"behavior"`
	LockDelaySeconds float64 `json:"lock_delay_seconds"`
}

func viewSession(s *registryv1.Session) sessionView {
	behavior := enumWord(s.GetBehavior().String(), "SESSION_BEHAVIOR_")
	if behavior == "" {
		behavior = "release"
	}
	return sessionView{
		ID: s.GetId(), ClientName: s.GetClientName(), TTLSeconds: s.GetTtl().AsDuration().Seconds(), Instances: s.GetInstances(),
		Locks: s.GetLocks(), Keys: s.GetKeys(), CreateRevision: s.GetCreateRevision(), OpenedAt: timestamp(s.GetOpenedUnixMs()),
		Behavior: behavior, LockDelaySeconds: s.GetLockDelay().AsDuration().Seconds(),
	}
}

func sessionTable(now time.Time) tableOf[sessionView] {
	return tableOf[sessionView]{
		name: func(v sessionView) string { return "session/" + v.ID },
		columns: []column[sessionView]{
			{title: "ID", text: func(v sessionView) string { return v.ID }},
			{title: "CLIENT", text: func(v sessionView) string { return v.ClientName }},
			{title: "TTL", text: func(v sessionView) string { return fmt.Sprintf("%gs", v.TTLSeconds) }},
			{title: "INSTANCES", right: true, text: func(v sessionView) string { return strconv.FormatUint(uint64(v.Instances), 10) }},
			{title: "LOCKS", right: true, text: func(v sessionView) string { return strconv.FormatUint(uint64(v.Locks), 10) }},
			{title: "KEYS", right: true, text: func(v sessionView) string { return strconv.FormatUint(uint64(v.Keys), 10) }},
			{title: "BEHAVIOR", wide: true, text: func(v sessionView) string { return v.Behavior }},
			{title: "LOCK DELAY", wide: true, text: func(v sessionView) string { return fmt.Sprintf("%gs", v.LockDelaySeconds) }},
			{title: "REVISION", wide: true, right: true, text: func(v sessionView) string { return strconv.FormatUint(v.CreateRevision, 10) }},
			{title: "AGE", text: func(v sessionView) string { return age(v.OpenedAt, now) }},
		},
	}
}

// snapshotView describes a snapshot.
type snapshotView struct {
	ClusterID   string `json:"cluster_id"`
	Index       uint64 `json:"index"`
	Term        uint64 `json:"term"`
	Revision    uint64 `json:"revision"`
	Epoch       uint64 `json:"epoch"`
	ContentHash string `json:"content_hash"`
	Instances   uint64 `json:"instances"`
	Sessions    uint64 `json:"sessions"`
	Leases      uint64 `json:"leases"`
	Locks       uint64 `json:"locks"`
	Version     uint32 `json:"version"`
	File        string `json:"file,omitempty"`
	Bytes       int64  `json:"bytes,omitempty"`
}

func viewSnapshot(i *apiv1.SnapshotInfo) snapshotView {
	return snapshotView{
		ClusterID: i.GetClusterId(), Index: i.GetIndex(), Term: i.GetTerm(), Revision: i.GetRevision(), Epoch: i.GetEpoch(),
		ContentHash: hex.EncodeToString(i.GetContentHash()), Instances: i.GetInstances(), Sessions: i.GetSessions(),
		Leases: i.GetLeases(), Locks: i.GetLocks(), Version: i.GetVersion(),
	}
}
