package netconf

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// maxFile is the largest network configuration file that is read, in bytes.
const maxFile = 1 << 20

// File is a network configuration found on disk.
type File struct {
	Path string
	Name string          // its JSON "name"
	List bool            // a configuration list (.conflist), not a single configuration
	Raw  json.RawMessage // for a list, with the plugins of its directory, see libcni's loadOnlyInlinedPlugins
}

// ReadDir returns the network configurations of dir in the order of look-up by name:
// lists before single configurations, each in order of file name (multi-network
// specification 3.4.1). Files that cannot be read or parsed are omitted and returned as
// problems: one broken file must not hide the others. A directory that does not exist
// is empty.
func ReadDir(dir string) (files []File, problems []error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, []error{cnierr.New("read "+dir, cnierr.IO, "%w", err)}
	}
	for _, e := range entries {
		ext := filepath.Ext(e.Name())
		if e.IsDir() || (ext != ".conflist" && ext != ".conf" && ext != ".json") {
			continue
		}
		f, err := readFile(filepath.Join(dir, e.Name()))
		if err != nil {
			problems = append(problems, err)
			continue
		}
		files = append(files, *f)
	}
	sort.SliceStable(files, func(i, j int) bool { return files[i].List && !files[j].List })
	return files, problems
}

func readFile(path string) (*File, error) {
	op := "read " + path
	fi, err := os.Stat(path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	if !fi.Mode().IsRegular() || fi.Size() > maxFile {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "not a regular file of at most %d bytes", maxFile)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	var head struct {
		Name       string `json:"name"`
		InlineOnly bool   `json:"loadOnlyInlinedPlugins"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	f := &File{Path: path, Name: head.Name, List: strings.HasSuffix(path, ".conflist"), Raw: raw}
	if f.List && !head.InlineOnly && head.Name != "" {
		if f.Raw, err = appendPlugins(raw, filepath.Dir(path), head.Name); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// appendPlugins returns a configuration with the plugins of the files dir/name/*.conf
// after its own, in order of file name, as libcni extends an on-disk list. Without such
// files it returns raw unchanged.
func appendPlugins(raw json.RawMessage, dir, name string) (json.RawMessage, error) {
	op := "read " + filepath.Join(dir, name)
	if name != filepath.Base(name) || !filepath.IsLocal(name) {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "network name %q is a path", name)
	}
	entries, err := os.ReadDir(filepath.Join(dir, name))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return raw, nil
	}
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	var more []json.RawMessage
	for _, e := range entries {
		if e.IsDir() || filepath.Ext(e.Name()) != ".conf" {
			continue
		}
		f, err := readFile(filepath.Join(dir, name, e.Name()))
		if err != nil {
			return nil, err
		}
		more = append(more, f.Raw)
	}
	if len(more) == 0 {
		return raw, nil
	}
	list, plugins, err := asList(raw)
	if err == nil {
		list["plugins"], err = json.Marshal(append(plugins, more...))
	}
	if err == nil {
		raw, err = json.Marshal(list)
	}
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return raw, nil
}

// asList decodes a configuration into the keys of a list and its plugins. A single
// configuration becomes a list of one.
func asList(raw json.RawMessage) (list map[string]json.RawMessage, plugins []json.RawMessage, err error) {
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, nil, err
	}
	if list["plugins"] != nil {
		err = json.Unmarshal(list["plugins"], &plugins)
		return list, plugins, err
	}
	single := map[string]json.RawMessage{}
	for _, key := range []string{"name", "cniVersion"} {
		if v, ok := list[key]; ok {
			single[key] = v
		}
	}
	return single, []json.RawMessage{raw}, nil
}

// ByName returns the configuration with that JSON "name", nil when there is none.
func ByName(files []File, name string) *File {
	for i := range files {
		if name != "" && files[i].Name == name {
			return &files[i]
		}
	}
	return nil
}

// Runs reports whether the configuration has a plugin of the given type. It keeps
// Manifold from taking itself for the default network.
func (f File) Runs(pluginType string) bool {
	var conf struct {
		Type    string `json:"type"`
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(f.Raw, &conf); err != nil {
		return false
	}
	for _, p := range conf.Plugins {
		if p.Type == pluginType {
			return true
		}
	}
	return conf.Type == pluginType
}

// First returns the configuration of dir that a runtime would take: of all that have a
// name and a plugin, the first by file name, whatever its form. It skips configurations
// that run a plugin of the types in except. It returns nil when there is none.
func First(dir string, except ...string) (*File, []error) {
	files, problems := ReadDir(dir)
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	for i := range files {
		f := &files[i]
		_, plugins, err := asList(f.Raw)
		if err != nil || f.Name == "" || len(plugins) == 0 || slices.ContainsFunc(except, f.Runs) {
			continue
		}
		return f, problems
	}
	return nil, problems
}

// MultusTypes are the programs of Multus, thin and thick.
var MultusTypes = []string{"multus", "multus-shim"}

// Primary returns the configuration of dir that is the cluster default network, nil when
// there is none: the first that runs neither Manifold, whose type is self, nor Multus,
// which may have left its file, nor the loopback that runtimes' packages bring.
func Primary(dir, self string) (*File, []error) {
	return First(dir, append([]string{self, "loopback"}, MultusTypes...)...)
}
