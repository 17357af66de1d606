package realkafka

import "syscall"

// A group of its own, so that Ctrl-C reaches only us; and death with us.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
