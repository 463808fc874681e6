package deploy

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// object is one manifest, as text says it and as Kubernetes reads it.
type object struct {
	metav1.TypeMeta
	name  string
	plain map[string]any
	typed any
}

// The parts of the types of the Prometheus operator and of cert-manager that are used, by their references:
// https://prometheus-operator.dev/docs/api-reference/api and https://cert-manager.io/docs/reference/api-docs. Their
// modules would bring a controller library each.
type (
	serviceMonitor struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			Selector  metav1.LabelSelector `json:"selector"`
			Endpoints []struct {
				Port     string `json:"port"`
				Path     string `json:"path"`
				Interval string `json:"interval"`
			} `json:"endpoints"`
		} `json:"spec"`
	}
	prometheusRule struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              map[string]any `json:"spec"`
	}
	certificate struct {
		metav1.TypeMeta   `json:",inline"`
		metav1.ObjectMeta `json:"metadata"`
		Spec              struct {
			SecretName  string          `json:"secretName"`
			IssuerRef   issuerRef       `json:"issuerRef"`
			Duration    metav1.Duration `json:"duration"`
			RenewBefore metav1.Duration `json:"renewBefore"`
			PrivateKey  struct {
				Algorithm      string `json:"algorithm"`
				Size           int    `json:"size"`
				RotationPolicy string `json:"rotationPolicy"`
			} `json:"privateKey"`
			Usages      []string `json:"usages"`
			DNSNames    []string `json:"dnsNames"`
			IPAddresses []string `json:"ipAddresses"`
			URIs        []string `json:"uris"`
		} `json:"spec"`
	}
	issuerRef struct {
		Name  string `json:"name"`
		Kind  string `json:"kind"`
		Group string `json:"group"`
	}
)

// kinds are the types of all manifests that there may be.
func kinds() map[metav1.TypeMeta]any {
	return map[metav1.TypeMeta]any{
		{APIVersion: "apps/v1", Kind: "StatefulSet"}:                     &appsv1.StatefulSet{},
		{APIVersion: "v1", Kind: "Service"}:                              &corev1.Service{},
		{APIVersion: "v1", Kind: "ServiceAccount"}:                       &corev1.ServiceAccount{},
		{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}:           &policyv1.PodDisruptionBudget{},
		{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicy"}:      &networkingv1.NetworkPolicy{},
		{APIVersion: "monitoring.coreos.com/v1", Kind: "ServiceMonitor"}: &serviceMonitor{},
		{APIVersion: "monitoring.coreos.com/v1", Kind: "PrometheusRule"}: &prometheusRule{},
		{APIVersion: "cert-manager.io/v1", Kind: "Certificate"}:          &certificate{},
	}
}

// decode reads manifests as strictly as Kubernetes does on request: unknown and doubled fields are errors.
func decode(t *testing.T, text string) []object {
	t.Helper()
	var objects []object
	for _, doc := range strings.Split("\n"+text, "\n---") {
		var o object
		if err := yaml.Unmarshal([]byte(doc), &o.plain); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		if o.plain == nil {
			continue
		}
		objects = append(objects, retype(t, o))
	}
	return objects
}

// retype reads an object again from what it plainly says.
func retype(t *testing.T, o object) object {
	t.Helper()
	text, err := yaml.Marshal(o.plain)
	if err != nil {
		t.Fatal(err)
	}
	var meta metav1.PartialObjectMetadata
	if err := yaml.Unmarshal(text, &meta); err != nil {
		t.Fatal(err)
	}
	o.TypeMeta, o.name, o.typed = meta.TypeMeta, meta.Name, kinds()[meta.TypeMeta]
	if o.typed == nil {
		t.Fatalf("%s %s %s: of no kind that the tests know", o.APIVersion, o.Kind, o.name)
	}
	if err := yaml.UnmarshalStrict(text, o.typed, yaml.DisallowUnknownFields); err != nil {
		t.Fatalf("%s %s: %v", o.Kind, o.name, err)
	}
	return o
}

func TestManifestsFitTogether(t *testing.T) {
	t.Parallel()
	for name, render := range renderings() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, fault := range faults(t, render(t)) {
				t.Error(fault)
			}
		})
	}
}

