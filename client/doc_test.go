package client_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// All that users see of this package and those below it is explained where it is declared, down to the fields of structs
// and the methods of interfaces.
func TestEveryExportedNameIsDocumented(t *testing.T) {
	t.Parallel()
	files := token.NewFileSet()
	packages := make(map[string][]*ast.File)
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(files, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		packages[filepath.Dir(path)] = append(packages[filepath.Dir(path)], file)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(packages["discovery"]) == 0 {
		t.Fatal("the packages below this one were not found")
	}
	for dir, of := range packages {
		if !slices.ContainsFunc(of, func(f *ast.File) bool { return documented(f.Doc) }) {
			t.Errorf("package in %s has no comment", dir)
		}
		for _, file := range of {
			for _, name := range undocumented(files, file) {
				t.Errorf("%s has no comment", name)
			}
		}
	}
}

// What the test above relies on: each kind of name is missed when its comment is missing, and only then.
func TestUndocumentedNamesAreFound(t *testing.T) {
	t.Parallel()
	const source = `package p
type Bare struct {
	// A and B share this.
	A int
	B int
	C int
	D int // Behind it.

	E, f int
	//nolint:all // A directive is no comment.
	G int
}
// T is documented.
type T interface{
	M()
	// N is documented.
	N()
}
func (T) Method() {}
func (u) Method() {}
func Func() {}
// Generic is documented.
type Generic[K comparable] struct{}
func (g *Generic[K]) Get() {}
const Limit = 1
var (
	// First is documented.
	First int
	Second int
	third int
)
// All of the group.
const (
	X = iota
	Y
)
`
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, "p.go", source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"p.go:2: Bare", "p.go:6: Bare.C", "p.go:9: Bare.E", "p.go:11: Bare.G", "p.go:15: T.M",
		"p.go:19: T.Method", "p.go:21: Func", "p.go:24: Generic.Get", "p.go:25: Limit", "p.go:29: Second",
	}
	if diff := cmp.Diff(want, undocumented(files, file)); diff != "" {
		t.Error("-want +got:\n" + diff)
	}
}

// undocumented returns file:line and name of what a file exports without a comment.
func undocumented(files *token.FileSet, file *ast.File) []string {
	var found []string
	miss := func(node ast.Node, name string) {
		position := files.Position(node.Pos())
		found = append(found, fmt.Sprintf("%s:%d: %s", position.Filename, position.Line, name))
	}
	for _, declaration := range file.Decls {
		switch d := declaration.(type) {
		case *ast.FuncDecl:
			name, visible := d.Name.Name, d.Name.IsExported()
			if d.Recv != nil {
				of := receiver(d.Recv.List[0].Type)
				name, visible = of.Name+"."+name, visible && of.IsExported()
			}
			if visible && !documented(d.Doc) {
				miss(d, name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.TypeSpec:
					if !s.Name.IsExported() {
						continue
					}
					if !documented(s.Doc, d.Doc) {
						miss(s, s.Name.Name)
					}
					switch of := s.Type.(type) {
					case *ast.StructType:
						members(files, s.Name.Name, of.Fields, miss)
					case *ast.InterfaceType:
						members(files, s.Name.Name, of.Methods, miss)
					}
				case *ast.ValueSpec:
					for _, name := range s.Names {
						if name.IsExported() && !documented(s.Doc, s.Comment, d.Doc) {
							miss(name, name.Name)
						}
					}
				}
			}
		}
	}
	return found
}

// members misses fields and methods without a comment. Those that stand together without a blank line may share the
// comment of the first, if it names them. What is embedded is documented where it is declared.
func members(files *token.FileSet, of string, list *ast.FieldList, miss func(ast.Node, string)) {
	var shared string
	previous := -1
	for _, field := range list.List {
		begins := field.Pos()
		if field.Doc != nil {
			begins = field.Doc.Pos()
		}
		if documented(field.Doc) {
			shared = field.Doc.Text()
		} else if files.Position(begins).Line != previous+1 {
			shared = ""
		}
		previous = files.Position(field.End()).Line
		for _, name := range field.Names {
			if name.IsExported() && !documented(field.Doc, field.Comment) && !slices.Contains(words(shared), name.Name) {
				miss(name, of+"."+name.Name)
			}
		}
	}
}

// words returns the identifiers in a text.
func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	})
}

// documented tells whether one of the comments says something: directives such as nolint don't.
func documented(comments ...*ast.CommentGroup) bool {
	return slices.ContainsFunc(comments, func(c *ast.CommentGroup) bool { return strings.TrimSpace(c.Text()) != "" })
}

// receiver returns the name of a method's type.
func receiver(of ast.Expr) *ast.Ident {
	for {
		switch e := of.(type) {
		case *ast.StarExpr:
			of = e.X
		case *ast.IndexExpr:
			of = e.X
		case *ast.IndexListExpr:
			of = e.X
		case *ast.Ident:
			return e
		default:
			panic(fmt.Sprintf("receiver of type %T", of))
		}
	}
}
