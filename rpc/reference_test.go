package rpc

import (
	"bufio"
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/grpc/codes"

	apiv1 "github.com/regd-io/regd/proto/api/v1"
)

var rewrite = flag.Bool("rewrite", false, "write docs/reference/errors.md anew")

// referenceHead is what stands above the table of the error reference.
const referenceHead = `<!-- Made from rpc/errors.go and proto/api/v1/errors.proto by: go test ./rpc -run Reference -rewrite -->

# Errors

For whoever writes a client of regd or looks at an error from it: each reason why a call fails, and what to do.

The reason is in the details of the gRPC status, as ` + "`reason`" + ` of a ` + "`google.rpc.ErrorInfo`" + ` whose domain is ` + "`" + ErrorDomain + "`" + `. Its
` + "`metadata`" + ` has the last two columns as ` + "`retryable`" + ` (true or false) and ` + "`hint`" + `, and the facts of the message. On a watch
stream ` + "`SubscriptionEnded.reason`" + ` is one of them too. Decide by the reason, not by the message. The list of reasons only
grows: go by code and ` + "`retryable`" + ` where you don't know one. An error without this ` + "`ErrorInfo`" + ` is from gRPC, the connection,
or another service (` + "`grpc.health.v1`" + `).

*Retry* says whether the same call can succeed later, or at another node. A reason with several codes has a row for each.

The exit codes of the command line are listed in the [README](../../README.md#for-scripts).

`

// referenceRow is what the reference says about a reason that comes with a code.
type referenceRow struct {
	reason        apiv1.Reason
	code          codes.Code
	retryable     bool
	meaning, hint string
}

// referenceRows joins the table of errors with the meanings of the reasons, in the order of their numbers. The error
// names every cell that is missing.
func referenceRows(table []Fault, meanings map[apiv1.Reason]string) ([]referenceRow, error) {
	var rows []referenceRow
	var missing []error
	for _, f := range table {
		row := referenceRow{f.Reason, f.Code, f.Retryable, meanings[f.Reason], f.Hint}
		if slices.Contains(rows, row) {
			continue // Several sentinels, one fault.
		}
		rows = append(rows, row)
		if row.meaning == "" {
			missing = append(missing, fmt.Errorf("%v (%v) has no meaning: comment it in errors.proto", f.Reason, f.Code))
		}
		if row.hint == "" {
			missing = append(missing, fmt.Errorf("%v (%v) has no hint", f.Reason, f.Code))
		}
	}
	for _, number := range slices.Sorted(maps.Keys(apiv1.Reason_name)) {
		reason := apiv1.Reason(number)
		has := func(r referenceRow) bool { return r.reason == reason }
		if reason != apiv1.Reason_REASON_UNSPECIFIED && !slices.ContainsFunc(rows, has) {
			missing = append(missing, fmt.Errorf("%v has no row in the table of errors", reason))
		}
	}
	slices.SortStableFunc(rows, func(a, b referenceRow) int { return cmp.Compare(a.reason, b.reason) })
	return rows, errors.Join(missing...)
}

// referencePage is the page of the rows. The first row of a reason has its anchor.
func referencePage(rows []referenceRow) string {
	var b strings.Builder
	b.WriteString(referenceHead)
	b.WriteString("| reason | meaning | gRPC code | retry | what to do |\n|---|---|---|---|---|\n")
	cell := strings.NewReplacer("|", `\|`, "<", "&lt;", "_", `\_`, "*", `\*`)
	last := apiv1.Reason_REASON_UNSPECIFIED
	for _, r := range rows {
		name, anchor, retry := reasonName(r.reason), "", "no"
		if r.reason != last {
			anchor = fmt.Sprintf(`<a id="%s"></a>`, strings.ReplaceAll(strings.ToLower(name), "_", "-"))
		}
		if r.retryable {
			retry = "yes"
		}
		fmt.Fprintf(&b, "| %s`%s` | %s | `%s` | %s | %s |\n",
			anchor, name, cell.Replace(r.meaning), code.Code(r.code), retry, cell.Replace(r.hint))
		last = r.reason
	}
	return b.String()
}

