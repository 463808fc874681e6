package consul

import (
	"strings"

	"github.com/hashicorp/go-bexpr"
)

// filter is a filter expression in Consul's language.
type filter struct {
	evaluator *bexpr.Evaluator
	text      string
}

// newFilter reads an expression, nil for none.
func newFilter(text string) (*filter, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil //nolint:nilnil // None.
	}
	if len(text) > maxFilterBytes {
		return nil, badRequest("filter: has %d bytes, the limit is %d", len(text), maxFilterBytes)
	}
	e, err := bexpr.CreateEvaluator(text, bexpr.WithMaxExpressions(maxExpressions))
	if err != nil {
		return nil, badRequest("Failed to create filter: filter %q: %v", cut(text), err)
	}
	return &filter{e, text}, nil
}

// maxExpressions bounds the work of reading a filter.
const maxExpressions = 10_000

// keeps tells whether a value matches; it is a struct of this package.
func (f *filter) keeps(value any) (bool, error) {
	if f == nil {
		return true, nil
	}
	ok, err := f.evaluator.Evaluate(value)
	if err != nil {
		return false, badRequest("Failed to filter: filter %q: %v", cut(f.text), err)
	}
	return ok, nil
}

// kept returns the values that match. It is never nil.
func kept[T any](f *filter, values []T) ([]T, error) {
	out := make([]T, 0, len(values))
	for _, v := range values {
		ok, err := f.keeps(v)
		if err != nil {
			return nil, err
		}
		if ok {
			out = append(out, v)
		}
	}
	return out, nil
}
