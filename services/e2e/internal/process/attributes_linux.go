package process

import "syscall"

// A group of its own, so that Ctrl-C reaches only us and everything is stopped
// in order. And death with us: kill -9 of ours leaves nothing behind.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
