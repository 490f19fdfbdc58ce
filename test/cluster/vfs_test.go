//go:build nodelab

package cluster

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/cluster/nodestate"
	"github.com/manifold-cni/manifold/test/vm"
)

// isVF fails unless an interface of a running pod is the network device of a VF,
// according to the kernel and to the pod's network-status.
func (f *fixture) isVF(pod *corev1.Pod, here *onNode, ifName, vf string) {
	f.Helper()
	if got := here.links[ifName].Parent; got != vf {
		f.Errorf("pod %s: %s is on device %s, want %s", pod.Name, ifName, got, vf)
	}
	f.isDevice(here, ifName, vf)
	status := f.status(pod)
	i := slices.IndexFunc(status, func(s netattach.Status) bool { return s.Interface == ifName })
	if i < 0 {
		f.Fatalf("pod %s: network-status %+v has no %s", pod.Name, status, ifName)
	}
	f.isInfo(pod, status[i], vf)
}

// isInfo fails unless the device information in one network's status is that of a VF.
func (f *fixture) isInfo(pod *corev1.Pod, s netattach.Status, vf string) {
	f.Helper()
	var info netattach.DeviceInfo
	f.must(json.Unmarshal(s.DeviceInfo, &info))
	if info.Type != "pci" || info.PCI == nil || info.PCI.Address != vf || info.PCI.PFAddress != pfOf(vf) {
		f.Errorf("pod %s: device-info of %s is %s, want VF %s of PF %s", pod.Name, s.Name, s.DeviceInfo, vf, pfOf(vf))
	}
}

// pfOf returns the PF of a VF.
func pfOf(vf string) string {
	for i := range 2 {
		if pf, vfs := vm.Functions(i); slices.Contains(vfs, vf) {
			return pf
		}
	}
	return ""
}

// given returns the devices of a resource that a pod's container has according to its
// environment, and fails unless the kubelet says the same.
func (f *fixture) given(pod *corev1.Pod, here *onNode, container string, resource corev1.ResourceName) []string {
	f.Helper()
	ids := slices.Sorted(slices.Values(f.devices(here, container, resource)))
	var all []nodestate.Allocation
	f.ask(&all, "devices")
	var kubelets []string
	for _, a := range all {
		if a.Pod == pod.Namespace+"/"+pod.Name && a.Container == container && a.Resource == string(resource) {
			kubelets = append(kubelets, a.IDs...)
		}
	}
	if slices.Sort(kubelets); !slices.Equal(ids, kubelets) {
		f.Errorf("pod %s: container %s has %v, but the kubelet has allocated %v to it", pod.Name, container, ids, kubelets)
	}
	return ids
}

// place is where a pod gets devices: a container and a resource.
type place struct {
	container string
	resource  corev1.ResourceName
}

// stands fails unless net1, net2 and so on of a running pod are the VFs that its
// containers have: the i-th network uses places[i], and networks of the same place use
// its VFs in the order of their addresses.
func (f *fixture) stands(pod *corev1.Pod, networks []string, places ...place) {
	f.Helper()
	want := map[string]string{"eth0": "cluster-net"}
	for i, name := range networks {
		want[fmt.Sprintf("net%d", i+1)] = name
	}
	here := f.check(pod, want)
	left := map[place][]string{}
	for i, at := range places {
		if left[at] == nil {
			left[at] = f.given(pod, here, at.container, at.resource)
		}
		if len(left[at]) == 0 {
			f.Fatalf("pod %s: no VF of %v is left for net%d", pod.Name, at, i+1)
		}
		f.isVF(pod, here, fmt.Sprintf("net%d", i+1), left[at][0])
		left[at] = left[at][1:]
	}
}

// vfPods are pods that get VFs in every possible way. Together they take all VFs of the
// first PF but one.
var vfPods = []struct {
	name       string
	networks   []string
	containers []option
	places     []place
}{
	{"one", []string{red}, []option{container("main", Red)}, []place{{"main", Red}}},
	{"two", []string{red, red}, []option{container("main", Red, Red)}, []place{{"main", Red}, {"main", Red}}},
	{"each", []string{red, red}, []option{container("first", Red), container("second", Red)}, []place{{"first", Red}, {"second", Red}}},
	{"both", []string{blue, red}, []option{container("main", Red, Blue)}, []place{{"main", Blue}, {"main", Red}}},
}

// vfPodNames returns the names of [vfPods].
func vfPodNames() (names []string) {
	for _, p := range vfPods {
		names = append(names, p.name)
	}
	return names
}

// createVFPods creates [vfPods] and checks them. The kubelet that allocated a pod's
// VFs, the pod's containers, the kernel in its sandbox and its network-status must all
// name the same VFs.
func (f *fixture) createVFPods() {
	f.Helper()
	for _, p := range vfPods {
		f.create(p.name, append(slices.Clone(p.containers), networks(strings.Join(p.networks, ",")))...)
	}
	f.standVFPods()
}

// standVFPods fails unless each of [vfPods] has its VFs.
func (f *fixture) standVFPods() {
	f.Helper()
	for _, p := range vfPods {
		f.stands(f.running(p.name), p.networks, p.places...)
	}
}

// isInOrder returns nil if `manifold-agent reconcile` finds nothing wrong with any VF.
func (f *fixture) isInOrder() error {
	findings, err := lab.Node.run(f.ctx, pluginDir+"/manifold-agent", "reconcile")
	if len(findings) > 0 {
		err = fmt.Errorf("reconcile found: %s", findings)
	}
	return err
}

func (f *fixture) inOrder() {
	f.Helper()
	f.must(f.isInOrder())
}

// network defines a network for the duration of the test.
func (f *fixture) network(name, resource, config string) {
	f.Helper()
	f.must(lab.Define(name, resource, config))
	f.Cleanup(func() {
		definitions, err := lab.API.Definitions(namespace)
		f.must(err)
		f.must(definitions.Delete(f.ctx, name, metav1.DeleteOptions{}))
	})
}
