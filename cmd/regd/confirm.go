package main

import (
	"bufio"
	"fmt"
	"strings"
)

// confirm asks for consent to something that can't be undone, by having its name typed. consequences say what will
// happen. Without a terminal nobody can be asked: then yes must have been given.
func (a *app) confirm(yes bool, name string, consequences ...string) error {
	if yes {
		return nil
	}
	if !isTerminal(a.stdin) {
		return &exitError{
			code: exitUsage, err: fmt.Errorf("this needs consent: %s", strings.Join(consequences, "; ")),
			hint: "say --yes to do it without being asked",
		}
	}
	a.endProgress()
	for _, c := range consequences {
		a.note("%s", clean(c))
	}
	fmt.Fprintf(a.stderr, "Type %q to go on: ", clean(name))
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if err != nil || strings.TrimSpace(line) != name {
		return &exitError{code: exitFailed, err: fmt.Errorf("%s was not typed: nothing was done", name)}
	}
	return nil
}
