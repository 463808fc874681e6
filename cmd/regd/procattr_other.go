//go:build !linux

package main

import "syscall"

// detached puts a child into a process group of its own, so that a Ctrl-C on the terminal reaches only the parent,
// which then stops its children in order.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
