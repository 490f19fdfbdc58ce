package main

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/test/vm"
	"github.com/manifold-cni/manifold/test/vm/wire"
)

// login links the usual commands to busybox, lists the functions, and becomes a shell.
const login = `/bin/busybox --install -s /bin; export PS1='guest:\w# '
echo 'The guest powers off when this shell exits. PFs and VFs:'
for d in /sys/bus/pci/drivers/igb*/0000:*; do echo "  ${d##*/} $(ls $d/net 2>/dev/null) $(basename $(readlink $d/driver)) numa $(cat $d/numa_node)"; done
exec /bin/sh -l`

// shell opens a shell in the guest, on a terminal of its own if standard input is a
// terminal.
func (l *lab) shell(ctx context.Context) (int, error) {
	g, err := l.guest()
	if err == nil {
		err = g.boot(ctx)
	}
	if err != nil {
		return 0, err
	}
	m := g.machine
	c := vm.Command{Command: wire.Command{Args: []string{"/bin/busybox", "sh", "-c", login}, Dir: "/root"}, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	fd := int(os.Stdin.Fd())
	before, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		_, err = m.Run(ctx, c) // no terminal
		return 0, err
	}
	size, err := unix.IoctlGetWinsize(fd, unix.TIOCGWINSZ)
	if err != nil {
		return 0, fmt.Errorf("size of the terminal: %w", err)
	}
	c.Terminal = &wire.Size{Rows: size.Row, Columns: size.Col}
	// The guest's terminal gets all keys and echoes them.
	raw := *before
	raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &raw); err != nil {
		return 0, fmt.Errorf("set the terminal to raw mode: %w", err)
	}
	defer func() { _ = unix.IoctlSetTermios(fd, unix.TCSETS, before) }()
	_, err = m.Run(ctx, c) // the status of the last command typed does not matter
	return 0, err
}
