package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// figure is one measurement.
type figure struct {
	System string        `json:"system"`
	Value  float64       `json:"value"`
	CPU    time.Duration `json:"cpu_ns"`       // of the servers
	Memory int64         `json:"memory_bytes"` // of the servers, at the end
}

// row is all measurements of a job.
type row struct {
	Job     string   `json:"job"`
	Unit    string   `json:"unit"`
	Goal    float64  `json:"goal,omitempty"` // ratio to etcd
	Figures []figure `json:"figures"`

	job job
}

// report is a run.
type report struct {
	Date   string `json:"date"`
	Commit string `json:"commit"`
	Cores  int    `json:"cores"`
	Rounds int    `json:"rounds"`
	Rows   []*row `json:"rows"`
}

func newReport(o options) *report {
	return &report{Date: time.Now().UTC().Format(time.DateOnly), Commit: o.commit, Cores: runtime.NumCPU(), Rounds: o.rounds}
}

func (r *report) add(j job, f figure) {
	if n := len(r.Rows); n == 0 || r.Rows[n-1].Job != j.name {
		r.Rows = append(r.Rows, &row{Job: j.name, Unit: j.unit, Goal: j.goal, job: j})
	}
	last := r.Rows[len(r.Rows)-1]
	last.Figures = append(last.Figures, f)
}

// of are a system's figures, smallest first.
func (r *row) of(system string) []figure {
	var list []figure
	for _, f := range r.Figures {
		if f.System == system {
			list = append(list, f)
		}
	}
	slices.SortFunc(list, func(a, b figure) int { return cmp.Compare(a.Value, b.Value) })
	return list
}

// cell is the median with the least and the greatest.
func (r *row) cell(system string) string {
	list := r.of(system)
	if len(list) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s to %s)", r.job.text(list[len(list)/2].Value), r.job.text(list[0].Value), r.job.text(list[len(list)-1].Value))
}

// ratio is how many times better regd is than etcd, 0 if that is not known.
func (r *row) ratio() float64 {
	ours, theirs := r.of("regd"), r.of("etcd")
	if len(ours) == 0 || len(theirs) == 0 {
		return 0
	}
	a, b := ours[len(ours)/2].Value, theirs[len(theirs)/2].Value
	if r.job.less {
		a, b = b, a
	}
	return a / b
}

// table writes the report as Markdown.
func (r *report) table(w io.Writer) {
	fmt.Fprintf(w, "%s, commit %s, %d cores for the servers and the clients, medians of %d (least to greatest)\n\n", r.Date, r.Commit, r.Cores, r.Rounds)
	fmt.Fprintln(w, "| job | regd | etcd | ratio | goal |\n| --- | --- | --- | --- | --- |")
	for _, row := range r.Rows {
		ratio, goal := "-", "-"
		if v := row.ratio(); v > 0 {
			ratio = fmt.Sprintf("%.2fx", v)
		}
		if row.Goal > 0 {
			goal = fmt.Sprintf("%.2gx", row.Goal)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", row.Job, row.cell("regd"), row.cell("etcd"), ratio, goal)
	}
}

// write writes the report as JSON and Markdown into a folder, and as Markdown to the standard output.
func (r *report) write(dir string) error {
	var text strings.Builder
	r.table(&text)
	fmt.Print(text.String())
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bench.json"), append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "bench.md"), []byte(text.String()), 0o600)
}
