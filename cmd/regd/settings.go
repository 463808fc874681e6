package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
	"github.com/spf13/pflag"
)

// A setting is a flag. Its environment variable and its key in the file go through the same parser, so that there is
// one table of names, types, defaults and errors. A flag wins over the environment, that over the file.

// applyEnv sets the flags that were not given from the environment. It reports all faults.
func applyEnv(fs *pflag.FlagSet, getenv func(string) string) error {
	var faults []error
	fs.VisitAll(func(f *pflag.Flag) {
		variable := f.Annotations[envAnnotation]
		if f.Changed || len(variable) == 0 || getenv(variable[0]) == "" {
			return
		}
		value := getenv(variable[0])
		if err := setFlag(fs, f, value); err != nil {
			faults = append(faults, fmt.Errorf("environment variable %s=%q: %w", variable[0], value, err))
		}
		setSource(f, "environment")
	})
	if len(faults) > 0 {
		return &exitError{code: exitUsage, err: errors.Join(faults...)}
	}
	return nil
}

// setFlag sets a flag and returns what is wrong with the value, without the name of the flag.
func setFlag(fs *pflag.FlagSet, f *pflag.Flag, value string) error {
	err := fs.Set(f.Name, value)
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) {
		return valueError(f, invalid)
	}
	return err
}

// valueError says what a value should have been, where the flag's type comes from a library whose errors name Go
// functions.
func valueError(f *pflag.Flag, err *pflag.InvalidValueError) error {
	switch f.Value.Type() {
	case "bool":
		return errors.New("must be true or false")
	case "duration":
		return errors.New("must be a duration with its unit, such as 300ms, 5s or 2m")
	case "int", "uint32", "uint64":
		return errors.New("must be a whole number")
	case "float64":
		return errors.New("must be a number such as 0.25")
	}
	return cmp.Or(err.Unwrap(), error(err))
}

// sourceAnnotation says where the value of a flag is from that was not given as one.
const sourceAnnotation = "regd_source"

func setSource(f *pflag.Flag, source string) {
	f.Annotations[sourceAnnotation] = []string{source} // It has annotations: only a setting is set from elsewhere.
}

// sourceOf says where the value of a setting is from.
func sourceOf(f *pflag.Flag) string {
	switch source := f.Annotations[sourceAnnotation]; {
	case len(source) > 0:
		return source[0]
	case f.Changed:
		return "flag"
	default:
		return "default"
	}
}

// applyFile sets the flags that were not set yet from a YAML file whose keys are names of flags. Only flags with a
// variable in the environment are settings. It reports all faults, each with its place.
func applyFile(fs *pflag.FlagSet, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return &exitError{code: exitConfig, err: fmt.Errorf("read configuration: %w", err)}
	}
	if err := applyYAML(fs, path, data); err != nil {
		return &exitError{code: exitConfig, err: err}
	}
	return nil
}

func applyYAML(fs *pflag.FlagSet, path string, data []byte) error {
	place := placer{path: path, lines: strings.Split(string(data), "\n")}
	file, err := parser.ParseBytes(data, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		var syntax yaml.Error
		if errors.As(err, &syntax) {
			return place.errorf(syntax.GetToken(), "%s", clean(syntax.GetMessage()))
		}
		return fmt.Errorf("%s: %w", path, err)
	}
	if len(file.Docs) > 1 {
		// At the --- that begins it, or the ... that ends the first: it may have no body.
		return place.errorf(cmp.Or(file.Docs[1].Start, file.Docs[0].End), "a second document; there must be one")
	}
	if len(file.Docs) == 0 || file.Docs[0].Body == nil {
		return nil
	}
	var entries []*ast.MappingValueNode
	switch body := file.Docs[0].Body.(type) {
	case *ast.MappingNode:
		entries = body.Values
	case *ast.MappingValueNode:
		entries = []*ast.MappingValueNode{body}
	case *ast.NullNode, *ast.CommentGroupNode:
	default:
		return place.errorf(body.GetToken(), "must be a list of  key: value")
	}
	var faults []error
	first := map[string]int{}
	for _, e := range entries {
		key := e.Key.GetToken()
		if line, twice := first[key.Value]; twice {
			faults = append(faults, place.errorf(key, "%s is set twice, first in line %d", clean(key.Value), line))
			continue
		}
		first[key.Value] = key.Position.Line
		if err := applyKey(fs, place, e); err != nil {
			faults = append(faults, err)
		}
	}
	return errors.Join(faults...)
}

func applyKey(fs *pflag.FlagSet, place placer, e *ast.MappingValueNode) error {
	key := e.Key.GetToken()
	f := fs.Lookup(key.Value)
	if f == nil || len(f.Annotations[envAnnotation]) == 0 || f.Name == "config" {
		return place.errorf(key, "unknown key %q%s", key.Value, didYouMean(key.Value, settingNames(fs), ""))
	}
	value, at, err := scalar(e.Value)
	if err != nil {
		return place.errorf(at, "%s: %w", key.Value, err)
	}
	if f.Changed {
		return nil
	}
	if err := setFlag(fs, f, value); err != nil {
		return place.errorf(at, "%s: %w", key.Value, err)
	}
	setSource(f, fmt.Sprintf("%s:%d", place.path, key.Position.Line))
	return nil
}

// scalar returns a value as a flag takes it: a list is joined by commas.
func scalar(n ast.Node) (string, *token.Token, error) {
	at := n.GetToken()
	switch n := n.(type) {
	case *ast.SequenceNode:
		var parts []string
		for _, item := range n.Values {
			part, itemAt, err := scalar(item)
			if _, nested := item.(*ast.SequenceNode); nested {
				err = errors.New("must be a text, not a list")
			}
			if err != nil {
				return "", itemAt, err
			}
			if strings.Contains(part, ",") {
				return "", itemAt, fmt.Errorf("%q contains a comma", part)
			}
			parts = append(parts, part)
		}
		return strings.Join(parts, ","), at, nil
	case *ast.StringNode:
		return n.Value, at, nil
	case *ast.BoolNode:
		return strconv.FormatBool(n.Value), at, nil
	case *ast.IntegerNode, *ast.FloatNode:
		return at.Value, at, nil
	default:
		return "", at, errors.New("must be a text, a number, true or false, or a list of texts")
	}
}

// settingNames lists the flags that are settings.
func settingNames(fs *pflag.FlagSet) []string {
	var names []string
	fs.VisitAll(func(f *pflag.Flag) {
		if len(f.Annotations[envAnnotation]) > 0 && f.Name != "config" {
			names = append(names, f.Name)
		}
	})
	return names
}

// placer makes errors that show a place in a file.
type placer struct {
	path  string
	lines []string
}

func (p placer) errorf(at *token.Token, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if at == nil || at.Position == nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	line, column := at.Position.Line, at.Position.Column
	excerpt := ""
	if line >= 1 && line <= len(p.lines) {
		number := fmt.Sprintf("%4d | ", line)
		excerpt = "\n" + number + clean(p.lines[line-1]) + "\n" + strings.Repeat(" ", len(number)+column-1) + "^"
	}
	return fmt.Errorf("%s:%d:%d: %w%s", p.path, line, column, err, excerpt)
}
