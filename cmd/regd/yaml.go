package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// printYAML prints a document as YAML. It is made from the document's JSON, so that both have the same names and order. It
// is written here and not by a library since what services say of themselves must not reach a terminal raw: every string
// that is not a plain word is quoted, and all that is not printable in it is escaped.
func printYAML(w io.Writer, doc any) error {
	var b bytes.Buffer
	if err := printJSONL(&b, doc); err != nil {
		return err
	}
	dec := json.NewDecoder(&b)
	dec.UseNumber()
	var y yamlText
	if err := y.value(dec, 0, true); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	_, err := io.WriteString(w, strings.TrimLeft(y.String(), " \n"))
	return wrapWrite(err)
}

// yamlText is YAML that is being written.
type yamlText struct{ strings.Builder }

// value writes the next JSON value behind what is on the line; what needs lines of its own gets them at an indentation,
// except that the first field of an item of a list stays on its line.
func (y *yamlText) value(dec *json.Decoder, depth int, inItem bool) error {
	token, err := dec.Token()
	if err != nil {
		return err
	}
	open, compound := token.(json.Delim)
	if !compound {
		y.WriteString(" " + yamlScalar(token) + "\n")
		return nil
	}
	if !dec.More() {
		y.WriteString(map[json.Delim]string{'{': " {}\n", '[': " []\n"}[open])
	} else if !inItem {
		y.WriteString("\n")
	}
	for first := true; dec.More(); first = false {
		if inItem && first {
			y.WriteString(" ")
		} else {
			y.WriteString(strings.Repeat("  ", depth))
		}
		if open == '{' {
			var name json.Token
			if name, err = dec.Token(); err != nil {
				return err
			}
			y.WriteString(yamlScalar(name) + ":")
		} else {
			y.WriteString("-")
		}
		if err = y.value(dec, depth+1, open == '['); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// plainWord is a string that YAML, of any version, takes for nothing else, unless it is one of notWords.
var (
	plainWord = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_./-]*$`)
	notWords  = regexp.MustCompile(`(?i)^(null|true|false|yes|no|on|off|y|n)$`)
)

func yamlScalar(token json.Token) string {
	switch v := token.(type) {
	case string:
		if plainWord.MatchString(v) && !notWords.MatchString(v) {
			return v
		}
		return strconv.Quote(v)
	case nil:
		return "null"
	default:
		return fmt.Sprint(v)
	}
}
