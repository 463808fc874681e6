package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeysAreUsedByCommands(t *testing.T) {
	t.Parallel()
	s, _ := startNode(t)
	s.expect("key/app/limit put\n", s.ok("kv", "put", "app/limit", "100"))
	s.expect("100", s.ok("kv", "get", "app/limit"))
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, []byte("a\x00b\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.ok("kv", "put", "app/file", "--file", file, "--flags", "7", "--absent")
	s.expect("a\x00b\n", s.ok("kv", "get", "app/file"))
	if got := s.ok("kv", "list", "app/"); !strings.Contains(got, "app/limit") || !strings.Contains(got, "4 bytes") {
		t.Errorf("list:\n%s", got)
	}
	if got := s.ok("kv", "list", "-o", "name"); got != "key/app/file\nkey/app/limit\n" {
		t.Errorf("names:\n%s", got)
	}
	if got := s.ok("kv", "get", "app/file", "-o", "json"); !strings.Contains(got, `"flags": 7`) || !strings.Contains(got, `"value": "YQBiCg=="`) {
		t.Errorf("document:\n%s", got)
	}
	for name, tt := range map[string]struct {
		want exitCode
		args []string
	}{
		"not there":   {exitNotFound, []string{"kv", "get", "none"}},
		"there":       {exitConflict, []string{"kv", "put", "app/limit", "1", "--absent"}},
		"changed":     {exitConflict, []string{"kv", "put", "app/limit", "1", "--expect", "1"}},
		"two values":  {exitUsage, []string{"kv", "put", "app/limit", "1", "--file", file}},
		"no value":    {exitUsage, []string{"kv", "put", "app/limit"}},
		"bad key":     {exitUsage, []string{"kv", "put", "a\tb", "1"}},
		"subcommands": {exitUsage, []string{"kv", "nope"}},
	} {
		if r := s.run(tt.args...); r.code != tt.want {
			t.Errorf("%s: %d, want %d\n%s", name, r.code, tt.want, r.stderr)
		}
	}
	s.expect("key/app/ deleted\n", s.ok("kv", "delete", "app/", "--prefix"))
	s.expect("key/app/ unchanged\n", s.ok("kv", "delete", "app/", "--prefix"))
}
