package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// cpio writes an archive in the "newc" format, which the kernel unpacks as initramfs
// (the kernel's Documentation/driver-api/early-userspace/buffer-format.rst). All
// entries belong to root and have time 0.
type cpio struct {
	w    *bufio.Writer
	ino  int
	dirs map[string]bool
}

func newCPIO(w io.Writer) *cpio {
	return &cpio{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{"/": true}}
}

// entry writes a header, name and content, each padded to four bytes.
func (c *cpio) entry(name string, mode uint32, size int64, content io.Reader) error {
	c.ino++
	name = strings.TrimPrefix(name, "/")
	fields := []any{c.ino, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name) + 1, 0}
	if _, err := fmt.Fprintf(c.w, "070701"+strings.Repeat("%08X", len(fields)), fields...); err != nil {
		return err
	}
	const header = 110
	if _, err := c.w.WriteString(name + strings.Repeat("\x00", 1+padding(int64(header+len(name)+1)))); err != nil {
		return err
	}
	n, err := io.Copy(c.w, content)
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("%s: read %d bytes, want %d: the file changed meanwhile", name, n, size)
	}
	_, err = c.w.WriteString(strings.Repeat("\x00", padding(size)))
	return err
}

func padding(size int64) int { return int((4 - size%4) % 4) }

// dir writes a directory and its parents unless the archive already has them.
func (c *cpio) dir(name string) error {
	if c.dirs[name] {
		return nil
	}
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	c.dirs[name] = true
	return c.entry(name, unix.S_IFDIR|0o755, 0, strings.NewReader(""))
}

// file writes a file. All files are executable: it makes no difference here.
func (c *cpio) file(name string, content []byte) error {
	if err := c.dir(path.Dir(name)); err != nil {
		return err
	}
	return c.entry(name, unix.S_IFREG|0o755, int64(len(content)), strings.NewReader(string(content)))
}

// copy writes a file of the host, following links, or a directory with its contents
// except files whose names begin with a dot.
func (c *cpio) copy(name, from string) error {
	return filepath.WalkDir(from, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		to := path.Join(name, filepath.ToSlash(strings.TrimPrefix(file, from)))
		switch {
		case file != from && strings.HasPrefix(d.Name(), "."):
			return nil
		case d.IsDir():
			return c.dir(to)
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		if err := c.dir(path.Dir(to)); err != nil {
			return err
		}
		return c.entry(to, unix.S_IFREG|0o755, fi.Size(), f)
	})
}

// close completes the archive.
func (c *cpio) close() error {
	if err := c.entry("TRAILER!!!", 0, 0, strings.NewReader("")); err != nil {
		return err
	}
	return c.w.Flush()
}
