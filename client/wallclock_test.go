package client_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestWallClockIsReadInFewPlaces: whatever the client times it times by the monotonic clock, which nobody sets. What takes a
// time's monotonic reading away, or makes a time that has none, may occur only where times are read from and written for others.
func TestWallClockIsReadInFewPlaces(t *testing.T) {
	allowed := map[string][]string{
		filepath.Join("discovery", "codec.go"): {"UnixMilli"},        // files; anchored as they are read
		filepath.Join("discovery", "file.go"):  {"ModTime", "Round"}, // of files that a crash left
		filepath.Join("regdhttp", "retry.go"):  {"ParseTime"},        // Retry-After
		filepath.Join("discovery", "view.go"):  {"Round"},            // a duration, for people
		"access.go":                            {"UnixMilli"},        // when a token ends, by everybody's clock
	}
	suspects := []string{
		"Unix", "UnixMilli", "UnixMicro", "UnixNano", "Date", "Parse", "ParseInLocation", "ParseTime", "AsTime", "ModTime", "Round",
		"Truncate", "UTC", "In", "AddDate", "MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText", "MarshalBinary",
	}
	files, calls := 0, 0
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, nil, 0)
		if err != nil {
			return err
		}
		files++
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			sel, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains(suspects, sel.Sel.Name) {
				return true
			}
			calls++
			if !slices.Contains(allowed[path], sel.Sel.Name) {
				t.Errorf("%s: %s: a time without a monotonic reading? Then use one that has it, else name the place here",
					fset.Position(call.Pos()), sel.Sel.Name)
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 || calls < 4 {
		t.Errorf("only %d files and %d calls were looked at", files, calls)
	}
}
