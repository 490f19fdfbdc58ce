//go:build sriovlab

package checks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// bind binds a VF to a driver.
func bind(addr, driver string) error {
	dir := filepath.Join("/sys/bus/pci/devices", addr)
	if err := os.WriteFile(filepath.Join(dir, "driver_override"), []byte(driver), 0); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "driver", "unbind"), []byte(addr), 0); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/bus/pci/drivers_probe", []byte(addr), 0); err != nil {
		return err
	}
	bound, err := os.Readlink(filepath.Join(dir, "driver"))
	if err != nil || filepath.Base(bound) != driver {
		return fmt.Errorf("%s is bound to %q, want %s: %w", addr, bound, driver, err)
	}
	return nil
}

// toVFIO binds a VF to vfio-pci until the test ends, and returns its device node.
func toVFIO(t *testing.T, addr string) string {
	t.Helper()
	was := linkOf(t, addr).Attrs()
	deviceNode := toVFIOFor(t, addr)
	t.Cleanup(func() { fromVFIO(t, addr, was) })
	return deviceNode
}

// fromVFIO gives a VF back to its kernel driver, settled and with the name and MAC that
// it had. It sets the MAC itself: the VF's driver draws a new one if the PF's driver
// has no processor to answer in time.
func fromVFIO(t *testing.T, addr string, was *netlink.LinkAttrs) {
	t.Helper()
	if readFunction(t, addr).Driver == "vfio-pci" {
		if err := bind(addr, "igbvf"); err != nil {
			t.Fatal(err)
		}
	}
	link := linkOf(t, addr)
	err := errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, was.Name))
	if err == nil && !bytes.Equal(link.Attrs().HardwareAddr, was.HardwareAddr) {
		restart(t, link, func() bool {
			err = netlink.LinkSetHardwareAddr(link, was.HardwareAddr)
			return err == nil
		})
	}
	for _, err := range []error{err, settle()} {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// toVFIOFor binds to vfio-pci a VF that is recreated before the test ends, and returns
// its device node.
func toVFIOFor(t *testing.T, addr string) string {
	t.Helper()
	if err := bind(addr, "vfio-pci"); err != nil {
		t.Fatal(err)
	}
	return "/dev/vfio/" + readFunction(t, addr).IOMMUGroup
}

// userspaceWithoutInterface proves that a VF bound to vfio-pci stays bound, gets no
// interface in the pod, and is in the pod's device information.
func userspaceWithoutInterface(t *testing.T) {
	vf := pfs[1].vfs[5]
	deviceNode := toVFIO(t, vf)
	n := newNode(t)
	n.define("dpdk", right, hostDevice(nil))
	n.define("kernel", right, hostDevice(nil))
	kernelVF := pfs[1].vfs[6]
	p := n.admit("app", "dpdk,kernel", fakekubelet.Pins{"c": pin(vf, kernelVF)}, container("c", right, right))
	n.succeed("ADD", p)
	if _, err := os.Stat(deviceNode); err != nil {
		t.Error(err)
	}
	if driver := readFunction(t, vf).Driver; driver != "vfio-pci" {
		t.Errorf("%s is bound to %s after ADD", vf, driver)
	}
	if link, err := p.ns.Link("net1"); link != nil || err != nil {
		t.Errorf("a device of a userspace driver has an interface in the pod: %v (error: %v)", link, err)
	}
	if parent, _, _ := n.on(p, "net2"); parent != kernelVF {
		t.Errorf("net2 is %s, want %s", parent, kernelVF)
	}
	for i, want := range []string{vf, kernelVF} {
		if info := string(n.status(p)[i].DeviceInfo); !strings.Contains(info, want) || !strings.Contains(info, pfs[1].address) {
			t.Errorf("device-info %s, want %s of %s", info, want, pfs[1].address)
		}
	}
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
}

// idle returns a plugin that does nothing and claims nothing, with additional keys.
func idle(more map[string]any) map[string]any {
	conf := map[string]any{"type": "scripted", "script": map[string]any{
		"ADD": map[string]any{"stdout": `{"cniVersion":"1.0.0"}`}, "DEL": map[string]any{"stdout": "\n"},
	}}
	for k, v := range more {
		conf[k] = v
	}
	return conf
}

// userspaceOnThePF proves that the PF's settings for a VF are verified even if the VF
// is bound to vfio-pci.
func userspaceOnThePF(t *testing.T) {
	vf := pfs[1].vfs[4]
	toVFIO(t, vf)
	n := newNode(t)
	// By the type "sriov" Manifold knows that "vlan" is a setting of the VF.
	n.define("dpdk", right, idle(map[string]any{"type": "sriov", "vlan": 123, "trust": "off"}))
	pins := fakekubelet.Pins{"c": pin(vf)}
	n.refuse(n.admit("untagged", "dpdk", pins, container("c", right)), 111, "VLAN of the VF", "123", vf)
	n.evict("untagged")
	uplink := linkOf(t, pfs[1].address)
	n.must(netlink.LinkSetVfVlan(uplink, 4, 123))
	defer func() { n.must(netlink.LinkSetVfVlan(uplink, 4, 0)) }()
	p := n.admit("tagged", "dpdk", pins, container("c", right))
	n.succeed("ADD", p)
	n.succeed("DEL", p)
}

// TestVFIODeviceHasItsMACOnThePF proves that a MAC in the configuration is verified on
// the PF, the only place for it: there is no interface.
func TestVFIODeviceHasItsMACOnThePF(t *testing.T) {
	vf := pfs[1].vfs[4]
	toVFIO(t, vf)
	n := newNode(t)
	n.define("dpdk", right, idle(map[string]any{"type": "sriov", "mac": "02:00:00:00:04:04"}))
	p := n.admit("app", "dpdk", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.refuse(p, 111, "MAC of the VF", "02:00:00:00:04:04", vf)
}

// evict deletes a pod from the kubelet, so that its devices can go to another.
func (n *node) evict(name string) {
	n.t.Helper()
	for _, p := range n.kubelet.Pods() {
		if p.Name == name {
			n.must(n.kubelet.DeletePod(p.UID))
		}
	}
}

// TestDriverThatChangesUnderwayIsRefused proves that ADD refuses a VF whose driver
// changes from a userspace driver to the kernel's, or the other way round, while
// delegates work.
func TestDriverThatChangesUnderwayIsRefused(t *testing.T) {
	vf := pfs[1].vfs[3]
	was := linkOf(t, vf).Attrs()
	for from, to := range map[string]string{"vfio-pci": "igbvf", "igbvf": "vfio-pci"} {
		t.Run("from "+from, func(t *testing.T) {
			t.Cleanup(func() { fromVFIO(t, vf, was) })
			if from == "vfio-pci" {
				toVFIO(t, vf)
			}
			n := newNode(t)
			slow, gate := n.gated()
			n.define("slow", right, slow)
			p := n.admit("app", "slow", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
			res := n.during(p, gate, func() { n.must(bind(vf, to)) })
			if res.Status == 0 || res.Error == nil || !strings.Contains(res.Error.Msg, vf) {
				t.Errorf("ADD of a VF that went from %s to %s: %s", from, to, res.Stdout)
			}
			n.succeed("DEL", p)
			if from == "igbvf" {
				fromVFIO(t, vf, was)
			} else {
				n.must(bind(vf, from))
			}
		})
	}
}

// TestVFIODeviceIsWhatThePodWasGiven proves that ADD refuses a pod if the device node
// that its container was given, which stands for the devices of an IOMMU group, is not
// what it was when the pod was planned.
func TestVFIODeviceIsWhatThePodWasGiven(t *testing.T) {
	vf := pfs[1].vfs[5]
	deviceNode := toVFIO(t, vf)
	var was unix.Stat_t
	if err := unix.Stat(deviceNode, &was); err != nil {
		t.Fatal(err)
	}
	n := newNode(t)
	slow, gate := n.gated()
	n.define("slow", right, slow)
	for lie, tc := range map[string]struct {
		tell  func(n *node, deviceNode string) error
		found string
	}{
		"no node": {func(n *node, path string) error { return os.Remove(path) }, "none"},
		"a file":  {func(n *node, path string) error { return errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600)) }, "something other than a character device"},
		"another device": {func(n *node, path string) error {
			return errors.Join(os.Remove(path), unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
		}, "character device 1:3, not "},
	} {
		t.Run(lie, func(t *testing.T) {
			n := n.of(t)
			defer func() {
				n.must(os.RemoveAll(deviceNode))
				n.must(unix.Mknod(deviceNode, was.Mode, int(was.Rdev)))
			}()
			p := n.admit("app", "slow", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
			defer n.release(p)
			n.says(n.during(p, gate, func() { n.must(tc.tell(n, deviceNode)) }), 111, "device node: wanted "+deviceNode+", found "+tc.found, vf)
			n.succeed("DEL", p)
		})
	}
}

// TestVFIODeviceOfAnotherGroupIsRefused proves that ADD refuses a recreated VF that has
// its old address and driver but belongs to another IOMMU group than the container was
// given. Here the other PF's VFs have taken the group's number.
func TestVFIODeviceOfAnotherGroupIsRefused(t *testing.T) {
	vf := pfs[1].vfs[5]
	n := newVolatile(t)
	t.Cleanup(func() { n.must(pfs[0].repair()) })
	group := filepath.Base(toVFIOFor(t, vf))
	slow, gate := n.gated()
	n.define("slow", right, slow)
	p := n.admit("app", "slow", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	res := n.during(p, gate, func() {
		n.must(errors.Join(pfs[1].attribute("sriov_numvfs", "0"), pfs[0].attribute("sriov_numvfs", "0")))
		n.must(errors.Join(pfs[1].attribute("sriov_numvfs", "7"), pfs[0].attribute("sriov_numvfs", "7")))
		n.must(bind(vf, "vfio-pci"))
	})
	now := readFunction(t, vf).IOMMUGroup
	if now == group {
		t.Fatalf("%s still belongs to IOMMU group %s, so this test proves nothing", vf, now)
	}
	n.says(res, codeVanished, "IOMMU group: wanted "+group+", found "+now, "another function has taken its address", vf, fixVanished)
	n.succeed("DEL", p)
}

// TestVFIODeviceThatIsTakenAway proves that the reconciler reports a living pod's VF
// that was bound to the kernel's driver, and that a repair changes nothing under the
// pod's program.
func TestVFIODeviceThatIsTakenAway(t *testing.T) {
	vf := pfs[1].vfs[5]
	was := linkOf(t, vf).Attrs()
	toVFIO(t, vf)
	n := newNode(t)
	n.define("dpdk", right, idle(nil))
	p := n.admit("app", "dpdk", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.succeed("ADD", p)
	n.inOrder()
	n.must(bind(vf, "igbvf"))
	n.finds(reconcile.Replaced, vf, "driver: wanted vfio-pci, found igbvf", "network device "+linkOf(t, vf).Attrs().Name+": wanted in the sandbox, found on the host", "default/app")
	if list := n.found("--repair"); len(list) != 1 || list[0].Kind != reconcile.Replaced {
		t.Errorf("after a repair found %v", list)
	}
	n.says(n.call("CHECK", p), 111, "driver: wanted vfio-pci, found igbvf", vf)
	n.succeed("DEL", p)
	n.before = nil // the test began with the other driver
	fromVFIO(t, vf, was)
}

// TestKernelDeviceThatIsLeftOnTheHostIsRefused proves that ADD does not believe a
// plugin for userspace devices that leaves a VF with a kernel driver on the host.
func TestKernelDeviceThatIsLeftOnTheHostIsRefused(t *testing.T) {
	vf := pfs[1].vfs[2]
	name := linkOf(t, vf).Attrs().Name
	n := newNode(t)
	n.define("dpdk", right, idle(nil))
	p := n.admit("app", "dpdk", fakekubelet.Pins{"c": pin(vf)}, container("c", right))
	n.refuse(p, 111, vf, name)
	raw, err := json.Marshal(n.api.Pod("default", "app").Annotations)
	if n.must(err); strings.Contains(string(raw), vf) {
		t.Errorf("the refused pod has annotations %s", raw)
	}
}
