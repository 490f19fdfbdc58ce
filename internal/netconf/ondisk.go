package netconf

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// maxFile bounds a network configuration file, in bytes.
const maxFile = 1 << 20

// File is a network configuration found on disk.
type File struct {
	Path string
	Name string // its JSON "name"
	List bool   // a configuration list (.conflist), not a single configuration
	Raw  json.RawMessage
}

// ReadDir returns the network configurations of dir in the order in which one
// is looked up by name: lists before single configurations, each in order of
// file name (multi-network specification 3.4.1). Files that cannot be read or
// parsed are left out and returned as problems: one broken file must not take
// the others along. A directory that does not exist is empty.
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
		Name string `json:"name"`
	}
	if err := json.Unmarshal(raw, &head); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return &File{Path: path, Name: head.Name, List: strings.HasSuffix(path, ".conflist"), Raw: raw}, nil
}

// ByName returns the configuration whose JSON "name" is name, nil when there is
// none.
func ByName(files []File, name string) *File {
	for i := range files {
		if files[i].Name == name {
			return &files[i]
		}
	}
	return nil
}

// Runs reports whether the configuration has a plugin of the given type: used to
// never take ourselves for the default network.
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

// ErrNotOnDisk says that clusterNetwork names nothing on the node's disk; it may
// still be a definition.
var ErrNotOnDisk = errors.New("no such network configuration on disk")

// ClusterDefault returns the cluster default network's configuration as written,
// from delegates, or from disk by clusterNetwork's lookup order without its
// first step (the definition): the JSON name in confDir, a directory (its first
// file), an absolute file.
func (c *Conf) ClusterDefault() (json.RawMessage, error) {
	if c.ClusterNetwork == "" {
		return c.Delegates[0], nil
	}
	op := "find cluster default network"
	files, problems := ReadDir(c.ConfDir)
	if f := ByName(files, c.ClusterNetwork); f != nil {
		return f.Raw, nil
	}
	if !filepath.IsAbs(c.ClusterNetwork) {
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append(problems, ErrNotOnDisk)...)).
			About(cnierr.Subject{Network: c.ClusterNetwork}).
			WithFix("put a configuration of that name into %s", c.ConfDir)
	}
	fi, err := os.Stat(c.ClusterNetwork)
	if err != nil {
		return nil, cnierr.New(op, cnierr.NotReady, "%w: %w", ErrNotOnDisk, err).
			WithFix("the default network's plugin has not written its configuration yet, or clusterNetwork is wrong")
	}
	if !fi.IsDir() {
		f, err := readFile(c.ClusterNetwork)
		if err != nil {
			return nil, err
		}
		return f.Raw, nil
	}
	files, problems = ReadDir(c.ClusterNetwork)
	files = slices.DeleteFunc(files, func(f File) bool { return f.Runs(c.Type) })
	if len(files) == 0 {
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append(problems, ErrNotOnDisk)...)).
			WithFix("put a configuration into %s", c.ClusterNetwork)
	}
	return files[0].Raw, nil
}
