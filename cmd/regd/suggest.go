package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

const (
	// maxTypos is the largest distance at which a name is still taken for a mistyped other one.
	maxTypos = 2
	// maxSuggestions is the most names that are suggested.
	maxSuggestions = 3
)

// nearest returns the candidates that typed was probably meant to be, best first.
func nearest(typed string, candidates []string) []string {
	type scored struct {
		name  string
		score int
	}
	var found []scored
	low := strings.ToLower(typed)
	for _, c := range candidates {
		d := distance(low, strings.ToLower(c))
		// Half the letters wrong is another word, and a long enough beginning is the word, unfinished.
		if (d <= maxTypos && 2*d <= max(len(typed), 2)) || (len(typed) >= 3 && strings.HasPrefix(c, low)) {
			found = append(found, scored{c, d})
		}
	}
	slices.SortStableFunc(found, func(a, b scored) int { return cmp.Compare(a.score, b.score) })
	var names []string
	for _, f := range found[:min(len(found), maxSuggestions)] {
		names = append(names, f.name)
	}
	return names
}

// didYouMean ends a message with what may have been meant, prefixed as it has to be typed; empty when nothing is near.
func didYouMean(typed string, candidates []string, prefix string) string {
	names := nearest(typed, candidates)
	if len(names) == 0 {
		return ""
	}
	for i, n := range names {
		names[i] = fmt.Sprintf("%q", prefix+n)
	}
	return "; did you mean " + strings.Join(names, " or ") + "?"
}

// distance counts the insertions, deletions, replacements and swaps of neighbours that turn a into b.
func distance(a, b string) int {
	var before []int
	last := make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			replace := last[j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			row[j] = min(replace, last[j]+1, row[j-1]+1)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
