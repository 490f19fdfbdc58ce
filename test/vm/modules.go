package vm

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// moduleTree is a kernel's directory of modules. The packages are unpacked, not
// installed, so there is no modules.dep: a module's dependencies are read from the
// module itself.
type moduleTree struct {
	files   map[string]string // paths by module name
	builtin map[string]bool   // compiled into the kernel
	read    map[string][]byte // uncompressed content by module name
}

// moduleName returns the kernel's name for the module in a file.
func moduleName(file string) string {
	name, _, _ := strings.Cut(filepath.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

func openModules(dir string) (*moduleTree, error) {
	t := &moduleTree{files: map[string]string{}, builtin: map[string]bool{}, read: map[string][]byte{}}
	list, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for _, file := range strings.Fields(string(list)) {
		t.builtin[moduleName(file)] = true
	}
	return t, filepath.WalkDir(filepath.Join(dir, "kernel"), func(file string, d fs.DirEntry, err error) error {
		if err == nil && strings.Contains(d.Name(), ".ko") {
			t.files[moduleName(file)] = file
		}
		return err
	})
}

// order returns the names of modules and all their dependencies in the order to load
// them, without those compiled into the kernel.
func (t *moduleTree) order(names []string) ([]string, error) {
	var order []string
	seen := map[string]bool{}
	var visit func(name string) error
	visit = func(name string) error {
		if name = moduleName(name); seen[name] || t.builtin[name] {
			return nil
		}
		seen[name] = true
		content, err := t.content(name)
		if err != nil {
			return err
		}
		depends, err := dependencies(content)
		if err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := visit(d); err != nil {
				return err
			}
		}
		order = append(order, name)
		return nil
	}
	for _, name := range names {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// content returns a module's uncompressed content.
func (t *moduleTree) content(name string) ([]byte, error) {
	if b, ok := t.read[name]; ok {
		return b, nil
	}
	file, ok := t.files[name]
	if !ok {
		return nil, fmt.Errorf("the kernel has no module %s", name)
	}
	var b []byte
	var err error
	switch filepath.Ext(file) {
	case ".xz":
		b, err = output(exec.Command("xz", "--decompress", "--stdout", file))
	case ".zst":
		b, err = output(exec.Command("zstd", "--decompress", "--stdout", file))
	default:
		b, err = os.ReadFile(file)
	}
	t.read[name] = b
	return b, err
}

// dependencies returns the field "depends" of a module's information section.
func dependencies(module []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, errors.New("there is no section .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
