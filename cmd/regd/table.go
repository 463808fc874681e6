package main

import (
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// none stands in a cell without a value, so that columns can be cut out by scripts.
const none = "<none>"

// tableOf says how items become rows: one row each, the name first.
type tableOf[T any] struct {
	columns []column[T]
	// name is what -o name prints.
	name func(T) string
}

// column is one column.
type column[T any] struct {
	title string
	// wide columns are shown by -o wide only.
	wide bool
	// text is the cell; empty is shown as <none>.
	text func(T) string
	// colour of the cell; nil or "" for none.
	colour func(T) string
	right  bool
}

type tableStyle struct {
	wide    bool
	headers bool
	paint   paint
}

// print prints the items as a table without borders.
func (t tableOf[T]) print(w io.Writer, items []T, style tableStyle) error {
	columns := make([]column[T], 0, len(t.columns))
	for _, c := range t.columns {
		if style.wide || !c.wide {
			columns = append(columns, c)
		}
	}
	tw := newTable()
	var configs []table.ColumnConfig
	header := table.Row{}
	for i, c := range columns {
		header = append(header, c.title)
		if c.right {
			configs = append(configs, table.ColumnConfig{Number: i + 1, Align: text.AlignRight, AlignHeader: text.AlignRight})
		}
	}
	tw.SetColumnConfigs(configs)
	if style.headers {
		tw.AppendHeader(header)
	}
	for _, item := range items {
		row := table.Row{}
		for _, c := range columns {
			cell := clean(c.text(item))
			if cell == "" {
				cell = none
			}
			if c.colour != nil {
				cell = style.paint.as(c.colour(item), cell)
			}
			row = append(row, cell)
		}
		tw.AppendRow(row)
	}
	return printTable(w, tw)
}

// newTable returns a table in the style of this program: upper-case titles, no borders, two blanks between columns.
func newTable() table.Writer {
	tw := table.NewWriter()
	style := table.StyleDefault
	style.Options = table.OptionsNoBordersAndSeparators
	style.Box.PaddingLeft, style.Box.PaddingRight = "", "  "
	style.Format.Header = text.FormatUpper
	tw.SetStyle(style)
	return tw
}

func printTable(w io.Writer, tw table.Writer) error {
	for line := range strings.Lines(tw.Render() + "\n") {
		if line = strings.TrimRight(line, " \n"); line == "" {
			continue
		}
		if _, err := io.WriteString(w, line+"\n"); err != nil {
			return wrapWrite(err)
		}
	}
	return nil
}