// reasonMeanings reads the comments above the values of Reason in its source; descriptors of Go have none.
func reasonMeanings(source string) (map[apiv1.Reason]string, error) {
	_, body, found := strings.Cut(source, "\nenum Reason {\n")
	body, _, closed := strings.Cut(body, "\n}")
	if !found || !closed {
		return nil, errors.New("there is no enum Reason")
	}
	value := regexp.MustCompile(`^(REASON_\w+) = \d+( \[.*\])?;`)
	meanings := map[apiv1.Reason]string{}
	var comment []string
	for lines := bufio.NewScanner(strings.NewReader(body)); lines.Scan(); {
		line := strings.TrimSpace(lines.Text())
		if text, ok := strings.CutPrefix(line, "//"); ok {
			comment = append(comment, strings.TrimSpace(text))
			continue
		}
		if match := value.FindStringSubmatch(line); match != nil {
			number, known := apiv1.Reason_value[match[1]]
			if !known {
				return nil, fmt.Errorf("%s is not in the generated code", match[1])
			}
			meanings[apiv1.Reason(number)] = strings.Join(comment, " ")
		}
		comment = nil
	}
	return meanings, nil
}

func readReasonMeanings(t *testing.T) map[apiv1.Reason]string {
	t.Helper()
	source, err := os.ReadFile(filepath.FromSlash("../proto/api/v1/errors.proto"))
	if err != nil {
		t.Fatal(err)
	}
	meanings, err := reasonMeanings(string(source))
	if err != nil {
		t.Fatalf("errors.proto: %v", err)
	}
	return meanings
}

// TestErrorReferenceIsFresh compares docs/reference/errors.md with what the table of errors and the comments of Reason
// make of it. With -rewrite the page is written anew, to be reviewed as a diff.
func TestErrorReferenceIsFresh(t *testing.T) {
	rows, err := referenceRows(Faults(), readReasonMeanings(t))
	if err != nil {
		t.Fatal(err)
	}
	got, path := referencePage(rows), filepath.FromSlash("../docs/reference/errors.md")
	if *rewrite {
		if mkdirErr := os.MkdirAll(filepath.Dir(path), 0o755); mkdirErr != nil {
			t.Fatal(mkdirErr)
		}
		if writeErr := os.WriteFile(path, []byte(got), 0o644); writeErr != nil {
			t.Fatal(writeErr)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (make it with -rewrite)", err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is stale, make it anew with -rewrite (-want +got):\n%s", path, diff)
	}
}

func TestErrorReferenceHasOneAnchorPerReason(t *testing.T) {
	rows, err := referenceRows(Faults(), readReasonMeanings(t))
	if err != nil {
		t.Fatal(err)
	}
	page := referencePage(rows)
	for number, name := range apiv1.Reason_name {
		want := 1
		if apiv1.Reason(number) == apiv1.Reason_REASON_UNSPECIFIED {
			want = 0
		}
		id := strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, "REASON_")), "_", "-")
		if n := strings.Count(page, `<a id="`+id+`">`); n != want {
			t.Errorf("%s has %d anchors, want %d", name, n, want)
		}
	}
}

func TestErrorReferenceNamesMissingCells(t *testing.T) {
	const reason = apiv1.Reason_REASON_NOT_LEADER
	row := slices.IndexFunc(Faults(), func(f Fault) bool { return f.Reason == reason })
	for _, tt := range []struct {
		name, want string
		spoil      func([]Fault, map[apiv1.Reason]string) []Fault
	}{
		{"row", "REASON_NOT_LEADER has no row in the table of errors", func(table []Fault, _ map[apiv1.Reason]string) []Fault {
			return slices.Delete(table, row, row+1)
		}},
		{"hint", "REASON_NOT_LEADER (Unavailable) has no hint", func(table []Fault, _ map[apiv1.Reason]string) []Fault {
			table[row].Hint = ""
			return table
		}},
		{"meaning", "REASON_NOT_LEADER (Unavailable) has no meaning: comment it in errors.proto", func(table []Fault, meanings map[apiv1.Reason]string) []Fault {
			delete(meanings, reason)
			return table
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			meanings := readReasonMeanings(t)
			_, err := referenceRows(tt.spoil(Faults(), meanings), meanings)
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
}
