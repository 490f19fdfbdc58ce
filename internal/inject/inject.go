// Package inject adds to pods what their networks need from the scheduler and the
// kubelet: device requests, the labels of their nodes, and the volume with
// network-status. Admission does so when a pod is created; [Pod] tells the same to
// whoever looks at a manifest.
//
// Nothing here does I/O, and every pod may be hostile.
package inject

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/rules"
	"github.com/manifold-cni/manifold/netattach"
)

// statusVolume is the name of the volume that shows network-status to a pod, and
// statusFile the file in it.
const (
	statusVolume = "manifold-network-status"
	statusFile   = "network-status"
)

// maxDevices bounds how many devices a container is assumed to request of a resource,
// so that sums of users' numbers do not overflow.
const maxDevices = 1 << 20

// Injection is what was added to a pod.
type Injection struct {
	Operations []Operation // the JSON patch
	Warnings   []string    // sentences for the user
	Devices    int64       // requested in addition to the pod's own requests
}

// Pod adds to a pod what its networks need. object is the pod as encoding/json decodes
// it into an interface, and is changed. pod is the same pod with its namespace, and is
// not changed. find returns those of the requested definitions that exist; Pod returns
// its error.
//
// Pod never removes, lowers or replaces anything that the pod has. It leaves alone a
// pod that needs nothing more, so that the API server may call again. It also leaves
// alone a pod that breaks the rules, which validation refuses, and a pod on the host
// network.
func Pod(r *rules.Rules, object map[string]any, pod *corev1.Pod, find func([]planner.Ref) (map[planner.Ref]*netattach.Definition, error)) (*Injection, error) {
	refs, err := r.Select(pod)
	if err != nil || pod.Spec.HostNetwork {
		return &Injection{}, nil
	}
	defs, err := find(refs)
	if err != nil {
		return nil, err
	}
	demands, err := r.Demands(pod, defs)
	if err != nil {
		return &Injection{}, nil
	}
	in := &injector{document: document{root: object}, pod: pod}
	for _, step := range []func() error{
		func() error { return in.requestDevices(demands) },
		func() error { return in.selectNodes(refs, defs) },
		in.showStatus,
	} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return &Injection{Operations: in.ops, Warnings: in.warnings, Devices: in.devices}, nil
}

// injector adds to one pod what its networks need.
type injector struct {
	document
	pod      *corev1.Pod
	warnings []string
	devices  int64 // requested
}

// warn adds a sentence for the user.
func (in *injector) warn(format string, args ...any) {
	in.warnings = append(in.warnings, fmt.Sprintf(format, args...))
}

// slot is a container that devices can be requested for.
type slot struct {
	*corev1.Container
	path   []string
	lasts  bool // as long as the pod, unlike an ordinary init container
	wanted int64
}

// slots returns the pod's containers, init containers first.
func slots(pod *corev1.Pod) []*slot {
	var out []*slot
	for i := range pod.Spec.InitContainers {
		c := &pod.Spec.InitContainers[i]
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		out = append(out, &slot{Container: c, path: []string{"spec", "initContainers", strconv.Itoa(i)}, lasts: sidecar})
	}
	for i := range pod.Spec.Containers {
		out = append(out, &slot{Container: &pod.Spec.Containers[i], path: []string{"spec", "containers", strconv.Itoa(i)}, lasts: true})
	}
	return out
}

// has returns how many devices of a resource the container requests.
func (s *slot) has(resource string) int64 {
	limit := s.Resources.Limits[corev1.ResourceName(resource)]
	return min(max(limit.Value(), 0), maxDevices)
}

// preferred returns the container that gets the devices of networks that name no
// container: the one in the pod's annotation, else the first; nil when there is none.
func preferred(pod *corev1.Pod, all []*slot) *slot {
	if name, ok := pod.Annotations[netattach.ContainerKey]; ok {
		return named(all, name)
	}
	if i := slices.IndexFunc(all, func(s *slot) bool { return s.path[1] == "containers" }); i >= 0 {
		return all[i]
	}
	return nil
}

// named returns the container of that name, nil when there is none.
func named(all []*slot, name string) *slot {
	if i := slices.IndexFunc(all, func(s *slot) bool { return s.Name == name }); i >= 0 {
		return all[i]
	}
	return nil
}

// requestDevices requests the devices that the pod's networks demand and that its
// containers do not request already. A network that names a claim gets its device from
// the claim.
func (in *injector) requestDevices(demands []planner.Demand) error {
	byResource := map[string][]planner.Demand{}
	claimed := map[string]bool{}
	for _, d := range demands {
		if d.Claim != "" {
			claimed[d.Claim] = true
		} else if d.Resource != "" {
			byResource[d.Resource] = append(byResource[d.Resource], d)
		}
	}
	_, told := in.pod.Annotations[netattach.ContainerKey]
	unsure := !told && slices.ContainsFunc(in.pod.Spec.ResourceClaims, func(c corev1.PodResourceClaim) bool { return !claimed[c.Name] })
	for _, resource := range slices.Sorted(maps.Keys(byResource)) {
		if err := in.request(resource, byResource[resource], unsure); err != nil {
			return err
		}
	}
	return nil
}

