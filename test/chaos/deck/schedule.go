package deck

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// episode is one row of the schedule: some time of peace, then one or two faults at once.
type episode struct {
	peace  time.Duration
	faults []fault
	last   time.Duration // how long the faults last
}

// schedule deals the faults that the machine allows: each once in an order that the seed decides, and again from the top
// until there are enough episodes; they last for at least the given time, and less than twice it. Now and then a gentle fault accompanies another.
func schedule(rng *rand.Rand, faults []fault, least int, last time.Duration) []episode {
	var gentle []fault
	for _, f := range faults {
		if f.gentle {
			gentle = append(gentle, f)
		}
	}
	var list []episode
	for len(list) < least {
		for _, i := range rng.Perm(len(faults)) {
			e := episode{
				peace:  time.Duration(1000+rng.IntN(1000)) * time.Millisecond,
				faults: []fault{faults[i]},
				last:   last + time.Duration(rng.Int64N(int64(last))),
			}
			if !faults[i].gentle && !faults[i].alone && len(gentle) > 0 && rng.IntN(10) < 3 {
				e.faults = append(e.faults, gentle[rng.IntN(len(gentle))])
			}
			list = append(list, e)
		}
	}
	return list
}

// String tells what happens.
func (e episode) String() string {
	s := ""
	for i, f := range e.faults {
		if i > 0 {
			s += " + "
		}
		s += f.kind
	}
	return fmt.Sprintf("%s for %v", s, e.last)
}
