package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
)

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	t.Parallel()
	type item struct {
		Name string         `json:"the_name"`
		List []any          `json:"list"`
		Map  map[string]any `json:"map,omitempty"`
	}
	texts := []any{}
	for _, text := range []string{
		"", "a", "yes", "Off", "null", "~", "12", "1e3", "0x1F", ".inf", "1_000", "2026-01-02", "a: b", "# a", "a #b", "- a", "<<", "*a",
		"&a", "!a", "{a}", "[a", " a ", "a\nb\n", "\n", "a\rb", "a\tb", "\x1b]0;owned\a", "\x7f", "\u0085", "\u202eow\u200b", "😀", `"q" 'q' \n`,
		"10.0.0.1:80", "http/1.1", "\u2028",
	} {
		texts = append(texts, text)
	}
	doc := map[string]any{
		"texts": texts, "empty": []any{}, "none": map[string]any{}, "nil": nil, "big": uint64(1<<64 - 1), "float": 0.25, "bool": true,
		"nested": []item{
			{"a", []any{}, nil},
			{"b", []any{"x", []any{[]any{"z"}, "y"}, map[string]any{"k": "v", "l": []any{true}}}, map[string]any{"no": "yes", "\x1b": "a: b", "1": nil}},
		},
	}
	var y, j bytes.Buffer
	if err := printYAML(&y, doc); err != nil {
		t.Fatal(err)
	}
	if err := printJSON(&j, doc); err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(y.String(), "\x1b\a\x7f\r\u0085\u202e\u200b\u2028") {
		t.Errorf("raw control characters in %q", y.String())
	}
	var read, want, got any
	if err := yaml.Unmarshal(y.Bytes(), &read); err != nil {
		t.Fatalf("%v in\n%s", err, y.String())
	}
	back, err := json.Marshal(read)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(j.Bytes(), &want); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(back, &got); err != nil {
		t.Fatalf("%v in\n%s", err, back)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("differs (-JSON +YAML):\n%s\n%s", diff, y.String())
	}
}

func TestYAMLLooksAsPeopleWriteIt(t *testing.T) {
	t.Parallel()
	var y bytes.Buffer
	if err := printYAML(&y, []change{{Name: "instance/web/w1", Result: "no longer draining"}, {Name: "member/n1"}}); err != nil {
		t.Fatal(err)
	}
	want := `- name: instance/web/w1
  result: "no longer draining"
  changed: false
- name: member/n1
  result: ""
  changed: false
`
	if diff := cmp.Diff(want, y.String()); diff != "" {
		t.Errorf("differs (-want +got):\n%s", diff)
	}
}

func TestEveryJSONAnswerIsYAMLToo(t *testing.T) {
	t.Parallel()
	for path, cmd := range commands(t) {
		f := cmd.Flags().Lookup("output")
		if f != nil && strings.Contains(f.Usage, " "+formatJSON+",") && !strings.Contains(f.Usage, "json, yaml") {
			t.Errorf("%s: %s", path, f.Usage)
		}
	}
	s, _ := startNode(t)
	s.ok("register", "web", "--id", "w1", "--port", "1", "--meta", "k=\u202eowned", "--detach")
	for _, args := range []string{"instances", "services", "sessions", "members", "status", "verify", "version", "maintenance on web w1"} {
		text := s.ok(append(strings.Fields(args), "-o", "yaml")...)
		var got map[string]any
		if err := yaml.Unmarshal([]byte(text), &got); err != nil || len(got) == 0 || strings.Contains(text, "\u202e") {
			t.Errorf("regd %s -o yaml: %v in\n%s", args, err, text)
		}
	}
}
