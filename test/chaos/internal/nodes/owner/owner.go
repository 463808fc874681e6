// Package owner names what a harness makes outside of itself (namespaces, images, control groups), so that the next one
// can tell what a harness that has died left behind.
package owner

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const prefix = "regd-"

// Tag is what the names of this process's things of a kind begin with. A kind has no hyphen.
func Tag(kind string) string { return fmt.Sprintf("%s%s-%d-", prefix, kind, os.Getpid()) }

// Pattern matches the names of all processes' things of a kind, for filepath.Glob.
func Pattern(kind string) string { return prefix + kind + "-*" }

// Dead tells whether a name is of a kind and was given by a process that has ended. Another process with its id hides it.
func Dead(kind, name string) bool {
	rest, ours := strings.CutPrefix(name, prefix+kind+"-")
	id, _, tagged := strings.Cut(rest, "-")
	if _, err := strconv.Atoi(id); !ours || !tagged || err != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + id + "/stat")
	if os.IsNotExist(err) {
		return true
	}
	_, state, _ := bytes.Cut(stat, []byte(") "))
	return bytes.HasPrefix(state, []byte("Z")) // Ended, and nobody has asked how.
}
