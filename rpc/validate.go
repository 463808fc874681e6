package rpc

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
)

// Violation is one fault of a request.
type Violation struct {
	// Field is the path of the field, as in "instance.ports[1].name".
	Field string
	// Description says what is wrong: the limit and the value, quoted and truncated.
	Description string
}

// InvalidError names the faults of a request, all at once if there is room for them.
type InvalidError struct {
	// Violations are the faults, in the order of the fields; at most 32, and 1 KiB of text.
	Violations []Violation
	// More is the number of faults beyond those.
	More int
}

// Error names all faults in one line.
func (e *InvalidError) Error() string {
	var b strings.Builder
	b.WriteString("invalid request: ")
	for i, v := range e.Violations {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(v.Field + ": " + v.Description)
	}
	if e.More > 0 {
		fmt.Fprintf(&b, "; and %d more", e.More)
	}
	return b.String()
}

// invalid is an InvalidError with one fault.
func invalid(field, format string, args ...any) error {
	return &InvalidError{Violations: []Violation{{Field: field, Description: fmt.Sprintf(format, args...)}}}
}

// faults gathers what is wrong with a request. Its methods check one field each, and return it in its canonical form. A
// field is named from where its message is; "" is the list item or map entry that was entered.
type faults struct {
	InvalidError
	size  int // of the violations, in bytes
	place place
}

func (f *faults) add(field, format string, args ...any) {
	if len(f.Violations) == maxViolations || f.size > maxViolationBytes {
		f.More++
		return
	}
	v := Violation{Field: f.place.of(field), Description: fmt.Sprintf(format, args...)}
	if f.size += len(v.Field) + len(v.Description); f.size > maxViolationBytes && len(f.Violations) > 0 {
		f.More++
		return
	}
	f.Violations = append(f.Violations, v)
}

// err returns nil, or the *InvalidError with all faults.
func (f *faults) err() error {
	if len(f.Violations) == 0 {
		return nil
	}
	e := f.InvalidError // A copy: so f stays on the stack of its user.
	return &e
}

// alphabet is a set of characters from which names are made.
type alphabet string

const (
	lowerChars alphabet = "[a-z0-9-]"
	nameChars  alphabet = "[A-Za-z0-9._-]"
	idChars    alphabet = "[A-Za-z0-9._:/@-]"
)

func (a alphabet) has(c byte) bool {
	switch {
	case 'a' <= c && c <= 'z', '0' <= c && c <= '9', c == '-':
		return true
	case 'A' <= c && c <= 'Z', c == '.', c == '_':
		return a != lowerChars
	case c == ':', c == '/', c == '@':
		return a == idChars
	default:
		return false
	}
}

// word checks a name of 1 to limit characters of the alphabet, and tells whether it is one.
func (f *faults) word(field, value string, limit int, chars alphabet) bool {
	if value == "" {
		f.add(field, "is required")
		return false
	}
	if len(value) > limit {
		f.add(field, "has %d characters, the limit is %d: %s", len(value), limit, quote(value))
		return false
	}
	for i := range len(value) {
		if !chars.has(value[i]) {
			r, _ := utf8.DecodeRuneInString(value[i:])
			f.add(field, "has the character %q at %d, allowed are %s: %s", r, i+1, chars, quote(value))
			return false
		}
	}
	return true
}

// optionalName checks a name that may be empty.
func (f *faults) optionalName(field, value string, limit int) {
	if value != "" {
		f.word(field, value, limit, nameChars)
	}
}

// path checks an id that may have slashes. "." and ".." between them are refused: ids travel in paths of URLs, where
// they would name something else.
func (f *faults) path(field, value string, limit int) {
	if !f.word(field, value, limit, idChars) {
		return
	}
	for part := range strings.SplitSeq(value, "/") {
		if part == "." || part == ".." {
			f.add(field, "has the path element %q: %s", part, quote(value))
			return
		}
	}
}

// text checks a line of at most limit bytes that people read.
func (f *faults) text(field, value string, limit int) {
	f.runes(field, value, limit, func(r rune) bool { return !unicode.IsControl(r) })
}

// lines checks a text of at most limit bytes that may have several lines.
func (f *faults) lines(field, value string, limit int) {
	f.runes(field, value, limit, func(r rune) bool {
		return !unicode.IsControl(r) || r == '\n' || r == '\r' || r == '\t'
	})
}

func (f *faults) runes(field, value string, limit int, allowed func(rune) bool) {
	switch {
	case len(value) > limit:
		f.add(field, "has %d bytes, the limit is %d: %s", len(value), limit, quote(value))
	case !utf8.ValidString(value):
		f.add(field, "is not UTF-8: %s", quote(value))
	default:
		for i, r := range value {
			if !allowed(r) {
				f.add(field, "has the control character %q at %d: %s", r, i+1, quote(value))
				return
			}
		}
	}
}

// count checks the length of a list, and tells whether it is within the limit; a longer one is not looked at further.
func (f *faults) count(field string, n, limit int) bool {
	if n > limit {
		f.add(field, "has %d items, the limit is %d", n, limit)
	}
	return n <= limit
}

// number checks a number that has a default in place of 0.
func (f *faults) number(field string, value, least, most, byDefault uint32) uint32 {
	if value == 0 {
		value = byDefault
	}
	if value < least || value > most {
		f.add(field, "must be %d to %d, is %d", least, most, value)
	}
	return value
}

// span is the range of a duration.
type span struct {
	least, most time.Duration
	// byDefault stands in for an unset or zero duration. 0: the duration is required.
	byDefault time.Duration
}

// duration checks a duration and fills its default in.
func (f *faults) duration(field string, d *durationpb.Duration, s span) time.Duration {
	if d.GetSeconds() == 0 && d.GetNanos() == 0 {
		if s.byDefault == 0 {
			f.add(field, "is required, %v to %v", s.least, s.most)
		}
		return s.byDefault
	}
	if d.CheckValid() != nil {
		f.add(field, "is not a duration: %d s, %d ns", d.GetSeconds(), d.GetNanos())
		return s.most
	}
	v := d.AsDuration()
	if v < s.least || v > s.most {
		f.add(field, "must be %v to %v, is %v", s.least, s.most, v)
		return s.most
	}
	return v
}

// millis returns a duration in whole milliseconds, rounded up, so that a promise is never cut short.
func millis(d time.Duration) uint64 {
	return uint64((d + time.Millisecond - 1) / time.Millisecond)
}

// quote shows a value from outside: escaped, and cut where it gets long.
func quote(s string) string {
	if len(s) <= maxQuoted {
		return strconv.Quote(s)
	}
	cut := maxQuoted
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return strconv.Quote(s[:cut]) + "…"
}

// index names an element of a list.
func index(field string, i int) string { return field + "[" + strconv.Itoa(i) + "]" }
