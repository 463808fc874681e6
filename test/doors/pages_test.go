package doors_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

// page is a document whose commands are run. A block that is marked as "sh" is run as it stands, in the order of the page; a
// block that is marked as "text" is what the commands before it have printed. In it "…" stands for anything, and ids and times
// need only look alike. All other blocks are for people.
type page struct {
	t    *testing.T
	name string
	dir  string            // where the commands are run
	path string            // where programs are looked for first
	at   map[string]string // what the page calls an address or a folder, and what it is here
	env  []string
}

// openPage is a page whose commands find regd, as they would if its node n1 were the one on this machine.
func openPage(t *testing.T, name string) *page {
	t.Helper()
	for _, need := range []string{"bash", "curl", "jq"} {
		program(t, need, need)
	}
	binary, err := regd()
	if err != nil {
		t.Fatal(err)
	}
	p := &page{t: t, name: name, dir: t.TempDir(), path: t.TempDir(), at: map[string]string{}}
	if err = os.Symlink(binary, filepath.Join(p.path, "regd")); err != nil {
		t.Fatal(err)
	}
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Fatal(err)
	}
	if err = os.WriteFile(filepath.Join(p.path, "curl"), fmt.Appendf(nil, loudCurl, curl), 0o700); err != nil { //nolint:gosec // A program.
		t.Fatal(err)
	}
	return p
}

// loudCurl fails when the answer is an error, unless the command shows the status by itself.
const loudCurl = `#!/bin/sh
for arg in "$@"; do
	case "$arg" in -i|-w) exec %[1]s -sS "$@" ;; esac
done
exec %[1]s -sS --fail-with-body "$@"
`

// block is a block of a page.
type block struct {
	line       int
	kind, text string
}

func (p *page) blocks() []block {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs", p.name))
	if err != nil {
		p.t.Fatal(err)
	}
	var found []block
	inside := false
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		mark, fence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case fence && !inside:
			found = append(found, block{line: number + 1, kind: strings.TrimSpace(mark)})
			inside = true
		case fence:
			inside = false
		case inside:
			found[len(found)-1].text += line
		}
	}
	return found
}

// forgotten are commands that people would run. Those that begin a line of a block that is not run are forgotten, most likely.
var forgotten = regexp.MustCompile(`(?m)^\s*(curl|dig|jq|regd (register|instances|get|services|access|drain|status|watch|kv)) `)

// follow runs all blocks of the page.
func (p *page) follow() {
	p.t.Helper()
	ran, said, compared := 0, "", 0
	for _, b := range p.blocks() {
		switch b.kind {
		case "sh":
			said = p.run(b)
			ran++
		case "text":
			if fault := p.unlike(b.text, said); fault != "" {
				p.t.Errorf("docs/%s:%d: %s; it printed:\n%s", p.name, b.line, fault, p.unnamed(said))
			}
			compared++
		default:
			if found := forgotten.FindString(b.text); found != "" {
				p.t.Errorf("docs/%s:%d: %q is in a block that is not run: mark it as sh", p.name, b.line, strings.TrimSpace(found))
			}
		}
	}
	if ran == 0 {
		p.t.Fatalf("docs/%s has no commands", p.name)
	}
	p.t.Logf("docs/%s: %d blocks were run, %d outputs compared", p.name, ran, compared)
}

// run runs a block. One that begins with "regd serve" goes on until the test ends.
func (p *page) run(b block) string {
	p.t.Helper()
	script := b.text
	for name, real := range p.at {
		script = strings.ReplaceAll(script, name, real)
	}
	env := append(append(os.Environ(), "PATH="+p.path+":"+os.Getenv("PATH")), p.env...)
	if rest, ok := strings.CutPrefix(strings.TrimSpace(script), "regd serve "); ok {
		runWith(p.t, p.env, filepath.Join(p.path, "regd"), append([]string{"serve"}, strings.Fields(rest)...)...)
		script = "regd status --wait --timeout 30s"
	}
	ctx, cancel := context.WithTimeout(p.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = p.dir, env
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		p.t.Errorf("docs/%s:%d: %v\n%s%s%s", p.name, b.line, err, b.text, out.String(), errs.String())
	}
	return out.String()
}

