package e2e

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// driver is the DRA driver of these tests.
const driver = "vf.test.example"

// claimed returns a device that is allocated to a request of a claim. The driver
// writes attributes as the device's metadata.
func claimed(name, request string, attributes map[string]string) fakekubelet.ClaimDevice {
	return fakekubelet.ClaimDevice{Metadata: attributes, ClaimDevice: checkpoint.ClaimDevice{Driver: driver, Pool: "node1", Name: name, Requests: []string{request}}}
}

// is returns the attributes of a device of nicA.
func is(id string) map[string]string {
	return map[string]string{podresources.AttributeDeviceID: id, podresources.AttributeResourceName: nicA}
}

// claiming returns a container that uses claims of its pod.
func claiming(name string, claims ...corev1.ResourceClaim) corev1.Container {
	return corev1.Container{Name: name, Resources: corev1.ResourceRequirements{Claims: claims}}
}

// nics is the pods' claim in these tests.
var nics = corev1.ResourceClaim{Name: "nics"}

// byName gives a pod the object "shared-nics" as its claim nics.
var byName = []corev1.PodResourceClaim{{Name: "nics", ResourceClaimName: new("shared-nics")}}

// claimPod admits a pod, even if its claims are not allocated, and creates its
// sandbox.
func (n *kubeletNode) claimPod(name, networks string, spec corev1.PodSpec, status corev1.PodStatus) *pod {
	n.t.Helper()
	p, err := n.kubelet.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", Annotations: map[string]string{netattach.NetworksAnnotation: networks}},
		Spec:       spec, Status: status,
	}, nil)
	if !errors.Is(err, fakekubelet.ErrClaim) {
		n.must(err)
	}
	return n.sandbox(name, string(p.UID))
}

// wantDevices attaches the pod and checks which device each interface is.
func (n *node) wantDevices(p *pod, want map[string]string) {
	n.t.Helper()
	n.succeed("ADD", p)
	n.wantInterfaces(p, want)
}

// wantInterfaces checks which device each interface of an attached pod is.
func (n *node) wantInterfaces(p *pod, want map[string]string) {
	n.t.Helper()
	for ifName, dev := range want {
		if got := n.interfaceOf(p, ifName).Alias; got != dev {
			n.t.Errorf("%s is %s, want %s", ifName, got, dev)
		}
	}
}

func devicesOfClaims(t *testing.T) {
	t.Run("sources", claimSources)
	t.Run("kinds", func(t *testing.T) { claimKinds(t) })
	t.Run("kinds, without the checkpoint of claims", func(t *testing.T) { claimKinds(t, "claimCheckpoint") })
	t.Run("partitions", claimPartitions)
	t.Run("shares", claimShares)
	t.Run("shares of a VF", claimSharedVF)
	t.Run("one ledger", claimLedger)
	t.Run("refused", claimRefused)
	t.Run("gone before DEL", claimGone)
}

// withoutSources lists the sources of claims that a node lacks, by the name of what
// is left.
var withoutSources = map[string][]string{"all": nil, "only the checkpoint of claims": {"podResources", "checkpoint"}, "only PodResources": {"claimCheckpoint"}, "no agent": nil}

// withEachSource runs a check on each of these nodes, with an agent unless the node
// has none.
func withEachSource(t *testing.T, check func(*testing.T, *kubeletNode)) {
	for name, without := range withoutSources {
		t.Run(name, func(t *testing.T) {
			n := newKubeletNode(t, without...)
			if name != "no agent" {
				n.serve()
			}
			check(t, n)
		})
	}
}

// claimSources checks a claim from a template, with and without a named request,
// from each source.
func claimSources(t *testing.T) {
	withEachSource(t, func(t *testing.T, n *kubeletNode) {
		a, b := n.device("nic0"), n.device("nic1")
		n.warm()
		n.kubelet.SetClaim(fakekubelet.Claim{Name: "app-nics-x2b4c", UID: "c1", Devices: []fakekubelet.ClaimDevice{
			claimed("dev-0", "data", is(a)), claimed("dev-1", "control/slow", is(b)),
		}})
		p := n.claimPod("app", `[{"name":"nic-a"},{"name":"nic-a","manifold.dev/claim":"nics","manifold.dev/request":"data"}]`, corev1.PodSpec{
			Containers:     []corev1.Container{claiming("c1", nics)},
			ResourceClaims: []corev1.PodResourceClaim{{Name: "nics", ResourceClaimTemplateName: new("two")}},
		}, corev1.PodStatus{ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "nics", ResourceClaimName: new("app-nics-x2b4c")}}})
		before := n.state()
		n.wantDevices(p, map[string]string{"net1": "nic1", "net2": "nic0"})
		n.succeed("CHECK", p)
		n.succeed("DEL", p)
		n.unchanged(before)
	})
}

