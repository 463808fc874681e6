package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// figure is one measurement.
type figure struct {
	System     string        `json:"system"`
	Value      float64       `json:"value"`
	Operations int64         `json:"operations,omitempty"` // in the measured time
	CPU        time.Duration `json:"cpu_ns,omitempty"`     // of the servers, in the measured time
	P50        float64       `json:"p50_ms,omitempty"`     // of the operations
	P99        float64       `json:"p99_ms,omitempty"`
	Memory     int64         `json:"memory_bytes"` // of the servers, at the end
	Note       string        `json:"note,omitempty"`
}

func newFigure(system string, r result, memory int64) figure {
	f := figure{System: system, Value: r.value, Operations: r.operations, CPU: r.cpu, Memory: memory, Note: r.note}
	if r.latency != nil {
		f.P50, f.P99 = milliseconds(r.latency, 50), milliseconds(r.latency, 99)
	}
	return f
}

// cost is the CPU time of the servers for an operation, in µs; 0 if it is not known.
func (f figure) cost() float64 {
	return microseconds(f.CPU, f.Operations)
}

// microseconds is the share of each of some operations in a time; 0 if there are none.
func microseconds(d time.Duration, operations int64) float64 {
	if operations == 0 {
		return 0
	}
	return float64(d.Nanoseconds()) / 1000 / float64(operations)
}

// row is all measurements of a job.
type row struct {
	Job     string   `json:"job"`
	Unit    string   `json:"unit"`
	Goal    float64  `json:"goal,omitempty"`  // ratio to etcd, or where etcd does not have the job, value
	Alone   bool     `json:"alone,omitempty"` // etcd does not have the job
	Figures []figure `json:"figures"`

	job job
}

// report is a run.
type report struct {
	Date     string  `json:"date"`
	Commit   string  `json:"commit"`
	LogStore string  `json:"log_store"` // of regd
	Cores    int     `json:"cores"`
	Rounds   int     `json:"rounds"`
	Rows     []*row  `json:"rows"`
	Curves   []drawn `json:"curves,omitempty"`
}

func newReport(o options) *report {
	return &report{Date: time.Now().UTC().Format(time.DateOnly), Commit: o.commit, LogStore: o.logStore, Cores: runtime.NumCPU(), Rounds: o.rounds}
}

func (r *report) add(j job, f figure) {
	i := slices.IndexFunc(r.Rows, func(r *row) bool { return r.Job == j.name })
	if i < 0 {
		i = len(r.Rows)
		r.Rows = append(r.Rows, &row{Job: j.name, Unit: j.unit, Goal: j.goal, Alone: j.alone, job: j})
	}
	r.Rows[i].Figures = append(r.Rows[i].Figures, f)
}

// of is something of a system's figures, smallest first.
func (r *row) of(system string, what func(figure) float64) []float64 {
	var list []float64
	for _, f := range r.Figures {
		if f.System == system {
			list = append(list, what(f))
		}
	}
	slices.Sort(list)
	return list
}

// median is that of a system's figures, 0 if there are none.
func (r *row) median(system string, what func(figure) float64) float64 {
	list := r.of(system, what)
	if len(list) == 0 {
		return 0
	}
	return list[len(list)/2]
}

func valueOf(f figure) float64 { return f.Value }

// cell is the median with the least and the greatest.
func (r *row) cell(system string) string {
	list := r.of(system, valueOf)
	if len(list) == 0 {
		return "-"
	}
	return fmt.Sprintf("%s (%s to %s)", r.job.text(list[len(list)/2]), r.job.text(list[0]), r.job.text(list[len(list)-1]))
}

// ratio is how many times better regd is than etcd, 0 if that is not known.
func (r *row) ratio() float64 {
	a, b := r.median("regd", valueOf), r.median("etcd", valueOf)
	if r.job.less {
		a, b = b, a
	}
	if b == 0 {
		return 0
	}
	return a / b
}

