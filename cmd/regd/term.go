package main

import (
	"io"
	"os"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// isTerminal tells whether a stream is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// paint puts colour on text, or nothing when it is off. Colour never carries meaning alone: the word says it too.
type paint bool

// The colours that are used, by what they mean.
const (
	colourGood = "32"
	colourWarn = "33"
	colourBad  = "31"
	colourDim  = "2"
	colourBold = "1"
)

func (p paint) as(colour, text string) string {
	if !p || colour == "" || text == "" {
		return text
	}
	return "\x1b[" + colour + "m" + text + "\x1b[0m"
}

// paintFor decides whether a stream gets colour: --color, then CLICOLOR_FORCE, NO_COLOR, TERM=dumb, then whether it is
// a terminal.
func (a *app) paintFor(w io.Writer) paint {
	switch {
	case a.color == colorAlways:
		return true
	case a.color == colorNever:
		return false
	case a.getenv("NO_COLOR") != "":
		return false
	case a.getenv("CLICOLOR_FORCE") != "" && a.getenv("CLICOLOR_FORCE") != "0":
		return true
	case a.getenv("TERM") == "dumb":
		return false
	}
	return paint(isTerminal(w))
}

// clean makes text of others fit for a terminal: what is not printable (escape sequences, text direction marks, line
// ends, broken UTF-8) is shown as in a Go string.
func clean(s string) string {
	fit := true
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if (r == utf8.RuneError && n == 1) || !unicode.IsPrint(r) {
			fit = false
			break
		}
		i += n
	}
	if fit {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			b.WriteString(`\x` + strconv.FormatUint(uint64(s[i])|0x100, 16)[1:])
		case !unicode.IsPrint(r):
			quoted := strconv.QuoteRuneToASCII(r)
			b.WriteString(quoted[1 : len(quoted)-1])
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}
