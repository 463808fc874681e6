package main

import "syscall"

// detached puts a child into a process group of its own, so that a Ctrl-C on the terminal reaches only the parent,
// which then stops its children in order. Should the parent be killed itself, the kernel kills the child.
func detached() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