// alike are texts that differ from run to run.
var alike = []struct {
	*regexp.Regexp
	name string
}{
	{regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`), "UUID"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[0-9.:Z+-]*`), "TIME"},
	{regexp.MustCompile(`(?i)\b((index|revision)"?:? ?)\d+`), "${1}NUMBER"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(ms|s|m|h)\b`), "DURATION"},
	{regexp.MustCompile(`[ \t\r]+`), " "},
}

// unnamed is a text with the names of the page for what is here.
func (p *page) unnamed(text string) string {
	for name, real := range p.at {
		text = strings.ReplaceAll(text, real, name)
	}
	return text
}

// unlike says what is wrong with an output, if it is not like that of the page.
func (p *page) unlike(want, got string) string {
	plain := func(text string) []string {
		text = p.unnamed(text)
		for _, a := range alike {
			text = a.ReplaceAllString(text, a.name)
		}
		return strings.Split(strings.TrimSpace(text), "\n")
	}
	wanted, have := plain(want), plain(got)
	if len(wanted) != len(have) {
		return fmt.Sprintf("it has %d lines, want %d", len(have), len(wanted))
	}
	for k, line := range wanted {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(line)), "…", ".*")
		if !regexp.MustCompile("^" + pattern + "$").MatchString(strings.TrimSpace(have[k])) {
			return fmt.Sprintf("%q is not like %q", have[k], line)
		}
	}
	return ""
}

// TestThePageAboutTheWayFromConsul runs what docs/migrate-from-consul.md says, with a second registry in the place of Consul.
func TestThePageAboutTheWayFromConsul(t *testing.T) {
	t.Parallel()
	consul := startNode(t, "consul")
	p := openPage(t, "migrate-from-consul.md")
	grpc, peer, ops, door := freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)
	p.at = map[string]string{
		"127.0.0.1:7401": peer, "127.0.0.1:8500": door, "localhost:8500": door, "regd:8500": door, "consul:8500": consul.door,
		"/var/lib/regd": filepath.Join(p.dir, "regd"),
	}
	p.env = []string{"REGD_ENDPOINTS=" + grpc, "REGD_GRPC_LISTEN=" + grpc, "REGD_PEER_LISTEN=" + peer, "REGD_HTTP_LISTEN=" + ops}
	// What programs have put into Consul.
	for _, put := range []struct{ path, body string }{
		{"agent/service/register", `{"Name": "shop", "ID": "shop-1", "Port": 80, "Address": "10.0.0.1", "Tags": ["v1"]}`},
		{"agent/service/register", `{"Name": "shop", "ID": "shop-2", "Port": 80, "Address": "10.0.0.2"}`},
		{"kv/shop/limit", "7"},
	} {
		eventually(t, func() string { // It may not have a leader yet.
			cmd := exec.CommandContext(t.Context(), "curl", "-sSf", "-X", "PUT", "-d", put.body, "http://"+consul.door+"/v1/"+put.path)
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Sprintf("%v: %s", err, out)
			}
			return ""
		})
	}
	p.follow()
}

// TestThePageAboutDNS runs what docs/dns.md says.
func TestThePageAboutDNS(t *testing.T) {
	t.Parallel()
	program(t, "dig", "bind9-dnsutils")
	n := startNode(t, "dns")
	p := openPage(t, "dns.md")
	host, port, _ := strings.Cut(n.door, ":")
	p.at = map[string]string{"@n1.example -p 8600": "@" + host + " -p " + port}
	p.env = []string{"REGD_ENDPOINTS=" + n.grpc}
	p.follow()
}

// TestThePageAboutPrometheus runs what docs/prometheus.md says.
func TestThePageAboutPrometheus(t *testing.T) {
	t.Parallel()
	n := startNode(t, "dns")
	p := openPage(t, "prometheus.md")
	p.at = map[string]string{"localhost:7402": n.ops}
	p.env = []string{"REGD_ENDPOINTS=" + n.grpc}
	p.follow()
}

// TestThePageAboutKeys runs what docs/kv.md says.
func TestThePageAboutKeys(t *testing.T) {
	t.Parallel()
	n := startNode(t, "dns")
	p := openPage(t, "kv.md")
	p.env = []string{"REGD_ENDPOINTS=" + n.grpc}
	eventually(t, func() string { // The node tells the cluster that it knows keys soon after it leads.
		if _, err := n.client.KV().Delete(t.Context(), &apiv1.DeleteKeyRequest{Key: "none"}); err != nil {
			return err.Error()
		}
		return ""
	})
	p.follow()
}

func TestUnlikeOutputsAreFound(t *testing.T) {
	t.Parallel()
	p := &page{t: t, at: map[string]string{"localhost:8500": "127.0.0.1:1234"}}
	for _, c := range []struct {
		want, got string
		like      bool
	}{
		{"a  b\n", "a b", true},
		{"a b", "a c", false},
		{"a", "a\nb", false},
		{"at localhost:8500", "at 127.0.0.1:1234", true},
		{"id 6b0158ed-d46f-43d5-9491-e3b24e37b8ce", "id 3b0158ed-d46f-43d5-9491-e3b24e37b8cf", true},
		{"id 6b0158ed-d46f-43d5-9491-e3b24e37b8ce", "id x", false},
		{`"Index": 7, 3s ago`, `"Index": 99, 120ms ago`, true},
		{`"Port": 7`, `"Port": 8`, false},
		{"one … two", "one and two", true},
		{"one … two", "one and three", false},
	} {
		if fault := p.unlike(c.want, c.got); (fault == "") != c.like {
			t.Errorf("%q and %q: %q", c.want, c.got, fault)
		}
	}
}
