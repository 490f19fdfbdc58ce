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

// Network is a network that the configuration names: clusterNetwork or an element of
// defaultNetworks. It has either a Path or a Name.
type Network struct {
	Path      string // absolute: a file, or a directory that stands for its [Primary]
	Namespace string // of the definition
	Name      string // of the definition, and with OnDisk of a configuration in confDir
	OnDisk    bool   // a configuration in confDir serves if there is no definition
	Interface string // in the pod; empty lets the planner choose
}

// Network parses a network's name in the configuration: an absolute path, or "name" or
// "namespace/name", each optionally followed by "@interface". A bare name is of
// multusNamespace. Only the node's administrator writes the configuration; a pod's
// annotation is never read by this.
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
		return n, fmt.Errorf("%.64q does not name a network; write the name of a definition or of a configuration in confDir, namespace/name of a definition, or an absolute path", text)
	case strings.Contains(ifName, "@"): // the kernel would take it, but it is a slip, as in an annotation
		return n, fmt.Errorf("%.64q has a second @; write namespace/name@interface", text)
	case named && !isInterface(ifName):
		return n, fmt.Errorf("%.64q has an invalid interface name; write at most 15 bytes without blank, colon, slash or %% after the @", text)
	}
	return Network{Namespace: namespace, Name: name, Interface: ifName}, nil
}

// errNotOnDisk reports that a network has no configuration on the node's disk. It may
// still be a definition.
var errNotOnDisk = errors.New("no such network configuration on disk")

// Find returns the configuration on the node's disk that serves for a network. files
// are those of confDir. The look-up is that of clusterNetwork and defaultNetworks
// without its first step, the definition: the JSON name in confDir, a directory (its
// [Primary]), an absolute file. If nothing is found the error is
// [cnierr.NotReady]: whatever writes the file may not have run yet.
func (c *Conf) Find(n Network, files []File) (*File, error) {
	return c.find("find network", n, files, nil)
}

// find is [Conf.Find] for an operation. problems are of files that could not be read;
// the missing configuration may be in one of them.
func (c *Conf) find(op string, n Network, files []File, problems []error) (*File, error) {
	if n.Path == "" {
		if f := ByName(files, n.Name); f != nil && n.OnDisk {
			return f, nil
		}
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append(problems, errNotOnDisk)...)).About(cnierr.Subject{Network: n.Name}).
			WithFix("put a configuration of that name into %s", c.ConfDir)
	}
	fi, err := os.Stat(n.Path)
	if err != nil {
		return nil, cnierr.New(op, cnierr.NotReady, "%w", err).WithFix("put a configuration there")
	}
	if !fi.IsDir() {
		return readFile(n.Path)
	}
	first, problems := Primary(n.Path, c.Type)
	if first == nil {
		none := errors.New("no network configuration in " + n.Path)
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append([]error{none}, problems...)...)).
			WithFix("put a configuration into %s", n.Path)
	}
	return first, nil
}

// Definition returns the configuration in a definition. It is empty for a definition
// that leaves the configuration to a file. [cnierr.InvalidDefinition] means that the
// definition exists but is unusable. After any other error a file serves.
type Definition func(namespace, name string) (json.RawMessage, error)

// ClusterDefault returns the cluster default network's configuration as a plan has it:
// from the definition of its name or else from disk, with the plugins of
// [Conf.Chained], and with a name. Every verb uses it except ADD, whose planner looks
// up all networks of a pod.
func (c *Conf) ClusterDefault(definition Definition) (json.RawMessage, error) {
	name, raw, err := c.writtenDefault(definition)
	if err != nil {
		return nil, err
	}
	if raw, err = c.Chained(raw); err != nil {
		return nil, err
	}
	return completed(raw, name)
}

// writtenDefault returns the cluster default network's configuration as written, and
// the name to give it if it has none.
func (c *Conf) writtenDefault(definition Definition) (name string, raw json.RawMessage, err error) {
	if c.ClusterNetwork == "" && len(c.Delegates) > 0 {
		return c.Name, c.Delegates[0], nil
	}
	return c.written("find cluster default network", c.ClusterNetwork, definition)
}

// Further returns the configurations that every pod gets in addition to the cluster
// default network, each with a name: the other elements of delegates.
func (c *Conf) Further() (out []json.RawMessage, err error) {
	if c.ClusterNetwork != "" || len(c.Delegates) == 0 {
		return nil, nil
	}
	for _, raw := range c.Delegates[1:] {
		if raw, err = completed(raw, c.Name); err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

// Configured returns the configuration of an element of defaultNetworks as written. The
// look-up is that of [Conf.ClusterDefault].
func (c *Conf) Configured(network string, definition Definition) (json.RawMessage, error) {
	_, raw, err := c.written("find network", network, definition)
	return raw, err
}

// written is [Conf.writtenDefault] for a network as a key names it.
func (c *Conf) written(op, network string, definition Definition) (name string, raw json.RawMessage, err error) {
	n, err := c.Network(network)
	if err != nil {
		return "", nil, err
	}
	var files []File
	var problems []error
	name = c.Name
	if n.Path == "" {
		name = n.Name
		raw, err = definition(n.Namespace, n.Name)
		if len(raw) > 0 || cnierr.Is(err, cnierr.InvalidDefinition) {
			return name, raw, err
		}
		n.OnDisk = n.OnDisk || err == nil
		files, problems = ReadDir(c.ConfDir)
		problems = append(problems, err)
	}
	f, err := c.find(op, n, files, problems)
	if err != nil {
		return "", nil, err
	}
	return name, f.Raw, nil
}

// completed returns raw with a name, adding name if raw has none.
func completed(raw json.RawMessage, name string) (json.RawMessage, error) {
	const op = "read network configuration"
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	if text := string(keys["name"]); text != "" && text != `""` && text != "null" {
		return raw, nil
	}
	quoted, err := json.Marshal(name)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	keys["name"] = quoted
	out, err := json.Marshal(keys)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return out, nil
}

// Chained returns the cluster default network's configuration with the plugins of
// auxiliaryCNIChainName after its own: the files *.conf in the directory of that name,
// beside the default network's file or in confDir.
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

// isInterface reports whether s can be an interface name as written: the kernel turns a
// name with a % into another one, and has settings named all and default.
func isInterface(s string) bool {
	return utils.ValidateInterfaceName(s) == nil && !strings.Contains(s, "%") && s != "all" && s != "default"
}

// maxLabel is the maximum length of a DNS-1123 label, in bytes.
const maxLabel = 63

// isLabel reports whether s is a DNS-1123 label, as names of namespaces are.
func isLabel(s string) bool {
	if s == "" || len(s) > maxLabel || strings.Trim(s, "-") != s {
		return false
	}
	return strings.IndexFunc(s, func(r rune) bool { return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') }) < 0
}
