package main

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/manifold-cni/manifold/test/vm/wire"
)

// server runs commands for the host.
type server struct {
	in *gob.Decoder

	mu      sync.Mutex // guards the fields below
	out     *gob.Encoder
	running map[int]*process
}

// process is a running command.
type process struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func newServer(port io.ReadWriter) *server {
	return &server{in: gob.NewDecoder(port), out: gob.NewEncoder(port), running: map[int]*process{}}
}

func (s *server) send(m wire.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Encode(m)
}

// stream is a command's output, as a writer.
type stream struct {
	s    *server
	kind wire.Kind
	id   int
}

func (w stream) Write(b []byte) (int, error) {
	return len(b), w.s.send(wire.Message{Kind: w.kind, ID: w.id, Data: b})
}

// serve carries out what the host says, until it says to power off.
func (s *server) serve() error {
	for {
		var m wire.Message
		if err := s.in.Decode(&m); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		switch m.Kind {
		case wire.PowerOff:
			return nil
		case wire.Start:
			if err := s.start(m.ID, *m.Command); err != nil {
				if err := s.send(wire.Message{Kind: wire.Exit, ID: m.ID, Number: 127, Text: err.Error()}); err != nil {
					return err
				}
			}
		case wire.Stdin:
			s.input(m.ID, m.Data)
		case wire.Signal:
			s.signal(m.ID, syscall.Signal(m.Number))
		}
	}
}

// start starts a command; its end is told when it comes.
func (s *server) start(id int, c wire.Command) error {
	if len(c.Args) == 0 {
		return errors.New("no program")
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append([]string{"PATH=/bin:/sbin:/opt/cni/bin", "HOME=/root", "TERM=linux"}, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = 2 * time.Second // for output of processes that a command left behind
	p := &process{cmd: cmd}
	var err error
	if c.Terminal != nil {
		p.stdin, err = s.startOnTerminal(id, cmd, *c.Terminal)
	} else {
		cmd.Stdout, cmd.Stderr = stream{s, wire.Stdout, id}, stream{s, wire.Stderr, id}
		if p.stdin, err = cmd.StdinPipe(); err == nil {
			err = cmd.Start()
		}
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.running[id] = p
	s.mu.Unlock()
	go s.wait(id, p)
	return nil
}

// wait tells the host how a command ended.
func (s *server) wait(id int, p *process) {
	err := p.cmd.Wait()
	s.mu.Lock()
	delete(s.running, id)
	s.mu.Unlock()
	status := p.cmd.ProcessState.ExitCode()
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		status = 128 + int(ws.Signal())
	}
	m := wire.Message{Kind: wire.Exit, ID: id, Number: status}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		m.Text = err.Error()
	}
	if err := s.send(m); err != nil {
		fmt.Fprintln(os.Stderr, "guestinit: tell the host:", err)
	}
}

func (s *server) process(id int) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[id]
}

// input passes input to a command. It may have ended, or not want any.
func (s *server) input(id int, data []byte) {
	p := s.process(id)
	switch {
	case p == nil:
	case len(data) == 0:
		_ = p.stdin.Close()
	default:
		_, _ = p.stdin.Write(data)
	}
}

// signal sends a signal to a command's process group. It may have ended.
func (s *server) signal(id int, sig syscall.Signal) {
	if p := s.process(id); p != nil {
		_ = syscall.Kill(-p.cmd.Process.Pid, sig)
	}
}
