package sriov

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// FS is a sysfs tree. The zero value is the running kernel's.
type FS struct {
	// Root is the absolute path of the directory that contains sys; empty means "/". An
	// agent in a container that mounts the host's root at /host sets "/host".
	Root string
}

// path returns Root/sys/elem. The caller validates any outside input in elem.
func (s FS) path(elem string) string {
	return filepath.Join("/", s.Root, "sys", elem)
}

// device returns the directory of a PCI function, given its normalized address.
func (s FS) device(addr string) string { return s.path("bus/pci/devices/" + addr) }

// maxAttr limits the size of an attribute. The longest that this package reads is a
// port name.
const maxAttr = 128

// readAttr returns the trimmed content of a sysfs attribute. The kernel returns a whole
// attribute in one read.
func readAttr(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	buf := make([]byte, maxAttr)
	n, err := f.Read(buf)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if n == maxAttr {
		return "", fmt.Errorf("%s: longer than %d bytes", path, maxAttr-1)
	}
	return strings.TrimSpace(string(buf[:n])), nil
}

// linkBase returns the last element of a link's target.
func linkBase(path string) (string, error) {
	target, err := os.Readlink(path)
	if err != nil {
		return "", err
	}
	return filepath.Base(target), nil
}

// list returns the names in a directory, in no particular order.
func list(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(-1)
}

// isGone reports whether err means that a file vanished. Reading an attribute that was
// opened before its device disappeared gives ENODEV.
func isGone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

// attempts limits how often a function is read that changes during the read.
const attempts = 3

// settle repeats read while it fails because something vanished halfway, up to attempts
// times. If read still fails so in the end, the error satisfies errors.Is(err,
// fs.ErrNotExist).
func settle(read func() error) error {
	var err error
	for range attempts {
		if err = read(); err == nil || !isGone(err) {
			return err
		}
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

// node reads the entries of one directory, some of which are optional. The directory is
// listed once: an entry that was not listed is absent, and a listed entry that cannot
// be read is an error. The first error is kept in err, so that callers can read on and
// check once.
type node struct {
	dir   string
	names []string
	err   error
}

func openNode(dir string) (*node, error) {
	names, err := list(dir)
	if err != nil {
		return nil, err
	}
	return &node{dir: dir, names: names}, nil
}

func (n *node) has(name string) bool { return slices.Contains(n.names, name) }

// get applies read to the named entry, and returns an empty string if the entry is
// absent.
func (n *node) get(name string, read func(string) (string, error)) string {
	if n.err != nil || !n.has(name) {
		return ""
	}
	v, err := read(filepath.Join(n.dir, name))
	if err != nil {
		n.err = err
	}
	return v
}

// link returns the last element of a link's target, or an empty string if it is absent.
func (n *node) link(name string) string { return n.get(name, linkBase) }

// address returns the PCI address that a link points to, or an empty string if it is
// absent.
func (n *node) address(name string) string {
	base := n.link(name)
	if base == "" {
		return ""
	}
	addr, err := ParseAddress(base)
	if err != nil {
		n.err = fmt.Errorf("%s: %w", filepath.Join(n.dir, name), err)
	}
	return addr
}

// id returns a hexadecimal attribute such as 0x8086 without its prefix and in lower
// case, or an empty string if it is absent.
func (n *node) id(name string) string {
	v := n.get(name, readAttr)
	if v == "" {
		return ""
	}
	digits, prefixed := strings.CutPrefix(strings.ToLower(v), "0x")
	if _, ok := parseHex(digits); !ok || !prefixed || digits == "" {
		n.err = fmt.Errorf("%s: %s is not a hexadecimal number", filepath.Join(n.dir, name), quote(v))
	}
	return digits
}

// number returns a decimal attribute, or the value absent if there is none.
func (n *node) number(name string, absent int) int {
	v := n.get(name, readAttr)
	if v == "" {
		return absent
	}
	i, err := strconv.Atoi(v)
	if err != nil {
		n.err = fmt.Errorf("%s: %w", filepath.Join(n.dir, name), err)
	}
	return i
}

// children returns the names in the directory name, or none if it is absent.
func (n *node) children(name string) []string {
	if n.err != nil || !n.has(name) {
		return nil
	}
	names, err := list(filepath.Join(n.dir, name))
	if err != nil {
		n.err = err
	}
	return names
}
