package deploy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
	"sigs.k8s.io/yaml"
)

// scraped are the names of all series of a running node, with those that a histogram has.
func scraped(t *testing.T) map[string]bool {
	t.Helper()
	_, body, err := alone.get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text := expfmt.NewTextParser(model.UTF8Validation)
	families, err := text.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for name, family := range families {
		names[name] = true
		if family.GetType().String() == "HISTOGRAM" {
			names[name+"_bucket"], names[name+"_sum"], names[name+"_count"] = true, true, true
		}
	}
	return names
}

// described are the names of all series that the reference has: also of what the node that is scraped does not use, as DNS.
func described(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	for _, row := range regexp.MustCompile("</a>`([a-z_]+)` \\| ([a-z]+) ").FindAllStringSubmatch(read(t, "docs/reference/metrics.md"), -1) {
		names[row[1]] = true
		if row[2] == "histogram" {
			names[row[1]+"_bucket"], names[row[1]+"_sum"], names[row[1]+"_count"] = true, true, true
		}
	}
	return names
}

// labelled are the labels that the series of each name have, and their values.
func labelled(t *testing.T) map[string]map[string][]string {
	t.Helper()
	_, body, err := alone.get(t.Context(), "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text := expfmt.NewTextParser(model.UTF8Validation)
	families, err := text.TextToMetricFamilies(strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]map[string][]string{}
	for name, family := range families {
		all[name] = map[string][]string{}
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				all[name][l.GetName()] = append(all[name][l.GetName()], l.GetValue())
			}
			for _, q := range m.GetSummary().GetQuantile() {
				all[name]["quantile"] = append(all[name]["quantile"], fmt.Sprint(q.GetQuantile()))
			}
		}
	}
	return all
}

// rule is an alert, as in the reference of Prometheus' rule files.
type rule struct {
	Alert       string            `json:"alert"`
	Expr        string            `json:"expr"`
	For         string            `json:"for"`
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	long        time.Duration     // For
}

// rules are the alerts. Nothing but alerts is in the file, and nothing that Prometheus doesn't know.
func rules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string `json:"name"`
			Rules []rule `json:"rules"`
		} `json:"groups"`
	}
	if err := yaml.UnmarshalStrict([]byte(read(t, "deploy/prometheus/rules.yaml")), &file, yaml.DisallowUnknownFields); err != nil {
		t.Fatal(err)
	}
	var all []rule
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	for i := range all {
		long, err := model.ParseDuration(cmp.Or(all[i].For, "0s"))
		if err != nil {
			t.Fatalf("%s: %v", all[i].Alert, err)
		}
		all[i].long = time.Duration(long)
		for name, text := range all[i].Annotations {
			if err := validTemplate(text); err != nil {
				t.Errorf("%s: %s: %v", all[i].Alert, name, err)
			}
		}
	}
	return all
}

// validTemplate says what is wrong with the text of an annotation, of which alerts use few functions.
func validTemplate(text string) error {
	known := template.FuncMap{}
	for _, name := range []string{"humanize", "humanize1024", "humanizeDuration", "humanizePercentage"} {
		known[name] = func(v float64) string { return fmt.Sprint(v) }
	}
	parsed, err := template.New("").Funcs(known).Parse("{{$labels := .}}{{$value := 1.5}}" + text)
	if err != nil {
		return err
	}
	return parsed.Execute(io.Discard, map[string]string{})
}

func language() parser.Parser { return parser.NewParser(parser.Options{}) }

// targetLabels are those that Prometheus adds to what it scrapes.
func targetLabels() []string { return []string{"cluster", "namespace", "job", "instance", "le"} }

// holds that an expression names only series, labels and values that a node has.
func namesOnlyWhatExists(t *testing.T, where, expr string) {
	t.Helper()
	parsed, err := language().ParseExpr(expr)
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	names, labels := described(t), labelled(t)
	maps.Copy(names, scraped(t))
	parser.Inspect(parsed, func(n parser.Node, _ []parser.Node) error {
		v, ok := n.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		if !names[v.Name] {
			t.Errorf("%s: regd has no metric %s", where, v.Name)
			return nil
		}
		family := v.Name
		if labels[family] == nil {
			family = strings.TrimSuffix(family, "_bucket")
		}
		for _, m := range v.LabelMatchers {
			if m.Name == "__name__" || slices.Contains(targetLabels(), m.Name) {
				continue
			}
			if !slices.ContainsFunc(labels[family][m.Name], m.Matches) {
				t.Errorf("%s: no series of %s has %s", where, v.Name, m)
			}
		}
		return nil
	})
}

func TestAlertsNameOnlyWhatExists(t *testing.T) {
	t.Parallel()
	for _, r := range rules(t) {
		namesOnlyWhatExists(t, r.Alert, r.Expr)
	}
}

