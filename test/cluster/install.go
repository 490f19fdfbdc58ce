package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// systemNamespace is where Manifold is installed.
const systemNamespace = "kube-system"

// Install installs Manifold as a user would: its image, here from an archive, and
// the chart; and defines the lab's networks.
func (c *Cluster) Install(ctx context.Context) error {
	if err := c.Node.Import(ctx, filepath.Join(c.dir, imageFile)); err != nil {
		return err
	}
	if err := c.Helm(ctx, "install"); err != nil {
		return err
	}
	return c.defineNetworks()
}

// Helm runs "install" or "upgrade" of the chart, with further flags, and waits for
// the rollout.
func (c *Cluster) Helm(ctx context.Context, verb string, flags ...string) error {
	args := []string{verb, "manifold", filepath.Join(c.root, "deploy/helm/manifold"), "--set", "image.tag=" + imageTag, "--set", "image.pullPolicy=Never"}
	return c.helm(ctx, append(args, flags...)...)
}

// Uninstall removes the chart, and waits until nothing of it is left but its CRD.
func (c *Cluster) Uninstall(ctx context.Context) error { return c.helm(ctx, "uninstall", "manifold") }

func (c *Cluster) helm(ctx context.Context, args ...string) error {
	args = append(args, "--namespace", systemNamespace, "--kubeconfig", c.Kubeconfig, "--wait", "--timeout", patience.String())
	program, err := harness.Helm()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "HOME="+c.dir)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("helm %v: %w\n%s", args, err, text)
	}
	return nil
}

// Networks of the lab, beside the default one.
const (
	storage = "storage" // macvlan on the uplink
	plain   = "plain"   // a bridge
	red     = "red"     // a device of resource Red
	blue    = "blue"    // a device of resource Blue
)

// defineNetworks defines the lab's networks.
func (c *Cluster) defineNetworks() error {
	const device = `{"cniVersion": "1.0.0", "type": "host-device", "capabilities": {"deviceID": true}}`
	for _, d := range []struct{ name, resource, config string }{
		{storage, "", `{"cniVersion": "1.0.0", "plugins": [{"type": "macvlan", "master": "` + Uplink + `", "mode": "bridge", "ipam": {"type": "host-local", "subnet": "10.30.0.0/16"}}]}`},
		{plain, "", `{"cniVersion": "1.0.0", "type": "bridge", "bridge": "br-plain", "ipam": {"type": "host-local", "subnet": "10.31.0.0/16"}}`},
		{red, Red, device},
		{blue, Blue, device},
	} {
		if err := c.Define(d.name, d.resource, d.config); err != nil {
			return err
		}
	}
	return nil
}

// Define creates a network in namespace default; no resource means none.
func (c *Cluster) Define(name, resource, config string) error {
	d := &netattach.Definition{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault}, Spec: netattach.DefinitionSpec{Config: config}}
	if resource != "" {
		d.Annotations = map[string]string{netattach.ResourceNameAnnotation: resource}
	}
	return c.API.Define(d)
}