// A check that never fails proves nothing: each of these slips must be found.
func TestSlipsInManifestsAreFound(t *testing.T) {
	t.Parallel()
	objects := helm(t, "{insecure: true, metrics: {serviceMonitor: {enabled: true}}}")
	for _, slip := range []struct{ kind, old, new, says string }{
		{"StatefulSet", "REGD_SHUTDOWN_DELAY", "REGD_SHUTDWN_DELAY", "REGD_SHUTDWN_DELAY is no setting"},
		{"StatefulSet", "value: 5s", "value: 5", "must be a duration"},
		{"StatefulSet", "--", "", ""}, // Nothing is changed, nothing is found.
		{"StatefulSet", "$(REGD_NAME)", "$(NAME)", "$(NAME) is not set before"},
		{"StatefulSet", "name: grpc", "name: grcp", `port "grpc" is none of the pod`},
		{"StatefulSet", "containerPort: 7401", "containerPort: 7411", "REGD_PEER_LISTEN"},
		{"StatefulSet", "path: /livez", "path: /healthz", "/healthz"},
		{"StatefulSet", "path: /livez", "path: /startupz", "answers 503 while the node waits for others"},
		{"StatefulSet", "app.kubernetes.io/name: regd", "app.kubernetes.io/name: red", "selects no pod"},
		{"StatefulSet", "serviceName: regd-peers", "serviceName: regd", "headless"},
		{"StatefulSet", "replicas: 3", "replicas: 5", "REGD_INITIAL_PEERS"},
		{"StatefulSet", "podManagementPolicy: Parallel", "podManagementPolicy: OrderedReady", "Parallel"},
		{"StatefulSet", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "readOnlyRootFilesystem"},
		{"StatefulSet", "terminationGracePeriodSeconds: 60", "terminationGracePeriodSeconds: 10", "terminationGracePeriodSeconds"},
		{"StatefulSet", "mountPath: /var/lib/regd", "mountPath: /var/lib/other", "REGD_DATA_DIR"},
		{"Service", "app.kubernetes.io/name: regd", "app.kubernetes.io/name: red", "selects no"},
		{"Service", "targetPort: grpc", "targetPort: api", `port "api" is none of the pod`},
		{"Service", "publishNotReadyAddresses: true", "publishNotReadyAddresses: false", "publishNotReadyAddresses"},
		{"NetworkPolicy", "port: peer", "port: raft", `port "raft" is none of the pod`},
		{"NetworkPolicy", "app.kubernetes.io/instance: regd", "app.kubernetes.io/instance: red", "selects no pod"},
		{"PodDisruptionBudget", "app.kubernetes.io/instance: regd", "app.kubernetes.io/instance: red", "selects no pod"},
		{"ServiceMonitor", "port: http-ops", "port: ops", `port "ops" is none of the Service`},
		{"ServiceMonitor", "app.kubernetes.io/component: peers", "app.kubernetes.io/component: all", "selects 0 Services"},
	} {
		t.Run(slip.kind+" "+slip.new, func(t *testing.T) {
			t.Parallel()
			changed := make([]object, len(objects))
			for i, o := range objects {
				if changed[i] = o; o.Kind == slip.kind {
					changed[i] = slipped(t, o, slip.old, slip.new)
				}
			}
			found := strings.Join(faults(t, changed), "\n")
			if (slip.says == "") != (found == "") || !strings.Contains(found, slip.says) {
				t.Errorf("%q for %q: found\n%s\nwant %q", slip.new, slip.old, found, slip.says)
			}
		})
	}
}

// slipped is an object in whose text something stands for something else.
func slipped(t *testing.T, o object, old, replacement string) object {
	t.Helper()
	text, err := yaml.Marshal(o.plain)
	if err != nil {
		t.Fatal(err)
	}
	changed := object{}
	if err := yaml.Unmarshal([]byte(strings.ReplaceAll(string(text), old, replacement)), &changed.plain); err != nil {
		t.Fatal(err)
	}
	return retype(t, changed)
}

func TestKustomizeAndHelmMakeTheSame(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ folder, values string }{
		{"overlays/insecure", "insecure: true"},
		{"overlays/production", read(t, productionValues)},
	} {
		t.Run(tt.folder, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(essence(kustomize(t, tt.folder)), essence(helm(t, tt.values))); diff != "" {
				t.Errorf("they differ (-kustomize +helm):\n%s", diff)
			}
		})
	}
}

// essence is what objects say, by kind and name, apart from labels that only tell how they were made and from the order of
// variables.
func essence(objects []object) map[string]map[string]any {
	all := map[string]map[string]any{}
	for _, o := range objects {
		if labels, ok := o.plain["metadata"].(map[string]any)["labels"].(map[string]any); ok {
			for _, made := range []string{"helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"} {
				delete(labels, made)
			}
		}
		if set, ok := o.typed.(*appsv1.StatefulSet); ok {
			env := map[string]any{}
			for _, v := range set.Spec.Template.Spec.Containers[0].Env {
				env[v.Name] = v
			}
			spec := o.plain["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
			spec["containers"].([]any)[0].(map[string]any)["env"] = env
		}
		all[o.Kind+" "+o.name] = o.plain
	}
	return all
}

func TestTheChartRefusesWhatCanNotWork(t *testing.T) {
	t.Parallel()
	for values, says := range map[string]string{
		"":                                              "say how the ports are protected",
		"{insecure: true, tls: {enabled: true}}":        "say how the ports are protected",
		"{insecure: true, replicas: 2}":                 "replicas",
		"{insecure: true, replica: 3}":                  "replica",
		"{insecure: true, antiAffinity: never}":         "antiAffinity",
		"{insecure: true, settings: {Log_Level: info}}": "Log_Level",
	} {
		if out, err := renderChart(values); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want an error with %q\n%s", values, err, says, out)
		}
	}
}

func TestTheBaseAloneDoesNotStart(t *testing.T) {
	t.Parallel()
	found := strings.Join(faults(t, kustomize(t, "base")), "\n")
	if !strings.Contains(found, "reaches beyond this machine without TLS") {
		t.Errorf("faults:\n%s\nwant one: nobody has said how the ports are protected", found)
	}
}
