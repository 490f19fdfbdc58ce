package guest

import (
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/vm/wire"
)

// startOnTerminal starts a command with a new terminal as its controlling terminal and
// returns the terminal's other end for its input. drained is closed when no process is
// left on the terminal and all output has been sent.
func (s *Server) startOnTerminal(id int, cmd *exec.Cmd, size wire.Size) (input io.WriteCloser, drained chan struct{}, err error) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fmt.Errorf("unlock terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, fmt.Errorf("get the terminal's number: %w", err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns}); err != nil {
		return nil, nil, fmt.Errorf("set the terminal's size: %w", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	defer slave.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr.Setctty = true
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	drained = make(chan struct{})
	go func() {
		// Copy returns with an error when the last process on the terminal exits.
		_, _ = io.Copy(stream{s, wire.Stdout, id}, master)
		_ = master.Close()
		close(drained)
	}()
	return keyboard{master}, drained, nil
}

// keyboard is a terminal's input. Close sends the end-of-file key: closing the terminal
// instead would hang up its processes.
type keyboard struct{ *os.File }

func (k keyboard) Close() error {
	_, err := k.Write([]byte{4}) // Ctrl-D
	return err
}
