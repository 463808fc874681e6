package pods

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
)

// manifest is what the play needs of a StatefulSet. Numbers are as Kubernetes has them.
type manifest struct {
	Metadata struct{ Name string }
	Spec     struct {
		ServiceName         string `yaml:"serviceName"`
		Replicas            int
		PodManagementPolicy string `yaml:"podManagementPolicy"`
		Template            struct {
			Spec struct {
				TerminationGracePeriodSeconds int `yaml:"terminationGracePeriodSeconds"`
				Containers                    []container
			}
		}
	}
}

type container struct {
	Args  []string
	Env   []variable
	Ports []struct {
		Name          string
		ContainerPort int `yaml:"containerPort"`
	}
	StartupProbe   probe `yaml:"startupProbe"`
	LivenessProbe  probe `yaml:"livenessProbe"`
	ReadinessProbe probe `yaml:"readinessProbe"`
	Resources      struct{ Requests struct{ Memory string } }
	VolumeMounts   []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
	} `yaml:"volumeMounts"`
}

type variable struct {
	Name, Value string
	ValueFrom   struct {
		FieldRef struct {
			FieldPath string `yaml:"fieldPath"`
		} `yaml:"fieldRef"`
		ResourceFieldRef struct{ Resource string } `yaml:"resourceFieldRef"`
	} `yaml:"valueFrom"`
}

type probe struct {
	HTTPGet          struct{ Path, Port string } `yaml:"httpGet"`
	PeriodSeconds    int                         `yaml:"periodSeconds"`
	TimeoutSeconds   int                         `yaml:"timeoutSeconds"`
	FailureThreshold int                         `yaml:"failureThreshold"`
}

func (p probe) period() time.Duration  { return time.Duration(p.PeriodSeconds) * time.Second }
func (p probe) timeout() time.Duration { return time.Duration(p.TimeoutSeconds) * time.Second }

// readManifest reads the StatefulSet of a folder of deploy/kubernetes, as its component insecure patches it: with its variables
// before the others, as Kustomize puts them.
func readManifest(dir string) (manifest, error) {
	var m, patch manifest
	for path, into := range map[string]*manifest{
		"base/statefulset.yaml": &m, "components/insecure/statefulset.yaml": &patch,
	} {
		text, err := os.ReadFile(filepath.Join(dir, path)) //nolint:gosec // Ours.
		if err == nil {
			err = yaml.Unmarshal(text, into)
		}
		if err != nil {
			return manifest{}, fmt.Errorf("read %s: %w", path, err)
		}
	}
	for _, one := range []manifest{m, patch} {
		if n := len(one.Spec.Template.Spec.Containers); n != 1 {
			return manifest{}, fmt.Errorf("%s: %d containers, want 1", dir, n)
		}
	}
	c := m.container()
	c.Env = append(patch.container().Env, c.Env...)
	return m, nil
}

func (m *manifest) container() *container { return &m.Spec.Template.Spec.Containers[0] }

// environment is that of a pod: what is put in is what stands before.
func (m *manifest) environment(pod, namespace string) ([]string, error) {
	values := map[string]string{}
	var list []string
	for _, v := range m.container().Env {
		value, err := m.value(v, pod, namespace)
		if err != nil {
			return nil, fmt.Errorf("variable %s: %w", v.Name, err)
		}
		value = regexp.MustCompile(`\$\((\w+)\)`).ReplaceAllStringFunc(value, func(ref string) string {
			if known, ok := values[ref[2:len(ref)-1]]; ok {
				return known
			}
			return ref // As Kubernetes does.
		})
		values[v.Name] = value
		list = append(list, v.Name+"="+value)
	}
	return list, nil
}

func (m *manifest) value(v variable, pod, namespace string) (string, error) {
	switch field, resource := v.ValueFrom.FieldRef.FieldPath, v.ValueFrom.ResourceFieldRef.Resource; {
	case field == "metadata.name":
		return pod, nil
	case field == "metadata.namespace":
		return namespace, nil
	case resource == "requests.memory":
		return bytesOf(m.container().Resources.Requests.Memory)
	case v.Value == "":
		return "", fmt.Errorf("the play knows no such source (%q, %q)", field, resource)
	default:
		return v.Value, nil
	}
}

// bytesOf is a quantity in bytes.
func bytesOf(quantity string) (string, error) {
	for suffix, shift := range map[string]int{"Ki": 10, "Mi": 20, "Gi": 30} {
		if digits, ok := strings.CutSuffix(quantity, suffix); ok {
			n, err := strconv.ParseInt(digits, 10, 32)
			return strconv.FormatInt(n<<shift, 10), err
		}
	}
	return "", fmt.Errorf("quantity %q: the play knows Ki, Mi and Gi only", quantity)
}

// port is the number of a named port.
func (m *manifest) port(name string) (string, error) {
	for _, p := range m.container().Ports {
		if p.Name == name {
			return strconv.Itoa(p.ContainerPort), nil
		}
	}
	return "", fmt.Errorf("the container has no port %q", name)
}
