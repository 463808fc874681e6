package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are what is written for operators.
func documents(t *testing.T) []string {
	t.Helper()
	return []string{"docs/operations.md", "docs/runbooks.md", "deploy/README.md"}
}

// blocks are the lines of a document's code blocks.
func blocks(text string) []string {
	var lines []string
	inside := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "```") {
			inside = !inside
		} else if inside {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return lines
}

// Each regd command in the documents exists, with its flags.
func TestCommandsInDocumentsExist(t *testing.T) {
	t.Parallel()
	inline := regexp.MustCompile("`(regd [^`]+)`")
	for _, file := range documents(t) {
		text := read(t, file)
		lines := blocks(text)
		for _, found := range inline.FindAllStringSubmatch(text, -1) {
			lines = append(lines, found[1])
		}
		seen := 0
		for _, line := range lines {
			_, line, _ = cutAny(line, "-- /")
			if !strings.HasPrefix(line, "regd ") {
				continue
			}
			seen++
			line, _, _ = strings.Cut(line, " && ")
			line, _, _ = strings.Cut(line, " #")
			if fault := wrongCommand(t, strings.Fields(line)[1:]); fault != "" {
				t.Errorf("%s: %s: %s", file, line, fault)
			}
		}
		if seen == 0 && file != "deploy/README.md" {
			t.Errorf("%s: no command was found", file)
		}
	}
}

// cutAny is what comes after a separator, or all without one.
func cutAny(line, separator string) (before, after string, found bool) {
	if before, after, found = strings.Cut(line, separator); found {
		return before, after, true
	}
	return "", line, false
}

// wrongCommand says what is wrong with a command line of regd: its help must know the command and each flag.
func wrongCommand(t *testing.T, words []string) string {
	t.Helper()
	var path, flags []string
	for _, w := range words {
		if strings.HasPrefix(w, "-") {
			name, _, _ := strings.Cut(w, "=")
			flags = append(flags, name)
		} else if len(flags) == 0 && len(path) < 2 && regexp.MustCompile(`^[a-z]+$`).MatchString(w) {
			path = append(path, w)
		}
	}
	help, err := run(t.Context(), nil, regd, append(path, "--help")...)
	if err != nil {
		return err.Error()
	}
	usage := regexp.MustCompile(`(?m)^  regd((?: [a-z]+)*)(.*)$`).FindStringSubmatch(help[strings.Index(help, "Usage:"):])
	known := strings.Fields(usage[1])
	if len(known) == 0 || len(path) < len(known) || strings.Join(path[:len(known)], " ") != strings.Join(known, " ") {
		return "there is no such command"
	}
	if rest := path[len(known):]; len(rest) > 0 && !regexp.MustCompile(`[A-Z]|\|`).MatchString(usage[2]) {
		return "it has no command or argument " + rest[0]
	}
	for _, f := range flags {
		if !regexp.MustCompile(`(?m)^.*` + regexp.QuoteMeta(f) + `\b.*$`).MatchString(help) {
			return "it has no flag " + f
		}
	}
	return ""
}

func TestWrongCommandsAreFound(t *testing.T) {
	t.Parallel()
	for line, wrong := range map[string]bool{
		"members remove n2 --dry-run": false, "status --wait --timeout 2m": false, "health live": false,
		"members delete n2": true, "statsu": true, "status --waits": true,
	} {
		if got := wrongCommand(t, strings.Fields(line)); (got != "") != wrong {
			t.Errorf("regd %s: %q", line, got)
		}
	}
}

// Each link from one document to another, and to a heading in it, leads somewhere.
func TestLinksOfDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	for _, file := range documents(t) {
		for _, link := range regexp.MustCompile(`\]\(([^):]+)\)`).FindAllStringSubmatch(read(t, file), -1) {
			path, anchor, _ := strings.Cut(link[1], "#")
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: %v", file, err)
				continue
			}
			if anchor != "" && !anchors(read(t, target))[anchor] {
				t.Errorf("%s: %s has no heading #%s", file, target, anchor)
			}
		}
	}
}

// anchors are the headings of a document as links name them.
func anchors(text string) map[string]bool {
	all := map[string]bool{}
	for _, heading := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		name := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		all[strings.ReplaceAll(name, " ", "-")] = true
	}
	return all
}
