//go:build sriovlab

package checks

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

const left, right = "lab.example/left", "lab.example/right"

// on returns the address of the device that an interface in the pod belongs to, as the
// kernel says there, and the interface's MAC and MTU.
func (n *node) on(p *pod, ifName string) (parent, mac string, mtu int) {
	n.t.Helper()
	n.must(p.ns.Do(func() error {
		link, err := netlinksafe.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("%s in %s: %w", ifName, p.Name, err)
		}
		a := link.Attrs()
		parent, mac, mtu = a.ParentDev, a.HardwareAddr.String(), a.MTU
		return nil
	}))
	return parent, mac, mtu
}

// stands fails unless net1, net2 and so on of the pod are the given VFs in order,
// according to the kernel and to the pod's network-status.
func (n *node) stands(p *pod, vfs ...string) {
	n.t.Helper()
	list := n.status(p)
	if len(list) != len(vfs) {
		n.t.Fatalf("network-status has %d networks, want %d: %+v", len(list), len(vfs), list)
	}
	for i, vf := range vfs {
		ifName := fmt.Sprintf("net%d", i+1)
		parent, mac, mtu := n.on(p, ifName)
		if parent != vf {
			n.t.Errorf("%s of %s is %s, want %s", ifName, p.Name, parent, vf)
		}
		s := list[i]
		if s.Interface != ifName || s.MAC != mac || s.MTU != mtu {
			n.t.Errorf("network-status %+v, want interface %s, MAC %s, MTU %d", s, ifName, mac, mtu)
		}
		var info netattach.DeviceInfo
		n.must(json.Unmarshal(s.DeviceInfo, &info))
		if info.Type != "pci" || info.PCI == nil || info.PCI.Address != vf || info.PCI.PFAddress != pfOf(vf) {
			n.t.Errorf("device-info of %s is %s, want VF %s of PF %s", ifName, s.DeviceInfo, vf, pfOf(vf))
		}
	}
}

func pfOf(vf string) string {
	for _, p := range pfs {
		if slices.Contains(p.vfs, vf) {
			return p.address
		}
	}
	return ""
}

// pin returns the devices of a container by resource.
func pin(devices ...string) map[string][]string {
	out := map[string][]string{}
	for _, d := range devices {
		for _, p := range pfs {
			if slices.Contains(p.vfs, d) {
				out[p.resource] = append(out[p.resource], d)
			}
		}
	}
	return out
}

// TestPodGetsItsVFs proves that a pod's networks get the VFs that the kubelet gave its
// containers, in the order of addresses or as the selection says, and nothing else.
func TestPodGetsItsVFs(t *testing.T) {
	l, r := pfs[0].vfs, pfs[1].vfs
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	n.define("right", right, hostDevice(nil))
	for name, tc := range map[string]struct {
		networks   string
		containers []corev1.Container
		pins       fakekubelet.Pins
		want       []string
	}{
		"one VF": {"left", []corev1.Container{container("c", left)}, fakekubelet.Pins{"c": pin(l[4])}, []string{l[4]}},
		"two VFs of one resource": {"left,left", []corev1.Container{container("c", left, left)},
			fakekubelet.Pins{"c": pin(l[5], l[2])}, []string{l[2], l[5]}},
		"arguments that name another VF": {
			`[{"name":"left","cni-args":{"deviceID":"` + l[0] + `","pciBusID":"` + l[0] + `","runtimeConfig":{"deviceID":"` + l[0] + `"}}}]`,
			[]corev1.Container{container("c", left)}, fakekubelet.Pins{"c": pin(l[6])}, []string{l[6]}},
		"VFs of two resources": {"right,left", []corev1.Container{container("c", left, right)},
			fakekubelet.Pins{"c": pin(l[6], r[0])}, []string{r[0], l[6]}},
		"a VF per container, the first has the higher address": {"left,left", []corev1.Container{container("c1", left), container("c2", left)},
			fakekubelet.Pins{"c1": pin(l[3]), "c2": pin(l[1])}, []string{l[3], l[1]}},
		"the container named in the selection": {
			`[{"name":"right","manifold.dev/container":"c2"},{"name":"right","manifold.dev/container":"c1"}]`,
			[]corev1.Container{container("c1", right), container("c2", right)},
			fakekubelet.Pins{"c1": pin(r[5]), "c2": pin(r[6])}, []string{r[6], r[5]}},
	} {
		t.Run(name, func(t *testing.T) {
			n := n.of(t)
			p := n.admit("app", tc.networks, tc.pins, tc.containers...)
			defer n.release(p)
			n.succeed("ADD", p)
			n.stands(p, tc.want...)
			n.succeed("CHECK", p)
			n.succeed("DEL", p)
			n.before.same(t)
		})
	}
}

// TestMACAndMTUAreAsAsked proves that a pod's interface has the MAC and MTU that its
// network and its selection ask for.
func TestMACAndMTUAreAsAsked(t *testing.T) {
	n := newNode(t)
	const mac, mtu = "02:00:00:00:aa:01", 1400
	n.define("tuned", right, hostDevice(map[string]any{"ipam": n.ipam("10.60.0.0/24")}),
		map[string]any{"type": "tuning", "mtu": mtu, "capabilities": map[string]any{"mac": true}})
	p := n.admit("app", `[{"name":"tuned","mac":"`+mac+`"}]`, fakekubelet.Pins{"c": pin(ownMAC)}, container("c", right))
	n.succeed("ADD", p)
	n.stands(p, ownMAC)
	if _, gotMAC, gotMTU := n.on(p, "net1"); gotMAC != mac || gotMTU != mtu {
		t.Errorf("net1 has %s and MTU %d, want %s and %d", gotMAC, gotMTU, mac, mtu)
	}
	if s := n.status(p)[0]; s.MAC != mac || s.MTU != mtu || len(s.IPs) != 1 || s.IPs[0] != "10.60.0.2" {
		t.Errorf("network-status %+v, want %s, MTU %d and 10.60.0.2", s, mac, mtu)
	}
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
}

// TestVFReturnsWhenItsNamespaceWentFirst proves that DEL restores the names of VFs
// whose network namespace is already gone. The kernel returns such VFs to the host
// under the names that they had in the pod; the original names are in the journal.
func TestVFReturnsWhenItsNamespaceWentFirst(t *testing.T) {
	n := newNode(t)
	n.define("left", left, hostDevice(nil))
	vfs := pfs[0].vfs[:2]
	var names []string
	for _, vf := range vfs {
		names = append(names, linkOf(t, vf).Attrs().Name)
	}
	p := n.admit("app", "left,left", fakekubelet.Pins{"c": pin(vfs...)}, container("c", left, left))
	n.succeed("ADD", p)
	n.must(p.ns.Delete())
	for _, vf := range vfs {
		n.eventually("the kernel to give "+vf+" back", func() bool { return len(readFunction(t, vf).NetDevs) == 1 })
	}
	n.succeed("DEL", p)
	for i, vf := range vfs {
		if a := linkOf(t, vf).Attrs(); a.Name != names[i] || a.Alias != "" {
			t.Errorf("%s is %s with alias %q, was %s", vf, a.Name, a.Alias, names[i])
		}
	}
}
