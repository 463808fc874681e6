package deploy

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// documents are what is written for users, apart from the reference, which is made from the code.
func documents(t *testing.T) []string {
	t.Helper()
	return append(glob(t, "docs/*.md"), "README.md", "deploy/README.md")
}

// pages are all documents with links.
func pages(t *testing.T) []string {
	t.Helper()
	all := append(documents(t), glob(t, "docs/reference/*.md")...)
	for _, pattern := range []string{"*/DESIGN.md", "*/*/DESIGN.md", "examples/*.md", "examples/*/*.md"} {
		all = append(all, glob(t, pattern)...)
	}
	return append(all, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
}

// glob lists the files of the repository that match.
func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := fs.Glob(os.DirFS(root), pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
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
		if file != "docs/client.md" { // There they are names of spans.
			for _, found := range inline.FindAllStringSubmatch(text, -1) {
				lines = append(lines, found[1])
			}
		}
		seen := 0
		for _, line := range lines {
			_, line, _ = cutAny(line, "-- /")
			if !regexp.MustCompile(`^regd [a-z]+( |$)`).MatchString(line) {
				continue
			}
			seen++
			line, _, _ = strings.Cut(line, " && ")
			line, _, _ = strings.Cut(line, " #")
			if fault := wrongCommand(t, strings.Fields(line)[1:]); fault != "" {
				t.Errorf("%s: %s: %s", file, line, fault)
			}
		}
		if seen == 0 && slices.Contains([]string{"README.md", "docs/operations.md", "docs/runbooks.md"}, file) {
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
		} else if len(flags) == 0 && len(path) < 3 && regexp.MustCompile(`^[a-z]+$`).MatchString(w) {
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

// Each flag and each variable that the documents name alone is in the reference.
func TestFlagsAndVariablesInDocumentsExist(t *testing.T) {
	t.Parallel()
	reference := read(t, "docs/reference/cli.md")
	for _, name := range regexp.MustCompile("</a>`([a-z-]+)`").FindAllStringSubmatch(read(t, "docs/reference/config.md"), -1) {
		reference += "\n`--" + name[1] + "` `REGD_" + strings.ToUpper(strings.ReplaceAll(name[1], "-", "_")) + "`"
	}
	for _, file := range documents(t) {
		for _, name := range regexp.MustCompile("`(--[a-z][a-z-]+|REGD_[A-Z_]+)").FindAllStringSubmatch(read(t, file), -1) {
			if !regexp.MustCompile("[` ]" + name[1] + "[` ]").MatchString(reference) {
				t.Errorf("%s: there is no %s", file, name[1])
			}
		}
	}
}

// Each link from one document to another, and to a heading in it, leads somewhere; so do those of DESIGN.md.
func TestLinksOfDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	for _, file := range pages(t) {
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
	for _, anchor := range regexp.MustCompile(`<a id="([^"]+)"></a>`).FindAllStringSubmatch(text, -1) {
		all[anchor[1]] = true
	}
	return all
}
