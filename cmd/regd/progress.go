package main

import (
	"fmt"
	"sync"
	"time"
)

// progressAfter is how long a command may take before it says what it is doing.
const progressAfter = 500 * time.Millisecond

// progress tells people on stderr what takes time: on a terminal in one line that is overwritten, elsewhere one line a
// phase. Its methods may be called from any goroutine.
type progress struct {
	a        *app
	terminal bool

	mu    sync.Mutex
	text  string
	shown string
	timer *time.Timer // until something may be shown
	late  bool
}

func (a *app) newProgress() *progress {
	p := &progress{a: a, terminal: isTerminal(a.stderr)}
	a.progress = p
	p.timer = time.AfterFunc(progressAfter, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.late = true
		p.show()
	})
	return p
}

// phase says what is being done. On a terminal it may be called as often as there is news.
func (p *progress) phase(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.text = clean(fmt.Sprintf(format, args...))
	p.show()
}

// show prints the text unless it is too early or known. Called with mu held.
func (p *progress) show() {
	if !p.late || p.text == p.shown {
		return
	}
	p.shown = p.text
	if p.terminal {
		fmt.Fprintf(p.a.stderr, "\r\x1b[K%s", p.text)
		return
	}
	fmt.Fprintln(p.a.stderr, p.text)
}

// endProgress ends what shows progress, if anything does.
func (a *app) endProgress() {
	if a.progress != nil {
		a.progress.end()
	}
}

// end removes the line. Nothing is shown after it.
func (p *progress) end() {
	p.timer.Stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.terminal && p.shown != "" {
		fmt.Fprint(p.a.stderr, "\r\x1b[K")
	}
	p.late, p.text = false, ""
}