// request ensures the devices of one resource. unsure says that a claim of the pod may
// provide them; then only the containers that networks name get requests.
func (in *injector) request(resource string, demands []planner.Demand, unsure bool) error {
	all := slots(in.pod)
	to := preferred(in.pod, all)
	var anywhere, ofContainers, spare int64
	for _, d := range demands {
		if s := named(all, d.Container); d.Container == "" {
			anywhere++
		} else if s != nil { // otherwise validation refuses the pod
			s.wanted++
			ofContainers++
		}
	}
	for _, s := range all {
		if s.lasts || s == to { // the container that the annotation names counts, whatever its kind
			spare += max(s.has(resource)-s.wanted, 0)
		}
	}
	if missing := anywhere - spare; missing > 0 {
		switch {
		case unsure:
			anywhere = 0 // the claims may serve them
			in.warn("the pod has resource claims that no network names, so %d of %s are not requested; "+
				"name the claim (%s) or the container (%s) of each network", missing, resource, netattach.ClaimKey, netattach.ContainerKey)
		case to != nil:
			to.wanted = max(to.has(resource), to.wanted) + missing
		}
	}
	// Two containers that request one device each may get the same one.
	for to != nil && distinct(all, resource) < anywhere+ofContainers {
		to.wanted = max(to.has(resource), to.wanted) + 1
	}
	for _, s := range all {
		if err := in.raise(s, resource); err != nil {
			return err
		}
	}
	return nil
}

// distinct returns how many devices of a resource the kubelet allocates to containers that
// get what they want. A container first takes over what ordinary init containers before it
// held.
func distinct(all []*slot, resource string) int64 {
	var total, left int64
	for _, s := range all {
		n := max(s.has(resource), s.wanted)
		total += max(n-left, 0)
		if s.lasts {
			left = max(left-n, 0)
		} else {
			left = max(left, n)
		}
	}
	return total
}

// raise raises a container's limit and request of a resource to the wanted number, or
// to the present request if that is higher. Both must be equal, since the API server
// accepts no other pair, and a request above the limit would have to be lowered.
func (in *injector) raise(s *slot, resource string) error {
	has := s.has(resource)
	if s.wanted <= has {
		return nil
	}
	in.devices += s.wanted - has
	request := s.Resources.Requests[corev1.ResourceName(resource)]
	value := strconv.FormatInt(max(s.wanted, request.Value()), 10)
	for _, list := range []string{"limits", "requests"} {
		if err := in.add(value, append(s.path, "resources", list, resource)...); err != nil {
			return err
		}
	}
	return nil
}

// selectNodes binds the pod to the nodes that its definitions name.
func (in *injector) selectNodes(refs []planner.Ref, defs map[planner.Ref]*netattach.Definition) error {
	has := maps.Clone(in.pod.Spec.NodeSelector)
	if has == nil {
		has = map[string]string{}
	}
	for _, ref := range refs {
		def := defs[ref]
		if def == nil {
			continue
		}
		set, err := rules.NodeSelector(def)
		if err != nil {
			in.warn("definition %s/%s: annotation %s is ignored: %v", def.Namespace, def.Name, netattach.NodeSelectorAnnotation, err)
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(set)) {
			value, ok := has[key]
			if ok && value != set[key] {
				in.warn("definition %s/%s is for nodes with %s=%s, and the pod asks for %s=%s: no node of the definition can run it",
					def.Namespace, def.Name, key, set[key], key, value)
			}
			if ok {
				continue
			}
			has[key] = set[key]
			if err := in.add(set[key], "spec", "nodeSelector", key); err != nil {
				return err
			}
		}
	}
	return nil
}

// showStatus mounts the volume with network-status in every container, at the directory
// that the pod's annotation names, unless the container has a mount there.
func (in *injector) showStatus() error {
	dir, ok := in.pod.Annotations[netattach.StatusVolumeAnnotation]
	if !ok || rules.MountPath(dir) != nil {
		return nil
	}
	taken := func(m corev1.VolumeMount) bool { return m.Name == statusVolume || path.Clean(m.MountPath) == dir }
	for _, s := range slots(in.pod) {
		if slices.ContainsFunc(s.VolumeMounts, taken) {
			continue
		}
		mount := map[string]any{"name": statusVolume, "mountPath": dir, "readOnly": true}
		if err := in.add(mount, append(s.path, "volumeMounts", "-")...); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(in.pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == statusVolume }) {
		return nil
	}
	return in.add(map[string]any{
		"name": statusVolume,
		"downwardAPI": map[string]any{"items": []any{map[string]any{
			"path":     statusFile,
			"fieldRef": map[string]any{"fieldPath": fmt.Sprintf("metadata.annotations['%s']", netattach.StatusAnnotation)},
		}}},
	}, "spec", "volumes", "-")
}
