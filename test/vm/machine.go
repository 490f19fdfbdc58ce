package vm

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/manifold-cni/manifold/test/vm/wire"
)

// ErrGone is wrapped by the errors of all calls on a guest that has powered off,
// crashed or been closed.
var ErrGone = errors.New("the guest is gone")

// Machine is a running guest. It is safe for concurrent use.
type Machine struct {
	// BootID is the boot ID of the current boot.
	BootID string
	// BootTime is the time from starting QEMU until the guest was ready.
	BootTime time.Duration

	dir  string
	qemu *exec.Cmd
	port net.Conn
	done chan struct{} // closed when QEMU has exited
	dead error         // how QEMU exited, valid once done is closed; nil for success

	ready chan wire.Message // the guest's first message

	// Sending blocks until the guest reads, so it has its own lock: a blocked sender
	// must not keep receive from reading.
	sending sync.Mutex // guards out
	out     *gob.Encoder

	mu      sync.Mutex // guards the fields below
	last    int
	running map[int]*command
}

// command is a command running in the guest.
type command struct {
	stdout, stderr io.Writer
	exit           chan wire.Message
}

// Boot builds the guest's image, starts the guest and returns when it is ready. The
// context limits only this wait. The guest runs until [Machine.Close] or until this
// process exits.
func Boot(ctx context.Context, s *Software, c Config) (*Machine, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("boot guest: %w", err)
	}
	image, err := c.image(s)
	if err == nil && c.Disk != "" {
		err = c.makeDisk(ctx, s)
	}
	if err != nil {
		return nil, fmt.Errorf("build the guest's image: %w", err)
	}
	m := newMachine(c.Dir)
	start := time.Now()
	if err := m.start(ctx, s, c, image); err != nil {
		return nil, fmt.Errorf("start QEMU: %w", err)
	}
	select {
	case first := <-m.ready:
		if first.Kind != wire.Ready {
			err = fmt.Errorf("set up the guest: %s", first.Text)
		}
		m.BootID = strings.TrimSpace(first.Text)
	case <-m.done:
		err = fmt.Errorf("wait for the guest: %w", m.gone())
	case <-ctx.Done():
		err = fmt.Errorf("wait for the guest: %w", ctx.Err())
	}
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	m.BootTime = time.Since(start)
	return m, nil
}

func newMachine(dir string) *Machine {
	return &Machine{dir: dir, done: make(chan struct{}), running: map[int]*command{}, ready: make(chan wire.Message, 1)}
}

