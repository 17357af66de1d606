//go:build !linux

package process

import "syscall"

// A group of its own, so that Ctrl-C reaches only us and everything is stopped in order.
func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
