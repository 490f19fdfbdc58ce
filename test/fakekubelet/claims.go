package fakekubelet

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// ErrClaim means that a pod's claim cannot be prepared: it is not allocated, or its
// driver refuses. The pod shows, but its sandbox would not start.
var ErrClaim = errors.New("resource claim cannot be prepared")

// Claim is a ResourceClaim as allocated by the scheduler.
type Claim struct {
	Namespace string // empty means default
	Name      string
	UID       string
	Devices   []ClaimDevice
}

// ClaimDevice is a device allocated to a claim.
type ClaimDevice struct {
	checkpoint.ClaimDevice
	// Metadata are the attributes, by name, that the driver writes to the device
	// metadata file; nil for a driver that writes none.
	Metadata map[string]string
}

// prepared is a claim that the kubelet has prepared for pods.
type prepared struct {
	checkpoint.Claim
	wrote []string // drivers that wrote metadata
}

// SetClaim makes an allocated claim known, as the API server would, and replaces
// one of the same name. Pods that use it already keep what they have.
func (k *Kubelet) SetClaim(c Claim) {
	if c.Namespace == "" {
		c.Namespace = corev1.NamespaceDefault
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.claims[types.NamespacedName{Namespace: c.Namespace, Name: c.Name}] = c
}

// ClaimCheckpointPath returns the path of the checkpoint of claims.
func (k *Kubelet) ClaimCheckpointPath() string { return filepath.Join(k.dir, "dra_manager_state") }

// PluginsDir returns the directory below which DRA drivers have theirs.
func (k *Kubelet) PluginsDir() string { return filepath.Join(k.dir, "plugins") }

// podClaims returns the names of a pod's ResourceClaims by the pod's own names for
// them. The claim behind extended resources has the empty name.
func podClaims(pod *corev1.Pod) (map[string]string, error) {
	out := map[string]string{}
	for _, c := range pod.Spec.ResourceClaims {
		switch i := slices.IndexFunc(pod.Status.ResourceClaimStatuses, func(s corev1.PodResourceClaimStatus) bool { return s.Name == c.Name }); {
		case c.ResourceClaimName != nil:
			out[c.Name] = *c.ResourceClaimName
		case i < 0:
			return nil, fmt.Errorf("%w: claim %s of pod %s is not created from its template yet", ErrClaim, c.Name, pod.Name)
		case pod.Status.ResourceClaimStatuses[i].ResourceClaimName != nil:
			out[c.Name] = *pod.Status.ResourceClaimStatuses[i].ResourceClaimName
		}
	}
	if e := pod.Status.ExtendedResourceClaimStatus; e != nil {
		out[""] = e.ResourceClaimName
	}
	return out, nil
}

// prepareClaims prepares a pod's claims: the drivers write their device metadata,
// then the checkpoint is written.
func (k *Kubelet) prepareClaims(pod *corev1.Pod) error {
	names, err := podClaims(pod)
	if err != nil || len(names) == 0 {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, own := range slices.Sorted(maps.Keys(names)) {
		claim, ok := k.claims[types.NamespacedName{Namespace: pod.Namespace, Name: names[own]}]
		if !ok {
			return fmt.Errorf("%w: %s/%s is not allocated", ErrClaim, pod.Namespace, names[own])
		}
		if err := k.prepare(&claim, own, pod); err != nil {
			return err
		}
	}
	return k.persistClaims()
}

// prepare prepares one claim for a pod, unless it is prepared for another pod
// already; mu is held.
func (k *Kubelet) prepare(claim *Claim, podClaim string, pod *corev1.Pod) error {
	for _, p := range k.prepared {
		if p.Namespace == claim.Namespace && p.Name == claim.Name {
			if !slices.Contains(p.PodUIDs, string(pod.UID)) {
				p.PodUIDs = append(slices.Clone(p.PodUIDs), string(pod.UID))
			}
			return nil
		}
	}
	p := &prepared{Claim: checkpoint.Claim{Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID, PodUIDs: []string{string(pod.UID)}}}
	files := map[[2]string][]ClaimDevice{} // by driver and request
	for _, d := range claim.Devices {
		p.Devices = append(p.Devices, d.ClaimDevice)
		for _, r := range d.Requests {
			if base, _, _ := strings.Cut(r, "/"); d.Metadata != nil {
				files[[2]string{d.Driver, base}] = append(files[[2]string{d.Driver, base}], d)
			}
		}
	}
	for key, devices := range files {
		if err := k.writeMetadata(claim, podClaim, key[0], key[1], devices); err != nil {
			return fmt.Errorf("%w: %w", ErrClaim, err)
		}
		p.wrote = append(p.wrote, key[0])
	}
	k.prepared = append(k.prepared, p)
	return nil
}

// metadataDir returns the directory where a driver writes the metadata of a claim.
func (k *Kubelet) metadataDir(driver, namespace, claim string) string {
	return filepath.Join(k.PluginsDir(), driver, "dra-device-metadata", namespace+"_"+claim)
}

// writeMetadata writes the file of a request as a driver does: the same object in
// two versions.
func (k *Kubelet) writeMetadata(claim *Claim, podClaim, driver, request string, devices []ClaimDevice) error {
	type object = map[string]any
	var list []object
	name := request
	for _, d := range devices {
		attributes := object{}
		for key, value := range d.Metadata {
			attributes[key] = object{"string": value}
		}
		list = append(list, object{"driver": d.Driver, "pool": d.Pool, "name": d.Name, "attributes": attributes})
		for _, r := range d.Requests {
			if base, _, _ := strings.Cut(r, "/"); base == request {
				name = r
			}
		}
	}
	var file []byte
	for _, version := range []string{"v1beta1", "v1alpha1"} {
		raw, err := json.MarshalIndent(object{
			"kind": "DeviceMetadata", "apiVersion": "metadata.resource.k8s.io/" + version, "podClaimName": podClaim,
			"metadata": object{"name": claim.Name, "namespace": claim.Namespace, "uid": claim.UID, "generation": 1},
			"requests": []object{{"name": name, "devices": list}},
		}, "", "  ")
		if err != nil {
			return err
		}
		file = append(append(file, raw...), '\n')
	}
	dir := filepath.Join(k.metadataDir(driver, claim.Namespace, claim.Name), request)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "metadata.json"), file, 0o644)
}

