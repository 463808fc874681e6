package client_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The pages whose Go code is the bodies of the functions in guide_test.go.
var guides = []string{"../docs/client.md", "../docs/migrate-client.md"}

// Each block of Go code in the guides bears the name of a function after "```go " and equals its body, and no function is
// without a block.
func TestGuidesShowCodeThatCompiles(t *testing.T) {
	t.Parallel()
	bodies := functionBodies(t, "guide_test.go")
	used := make(map[string]bool)
	for _, guide := range guides {
		for _, b := range codeBlocks(t, guide) {
			body, known := bodies[b.name]
			if !known {
				t.Errorf("%s:%d: no function %q in guide_test.go", guide, b.line, b.name)
				continue
			}
			used[b.name] = true
			if diff := cmp.Diff(body, b.code); diff != "" {
				t.Errorf("%s:%d: %s differs from guide_test.go, -function +page:\n%s", guide, b.line, b.name, diff)
			}
		}
	}
	for name := range bodies {
		if !used[name] {
			t.Errorf("no page shows %s of guide_test.go", name)
		}
	}
}

// The defaults that docs/client.md lists are those that the names beside them are documented with.
func TestGuideListsDocumentedDefaults(t *testing.T) {
	t.Parallel()
	comments := comments(t)
	rows := 0
	for line := range strings.Lines(readFile(t, "../docs/client.md")) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if len(cells) != 3 || !strings.HasPrefix(strings.TrimSpace(cells[2]), "`") {
			continue
		}
		rows++
		value, name := strings.TrimSpace(cells[1]), strings.Trim(strings.TrimSpace(cells[2]), "`")
		_, defaults, found := strings.Cut(comments[name], "Default")
		if !found || !containsWords(defaults, value) {
			t.Errorf("default %q of %s: its comment says %q", value, name, comments[name])
		}
	}
	if rows < 10 {
		t.Errorf("%d rows of defaults were found", rows)
	}
}

// containsWords tells whether words stand in a text, bounded by what is no part of a word or number.
func containsWords(text, words string) bool {
	text = strings.Join(strings.Fields(text), " ")
	for {
		before, after, found := strings.Cut(text, words)
		if !found {
			return false
		}
		part := func(s string) bool { return strings.ContainsAny(s, "0123456789abcdefghijklmnopqrstuvwxyz") }
		if (before == "" || !part(before[len(before)-1:])) && (after == "" || !part(after[:1])) {
			return true
		}
		text = after
	}
}

// codeBlock is a block of code of a page, which begins with "```language name".
type codeBlock struct {
	language, name string
	line           int
	code           string
}

// codeBlocks returns the blocks of Go code of a page.
func codeBlocks(t *testing.T, page string) []codeBlock {
	t.Helper()
	var blocks []codeBlock
	var open *codeBlock // in any language
	number := 0
	for line := range strings.Lines(readFile(t, page)) {
		number++
		info, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && open == nil:
			open = &codeBlock{line: number}
			open.language, open.name, _ = strings.Cut(info, " ")
		case isFence:
			if open.language == "go" {
				blocks = append(blocks, *open)
			}
			open = nil
		case open != nil:
			open.code += line
		}
	}
	if open != nil || len(blocks) == 0 {
		t.Fatalf("%s: %d blocks of Go code, and one that does not end: %t", page, len(blocks), open != nil)
	}
	return blocks
}

// functionBodies returns what stands between the braces of each function of a file, one tab further left.
func functionBodies(t *testing.T, path string) map[string]string {
	t.Helper()
	source := readFile(t, path)
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	bodies := make(map[string]string)
	for _, declaration := range file.Decls {
		f, ok := declaration.(*ast.FuncDecl)
		if !ok {
			continue
		}
		var body strings.Builder
		inside := source[files.Position(f.Body.Lbrace).Offset+len("{\n") : files.Position(f.Body.Rbrace).Offset]
		for line := range strings.Lines(inside) {
			body.WriteString(strings.TrimPrefix(line, "\t"))
		}
		bodies[f.Name.Name] = body.String()
	}
	return bodies
}

// comments returns what the exported functions and fields of this package and those below it are documented with, as one
// finds them: client.WithName, lifecycle.Config.StartTimeout.
func comments(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			switch n := node.(type) {
			case *ast.FuncDecl:
				found[file.Name.Name+"."+n.Name.Name] = n.Doc.Text()
				return false
			case *ast.TypeSpec:
				if of, ok := n.Type.(*ast.StructType); ok {
					for _, field := range of.Fields.List {
						for _, name := range field.Names {
							found[strings.Join([]string{file.Name.Name, n.Name.Name, name.Name}, ".")] = field.Doc.Text()
						}
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.FromSlash(path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A page in docs that shows Go code of the client is one of the guides, so that it is compared too.
func TestAllGuidesAreCompared(t *testing.T) {
	t.Parallel()
	err := filepath.WalkDir("../docs", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".md" {
			return err
		}
		if strings.Contains(readFile(t, path), "```go") && !slices.Contains(guides, filepath.ToSlash(path)) {
			t.Errorf("%s has Go code that nothing compiles", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
