package sim

import (
	"time"

	"github.com/regd-io/regd/test/internal/oracle"
)

// life is a node from one start to the next, as the entries that it applied tell.
type life struct {
	node    string
	since   time.Duration
	indexes []uint64
}

// skip is a stretch of revisions, from (not included) to (included), that a node went over by installing a snapshot.
type skip struct{ from, to uint64 }

// skips are those between two entries that it applied.
func (l *life) skips(timeline *oracle.Timeline) []skip {
	var list []skip
	for i := 1; i < len(l.indexes); i++ {
		last, next := l.indexes[i-1], l.indexes[i]
		if before := timeline.AtIndex(next - 1); before.Index() > last {
			list = append(list, skip{timeline.AtIndex(last).Revision(), before.Revision()})
		}
	}
	return list
}
