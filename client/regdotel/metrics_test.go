package regdotel

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDocumentation checks that docs/client.md has a row for each metric and no other, with what it is.
func TestDocumentation(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/client.md")
	if err != nil {
		t.Fatal(err)
	}
	var got, want []string
	for line := range strings.Lines(string(page)) {
		if strings.HasPrefix(line, "| `regd.client.") {
			got = append(got, strings.TrimSpace(line))
		}
	}
	for _, d := range descriptions() {
		attributes := make([]string, len(d.attributes))
		for i, key := range d.attributes {
			attributes[i] = "`" + string(key) + "`"
		}
		want = append(want, strings.Join([]string{
			"| `" + d.name + "`", string(d.kind) + ", " + d.unit, d.help, strings.Join(append(attributes, "|"), " "),
		}, " | "))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/client.md, -want +got:\n%s", diff)
		t.Log("what it should have:\n" + strings.Join(want, "\n"))
	}
}
