package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
)

// Values of --output.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatJSONL = "jsonl"
	formatName  = "name"
	formatText  = "text"
)

// output is how one command prints what it has found or done. stdout gets the answer and nothing else.
type output struct {
	*app
	format    string
	noHeaders bool
}

// addOutput gives a command -o with the formats that it knows; the first one is the default.
func (a *app) addOutput(cmd *cobra.Command, formats ...string) *output {
	o := &output{app: a, format: formats[0]}
	enumVarP(cmd.Flags(), &o.format, "output", "o", "what to print", formats...)
	complete(cmd, "output", formats...)
	if slices.Contains(formats, formatWide) {
		cmd.Flags().BoolVar(&o.noHeaders, "no-headers", false, "print tables without their first line")
	}
	return o
}

// complete makes a flag complete from a fixed list.
func complete(cmd *cobra.Command, flag string, values ...string) {
	fixed := cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
	completeFunc(cmd, flag, fixed)
}

func completeFunc(cmd *cobra.Command, flag string, fn cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, fn); err != nil {
		panic(fmt.Sprintf("completion of --%s: %v", flag, err)) // Only a misspelt flag name in this package.
	}
}

// printJSON prints a document for people and programs.
func printJSON(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return wrapWrite(enc.Encode(doc))
}

// isDocument is true when one document is the whole answer.
func (o *output) isDocument() bool { return o.format == formatJSON || o.format == formatYAML }

// printDocument prints a document as JSON or as YAML, with the same names.
func (o *output) printDocument(doc any) error {
	if o.format == formatYAML {
		return printYAML(o.answer(), doc)
	}
	return printJSON(o.answer(), doc)
}

// printJSONL prints a document on one line.
func printJSONL(w io.Writer, doc any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return wrapWrite(enc.Encode(doc))
}

func wrapWrite(err error) error {
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}

// printList prints what was found in the format that was asked for. doc is the JSON document that holds the items.
func printList[T any](o *output, doc any, items []T, t tableOf[T]) error {
	switch o.format {
	case formatJSON, formatYAML:
		return o.printDocument(doc)
	case formatJSONL:
		for _, item := range items {
			if err := printJSONL(o.answer(), item); err != nil {
				return err
			}
		}
		return nil
	case formatName:
		for _, item := range items {
			if _, err := fmt.Fprintln(o.answer(), clean(t.name(item))); err != nil {
				return wrapWrite(err)
			}
		}
		return nil
	default:
		return t.print(o.answer(), items, tableStyle{
			wide: o.format == formatWide, headers: !o.noHeaders, paint: o.paintFor(o.stdout),
		})
	}
}

// change is a change that a command made, as it tells about it.
type change struct {
	// Name says of what, as kind/name.
	Name string `json:"name"`
	// Result says what became of it, in a word.
	Result string `json:"result"`
	// Changed is false when it was so already.
	Changed bool `json:"changed"`
	// Revision of the registry with the change. 0: it has none.
	Revision uint64 `json:"revision,omitempty"`
	// Incarnation that a registration got.
	Incarnation uint64 `json:"incarnation,omitempty"`
	// Lease that was granted with it.
	Lease string `json:"lease_id,omitempty"`
}

// done tells about a change that was made: on stdout, since it is the answer.
func (o *output) done(c change) error {
	switch o.format {
	case formatJSON, formatYAML:
		return o.printDocument(c)
	case formatName:
		_, err := fmt.Fprintln(o.answer(), clean(c.Name))
		return wrapWrite(err)
	}
	line := clean(c.Name) + " " + c.Result
	if !c.Changed {
		line = clean(c.Name) + " unchanged"
	} else if c.Revision > 0 {
		line += fmt.Sprintf(" (revision %d)", c.Revision)
	}
	_, err := fmt.Fprintln(o.answer(), line)
	return wrapWrite(err)
}

// answer is where the answer goes. Nothing shows progress any more once there is one.
func (a *app) answer() io.Writer {
	a.endProgress()
	return a.stdout
}

// note tells people something that is not the answer.
func (a *app) note(format string, args ...any) {
	a.endProgress()
	fmt.Fprintf(a.stderr, format+"\n", args...)
}
