package main

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/regd-io/regd/client"
)

// freshnessFlag is how fresh a read must be.
type freshnessFlag struct {
	text   string
	option client.ReadOption
}

// addFreshness gives a command --freshness.
func addFreshness(cmd *cobra.Command) *freshnessFlag {
	f := &freshnessFlag{text: "linearizable", option: client.Linearizable()}
	cmd.Flags().Var(f, "freshness", "how fresh the answer must be: linearizable, stale, bounded=2s, at-least=REVISION")
	complete(cmd, "freshness", "linearizable", "stale", "bounded=", "at-least=")
	return f
}

// String implements pflag.Value.
func (f *freshnessFlag) String() string { return f.text }

// Type implements pflag.Value.
func (f *freshnessFlag) Type() string { return "word" }

// Set implements pflag.Value.
func (f *freshnessFlag) Set(s string) error {
	word, value, valued := strings.Cut(s, "=")
	switch {
	case word == "linearizable" && !valued:
		f.option = client.Linearizable()
	case word == "stale" && !valued:
		f.option = client.Stale()
	case word == "bounded" && valued:
		d, err := time.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("bounded needs a duration such as 2s: %w", err)
		}
		f.option = client.Bounded(d)
	case word == "at-least" && valued:
		revision, err := strconv.ParseUint(value, 10, 64)
		if err != nil {
			return fmt.Errorf("at-least needs a revision: %w", err)
		}
		f.option = client.AtLeast(revision)
	default:
		return fmt.Errorf("must be linearizable, stale, bounded=DURATION or at-least=REVISION%s",
			didYouMean(word, []string{"linearizable", "stale", "bounded", "at-least"}, ""))
	}
	f.text = s
	return nil
}
