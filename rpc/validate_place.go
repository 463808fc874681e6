package rpc

import (
	"strconv"
	"strings"
)

// place is where in a request a check has come to. The names of fields are put together only when something is wrong with
// them, which is seldom.
type place struct {
	steps [maxSteps]step
	depth int
}

// maxSteps is enough for "register[0].checks[0].http.headers["name"]", the longest way: a batch names its items itself.
const maxSteps = 4

// step leads to a message, or to an element of a list or map.
type step struct {
	field string
	kind  stepKind
	index int
	key   string
}

type stepKind int

const (
	toMessage stepKind = iota
	toItem
	toEntry
)

// enter goes into the message in a field; leave comes back.
func (p *place) enter(field string) { p.to(step{field: field}) }

// enterItem goes to an item of a list.
func (p *place) enterItem(field string, i int) { p.to(step{field: field, kind: toItem, index: i}) }

// enterEntry goes to an entry of a map.
func (p *place) enterEntry(field, key string) { p.to(step{field: field, kind: toEntry, key: key}) }

func (p *place) to(s step) {
	p.steps[p.depth] = s
	p.depth++
}

func (p *place) leave() { p.depth-- }

// of names a field here, "" what is here itself.
func (p *place) of(field string) string {
	var b strings.Builder
	for _, s := range p.steps[:p.depth] {
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(s.field)
		switch s.kind {
		case toMessage:
		case toItem:
			b.WriteString("[" + strconv.Itoa(s.index) + "]")
		case toEntry:
			b.WriteString("[" + quote(s.key) + "]")
		}
	}
	if b.Len() > 0 && field != "" {
		b.WriteByte('.')
	}
	b.WriteString(field)
	return b.String()
}
