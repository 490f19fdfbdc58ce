// Package guest is the virtual machine's end of the serial port: it runs commands for
// the host, see package wire. It is separate from guestinit, the guest's init program,
// so that tests can use it without a guest.
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

// grace is how long the server waits for the output of a command that has exited:
// processes that the command left behind may hold its streams open for ever.
const grace = 2 * time.Second

// Server runs commands for the host.
type Server struct {
	in *gob.Decoder

	// Sending blocks until the host reads, so it has its own lock: a blocked sender
	// must not keep Serve from reading.
	sending sync.Mutex // guards out
	out     *gob.Encoder

	mu      sync.Mutex // guards running
	running map[int]*process
}

// process is a running command.
type process struct {
	cmd     *exec.Cmd
	stdin   *input
	drained chan struct{} // closed when all output of its terminal has been sent; nil without a terminal
}

// NewServer returns a server on a port.
func NewServer(port io.ReadWriter) *Server {
	return &Server{in: gob.NewDecoder(port), out: gob.NewEncoder(port), running: map[int]*process{}}
}

// Send sends a message to the host.
func (s *Server) Send(m wire.Message) error {
	s.sending.Lock()
	defer s.sending.Unlock()
	return s.out.Encode(m)
}

// stream is an io.Writer that sends a command's output to the host.
type stream struct {
	s    *Server
	kind wire.Kind
	id   int
}

func (w stream) Write(b []byte) (int, error) {
	return len(b), w.s.Send(wire.Message{Kind: w.kind, ID: w.id, Data: b})
}

// Serve carries out the host's messages. It returns nil when the host says to power
// off.
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
		case p == nil: // the command has exited
		case m.Kind == wire.Stdin:
			p.stdin.add(m.Data)
		case m.Kind == wire.Signal:
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(m.Number)) // the command may have exited
		}
	}
}

// start starts a command; wait later tells the host how it ended.
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

// wait waits for a command to exit and tells the host how it ended.
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
	_ = s.Send(m) // without a host nobody needs the answer
}

func (s *Server) process(id int) *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.running[id]
}

// input is a queue of what a command has yet to read. It takes any amount without
// blocking, so that a command that does not read blocks no other.
type input struct {
	mu      sync.Mutex // guards the fields below
	more    *sync.Cond
	waiting [][]byte
	ended   bool
}

// newInput returns an input that writes its content to w, and closes w at the end.
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
				return // the command no longer reads
			}
		}
	}()
	return i
}

// add appends content; empty content is the end.
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

// next waits for content and returns it. At the end it returns false.
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
