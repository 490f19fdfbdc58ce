package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// Install installs Manifold as docs/install.md says, from the image already on the
// node, and defines the lab's networks.
func (c *Cluster) Install(ctx context.Context) error {
	if err := os.MkdirAll(c.userDir(), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(filepath.Join(c.root, "deploy"), filepath.Join(c.userDir(), "deploy")); err != nil {
		return err
	}
	if err := c.Choose(release); err != nil {
		return err
	}
	if err := c.Follow(ctx, "install.md"); err != nil {
		return err
	}
	return c.defineNetworks()
}

// userDir is where commands of the documentation run. It holds what they expect:
// deploy/ and a values.yaml.
func (c *Cluster) userDir() string { return filepath.Join(c.dir, "user") }

// Choose writes the values.yaml that installs a release.
func (c *Cluster) Choose(release string) error {
	values := map[string]any{"image": map[string]any{"tag": release, "pullPolicy": "Never"}}
	maps.Copy(values, c.values)
	raw, err := json.Marshal(values) // JSON is valid YAML
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.userDir(), "values.yaml"), raw, 0o600)
}

// Follow runs the first command block of a page of docs/, exactly as it is written.
func (c *Cluster) Follow(ctx context.Context, page string) error { return c.follow(ctx, page, 0) }

// follow runs one command block of a page of docs/.
func (c *Cluster) follow(ctx context.Context, page string, block int) error {
	cmd, err := c.commands(ctx, page, block)
	if err != nil {
		return err
	}
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, text)
	}
	return nil
}

// commands returns the command that runs one block of a page of docs/.
func (c *Cluster) commands(ctx context.Context, page string, block int) (*exec.Cmd, error) {
	blocks, err := harness.Commands(page)
	if err != nil {
		return nil, err
	}
	if block >= len(blocks) {
		return nil, fmt.Errorf("%s has %d blocks of commands", page, len(blocks))
	}
	return c.command(ctx, "sh", "-ec", blocks[block])
}

// command returns a program set up as the cluster's administrator would run it from
// this node.
func (c *Cluster) command(ctx context.Context, name string, args ...string) (cmd *exec.Cmd, err error) {
	env, err := c.Environment()
	if err != nil {
		return nil, err
	}
	cmd = exec.CommandContext(ctx, "/usr/bin/env", append([]string{name}, args...)...) // env searches the PATH it is given; exec would search ours
	cmd.Dir, cmd.Env = c.userDir(), append(env, "HOME="+c.dir)
	return cmd, nil
}

// Networks of the lab, in addition to the default one.
const (
	storage = "storage" // macvlan on the uplink
	plain   = "plain"   // a bridge
	red     = "red"     // a device of resource [Red]
	blue    = "blue"    // a device of resource [Blue]
)

// deviceConfig is the configuration of a network that attaches a device.
const deviceConfig = `{"cniVersion": "1.0.0", "type": "host-device", "capabilities": {"deviceID": true}}`

// defineNetworks defines the lab's networks.
func (c *Cluster) defineNetworks() error {
	for _, d := range []struct{ name, resource, config string }{
		{storage, "", `{"cniVersion": "1.0.0", "plugins": [{"type": "macvlan", "master": "` + Uplink + `", "mode": "bridge", "ipam": {"type": "host-local", "subnet": "10.30.0.0/16"}}]}`},
		{plain, "", `{"cniVersion": "1.0.0", "type": "bridge", "bridge": "br-plain", "ipam": {"type": "host-local", "subnet": "10.31.0.0/16"}}`},
		{red, Red, deviceConfig},
		{blue, Blue, deviceConfig},
	} {
		if err := c.Define(d.name, d.resource, d.config); err != nil {
			return err
		}
	}
	return nil
}

// Define creates a network in namespace default; an empty resource means none.
func (c *Cluster) Define(name, resource, config string) error {
	d := &netattach.Definition{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault}, Spec: netattach.DefinitionSpec{Config: config}}
	if resource != "" {
		d.Annotations = map[string]string{netattach.ResourceNameAnnotation: resource}
	}
	return c.API.Define(d)
}
