package report

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// WriteText writes the report for people. The verdict is the last line but one, the command that replays the last.
func (r *Report) WriteText(w io.Writer, least Minimum) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "chaos %s: seed %d, commit %s, %d nodes, %v (checks %v)\n\n", r.Profile, r.Seed, r.Commit, r.Nodes,
		r.Took.Round(time.Second), r.Checks.Round(time.Millisecond))
	r.writeOperations(&b)
	r.writeFaults(&b)
	for _, f := range r.Facts {
		fmt.Fprintf(&b, "%s: %d\n", f.What, f.Count)
	}
	for _, note := range r.Notes {
		fmt.Fprintln(&b, note)
	}
	for _, s := range r.Skipped {
		fmt.Fprintln(&b, "SKIPPED", s)
	}
	for _, v := range r.Violations {
		fmt.Fprintln(&b, "VIOLATION", v)
	}
	invalid := r.Invalid(least)
	for _, why := range invalid {
		fmt.Fprintln(&b, "INVALID", why)
	}
	verdict := "VALID"
	if len(invalid) > 0 {
		verdict = "INVALID"
	}
	fmt.Fprintf(&b, "\n%s, %d violations, %d skipped\n%s\n", verdict, len(r.Violations), len(r.Skipped), r.Replay)
	_, err := w.Write(b.Bytes())
	return err
}

func (r *Report) writeOperations(b *bytes.Buffer) {
	names := make([]string, 0, len(r.Operations))
	var all Outcomes
	for name, o := range r.Operations {
		names = append(names, name)
		all.OK, all.Failed, all.Unknown = all.OK+o.OK, all.Failed+o.Failed, all.Unknown+o.Unknown
	}
	slices.Sort(names)
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(tw, "operation\tok\tfailed\tunknown\t")
	for _, name := range names {
		o := r.Operations[name]
		fmt.Fprintf(tw, "%s\t%d\t%d\t%d\t\n", name, o.OK, o.Failed, o.Unknown)
	}
	fmt.Fprintf(tw, "all\t%d\t%d\t%d\t\n", all.OK, all.Failed, all.Unknown)
	_ = tw.Flush() // Into a buffer.
	fmt.Fprintf(b, "%d of %d overlap a fault\n\n", r.DuringFaults, all.total())
}

func (r *Report) writeFaults(b *bytes.Buffer) {
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "fault\ttimes\twithout writes: median\tmax\tevidence of the last")
	for _, kind := range r.kinds() {
		f := r.Faults[kind]
		fmt.Fprintf(tw, "%s\t%d\t%v\t%v\t%s\n", kind, f.Times, f.Gap.Median.Round(time.Millisecond),
			f.Gap.Longest.Round(time.Millisecond), f.Evidence)
	}
	_ = tw.Flush() // Into a buffer.
	fmt.Fprintln(b)
}
