package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/regd-io/regd/client"
	apiv1 "github.com/regd-io/regd/proto/api/v1"
	registryv1 "github.com/regd-io/regd/proto/registry/v1"
)

// startKeyNode is startNode, of a node that has told the cluster that it knows keys, which it does soon after it leads.
func startKeyNode(t *testing.T) (s *shell, httpAddress string) {
	t.Helper()
	s, httpAddress = startNode(t)
	eventually(t, func() string {
		if r := s.run("kv", "delete", "none"); r.code != exitOK {
			return r.stderr
		}
		return ""
	})
	return s, httpAddress
}

func TestKeysAreUsedByCommands(t *testing.T) {
	t.Parallel()
	s, _ := startKeyNode(t)
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

func TestWatchOfKeysShowsEachChange(t *testing.T) {
	t.Parallel()
	s, _ := startKeyNode(t)
	s.ok("kv", "put", "app/limit", "100")
	s.ok("kv", "put", "apq", "1")
	people := s.start("kv", "watch", "app/", "--prefix")
	people.says("app/limit")
	one := s.start("kv", "watch", "app/limit", "-o", "jsonl", "--keys-only")
	one.says(`"type":"synced"`)
	s.ok("kv", "put", "app/limit", "120")
	people.says("120\n")
	one.says(`"version":2`)
	s.ok("kv", "put", "app/other", "\x01")
	people.says("1 byte\n")
	s.ok("kv", "delete", "app/limit")
	people.says("DELETE")
	one.says(`"type":"delete"`)
	for _, w := range []*running{people, one} {
		if code := w.wait(); code != exitOK {
			t.Errorf("exit code %d\n%s", code, w.stderr.String())
		}
	}
	line := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3} +\d*  (PUT     app/limit +100|PUT     app/limit +120|PUT     app/other +1 byte|DELETE  app/limit)$`)
	if got := people.stdout.String(); len(line.FindAllString(got, -1)) != 4 || strings.Count(got, "\n") != 4 {
		t.Errorf("people see:\n%s", got)
	}
	if got := people.stderr.String(); strings.Count(got, "-- that is all there is at revision ") != 1 {
		t.Errorf("people are told:\n%s", got)
	}
	var types []string
	for line := range strings.Lines(one.stdout.String()) {
		v := decode[keyChangeView](t, line)
		if v.Type != "synced" {
			types = append(types, v.Type)
		}
		if v.Type == "put" && (v.Key != "app/limit" || v.Namespace != "default" || v.Revision != v.KeyValue.ModifyRevision || v.KeyValue.Value != nil) {
			t.Errorf("line %s", line)
		}
	}
	if got := strings.Join(types, " "); got != "put put delete" {
		t.Errorf("changes %q", got)
	}
	for _, args := range [][]string{{"kv", "watch"}, {"kv", "watch", ""}, {"kv", "watch", "a", "b"}} {
		if r := s.run(args...); r.code != exitUsage {
			t.Errorf("%q: %d\n%s", args, r.code, r.stderr)
		}
	}
}

func TestKeysAreCounted(t *testing.T) {
	t.Parallel()
	s, ops := startKeyNode(t)
	held := s.start("lock", "backup", "--", "sh", "-c", "echo held; exec sleep 60")
	held.says("held")
	owner := decode[struct{ Sessions []sessionView }](t, s.ok("sessions", "-o", "json")).Sessions[0].ID
	cl, err := client.New([]string{s.env["REGD_ENDPOINTS"]})
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, key := range []string{"ab", "cd"} {
		if _, err := cl.KV().Put(t.Context(), &apiv1.PutKeyRequest{Key: key, Value: []byte("123"), SessionId: owner}); err != nil {
			t.Fatal(err)
		}
	}
	s.ok("kv", "put", "-n", "other", "free", "")
	session := decode[struct{ Sessions []sessionView }](t, s.ok("sessions", "-o", "json")).Sessions[0]
	if session.Keys != 2 || session.Behavior != "release" || session.LockDelaySeconds != 0 {
		t.Errorf("session %+v", session)
	}
	if got := s.ok("sessions", "-o", "wide"); !regexp.MustCompile(`LOCKS +KEYS +BEHAVIOR +LOCK DELAY[^\n]*\n.* 1 +2 +release +0s `).MatchString(got) {
		t.Errorf("sessions:\n%s", got)
	}
	if v := viewSession(&registryv1.Session{
		Behavior: registryv1.SessionBehavior_SESSION_BEHAVIOR_DELETE, LockDelay: durationpb.New(1500 * time.Millisecond),
	}); v.Behavior != "delete" || v.LockDelaySeconds != 1.5 {
		t.Errorf("session %+v", v)
	}
	_, metrics := get(t, "http://"+ops+"/metrics")
	for _, line := range []string{"\nregd_keys 3\n", "\nregd_kv_bytes 14\n"} {
		if !strings.Contains(metrics, line) {
			t.Errorf("no %q in the metrics", line)
		}
	}
	held.wait()
}
