package netconf

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// Network is a network that the configuration names: clusterNetwork, or an
// element of defaultNetworks. It has either a Path or a Name.
type Network struct {
	Path      string // absolute: a file, or a directory whose first configuration is meant
	Namespace string // of the definition
	Name      string // of the definition, and of a configuration in confDir where OnDisk is set
	OnDisk    bool   // a configuration in confDir serves where there is no definition
	Interface string // in the pod; empty lets the planner choose
}

// Network reads how the configuration names a network: an absolute path, or
// "name", "namespace/name", each with "@interface" behind it. A name by itself is
// of multusNamespace. Whoever writes the configuration is the node's
// administrator: what a pod's annotation says is never read by this.
func (c *Conf) Network(text string) (Network, error) {
	n, err := parseNetwork(text)
	if err != nil {
		return n, cnierr.New("read configuration", cnierr.InvalidConfig, "%w", err)
	}
	if n.Path == "" && n.Namespace == "" {
		n.Namespace, n.OnDisk = c.MultusNamespace, true
	}
	return n, nil
}

func parseNetwork(text string) (n Network, err error) {
	if filepath.IsAbs(text) {
		return Network{Path: text}, nil
	}
	rest, ifName, named := strings.Cut(text, "@")
	namespace, name, spaced := strings.Cut(rest, "/")
	if !spaced {
		namespace, name = "", rest
	}
	switch {
	case checkNetworkName(name) != nil, spaced && !isLabel(namespace):
		return n, fmt.Errorf("%.64q names no network; write the name of a definition or of a configuration in confDir, namespace/name of a definition, or an absolute path", text)
	case named && utils.ValidateInterfaceName(ifName) != nil:
		return n, fmt.Errorf("%.64q names an interface that cannot be; write at most 15 bytes without blank, colon and slash behind the @", text)
	}
	return Network{Namespace: namespace, Name: name, Interface: ifName}, nil
}

// ErrNotOnDisk says that a network has no configuration on the node's disk; it
// may still be a definition.
var ErrNotOnDisk = errors.New("no such network configuration on disk")

// Find returns the configuration on the node's disk that serves for a network;
// files are those of confDir. The look-up is that of clusterNetwork and
// defaultNetworks alike, without its first step, the definition: the JSON name in
// confDir, a directory (its first configuration), an absolute file. Nothing found
// is [cnierr.NotReady]: what writes the file may not have run yet.
func (c *Conf) Find(n Network, files []File) (*File, error) {
	return c.find("find network", n, files, nil)
}

// find is [Conf.Find] for an operation; problems are of the files that could not
// be read, of which the one that is missing may be one.
func (c *Conf) find(op string, n Network, files []File, problems []error) (*File, error) {
	if n.Path == "" {
		if f := ByName(files, n.Name); f != nil && n.OnDisk {
			return f, nil
		}
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append(problems, ErrNotOnDisk)...)).About(cnierr.Subject{Network: n.Name}).
			WithFix("put a configuration of that name into %s", c.ConfDir)
	}
	fi, err := os.Stat(n.Path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.NotReady, "%w", err).WithFix("put a configuration there")
	}
	if !fi.IsDir() {
		return readFile(n.Path)
	}
	first, problems := First(n.Path, c.Type)
	if first == nil {
		none := errors.New("no network configuration in " + n.Path)
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append([]error{none}, problems...)...)).
			WithFix("put a configuration into %s", n.Path)
	}
	return first, nil
}

// ClusterDefault returns the cluster default network's configuration where it is
// no definition, with the plugins of [Conf.Chained].
func (c *Conf) ClusterDefault() (json.RawMessage, error) {
	raw, err := c.writtenDefault()
	if err != nil {
		return nil, err
	}
	return c.Chained(raw)
}

// writtenDefault returns the cluster default network's configuration as written:
// from delegates, or from disk.
func (c *Conf) writtenDefault() (json.RawMessage, error) {
	if c.ClusterNetwork == "" && len(c.Delegates) > 0 {
		return c.Delegates[0], nil
	}
	n, err := c.Network(c.ClusterNetwork)
	if err != nil {
		return nil, err
	}
	var files []File
	var problems []error
	if n.OnDisk {
		files, problems = ReadDir(c.ConfDir)
	}
	f, err := c.find("find cluster default network", n, files, problems)
	if err != nil {
		return nil, err
	}
	return f.Raw, nil
}

// DefaultDefinition returns which definition the cluster default network may be,
// empty names where clusterNetwork names none.
func (c *Conf) DefaultDefinition() (namespace, name string) {
	n, err := c.Network(c.ClusterNetwork)
	if err != nil {
		return "", ""
	}
	return n.Namespace, n.Name
}

// Chained returns the cluster default network's configuration with the plugins
// of auxiliaryCNIChainName behind its own: the files *.conf of the directory of
// that name, in the directory of the default network's file or in confDir.
func (c *Conf) Chained(raw json.RawMessage) (json.RawMessage, error) {
	if c.AuxChain == "" {
		return raw, nil
	}
	dir := c.ConfDir
	if filepath.IsAbs(c.ClusterNetwork) {
		dir = c.ClusterNetwork
		if fi, err := os.Stat(dir); err != nil || !fi.IsDir() {
			dir = filepath.Dir(dir)
		}
	}
	return appendPlugins(raw, dir, c.AuxChain)
}

// maxLabel is the length of a DNS-1123 label, in bytes.
const maxLabel = 63

// isLabel reports whether s is a DNS-1123 label, as namespaces are.
func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || strings.Trim(s, "-") != s {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') }) < 0
}