// start starts QEMU and accepts its connection.
func (m *Machine) start(ctx context.Context, s *Software, c Config, image string) error {
	socket := filepath.Join(c.Dir, "port")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	log, err := os.OpenFile(filepath.Join(c.Dir, LogFile), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	m.qemu = s.qemu(c.arguments(s, image, socket)...)
	m.qemu.Stdout, m.qemu.Stderr = log, log
	// In its own process group: an interrupt from the terminal is meant for the program
	// in the guest.
	m.qemu.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go m.watch(started)
	if err := <-started; err != nil {
		return err
	}
	go func() {
		select {
		case <-m.done:
		case <-ctx.Done():
		}
		listener.Close()
	}()
	port, err := listener.Accept()
	if err != nil {
		if err := m.Kill(); err != nil { // it has exited, or does not connect
			return err
		}
		text, _ := os.ReadFile(log.Name()) // best effort: the error matters more
		return fmt.Errorf("%w\n%s", m.gone(), text)
	}
	m.talk(port)
	return nil
}

// talk starts the conversation with the guest.
func (m *Machine) talk(port net.Conn) {
	m.port, m.out = port, gob.NewEncoder(port)
	go m.receive()
}

// receive dispatches the guest's messages until the port closes. A guest that closes it
// and does not power off is stopped, so that nobody waits for it.
func (m *Machine) receive() {
	in := gob.NewDecoder(m.port)
	for {
		var msg wire.Message
		if err := in.Decode(&msg); err != nil {
			select {
			case <-m.done:
			case <-time.After(farewell):
				_ = m.Kill()
			}
			return
		}
		m.mu.Lock()
		c := m.running[msg.ID]
		m.mu.Unlock()
		switch {
		case msg.Kind == wire.Ready, msg.Kind == wire.Failed:
			m.ready <- msg
		case c == nil: // nobody waits for it any more
		case msg.Kind == wire.Stdout:
			_, _ = c.stdout.Write(msg.Data) // a failing writer is the caller's problem
		case msg.Kind == wire.Stderr:
			_, _ = c.stderr.Write(msg.Data)
		case msg.Kind == wire.Exit:
			c.exit <- msg
		}
	}
}

// Command is a program to run as root in the guest.
type Command struct {
	wire.Command
	// Stdin, Stdout and Stderr are connected to the program. If nil, the program has no
	// input and its output is discarded. Reading from Stdin may go on after the program
	// has exited.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// Process is a program running in the guest.
type Process struct {
	m   *Machine
	id  int
	run *command
}

// Start starts a program. If the guest fails to start it, [Process.Wait] returns the
// error.
func (m *Machine) Start(c Command) (*Process, error) {
	run := &command{stdout: c.Stdout, stderr: c.Stderr, exit: make(chan wire.Message, 1)}
	if run.stdout == nil {
		run.stdout = io.Discard
	}
	if run.stderr == nil {
		run.stderr = io.Discard
	}
	m.mu.Lock()
	m.last++
	p := &Process{m: m, id: m.last, run: run}
	m.running[p.id] = run
	m.mu.Unlock()
	if err := m.send(wire.Message{Kind: wire.Start, ID: p.id, Command: &c.Command}); err != nil {
		p.forget()
		return nil, err
	}
	go m.feed(p.id, c.Stdin)
	return p, nil
}

func (p *Process) forget() {
	p.m.mu.Lock()
	defer p.m.mu.Unlock()
	delete(p.m.running, p.id)
}

// Signal sends a signal to the program's process group. It is not an error if the
// program has already exited.
func (p *Process) Signal(s syscall.Signal) error {
	return p.m.send(wire.Message{Kind: wire.Signal, ID: p.id, Number: int(s)})
}

// Wait waits for the program to exit and returns its exit status, or 128 + signal if a
// signal killed it. Call it once. When the context ends, Wait kills the program's
// process group and returns.
func (p *Process) Wait(ctx context.Context) (status int, err error) {
	defer p.forget()
	select {
	case exit := <-p.run.exit:
		if exit.Text != "" {
			return exit.Number, fmt.Errorf("run in the guest: %s", exit.Text)
		}
		return exit.Number, nil
	case <-p.m.done:
		return 0, p.m.gone()
	case <-ctx.Done():
		go p.Signal(syscall.SIGKILL) // in the background, because a guest that hangs does not read
		return 0, ctx.Err()
	}
}

// Run starts a program and waits for it to exit, see [Process.Wait].
func (m *Machine) Run(ctx context.Context, c Command) (status int, err error) {
	p, err := m.Start(c)
	if err != nil {
		return 0, err
	}
	if status, err = p.Wait(ctx); err != nil {
		err = fmt.Errorf("%q: %w", c.Args, err)
	}
	return status, err
}

// feed sends a reader's content to a command as its input, then the end of input.
func (m *Machine) feed(id int, from io.Reader) {
	buffer := make([]byte, 32<<10)
	for from != nil {
		n, err := from.Read(buffer)
		if n > 0 && m.send(wire.Message{Kind: wire.Stdin, ID: id, Data: buffer[:n]}) != nil {
			return
		}
		if err != nil {
			break
		}
	}
	_ = m.send(wire.Message{Kind: wire.Stdin, ID: id}) // the command may have exited
}

func (m *Machine) send(msg wire.Message) error {
	m.sending.Lock()
	defer m.sending.Unlock()
	if err := m.out.Encode(msg); err != nil {
		return fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil
}

// gone returns how the guest stopped; call it only once done is closed.
func (m *Machine) gone() error {
	if m.dead == nil {
		return fmt.Errorf("%w: it powered off or its kernel panicked", ErrGone)
	}
	return fmt.Errorf("%w: %w", ErrGone, m.dead)
}

// farewell is how long a guest may take to power off.
const farewell = time.Minute

// Close powers the guest off, or kills it if it does not power off within [farewell].
// Closing it twice is harmless.
func (m *Machine) Close() error {
	if m.port != nil {
		go m.send(wire.Message{Kind: wire.PowerOff}) // in the background: the guest may hang or be gone
	}
	select {
	case <-m.done:
		return m.dead
	case <-time.After(farewell):
	}
	if err := m.Kill(); err != nil {
		return err
	}
	return fmt.Errorf("the guest did not power off in %s; console in %s", farewell, filepath.Join(m.dir, ConsoleFile))
}

// Kill stops the guest at once, as a power failure does: what it has not synced to its
// disk is lost.
func (m *Machine) Kill() error {
	if err := m.qemu.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-m.done
	return nil
}

// watch starts QEMU and waits until it exits. It locks its OS thread: the kernel kills
// QEMU (Pdeathsig) when the thread that started it exits.
func (m *Machine) watch(started chan<- error) {
	runtime.LockOSThread()
	err := m.qemu.Start()
	started <- err
	if err != nil {
		return
	}
	m.dead = m.qemu.Wait()
	close(m.done)
}