// claimKinds checks the other kinds of claims that can back a network.
func claimKinds(t *testing.T, without ...string) {
	n := newKubeletNode(t, without...)
	n.serve()
	n.warm()
	id := n.device("nic0")
	n.define("free", "", hostDevice) // needs no resource
	want := map[string]string{"net1": "nic0"}
	for name, tc := range map[string]struct {
		networks   string
		claim      string
		request    string
		attributes map[string]string
		spec       corev1.PodSpec
		status     corev1.PodStatus
	}{
		"by name, shared by containers": {
			networks: "nic-a", claim: "shared-nics", request: "r", attributes: is(id),
			spec: corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", nics), claiming("c2", nics)}},
		},
		"a named container": {
			networks: `[{"name":"nic-a","manifold.dev/container":"c2"}]`, claim: "shared-nics", request: "r", attributes: is(id),
			spec: corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", corev1.ResourceClaim{Name: "nics", Request: "other"}), claiming("c2", nics)}},
		},
		"an extended resource served by a driver": {
			networks: "nic-a", claim: "extended-extended-resources-x2b4c", request: "container-0-request-0", attributes: map[string]string{podresources.AttributeDeviceID: id},
			spec: corev1.PodSpec{Containers: []corev1.Container{container("c1", 1)}},
			status: corev1.PodStatus{ExtendedResourceClaimStatus: &corev1.PodExtendedResourceClaimStatus{ResourceClaimName: "extended-extended-resources-x2b4c",
				RequestMappings: []corev1.ContainerExtendedResourceRequest{{ContainerName: "c1", ResourceName: nicA, RequestName: "container-0-request-0"}}}},
		},
		"no resource name, but a named claim": {
			networks: `[{"name":"nic-a","manifold.dev/claim":"nics"}]`, claim: "shared-nics", request: "r", attributes: map[string]string{podresources.AttributeDeviceID: id},
			spec: corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", nics)}},
		},
		"a network without a resource, but with a named claim": {
			networks: `[{"name":"free","manifold.dev/claim":"nics"}]`, claim: "shared-nics", request: "r", attributes: is(id),
			spec: corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", nics)}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n.kubelet.SetClaim(fakekubelet.Claim{Name: tc.claim, UID: "c1", Devices: []fakekubelet.ClaimDevice{claimed("dev-0", tc.request, tc.attributes)}})
			p := n.claimPod("extended", tc.networks, tc.spec, tc.status)
			before := n.state()
			n.wantDevices(p, want)
			n.succeed("DEL", p)
			n.unchanged(before)
			n.must(n.kubelet.DeletePod(n.kubelet.Pods()[0].UID))
		})
	}
}

