package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	miekg "github.com/miekg/dns"
)

// A golden file is questions, each with its answer below. Lines with # are comments; one with % changes the
// configuration for the rest of the file: %domains, %datacenter, %zones. The registry is newWorld.
//
//	? NAME TYPE [edns=SIZE] [do] [tcp] [from=ADDRESS]
func TestQuestionsAreAnsweredAsReviewed(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := answerAll(t, string(data))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(data), got); diff != "" {
				t.Errorf("answers differ (-want +got; run with -rewrite and review):\n%s", diff)
			}
		})
	}
}

// answerAll returns a golden file with its answers as they are now.
func answerAll(t *testing.T, text string) string {
	t.Helper()
	node := newWorld(t)
	var change []func(*Config)
	s, w := newTestServer(t, node)
	var b strings.Builder
	for line := range strings.Lines(text) {
		switch line[0] {
		case '#', '%', '?', '\n':
			if line == "\n" && strings.HasSuffix(b.String(), "\n\n") {
				continue
			}
			b.WriteString(line)
		}
		switch words := strings.Fields(line); line[0] {
		case '%':
			change = append(change, configure(t, words))
			s, w = newTestServer(t, node, change...)
		case '?':
			b.WriteString(describe(ask(t, s, w, parseRequest(t, words[1:]))))
		}
	}
	return b.String()
}

func configure(t *testing.T, words []string) func(*Config) {
	t.Helper()
	return func(c *Config) {
		switch words[0] {
		case "%domains":
			c.Domains = words[1:]
		case "%datacenter":
			c.Datacenter = words[1]
		case "%zones":
			for _, z := range words[1:] {
				network, name, _ := strings.Cut(z, "=")
				c.Zones = append(c.Zones, Zone{netip.MustParsePrefix(network), name})
			}
		case "%ttls":
			for _, s := range words[1:] {
				name, ttl, _ := strings.Cut(s, "=")
				d, err := time.ParseDuration(ttl)
				if err != nil {
					t.Fatal(err)
				}
				c.ServiceTTLs = append(c.ServiceTTLs, ServiceTTL{name, d})
			}
		default:
			t.Fatalf("unknown %s", words[0])
		}
	}
}

func parseRequest(t *testing.T, words []string) *request {
	t.Helper()
	qtype, known := miekg.StringToType[words[1]]
	if !known {
		t.Fatalf("unknown type %s", words[1])
	}
	r := newRequest(words[0], qtype)
	for _, word := range words[2:] {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "edns":
			size, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				t.Fatal(err)
			}
			r.msg.SetEdns0(uint16(size), false)
		case "do":
			r.msg.IsEdns0().SetDo()
		case "tcp":
			r.stream = true
		case "from":
			r.client = netip.MustParseAddr(value)
		case "ch":
			r.msg.Question[0].Qclass = miekg.ClassCHAOS
		default:
			t.Fatalf("unknown option %s", word)
		}
	}
	return r
}

// describe is a message as a golden file has it.
func describe(m *miekg.Msg) string {
	var b strings.Builder
	fmt.Fprintf(&b, "  %s", codeName(m.Rcode))
	for _, f := range []struct {
		set  bool
		name string
	}{{m.Authoritative, "aa"}, {m.Truncated, "tc"}, {m.RecursionDesired, "rd"}, {m.RecursionAvailable, "ra"}} {
		if f.set {
			b.WriteString(" " + f.name)
		}
	}
	b.WriteString("\n")
	for _, section := range []struct {
		mark string
		rrs  []miekg.RR
	}{{" ", m.Answer}, {"authority:", m.Ns}, {"additional:", m.Extra}} {
		for _, rr := range section.rrs {
			if opt, ok := rr.(*miekg.OPT); ok {
				fmt.Fprintf(&b, "  edns: size %d, do %v, version %d\n", opt.UDPSize(), opt.Do(), opt.Version())
				continue
			}
			fmt.Fprintf(&b, "  %s %s\n", section.mark, strings.ReplaceAll(rr.String(), "\t", " "))
		}
	}
	return b.String()
}

func codeName(rcode int) string {
	if rcode == miekg.RcodeBadVers {
		return "BADVERS"
	}
	return miekg.RcodeToString[rcode]
}
