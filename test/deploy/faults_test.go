package deploy

import (
	"encoding/json"
	"fmt"
	"net"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// manifests are those of one cluster.
type manifests struct {
	t        *testing.T
	set      *appsv1.StatefulSet
	services []*corev1.Service
	accounts []string
	secrets  []string // that certificates make; nil without certificates
	found    []string
}

// faults says in which way manifests don't fit each other or the binary.
func faults(t *testing.T, objects []object) []string {
	t.Helper()
	m := &manifests{t: t}
	for _, o := range objects {
		switch typed := o.typed.(type) {
		case *appsv1.StatefulSet:
			m.set = typed
		case *corev1.Service:
			m.services = append(m.services, typed)
		case *corev1.ServiceAccount:
			m.accounts = append(m.accounts, typed.Name)
		case *certificate:
			m.secrets = append(m.secrets, typed.Spec.SecretName)
		}
	}
	if m.set == nil {
		return []string{"there is no StatefulSet"}
	}
	for _, o := range objects {
		m.refers(o)
	}
	m.workload()
	m.storage()
	m.settings()
	m.probes()
	m.hardened()
	return m.found
}

func (m *manifests) fault(format string, args ...any) {
	m.found = append(m.found, fmt.Sprintf(format, args...))
}

// selects holds that a selector selects the pods of the cluster.
func (m *manifests) selects(what string, selector *metav1.LabelSelector) {
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil || s.Empty() || !s.Matches(labels.Set(m.set.Spec.Template.Labels)) {
		m.fault("%s: selects no pod of the cluster", what)
	}
}

func (m *manifests) pod() *corev1.Container { return &m.set.Spec.Template.Spec.Containers[0] }

// port is the port of the pod that a name means.
func (m *manifests) port(what string, port intstr.IntOrString) int32 {
	for _, p := range m.pod().Ports {
		if port.StrVal == p.Name {
			return p.ContainerPort
		}
	}
	m.fault("%s: port %q is none of the pod", what, port.String())
	return 0
}

// refers holds that what an object refers to exists.
func (m *manifests) refers(o object) {
	what := o.Kind + " " + o.name
	switch typed := o.typed.(type) {
	case *corev1.Service:
		m.selects(what, &metav1.LabelSelector{MatchLabels: typed.Spec.Selector})
		for _, p := range typed.Spec.Ports {
			if m.port(what, p.TargetPort) != p.Port && p.TargetPort.StrVal != "" {
				m.fault("%s: port %s is another one in the pod", what, p.Name)
			}
		}
	case *policyv1.PodDisruptionBudget:
		m.selects(what, typed.Spec.Selector)
		if most := typed.Spec.MaxUnavailable; most == nil || most.IntValue() != 1 {
			m.fault("%s: maxUnavailable must be 1", what)
		}
	case *networkingv1.NetworkPolicy:
		m.policy(what, typed)
	case *serviceMonitor:
		m.monitor(what, typed)
	}
}

func (m *manifests) policy(what string, policy *networkingv1.NetworkPolicy) {
	m.selects(what, &policy.Spec.PodSelector)
	for _, rule := range policy.Spec.Ingress {
		if len(rule.From) == 0 || len(rule.Ports) == 0 {
			m.fault("%s: a rule lets everybody in", what)
		}
		for _, from := range rule.From {
			if from.PodSelector != nil {
				m.selects(what, from.PodSelector)
			}
		}
		for _, p := range rule.Ports {
			m.port(what, *p.Port)
			if p.Port.StrVal == "peer" && (len(rule.From) != 1 || rule.From[0].PodSelector == nil || rule.From[0].NamespaceSelector != nil) {
				m.fault("%s: others than the nodes reach the peer port", what)
			}
		}
	}
}

func (m *manifests) monitor(what string, monitor *serviceMonitor) {
	s, err := metav1.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil {
		m.fault("%s: %v", what, err)
		return
	}
	var chosen []*corev1.Service
	for _, service := range m.services {
		if s.Matches(labels.Set(service.Labels)) {
			chosen = append(chosen, service)
		}
	}
	if len(chosen) != 1 || !chosen[0].Spec.PublishNotReadyAddresses {
		m.fault("%s: selects %d Services, want the one with nodes that are not ready", what, len(chosen))
		return
	}
	for _, endpoint := range monitor.Spec.Endpoints {
		if !slices.ContainsFunc(chosen[0].Spec.Ports, func(p corev1.ServicePort) bool { return p.Name == endpoint.Port }) {
			m.fault("%s: port %q is none of the Service", what, endpoint.Port)
		}
		if code := statusOf(m.t, endpoint.Path); code != 200 {
			m.fault("%s: %s answers %d", what, endpoint.Path, code)
		}
	}
}

// workload holds that nodes find each other, are started together and spread.
func (m *manifests) workload() {
	spec := m.set.Spec
	m.selects("StatefulSet", spec.Selector)
	if spec.PodManagementPolicy != appsv1.ParallelPodManagement {
		m.fault("StatefulSet: nodes need each other to become ready: podManagementPolicy must be Parallel")
	}
	i := slices.IndexFunc(m.services, func(s *corev1.Service) bool { return s.Name == spec.ServiceName })
	if i < 0 || m.services[i].Spec.ClusterIP != corev1.ClusterIPNone {
		m.fault("StatefulSet: serviceName %q is no headless Service", spec.ServiceName)
	} else if !m.services[i].Spec.PublishNotReadyAddresses {
		m.fault("Service %s: nodes need each other to become ready: publishNotReadyAddresses must be true", spec.ServiceName)
	}
	pod := spec.Template.Spec
	if pod.Affinity != nil {
		for _, term := range pod.Affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution {
			m.selects("anti-affinity", term.LabelSelector)
		}
		for _, term := range pod.Affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution {
			m.selects("anti-affinity", term.PodAffinityTerm.LabelSelector)
		}
	}
	for _, constraint := range pod.TopologySpreadConstraints {
		m.selects("topology spread", constraint.LabelSelector)
	}
	if !slices.Contains(m.accounts, pod.ServiceAccountName) {
		m.fault("StatefulSet: there is no ServiceAccount %q", pod.ServiceAccountName)
	}
}

// storage holds that all that is mounted exists, and that data is kept on a volume.
func (m *manifests) storage() {
	volumes := map[string]bool{}
	for _, claim := range m.set.Spec.VolumeClaimTemplates {
		volumes[claim.Name] = true
	}
	for _, v := range m.set.Spec.Template.Spec.Volumes {
		volumes[v.Name] = true
		var secrets []string
		if v.Secret != nil {
			secrets = append(secrets, v.Secret.SecretName)
		}
		if v.Projected != nil {
			for _, source := range v.Projected.Sources {
				secrets = append(secrets, source.Secret.Name)
			}
		}
		for _, s := range secrets {
			if m.secrets != nil && !slices.Contains(m.secrets, s) {
				m.fault("volume %s: no certificate makes Secret %s", v.Name, s)
			}
		}
	}
	kept := false
	for _, mount := range m.pod().VolumeMounts {
		if !volumes[mount.Name] {
			m.fault("mount %s: there is no such volume", mount.MountPath)
		}
		kept = kept || mount.Name == "data" && strings.HasPrefix(m.env()["REGD_DATA_DIR"], mount.MountPath+"/")
	}
	if !kept {
		m.fault("REGD_DATA_DIR is not on the volume that is kept")
	}
}

// env are the variables of pod 0 in namespace regd, as Kubernetes makes them: what is referred to has to be set before.
func (m *manifests) env() map[string]string {
	env := map[string]string{}
	for _, v := range m.pod().Env {
		value := v.Value
		if v.ValueFrom != nil {
			switch from := v.ValueFrom; {
			case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.name":
				value = m.set.Name + "-0"
			case from.FieldRef != nil && from.FieldRef.FieldPath == "metadata.namespace":
				value = "regd"
			case from.ResourceFieldRef != nil && from.ResourceFieldRef.Resource == "requests.memory":
				value = fmt.Sprint(m.pod().Resources.Requests.Memory().Value())
			}
		}
		for name, set := range env {
			value = strings.ReplaceAll(value, "$("+name+")", set)
		}
		env[v.Name] = value
	}
	return env
}

// settings holds that regd knows all settings and takes their values.
func (m *manifests) settings() {
	env := m.env()
	var list []string
	known := knownSettings(m.t)
	for name, value := range env {
		list = append(list, name+"="+value)
		if _, after, refers := strings.Cut(value, "$("); refers {
			m.fault("%s: $(%s is not set before", name, strings.SplitAfter(after, ")")[0])
		}
		if strings.HasPrefix(name, "REGD_") && !slices.Contains(known, name) {
			m.fault("%s is no setting of regd serve", name)
		}
	}
	if !slices.Equal(m.pod().Args, []string{"serve"}) {
		m.fault("args: %q, want serve", m.pod().Args)
	}
	if _, err := run(m.t.Context(), list, regd, "config", "check"); err != nil {
		m.fault("%v", err)
	}
	if links := m.set.Spec.Template.Spec.EnableServiceLinks; links == nil || *links {
		m.fault("enableServiceLinks must be false: what it sets looks like settings")
	}
	for setting, port := range map[string]string{"REGD_GRPC_LISTEN": "grpc", "REGD_PEER_LISTEN": "peer", "REGD_HTTP_LISTEN": "http-ops"} {
		_, listens, err := net.SplitHostPort(env[setting])
		if want := m.port(setting, intstr.FromString(port)); err != nil || listens != fmt.Sprint(want) {
			m.fault("%s=%s: the port %s of the pod is %d", setting, env[setting], port, want)
		}
		advertised := strings.Replace(setting, "REGD_", "REGD_ADVERTISE_", 1)
		advertised = strings.TrimSuffix(advertised, "_LISTEN")
		if want := fmt.Sprintf("%s-0.%s.regd.svc:%s", m.set.Name, m.set.Spec.ServiceName, listens); env[advertised] != want {
			m.fault("%s=%s, want %s", advertised, env[advertised], want)
		}
	}
	var peers []string
	for i := range *m.set.Spec.Replicas {
		peers = append(peers, fmt.Sprintf("%s-%d.%s.regd.svc:7401", m.set.Name, i, m.set.Spec.ServiceName))
	}
	if got, want := env["REGD_INITIAL_PEERS"], strings.Join(peers, ","); got != want {
		m.fault("REGD_INITIAL_PEERS=%s, want all %d nodes: %s", got, len(peers), want)
	}
}

// knownSettings are the variables that regd serve, and commands that ask a node, read.
func knownSettings(t *testing.T) []string {
	t.Helper()
	out, err := run(t.Context(), nil, regd, "config", "show", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var shown struct {
		Settings []struct {
			Variable string `json:"variable"`
		} `json:"settings"`
	}
	if err = json.Unmarshal([]byte(out), &shown); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range shown.Settings {
		names = append(names, s.Variable)
	}
	help, err := run(t.Context(), nil, regd, "status", "--help") // For commands that are run in a pod.
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range regexp.MustCompile(`\[\$(REGD_\w+)\]`).FindAllStringSubmatch(help, -1) {
		names = append(names, found[1])
	}
	return names
}

// probes holds that probes ask for what there is, and that none restarts a node because others are missing.
func (m *manifests) probes() {
	c := m.pod()
	for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil {
			m.fault("the %s probe is missing", what)
			continue
		}
		m.port(what+" probe", probe.HTTPGet.Port)
		code := statusOf(m.t, probe.HTTPGet.Path)
		switch {
		case code == 404:
			m.fault("%s probe: regd does not know %s", what, probe.HTTPGet.Path)
		case what != "readiness" && code != 200:
			m.fault("%s probe: %s answers %d while the node waits for others", what, probe.HTTPGet.Path, code)
		case what == "readiness" && code != 503:
			m.fault("readiness probe: %s answers %d while the node waits for others", probe.HTTPGet.Path, code)
		}
	}
}

// hardened holds what the Pod Security Standard "restricted" wants, and more.
func (m *manifests) hardened() {
	pod := m.set.Spec.Template.Spec
	c := m.pod()
	yes := func(b *bool) bool { return b != nil && *b }
	no := func(b *bool) bool { return b != nil && !*b }
	for what, holds := range map[string]bool{
		"automountServiceAccountToken must be false": no(pod.AutomountServiceAccountToken),
		"runAsNonRoot must be true":                  pod.SecurityContext != nil && yes(pod.SecurityContext.RunAsNonRoot),
		"seccompProfile must be RuntimeDefault": pod.SecurityContext != nil && pod.SecurityContext.SeccompProfile != nil &&
			pod.SecurityContext.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
		"allowPrivilegeEscalation must be false":                                             no(c.SecurityContext.AllowPrivilegeEscalation),
		"readOnlyRootFilesystem must be true":                                                yes(c.SecurityContext.ReadOnlyRootFilesystem),
		"all capabilities must be dropped":                                                   slices.Equal(c.SecurityContext.Capabilities.Drop, []corev1.Capability{"ALL"}),
		"terminationGracePeriodSeconds must be 30 at least, as a node may take 20 s to stop": *pod.TerminationGracePeriodSeconds >= 30,
		"memory must be requested, and a limit lie above": !c.Resources.Requests.Memory().IsZero() &&
			c.Resources.Limits.Memory().Cmp(*c.Resources.Requests.Memory()) > 0,
		"CPU must not be limited":                      c.Resources.Limits.Cpu().IsZero(),
		"GOMEMLIMIT must be what is requested":         m.env()["GOMEMLIMIT"] == fmt.Sprint(c.Resources.Requests.Memory().Value()),
		"the image must have a tag that is not latest": strings.ContainsAny(path.Base(c.Image), ":@") && !strings.HasSuffix(c.Image, ":latest"),
	} {
		if !holds {
			m.fault("pod: %s", what)
		}
	}
}
