package rules

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
)

// maxRequested bounds the devices of one resource that a container is assumed to get: a
// pod has at most as many attachments as an annotation can have entries.
const maxRequested = netattach.MaxSelections

// requested returns the allocation that gives a pod what its limits request. Nobody knows
// yet what resource claims will give, so a pod that has any is assumed to get whatever
// its networks demand.
func requested(pod *corev1.Pod, demands []planner.Demand) *podresources.Allocation {
	a := &podresources.Allocation{}
	seen := map[string]bool{}
	for _, d := range demands {
		if !seen[d.Resource] {
			seen[d.Resource] = true
			limited(a, pod, d.Resource)
		}
	}
	for _, d := range demands {
		if len(pod.Spec.ResourceClaims) > 0 {
			device := newDevice(a, d.Resource, d.Container)
			if d.Claim != "" {
				device.Claim = &podresources.ClaimDevice{PodClaim: d.Claim, Requests: []string{d.Request}}
			}
		}
		pin(a, &d)
	}
	return a
}

// pin gives a fitting device the ID that a network pins: the kubelet may choose that
// device.
func pin(a *podresources.Allocation, d *planner.Demand) {
	if d.DeviceID == "" {
		return
	}
	for i := range a.Devices {
		device := &a.Devices[i]
		if (d.Resource == "" || device.Resource == d.Resource) && (d.Container == "" || slices.Contains(device.Containers, d.Container)) {
			device.ID = d.DeviceID
			return
		}
	}
}

// newDevice adds a device to an allocation. The name container may be empty.
func newDevice(a *podresources.Allocation, resource, container string) *podresources.Device {
	a.Devices = append(a.Devices, podresources.Device{
		Resource: resource, ID: fmt.Sprintf("device-%d", len(a.Devices)+1), Containers: []string{container}, PluginIndex: -1, Source: "by its limits",
	})
	return &a.Devices[len(a.Devices)-1]
}

// limited adds the devices of one resource as the kubelet allocates them: the next
// container first gets what an init container held, unless that container keeps running.
func limited(a *podresources.Allocation, pod *corev1.Pod, resource string) {
	var free []int // indices of devices that finished init containers held
	allocate := func(c *corev1.Container, keeps bool) {
		limit := c.Resources.Limits[corev1.ResourceName(resource)]
		var held []int
		for n := range min(limit.Value(), maxRequested) {
			if int(n) < len(free) {
				i := free[n]
				a.Devices[i].Containers = append(a.Devices[i].Containers, c.Name)
				held = append(held, i)
				continue
			}
			newDevice(a, resource, c.Name)
			held = append(held, len(a.Devices)-1)
		}
		switch {
		case keeps:
			free = free[min(len(held), len(free)):]
		case len(held) > len(free):
			free = held
		}
	}
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		allocate(c, c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways)
	}
	for i := range pod.Spec.Containers {
		allocate(&pod.Spec.Containers[i], true)
	}
}