// claimPartitions checks that partitions of one PCI function, which all have its
// address, are devices of their own, identified by their IDs.
func claimPartitions(t *testing.T) {
	withEachSource(t, func(t *testing.T, n *kubeletNode) {
		n.warm()
		var parts []fakekubelet.ClaimDevice
		for i := range 2 {
			part := is(n.device(fmt.Sprintf("nic%d", i)))
			part[podresources.AttributePCIBusID] = userspacePF
			parts = append(parts, claimed(fmt.Sprintf("nic-half-%d", i), "halves", part))
		}
		n.kubelet.SetClaim(fakekubelet.Claim{Name: "shared-nics", UID: "c1", Devices: parts})
		p := n.claimPod("app", "nic-a,nic-a", corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", nics)}}, corev1.PodStatus{})
		before := n.state()
		n.wantDevices(p, map[string]string{"net1": "nic0", "net2": "nic1"})
		n.succeed("CHECK", p)
		n.succeed("DEL", p)
		n.unchanged(before)
	})
}

// sharing admits a pod with its own claim, which has shares of one device.
func (n *kubeletNode) sharing(name, networks, id string, shares ...string) *pod {
	n.t.Helper()
	claim := fakekubelet.Claim{Name: name + "-part", UID: "uid-of-" + name}
	for _, share := range shares {
		d := claimed("nic", "part", is(id))
		d.ShareID = share
		claim.Devices = append(claim.Devices, d)
	}
	n.kubelet.SetClaim(claim)
	return n.claimPod(name, networks, corev1.PodSpec{
		Containers: []corev1.Container{claiming("c1", nics)}, ResourceClaims: []corev1.PodResourceClaim{{Name: "nics", ResourceClaimName: &claim.Name}},
	}, corev1.PodStatus{})
}

// claimShares checks that a device that is allocated several times serves one
// network per share and no more, in one pod and in several pods at once.
func claimShares(t *testing.T) {
	withEachSource(t, func(t *testing.T, n *kubeletNode) {
		n.warm()
		id := n.device("nic0")
		lower, err := netlinksafe.LinkByName("nic0")
		n.must(err)
		n.must(netlink.LinkSetUp(lower))
		n.define("stacked", nicA, `{"cniVersion":"1.0.0","type":"macvlan","master":"nic0"}`)
		two, one := n.sharing("two", "stacked,stacked", id, "s-1", "s-2"), n.sharing("one", "stacked", id, "s-3")
		more := n.sharing("more", "plain,stacked,stacked", id, "s-4")
		before := n.state()
		n.refusedWithoutTrace(more, 105, "resource "+nicA, "2 attachments ask", "allocated 1")
		n.succeed("ADD", two)
		n.succeed("ADD", one)
		for _, got := range []*netlink.LinkAttrs{n.interfaceOf(two, "net1"), n.interfaceOf(two, "net2"), n.interfaceOf(one, "net1")} {
			if got.ParentIndex != lower.Attrs().Index {
				t.Errorf("%s has parent link %d, want that of nic0, %d", got.Name, got.ParentIndex, lower.Attrs().Index)
			}
		}
		n.succeed("CHECK", two)
		n.succeed("DEL", two)
		n.succeed("CHECK", one)
		n.succeed("DEL", one)
		n.unchanged(before)
	})
}

// claimSharedVF checks that a VF has one owner, even if the scheduler allocates
// shares of it.
func claimSharedVF(t *testing.T) {
	n := newKubeletNode(t)
	n.serve()
	n.warm()
	n.define("still", nicA, silent)
	vf := n.userspaceVFs(1)[0]
	first, second := n.sharing("first", "still", vf, "s-1"), n.sharing("second", "still", vf, "s-2")
	n.succeed("ADD", first)
	n.refusedWithoutTrace(second, 11, "device "+vf, first.ID)
	n.succeed("DEL", first)
	n.succeed("ADD", second)
	n.succeed("DEL", second)
}

// claimLedger checks that devices of claims and of device plugins have one common
// order, each once.
func claimLedger(t *testing.T) {
	n := newKubeletNode(t)
	n.serve()
	n.warm()
	n.define("logged", nicA, n.logged())
	n.define("still", nicA, silent)
	ids := n.devices("nic0", "nic1")
	own := n.device("nic2")
	n.kubelet.SetClaim(fakekubelet.Claim{Name: "shared-nics", UID: "c1", Devices: []fakekubelet.ClaimDevice{claimed("dev-2", "r", is(own))}})
	mixed := container("c1", 2)
	mixed.Resources.Claims = []corev1.ResourceClaim{nics}
	spec := corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{mixed, claiming("c2", nics)}}
	p := n.claimPod("app", "logged,logged,logged", spec, corev1.PodStatus{})
	n.succeed("ADD", p)
	if got, want := n.given(), []string{ids[0], ids[1], own}; !slices.Equal(got, want) {
		t.Errorf("devices %v, want %v", got, want)
	}
	n.succeed("DEL", p)
	n.must(n.kubelet.DeletePod(n.kubelet.Pods()[0].UID))

	// A PCI function serves one network, no matter who advertises it.
	vf := n.userspaceVFs(1)[0]
	n.must(n.kubelet.SetDevices(nicA, n.advertised(vf)...))
	n.kubelet.SetClaim(fakekubelet.Claim{Name: "shared-nics", UID: "c2", Devices: []fakekubelet.ClaimDevice{
		claimed("dev-3", "r", map[string]string{podresources.AttributePCIBusID: vf, podresources.AttributeResourceName: nicA}),
	}})
	mixed = container("c1", 1)
	mixed.Resources.Claims = []corev1.ResourceClaim{nics}
	spec.Containers = []corev1.Container{mixed}
	twice := n.claimPod("twice", "still,still", spec, corev1.PodStatus{})
	n.refusedWithoutTrace(twice, 105, "resource "+nicA, "2 attachments ask", "allocated 1")
}

