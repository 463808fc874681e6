package deploy

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/Masterminds/sprig/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"sigs.k8s.io/yaml"
)

// chartDir is the chart.
const chartDir = root + "/deploy/helm/regd"

// renderChart is what "helm template regd deploy/helm/regd --namespace regd" makes of values, by what Helm itself is made of:
// templates of Go with the functions of Sprig, and a JSON schema. Helm is left out, as to compile it takes minutes; what the
// chart needs of it are the few functions here. TestHelmRendersTheSame holds this against Helm.
func renderChart(values string) (string, error) {
	chart, all, given := map[string]any{}, map[string]any{}, map[string]any{}
	for from, to := range map[string]*map[string]any{chartDir + "/Chart.yaml": &chart, chartDir + "/values.yaml": &all} {
		text, err := os.ReadFile(from)
		if err != nil {
			return "", err
		}
		if err := yaml.UnmarshalStrict(text, to); err != nil {
			return "", fmt.Errorf("%s: %w", from, err)
		}
	}
	if err := yaml.UnmarshalStrict([]byte(values), &given); err != nil {
		return "", fmt.Errorf("values %q: %w", values, err)
	}
	merge(all, given)
	schema, err := jsonschema.NewCompiler().Compile(chartDir + "/values.schema.json")
	if err != nil {
		return "", err
	}
	if err := schema.Validate(all); err != nil {
		return "", err
	}
	return execute(map[string]any{
		"Values":  all,
		"Chart":   map[string]any{"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
		"Release": map[string]any{"Name": "regd", "Namespace": "regd", "Service": "Helm"},
		"Files":   files{},
	})
}

// merge puts values over others: maps into maps, and null takes a value away.
func merge(under, over map[string]any) {
	for name, value := range over {
		below, isMap := under[name].(map[string]any)
		above, areMaps := value.(map[string]any)
		switch {
		case value == nil:
			delete(under, name)
		case isMap && areMaps:
			merge(below, above)
		default:
			under[name] = value
		}
	}
}

// execute executes all templates, and returns what those for manifests make.
func execute(data map[string]any) (string, error) {
	all := template.New("").Option("missingkey=zero")
	executed := func(name string, data any) (string, error) {
		var out strings.Builder
		err := all.ExecuteTemplate(&out, name, data)
		return strings.ReplaceAll(out.String(), "<no value>", ""), err
	}
	funcs := sprig.TxtFuncMap()
	maps.Copy(funcs, template.FuncMap{
		"include": executed,
		"fail":    func(why string) (string, error) { return "", fmt.Errorf("fail: %s", why) },
		"toYaml": func(v any) (string, error) {
			text, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(text), "\n"), err
		},
		"required": func(why string, v any) (any, error) {
			if v == nil || v == "" {
				return nil, fmt.Errorf("required: %s", why)
			}
			return v, nil
		},
	})
	names, err := filepath.Glob(chartDir + "/templates/*")
	if err != nil {
		return "", err
	}
	if all, err = all.Funcs(funcs).ParseFiles(names...); err != nil {
		return "", err
	}
	var manifests []string
	for _, name := range names {
		out, err := executed(filepath.Base(name), data)
		if err != nil {
			return "", err
		}
		if filepath.Ext(name) == ".yaml" {
			manifests = append(manifests, out)
		}
	}
	return strings.Join(manifests, "\n---\n"), nil
}

// files are those of the chart, for its templates.
type files struct{}

// Get returns the text of a file.
func (files) Get(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(chartDir, name))
	return string(text), err
}

// With HELM=1, for Helm is compiled for it. It sorts the manifests by kind.
func TestHelmRendersTheSame(t *testing.T) {
	t.Parallel()
	if os.Getenv("HELM") == "" {
		t.Skip("HELM=1 is not set: see make check-helm")
	}
	for name, values := range map[string]string{
		"insecure": "insecure: true", "production": read(t, productionValues), "everything": read(t, everyValue),
		"refused": "insecure: false", "unknown": "{insecure: true, replica: 3}", "null": "{insecure: true, podLabels: null}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "values.yaml")
			if err := os.WriteFile(file, []byte(values), 0o600); err != nil {
				t.Fatal(err)
			}
			want, wantErr := run(t.Context(), []string{"GOWORK=off"}, "go", "tool", "-modfile=tools/helm.mod", "helm", "template", "regd",
				"deploy/helm/regd", "--namespace", "regd", "-f", file)
			got, err := renderChart(values)
			if (err == nil) != (wantErr == nil) {
				t.Fatalf("%v, Helm says %v", err, wantErr)
			}
			if diff := cmp.Diff(sorted(decode(t, want)), sorted(decode(t, got))); diff != "" {
				t.Errorf("they differ (-helm +test):\n%s", diff)
			}
		})
	}
}

// sorted are objects as they plainly are, by kind and name.
func sorted(objects []object) []map[string]any {
	slices.SortFunc(objects, func(a, b object) int { return strings.Compare(a.Kind+a.name, b.Kind+b.name) })
	var plain []map[string]any
	for _, o := range objects {
		plain = append(plain, o.plain)
	}
	return plain
}
