package harness

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Process is a running program that a test started.
type Process struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// StartProcess starts a program and appends its output to the file log. The program
// dies with this process: the kernel kills it when the thread that started it exits, so
// that thread stays until the program has exited.
func StartProcess(log string, cmd *exec.Cmd) (*Process, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p, started := &Process{cmd: cmd, ended: make(chan struct{})}, make(chan error)
	go func() {
		defer close(p.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // callers do not need the exit status
		}
	}()
	return p, <-started
}

// PID returns the program's process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended tells whether the program has exited.
func (p *Process) Ended() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Kill kills the program and returns when it has exited. On a nil Process it does
// nothing.
func (p *Process) Kill() error { return p.end(syscall.SIGKILL, 0) }

// Stop sends the program SIGTERM, and kills it if it has not exited within patience.
func (p *Process) Stop(patience time.Duration) error { return p.end(syscall.SIGTERM, patience) }

func (p *Process) end(signal syscall.Signal, patience time.Duration) error {
	if p == nil {
		return nil
	}
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	if signal == syscall.SIGKILL {
		<-p.ended
		return nil
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(patience):
		return p.Kill()
	}
}
