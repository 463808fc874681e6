package sim

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/regd-io/regd/test/internal/history"
	"github.com/regd-io/regd/test/internal/oracle"
)

var (
	namesStream   = regexp.MustCompile(`stream (\d+) of`)
	namesInstance = regexp.MustCompile(`(?:default|other)/(\w+)/([\w-]+)`)
)

// maxEvidence is how many lines are shown of a stream or an instance.
const maxEvidence = 60

// evidence is what the history and the log say of the streams and instances that a violation names.
func evidence(violation string, h *history.History, timeline *oracle.Timeline) string {
	var b strings.Builder
	for _, name := range namesStream.FindAllStringSubmatch(violation, -1) {
		number, _ := strconv.ParseInt(name[1], 10, 64)
		var lines []string
		for i := range h.Messages {
			if m := &h.Messages[i]; m.Stream == number {
				lines = append(lines, fmt.Sprintf("%9.3fs %s %v %s", m.At.Seconds(), m.Direction, m.Body, m.Err))
			}
		}
		show(&b, "stream "+name[1], lines)
	}
	for _, name := range namesInstance.FindAllStringSubmatch(violation, -1) {
		var lines []string
		for _, step := range timeline.Steps() {
			for i := range step.Result.Events {
				e := &step.Result.Events[i]
				if r := cmp.Or(e.New, e.Old); r != nil && r.Service() == name[1] && r.ID() == name[2] {
					lines = append(lines, fmt.Sprintf("index %d revision %d: put %v, %v", step.State.Index(), e.Revision, e.New != nil, e.Cause))
				}
			}
		}
		show(&b, name[0], lines)
	}
	return b.String()
}

func show(b *strings.Builder, of string, lines []string) {
	fmt.Fprintf(b, "%s:\n", of)
	if left := len(lines) - maxEvidence; left > 0 {
		fmt.Fprintf(b, "   (%d left out)\n", left)
		lines = lines[left:]
	}
	for _, line := range lines {
		fmt.Fprintf(b, "   %s\n", line)
	}
}