// markdown writes the report.
func (r *report) markdown(w io.Writer) {
	fmt.Fprintf(w, "%s, commit %s, log store %s, %d cores for the servers and the clients, jobs: medians of %d (least to greatest)\n", r.Date, r.Commit, r.LogStore, r.Cores, r.Rounds)
	if len(r.Rows) > 0 {
		r.jobs(w)
	}
	for _, d := range r.Curves {
		d.markdown(w)
	}
}

// jobs writes the tables of jobs.
func (r *report) jobs(w io.Writer) {
	fmt.Fprintln(w, "\n| job | regd | etcd | ratio | goal |\n| --- | --- | --- | --- | --- |")
	for _, row := range r.Rows {
		ratio, goal := "-", "-"
		if v := row.ratio(); v > 0 {
			ratio = fmt.Sprintf("%.2fx", v)
		}
		switch {
		case row.job.alone:
			goal = row.job.text(row.Goal)
		case row.Goal > 0:
			goal = fmt.Sprintf("%.2gx", row.Goal)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", row.Job, row.cell("regd"), row.cell("etcd"), ratio, goal)
	}
	fmt.Fprint(w, "\nWhat it costs: CPU time of all servers for an operation (a call, a renewal, a delivery), time of an operation as its\n"+
		"client sees it, p50 and p99, and what memory of all servers is resident at the end. Medians.\n\n")
	fmt.Fprintln(w, "| job | CPU: regd | etcd | time: regd | etcd | memory: regd | etcd |\n| --- | --- | --- | --- | --- | --- | --- |")
	for _, row := range r.Rows {
		fmt.Fprintf(w, "| %s |", row.Job)
		for _, cost := range []func(system string) string{row.cpu, row.latency, row.memory} {
			fmt.Fprintf(w, " %s | %s |", cost("regd"), cost("etcd"))
		}
		fmt.Fprintln(w)
	}
	for _, row := range r.Rows {
		for _, f := range row.Figures {
			if f.Note != "" {
				fmt.Fprintf(w, "\n%s, %s: %s\n", row.Job, f.System, f.Note)
			}
		}
	}
}

func (r *row) cpu(system string) string { return known(r.median(system, figure.cost), "µs") }

func (r *row) latency(system string) string {
	p50 := r.median(system, func(f figure) float64 { return f.P50 })
	p99 := r.median(system, func(f figure) float64 { return f.P99 })
	if p99 == 0 {
		return "-"
	}
	return fmt.Sprintf("%s, %s ms", number(p50), number(p99))
}

func (r *row) memory(system string) string {
	return known(r.median(system, func(f figure) float64 { return float64(f.Memory) / (1 << 20) }), "MiB")
}

// known is a number with its unit, or a dash when it is 0: not known.
func known(v float64, unit string) string {
	if v == 0 {
		return "-"
	}
	return number(v) + " " + unit
}

// number has three digits, and all before the point.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 3, 64)
}

// markdown writes a curve as a table.
func (d drawn) markdown(w io.Writer) {
	fmt.Fprintf(w, "\n%s\n\n| %s |", d.Name, d.Of)
	for _, m := range d.Points[0].Values {
		fmt.Fprintf(w, " %s |", m.Name)
	}
	fmt.Fprintln(w, "\n| --- |"+strings.Repeat(" --- |", len(d.Points[0].Values)))
	for _, p := range d.Points {
		fmt.Fprintf(w, "| %d |", p.Size)
		for _, m := range p.Values {
			fmt.Fprintf(w, " %s |", m.text())
		}
		fmt.Fprintln(w)
	}
}

// write writes the report as JSON and Markdown into a folder, with a picture of each curve, and as Markdown to the
// standard output.
func (r *report) write(dir string) error {
	var text strings.Builder
	r.markdown(&text)
	fmt.Print(text.String())
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	for _, d := range r.Curves {
		var svg bytes.Buffer
		if err := picture(&svg, d); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "curve-"+d.Name+".svg"), svg.Bytes(), 0o600); err != nil {
			return err
		}
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
