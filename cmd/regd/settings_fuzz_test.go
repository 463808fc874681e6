package main

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// printable reports whether a text of several lines has nothing that a terminal obeys.
func printable(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) })
}

// placed is the start of each fault of a file.
var placed = regexp.MustCompile(`^regd\.yaml:[1-9]\d*:[1-9]\d*: `)

// FuzzConfigFile reads arbitrary bytes as a configuration file: an error that shows the place, or settings that are the
// same when they come from the environment.
func FuzzConfigFile(f *testing.F) {
	f.Add([]byte("name: n1\ndata-dir: /data\nheartbeat-timeout: 2s\ninitial-peers: [a:1, b:1]\ninsecure: true\n"))
	f.Add([]byte("join:\n- a:1\n- \"b:1\"\nnon-voter: false\nzone: 1\n"))
	f.Add([]byte("name: x\n---"))
	f.Add([]byte("_\n...::"))
	f.Add([]byte("\"\x00\": a\n\"\x00\": b\n"))
	f.Add([]byte("\xd0:\r\t"))
	f.Add([]byte("a: &a [*a]\n<<: *a\n"))
	f.Add([]byte("? {a: b}\n: [c, [d]]\n\"k\\e\": !!binary =\n"))
	f.Add([]byte("name: \"\x1b[2J\"\ngrpc-lisen: |\n  a\n"))
	f.Add([]byte("\tname: x"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		fs, cfg := settings()
		if err := applyYAML(fs, "regd.yaml", data); err != nil {
			if text := err.Error(); !placed.MatchString(text) || !printable(text) {
				t.Fatalf("error %q: no place, or not printable", text)
			}
			return
		}
		env := map[string]string{}
		sayable := true
		fs.Visit(func(f *pflag.Flag) {
			env[envName(f.Name)] = asText(f)
			sayable = sayable && asText(f) != ""
		})
		if !sayable {
			return // An empty variable is as if it was not set.
		}
		again, sameCfg := settings()
		if err := applyEnv(again, func(name string) string { return env[name] }); err != nil {
			t.Fatalf("the file's settings are refused in the environment: %v", err)
		}
		if diff := cmp.Diff(*cfg, *sameCfg); diff != "" {
			t.Fatalf("settings differ (-file +environment):\n%s", diff)
		}
	})
}

// asText is a flag's value as a variable in the environment says it.
func asText(f *pflag.Flag) string {
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return strings.Join(list.GetSlice(), ",")
	}
	return f.Value.String()
}

// FuzzEnvironment gives an arbitrary value to each setting: an error that names the variable, or what the flag makes of it.
func FuzzEnvironment(f *testing.F) {
	for _, value := range []string{"2s", "true", "a:1,b:1", "-1", "1e99h", "\"a,b\",c", "\x1b[2J\xff", "\n"} {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) {
		if value == "" {
			return // As if it was not set.
		}
		names, _ := settings()
		for _, name := range settingNames(names) {
			fs, cfg := settings()
			err := applyEnv(fs, func(variable string) string {
				return map[string]string{envName(name): value}[variable]
			})
			flags, sameCfg := settings()
			flagErr := flags.Parse([]string{"--" + name + "=" + value})
			if (err == nil) != (flagErr == nil) {
				t.Fatalf("%s: %v from the environment, %v from a flag", name, err, flagErr)
			}
			if err != nil && (!strings.Contains(err.Error(), envName(name)) || !printable(err.Error())) {
				t.Fatalf("error %q: doesn't name the variable, or is not printable", err)
			}
			if diff := cmp.Diff(*cfg, *sameCfg); diff != "" {
				t.Fatalf("%s=%q: settings differ (-environment +flag):\n%s", name, value, diff)
			}
		}
	})
}

// FuzzYAMLOutput prints what services may say of themselves: YAML that says what JSON says, and that a terminal does not
// obey.
func FuzzYAMLOutput(f *testing.F) {
	f.Add("a", "b: c", "\u2028")
	f.Add("yes", "0x1F", "- a\n- b")
	f.Add("", "\x1b]0;owned\a", "\xff")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		// As keys that are not UTF-8 become equal, in JSON as well.
		a, b = strings.ToValidUTF8(a, "?"), strings.ToValidUTF8(b, "?")
		doc := map[string]any{"list": []any{a, []any{b, map[string]any{}}, map[string]any{c: a}}, "map": map[string]any{a: b, b: []any{c}}}
		var y, j bytes.Buffer
		if err := printYAML(&y, doc); err != nil {
			t.Fatal(err)
		}
		if err := printJSON(&j, doc); err != nil {
			t.Fatal(err)
		}
		if !printable(y.String()) {
			t.Fatalf("not printable: %q", y.String())
		}
		var read, want, got any
		if err := yaml.Unmarshal(y.Bytes(), &read); err != nil {
			t.Fatalf("%v in\n%s", err, y.String())
		}
		back, err := json.Marshal(read)
		if err != nil {
			t.Fatal(err)
		}
		if err = json.Unmarshal(j.Bytes(), &want); err != nil {
			t.Fatal(err)
		}
		if err = json.Unmarshal(back, &got); err != nil {
			t.Fatalf("%v in\n%s", err, back)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("differs (-JSON +YAML):\n%s\n%s", diff, y.String())
		}
	})
}