// claimRefused checks that a refusal names the problem and the fix.
func claimRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		networks string
		devices  func(n *kubeletNode) []fakekubelet.ClaimDevice // nil: the claim is not allocated
		code     uint
		parts    []string
	}{
		"no claim of that name": {`[{"name":"plain"},{"name":"nic-a","manifold.dev/claim":"other"}]`, nil, 101, []string{"no resource claim other", "it has: nics"}},
		"not allocated yet":     {`[{"name":"plain"},{"name":"nic-a","manifold.dev/claim":"nics"}]`, nil, 11, []string{"no device of claim nics (ResourceClaim shared-nics)", "status.allocation"}},
		"no such request": {`[{"name":"plain"},{"name":"nic-a","manifold.dev/claim":"nics","manifold.dev/request":"q"}]`,
			func(n *kubeletNode) []fakekubelet.ClaimDevice {
				return []fakekubelet.ClaimDevice{claimed("dev-0", "r", is(n.device("nic0")))}
			}, 101, []string{"serves request q", "the requests are: r"}},
		"one device, two networks": {`[{"name":"plain"},{"name":"nic-a","manifold.dev/claim":"nics"},{"name":"nic-a","manifold.dev/claim":"nics"}]`,
			func(n *kubeletNode) []fakekubelet.ClaimDevice {
				return []fakekubelet.ClaimDevice{claimed("dev-0", "r", is(n.device("nic0")))}
			}, 106, []string{"device dev-0 of pool node1 of driver " + driver, "already serves network default/nic-a"}},
		"no attribute": {"plain,nic-a", func(*kubeletNode) []fakekubelet.ClaimDevice {
			return []fakekubelet.ClaimDevice{claimed("dev-0", "r", nil)}
		}, 105, []string{"resource " + nicA, "device dev-0", "claim default/shared-nics request r", podresources.AttributePCIBusID, "device metadata: ", "resourceSlices"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := newKubeletNode(t)
			n.serve()
			n.warm()
			if tc.devices != nil {
				n.kubelet.SetClaim(fakekubelet.Claim{Name: "shared-nics", UID: "c1", Devices: tc.devices(n)})
			}
			p := n.claimPod("app", tc.networks, corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", nics)}}, corev1.PodStatus{})
			n.refusedWithoutTrace(p, tc.code, append(tc.parts, "network default/nic-a")...)
		})
	}
}

// claimGone checks that DEL returns the device after kubelet, claim and metadata
// are gone.
func claimGone(t *testing.T) {
	n := newKubeletNode(t)
	agent := n.serve()
	n.warm()
	n.kubelet.SetClaim(fakekubelet.Claim{Name: "shared-nics", UID: "c1", Devices: []fakekubelet.ClaimDevice{claimed("dev-0", "r", is(n.device("nic0")))}})
	p := n.claimPod("app", "nic-a", corev1.PodSpec{ResourceClaims: byName, Containers: []corev1.Container{claiming("c1", nics)}}, corev1.PodStatus{})
	before := n.state()
	n.wantDevices(p, map[string]string{"net1": "nic0"})
	n.must(n.kubelet.DeletePod(n.kubelet.Pods()[0].UID))
	n.kubelet.Stop()
	n.must(agent.Process.Kill())
	n.must(os.RemoveAll(n.kubelet.Dir()))
	n.succeed("DEL", p)
	n.unchanged(before)
}
