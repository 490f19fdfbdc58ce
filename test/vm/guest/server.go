// Package guest is the end of the serial port that is inside the virtual machine:
// it runs commands for the host, see package wire. It is apart from guestinit, the
// guest's init program, so that tests can have it without a guest.
package guest

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/manifold-cni/manifold/test/vm/wire"
)

// grace is how long the output of a command that has ended is waited for:
// processes that it left behind may hold its streams open for ever.
const grace = 2 * time.Second

// Server runs commands for the host.
type Server struct {
	in *gob.Decoder

	// Sending blocks until the host has read, so that it has a lock of its own: who
	// holds it must not keep Serve from reading.
	sending sync.Mutex // guards out
	out     *gob.Encoder

	mu      sync.Mutex // guards running
	running map[int]*process
}

// process is a running command.
type process struct {
	cmd     *exec.Cmd
	stdin   *input
	drained chan struct{} // closed when all output on its terminal was sent; nil without one
}

// NewServer makes the server on a port.
func NewServer(port io.ReadWriter) *Server {
	return &Server{in: gob.NewDecoder(port), out: gob.NewEncoder(port), running: map[int]*process{}}
}

// Send sends a message to the host.
func (s *Server) Send(m wire.Message) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.out.Encode(m)
}

// stream is a command's output, as a writer.
type stream struct {
	s    *Server
	kind wire.Kind
	id   int
}

func (w stream) Write(b []byte) (int, error) {
	return len(b), w.s.Send(wire.Message{Kind: w.kind, ID: w.id, Data: b})
}

// Serve carries out what the host says, until it says to power off; then it
// returns nil.
func (s *Server) Serve() error {
	for {
		var m wire.Message
		if err := s.in.Decode(&m); err != nil {
			return fmt.Errorf("read from the host: %w", err)
		}
		p := s.process(m.ID)
		switch {
		case m.Kind == wire.PowerOff:
			return nil
		case m.Kind == wire.Start:
			if err := s.start(m.ID, m.Command); err != nil {
				if err := s.Send(wire.Message{Kind: wire.Exit, ID: m.ID, Number: 127, Text: err.Error()}); err != nil {
					return err
				}
			}
		case p == nil: // it has ended
		case m.Kind == wire.Stdin:
			p.stdin.add(m.Data)
		case m.Kind == wire.Signal:
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(m.Number)) // it may have ended
		}
	}
}

// start starts a command; its end is told when it comes.
func (s *Server) start(id int, c *wire.Command) error {
	if c == nil || len(c.Args) == 0 {
		return errors.New("no program")
	}
	cmd := exec.Command(c.Args[0], c.Args[1:]...)
	cmd.Dir = c.Dir
	cmd.Env = append([]string{"PATH=/bin:/sbin:/opt/cni/bin", "HOME=/root", "TERM=linux"}, c.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = grace
	p := &process{cmd: cmd}
	var stdin io.WriteCloser
	var err error
	if c.Terminal != nil {
		stdin, p.drained, err = s.startOnTerminal(id, cmd, *c.Terminal)
	} else {
		cmd.Stdout, cmd.Stderr = stream{s, wire.Stdout, id}, stream{s, wire.Stderr, id}
		if stdin, err = cmd.StdinPipe(); err == nil {
			err = cmd.Start()
		}
	}
	if err != nil {
		return err
	}
	p.stdin = newInput(stdin)
	s.mu.Lock()
	s.running[id] = p
	s.mu.Unlock()
	go s.wait(id, p)
	return nil
}

// wait tells the host how a command ended.
func (s *Server) wait(id int, p *process) {
	err := p.cmd.Wait()
	if p.drained != nil {
		select {
		case <-p.drained:
		case <-time.After(grace):
		}
	}
	s.mu.Lock()
	delete(s.running, id)
	s.mu.Unlock()
	p.stdin.add(nil)
	m := wire.Message{Kind: wire.Exit, ID: id, Number: p.cmd.ProcessState.ExitCode()}
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		m.Number = 128 + int(ws.Signal())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) && !errors.Is(err, exec.ErrWaitDelay) {
		m.Text = err.Error()
	}
	_ = s.Send(m) // without a host there is nobody to tell
}

func (s *Server) process(id int) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[id]
}

// input is what a command is yet to read. It takes any amount without blocking,
// so that a command that does not read holds up no other.
type input struct {
	mu      sync.Mutex // guards the fields below
	more    *sync.Cond
	waiting [][]byte
	ended   bool
}

// newInput makes an input whose content goes to w, which is closed at its end.
func newInput(w io.WriteCloser) *input {
	i := &input{}
	i.more = sync.NewCond(&i.mu)
	go func() {
		defer w.Close()
		for {
			b, ok := i.next()
			if !ok {
				return
			}
			if _, err := w.Write(b); err != nil {
				return // nobody reads any more
			}
		}
	}()
	return i
}

// add adds content, none for the end.
func (i *input) add(b []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(b) == 0 {
		i.ended = true
	} else if !i.ended {
		i.waiting = append(i.waiting, b)
	}
	i.more.Signal()
}

// next waits for content and returns it; at the end it returns false.
func (i *input) next() ([]byte, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for len(i.waiting) == 0 {
		if i.ended {
			return nil, false
		}
		i.more.Wait()
	}
	b := i.waiting[0]
	i.waiting = i.waiting[1:]
	return b, true
}
