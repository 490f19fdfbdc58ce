package e2e

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/manifold-cni/manifold/internal/netconf"
)

// runtime makes libcni do what a container runtime does: it uses the first
// configuration in the node's directory at that moment.
func (n *node) runtime(p *pod, call func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList, *libcni.RuntimeConf) error) {
	n.t.Helper()
	first, _ := netconf.First(n.path("net.d"))
	if first == nil {
		n.t.Fatal("the runtime finds no configuration")
	}
	list, err := libcni.NetworkConfFromFile(first.Path)
	n.must(err)
	rt := &libcni.RuntimeConf{ContainerID: p.ID, NetNS: p.NetNS, IfName: "eth0", Args: [][2]string{
		{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name}, {"K8S_POD_UID", p.UID},
	}}
	n.must(call(context.Background(), libcni.NewCNIConfigWithCacheDir([]string{n.path("opt")}, n.path("runtime"), nil), list, rt))
}

func (n *node) runtimeAdd(p *pod) {
	n.t.Helper()
	n.runtime(p, func(ctx context.Context, cni *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		_, err := cni.AddNetworkList(ctx, list, rt)
		return err
	})
}

func (n *node) runtimeDel(p *pod) {
	n.t.Helper()
	n.runtime(p, func(ctx context.Context, cni *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		return cni.DelNetworkList(ctx, list, rt)
	})
}

// TestPodsThatOutliveUninstallAreReleased proves that the runtime's own DEL
// releases a pod with secondary networks after Manifold is uninstalled. Until then
// the plugin stays in the chain behind the primary network's plugins, attaches
// nothing, and is removed with the last of these pods.
func TestPodsThatOutliveUninstallAreReleased(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	n.link2opt()
	n.must(os.Symlink(filepath.Join(pluginDir, "host-device"), n.path("opt/host-device")))
	old, _ := n.twoDevicePod("old")
	plain, meanwhile := n.addPod("plain", ""), n.addPod("meanwhile", "plain")
	before := n.state()
	n.runtimeAdd(old)
	n.runtimeAdd(plain)
	uninstall := func(args ...string) string {
		t.Helper()
		out, err := n.install("uninstall", append([]string{"--leave-attached"}, args...)...)
		if err != nil {
			t.Fatalf("uninstall: %v\n%s", err, out)
		}
		return out
	}
	conf := n.path("net.d/00-manifold.conflist")
	if out := uninstall(); !strings.Contains(out, "left "+conf) || !exists(conf) {
		t.Fatalf("the configuration that releases pods was removed: %s", out)
	}
	n.runtimeAdd(meanwhile)
	n.runtime(meanwhile, func(ctx context.Context, cni *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
		err := cni.CheckNetworkList(ctx, list, rt)
		list.CNIVersion = "1.1.0" // the first version with STATUS
		return errors.Join(err, cni.GetStatusNetworkList(ctx, list))
	})
	if link, err := meanwhile.ns.Link("net1"); err != nil || link != nil {
		t.Errorf("a pod added after uninstall has a secondary network: %v, %v", link, err)
	}
	uninstall() // a second time changes nothing
	n.runtimeDel(meanwhile)
	n.runtimeDel(plain)
	if !exists(conf) || !exists(n.path("opt/manifold")) {
		t.Fatal("the plugin was removed before the last pod was released")
	}
	n.runtimeDel(old)
	n.unchanged(before)
	if exists(conf) {
		t.Error("the configuration remains although all pods are released")
	}
	if journals, err := filepath.Glob(n.path("installed/*@*")); err != nil || len(journals) > 0 {
		t.Errorf("journals remain: %v %v", journals, err)
	}
	if uninstall(); exists(n.path("opt/manifold")) {
		t.Error("the programs were not removed")
	}
}

// TestInstalledAgainOverWhatReleases proves that installing Manifold again while it
// only releases pods restores it completely, with its old default network.
func TestInstalledAgainOverWhatReleases(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	install := func() {
		t.Helper()
		if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil {
			t.Fatalf("install: %v\n%s", err, out)
		}
	}
	install()
	n.link2opt()
	n.must(os.Symlink(filepath.Join(pluginDir, "host-device"), n.path("opt/host-device")))
	old, _ := n.twoDevicePod("old")
	fresh := n.addPod("fresh", "plain")
	before := n.state()
	n.runtimeAdd(old)
	if out, err := n.install("uninstall"); err == nil {
		t.Errorf("uninstall with a pod: %s", out)
	}
	n.file("net.d/05-early.conflist", `{"cniVersion":"1.0.0","name":"early","plugins":[{"type":"ptp"}]}`)
	install()
	n.must(os.Remove(n.path("net.d/05-early.conflist")))
	n.installedRuntime() // checks the default network
	n.runtimeAdd(fresh)
	n.interfaceOf(fresh, "net1")
	n.runtimeDel(old)
	n.runtimeDel(fresh)
	n.unchanged(before)
}

// TestReleaseOnlyOutOfPlace proves that the plugin does not remove a foreign file
// in the configuration's place, and that it refuses a call without the primary
// network's result.
func TestReleaseOnlyOutOfPlace(t *testing.T) {
	n := newNode(t, nil)
	n.file("net.d/00-manifold.conflist", `{"cniVersion":"1.0.0","name":"other","plugins":[{"type":"ptp"}]}`)
	n.withConf(map[string]any{"releaseOnly": n.path("net.d/00-manifold.conflist")})
	p := n.addPod("app", "")
	n.refuse("ADD", p, types.ErrInvalidNetworkConfig, "prevResult", "manifold-agent")
	n.succeed("DEL", p)
	if !exists(n.path("net.d/00-manifold.conflist")) {
		t.Error("a foreign configuration was removed")
	}
}
