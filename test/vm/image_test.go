package vm

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// readCPIO returns the contents of an archive by name, with "/" appended to the names
// of directories.
func readCPIO(t *testing.T, b []byte) map[string]string {
	t.Helper()
	out := map[string]string{}
	for {
		if len(b)%4 != 0 && len(out) == 0 || string(b[:6]) != "070701" {
			t.Fatalf("there is no header after %d entries", len(out))
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, nameSize := field(1), field(6), field(11)
		name := string(b[110 : 110+nameSize-1])
		start := (110 + nameSize + 3) &^ 3
		content := string(b[start : start+size])
		b = b[(start+size+3)&^3:]
		switch {
		case name == "TRAILER!!!":
			return out
		case mode == 0o40755:
			name += "/"
		case mode != 0o100755:
			t.Errorf("%s has mode %o", name, mode)
		}
		if _, twice := out[name]; twice {
			t.Errorf("%s is in the archive twice", name)
		}
		out[name] = content
	}
}

// readTree reads a directory as [readCPIO] reads an archive.
func readTree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		name := strings.TrimPrefix(strings.TrimPrefix(file, dir), "/")
		if err != nil || name == "" {
			return err
		}
		if d.IsDir() {
			out[name+"/"] = ""
			return nil
		}
		content, err := os.ReadFile(file)
		out[name] = string(content)
		if info, e := d.Info(); e != nil || info.Mode() != 0o755 {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), e)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestFilesAndDirectoriesAreInTheImage proves that an archive and a disk's tree get the
// same files: links are followed, names with a leading dot are left out.
func TestFilesAndDirectoriesAreInTheImage(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"a": "", "bb": "12345", "sub/ccc": "123", ".lock": "x"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(dir, "bb"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(t.TempDir(), "tree")
	for to, from := range map[string]string{"/opt/dir": dir, "/init": filepath.Join(dir, "bb")} {
		if err := stageFile(filepath.Join(tree, to), from); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	w := newCPIO(&b)
	for _, err := range []error{w.copy("/opt/dir", dir), w.copy("/init", filepath.Join(dir, "bb")), w.file("/opt/dir/made", []byte("1234")), w.close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		"opt/": "", "opt/dir/": "", "opt/dir/a": "", "opt/dir/bb": "12345", "opt/dir/sub/": "", "opt/dir/sub/ccc": "123", "opt/dir/link": "12345",
		"opt/dir/made": "1234", "init": "12345",
	}
	if got := readCPIO(t, b.Bytes()); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	delete(want, "opt/dir/made")
	if got := readTree(t, tree); !reflect.DeepEqual(got, want) {
		t.Errorf("on a disk %v\nwant %v", got, want)
	}
}

// module returns the smallest ELF file that carries a module's information.
func module(depends string) []byte {
	const names = "\x00.modinfo\x00.shstrtab\x00"
	info := "license=GPL\x00depends=" + depends + "\x00"
	var b bytes.Buffer
	put := func(v ...any) {
		for _, x := range v {
			_ = binary.Write(&b, binary.LittleEndian, x) // writing to memory cannot fail
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9))
	at := uint64(64 + len(info) + len(names))
	put(uint16(1), uint16(62), uint32(1), uint64(0), uint64(0), at, uint32(0), uint16(64), uint16(0), uint16(0), uint16(64), uint16(3), uint16(2))
	b.WriteString(info + names)
	section := func(name, kind uint32, offset, size int) {
		put(name, kind, uint64(0), uint64(0), uint64(offset), uint64(size), uint32(0), uint32(0), uint64(1), uint64(0))
	}
	section(0, 0, 0, 0)
	section(1, 1, 64, len(info))
	section(10, 3, 64+len(info), len(names))
	return b.Bytes()
}

// TestModulesComeAfterTheirDependencies proves the order of modules, without those
// compiled into the kernel, and that an unknown module is an error.
func TestModulesComeAfterTheirDependencies(t *testing.T) {
	dir := t.TempDir()
	for file, depends := range map[string]string{"net/igb.ko": "dca,i2c-algo-bit", "dca.ko": "", "i2c/i2c-algo-bit.ko": "", "vfio/vfio-pci.ko": "vfio,irqbypass", "vfio.ko": ""} {
		name := filepath.Join(dir, "kernel", file)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, module(depends), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/virt/lib/irqbypass.ko\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tree, err := openModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := tree.order([]string{"vfio_pci", "igb", "vfio", "irqbypass"})
	if want := "[vfio vfio_pci dca i2c_algo_bit igb]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v (%v), want %s", got, err, want)
	}
	if _, err := tree.order([]string{"nothing"}); err == nil || !strings.Contains(err.Error(), "nothing") {
		t.Errorf("error for an unknown module: %v", err)
	}
}

func TestConfigurationsThatCannotWorkAreRefused(t *testing.T) {
	for name, c := range map[string]Config{
		"memory above 4 GiB":   {PFs: 1, Memory: 3072},
		"three PFs":            {PFs: 3},
		"a path that is not":   {Files: map[string]string{"opt/x": "/x"}},
		"a comma in a path":    {Disk: "/tmp/a,readonly=on"},
		"a root nowhere":       {Root: true},
		"a path with a detour": {Files: map[string]string{"/opt/../x": "/x"}},
	} {
		if err := c.check(); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	c := Config{PFs: 2}
	if err := c.check(); err != nil || c.Memory != MaxMemory {
		t.Errorf("memory %d: %v", c.Memory, err)
	}
}

// TestDiskThatExistsIsKept proves that the next boot does not destroy what a guest
// wrote to its disk.
func TestDiskThatExistsIsKept(t *testing.T) {
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, []byte("full"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := (&Config{Disk: disk}).makeDisk(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(disk); string(content) != "full" || err != nil {
		t.Errorf("the disk has %q: %v", content, err)
	}
}