// unprepareClaims removes a deleted pod from its claims. It unprepares a claim that
// no pod uses any more and removes its metadata; mu is held.
func (k *Kubelet) unprepareClaims(uid types.UID) error {
	changed := false
	var errs []error
	k.prepared = slices.DeleteFunc(k.prepared, func(p *prepared) bool {
		i := slices.Index(p.PodUIDs, string(uid))
		if i < 0 {
			return false
		}
		changed, p.PodUIDs = true, slices.Delete(slices.Clone(p.PodUIDs), i, i+1)
		if len(p.PodUIDs) > 0 {
			return false
		}
		for _, driver := range p.wrote {
			errs = append(errs, os.RemoveAll(k.metadataDir(driver, p.Namespace, p.Name)))
		}
		return true
	})
	if changed {
		errs = append(errs, k.persistClaims())
	}
	return errors.Join(errs...)
}

// persistClaims writes the checkpoint of claims; mu is held.
func (k *Kubelet) persistClaims() error {
	if k.opts.noCheckpoint {
		return nil
	}
	var all []checkpoint.Claim
	for _, p := range k.prepared {
		all = append(all, p.Claim)
	}
	raw, err := checkpoint.EncodeClaims(shuffled(k, all))
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(k.ClaimCheckpointPath(), raw, 0o600, renameio.WithTempDir(k.dir)); err != nil {
		return fmt.Errorf("write checkpoint of claims: %w", err)
	}
	return nil
}

// loadClaims reads the prepared claims as a starting process does. The drivers'
// directories tell which of them wrote metadata; mu is held.
func (k *Kubelet) loadClaims() error {
	if k.opts.noCheckpoint {
		return nil
	}
	k.prepared = nil
	raw, err := os.ReadFile(k.ClaimCheckpointPath())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	c, err := checkpoint.DecodeClaims(raw)
	if err != nil {
		return fmt.Errorf("a kubelet does not start with this checkpoint of claims: %w", err)
	}
	for _, claim := range c.All {
		p := &prepared{Claim: claim}
		for _, d := range claim.Devices {
			if _, err := os.Stat(k.metadataDir(d.Driver, claim.Namespace, claim.Name)); err == nil {
				p.wrote = append(p.wrote, d.Driver)
			}
		}
		k.prepared = append(k.prepared, p)
	}
	return nil
}

// dynamicResources lists the claims of a container, each with all of its devices,
// whichever request the container uses. As in a kubelet, one unprepared claim
// leaves the container without any. mu is held.
func (k *Kubelet) dynamicResources(pod *corev1.Pod, container string, claims []*prepared) []*resv1.DynamicResource {
	names, err := podClaims(pod)
	if err != nil {
		return nil
	}
	var out []*resv1.DynamicResource
	for _, own := range slices.Sorted(maps.Keys(names)) {
		if !usesClaim(pod, container, own) {
			continue
		}
		i := slices.IndexFunc(claims, func(p *prepared) bool { return p.Namespace == pod.Namespace && p.Name == names[own] })
		if i < 0 {
			return nil
		}
		r := &resv1.DynamicResource{ClaimNamespace: pod.Namespace, ClaimName: names[own]}
		for _, d := range shuffled(k, claims[i].Devices) {
			c := &resv1.ClaimResource{DriverName: d.Driver, PoolName: d.Pool, DeviceName: d.Name}
			if d.ShareID != "" {
				c.ShareId = &d.ShareID
			}
			r.ClaimResources = append(r.ClaimResources, c)
		}
		out = append(out, r)
	}
	return out
}

// usesClaim reports whether a container uses a claim, which is given by the pod's
// own name for it.
func usesClaim(pod *corev1.Pod, container, claim string) bool {
	if claim == "" {
		return slices.ContainsFunc(pod.Status.ExtendedResourceClaimStatus.RequestMappings, func(m corev1.ContainerExtendedResourceRequest) bool {
			return m.ContainerName == container
		})
	}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == container {
			return slices.ContainsFunc(c.Resources.Claims, func(u corev1.ResourceClaim) bool { return u.Name == claim })
		}
	}
	return false
}