func TestTheDashboardNamesOnlyWhatExists(t *testing.T) {
	t.Parallel()
	type panel struct {
		ID      int    `json:"id"`
		Title   string `json:"title"`
		Type    string `json:"type"`
		Targets []struct {
			Expr       string `json:"expr"`
			Datasource struct {
				UID string `json:"uid"`
			} `json:"datasource"`
		} `json:"targets"`
		GridPos struct{ X, Y, W, H int } `json:"gridPos"`
	}
	var board struct {
		UID        string  `json:"uid"`
		Panels     []panel `json:"panels"`
		Templating struct {
			List []struct {
				Name  string `json:"name"`
				Type  string `json:"type"`
				Query any    `json:"query"`
			} `json:"list"`
		} `json:"templating"`
	}
	if err := json.Unmarshal([]byte(read(t, "deploy/grafana/regd.json")), &board); err != nil {
		t.Fatal(err)
	}
	if board.UID == "" || len(board.Panels) < 20 {
		t.Fatalf("uid %q with %d panels", board.UID, len(board.Panels))
	}
	variables := map[string]bool{"__rate_interval": true}
	for _, v := range board.Templating.List {
		variables[v.Name] = true
	}
	taken, ids := map[[2]int]string{}, map[int]bool{}
	for _, p := range board.Panels {
		if ids[p.ID] {
			t.Errorf("%s: id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		for x := range p.GridPos.W {
			for y := range p.GridPos.H {
				at := [2]int{p.GridPos.X + x, p.GridPos.Y + y}
				if other, is := taken[at]; is || at[0] >= 24 {
					t.Fatalf("%s lies on %s", p.Title, other)
				}
				taken[at] = p.Title
			}
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, target := range p.Targets {
			for _, use := range regexp.MustCompile(`\$\{?(\w+)`).FindAllStringSubmatch(target.Expr+target.Datasource.UID, -1) {
				if !variables[use[1]] {
					t.Errorf("%s: there is no variable %s", p.Title, use[1])
				}
			}
			expr := strings.ReplaceAll(target.Expr, "$__rate_interval", "1m")
			namesOnlyWhatExists(t, p.Title, expr)
		}
	}
}

// Metrics of the client are of another registry than those of a node.
func TestDocumentsNameOnlyMetricsThatExist(t *testing.T) {
	t.Parallel()
	names := described(t)
	maps.Copy(names, scraped(t))
	for _, file := range documents(t) {
		for _, name := range regexp.MustCompile("`(regd_[a-z_]+|grpc_server_[a-z_]+)").FindAllStringSubmatch(read(t, file), -1) {
			if !names[name[1]] && !strings.HasPrefix(name[1], "regd_client_") {
				t.Errorf("%s: regd has no metric %s", file, name[1])
			}
		}
	}
}

// All that a node shows is in the reference.
func TestTheReferenceHasAllMetrics(t *testing.T) {
	t.Parallel()
	reference := read(t, "docs/reference/metrics.md")
	for name := range labelled(t) {
		if !strings.Contains(reference, "`"+name+"`") && !strings.HasPrefix(name, "go_") && !strings.HasPrefix(name, "process_") {
			t.Errorf("docs/reference/metrics.md lacks %s", name)
		}
	}
}

// Each alert has a runbook with all of its parts, and each runbook an alert.
func TestAlertsAndRunbooksBelongTogether(t *testing.T) {
	t.Parallel()
	const address = "https://github.com/regd-io/regd/blob/main/docs/runbooks.md#"
	sections := map[string]string{}
	for _, s := range strings.Split(read(t, "docs/runbooks.md"), "\n## ")[1:] {
		title, text, _ := strings.Cut(s, "\n")
		sections[title] = text
	}
	for _, r := range rules(t) {
		text, ok := sections[r.Alert]
		if !ok {
			t.Errorf("%s has no runbook", r.Alert)
		}
		delete(sections, r.Alert)
		for _, part := range []string{"**Meaning.**", "**Impact.**", "iagnosis", "itigation"} {
			if !strings.Contains(text, part) {
				t.Errorf("the runbook of %s lacks %s", r.Alert, part)
			}
		}
		if want := address + strings.ToLower(r.Alert); r.Annotations["runbook_url"] != want {
			t.Errorf("%s: runbook_url %s, want %s", r.Alert, r.Annotations["runbook_url"], want)
		}
		if !slices.Contains([]string{"critical", "warning", "info"}, r.Labels["severity"]) {
			t.Errorf("%s: severity %q", r.Alert, r.Labels["severity"])
		}
		if !strings.HasSuffix(r.Annotations["summary"], ".") || r.Annotations["description"] == "" {
			t.Errorf("%s: summary and description have to be sentences", r.Alert)
		}
		if r.long > time.Hour {
			t.Errorf("%s: after %v nobody is surprised any more", r.Alert, r.For)
		}
	}
	for title := range sections {
		t.Errorf("the runbook %s is of no alert", title)
	}
}
