package rules

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
)

// anyNetwork is a configuration with which every selection can be planned that could be
// planned with some configuration. It stands in for an unknown configuration, so that the
// rest of the pod is checked.
var anyNetwork = func() string {
	capabilities := map[string]bool{}
	for _, name := range capable {
		capabilities[name] = true
	}
	raw, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "any", "type": "any", "capabilities": capabilities}) // strings and booleans always marshal
	return string(raw)
}()

// checkedPod is a pod under examination, with its findings.
type checkedPod struct {
	list
	rules   *Rules
	pod     *corev1.Pod
	root    *field.Path
	conf    *netconf.Conf
	defs    map[planner.Ref]*netattach.Definition
	guessed bool // some of defs stand in for unknown networks, whose devices are unknown too
	pins    bool // a network pins its device, which another network may need
}

// path returns the path of a field of the pod.
func (c *checkedPod) path(name string) *field.Path {
	if c.root == nil {
		return field.NewPath(name)
	}
	return c.root.Child(name)
}

// Pod returns what is wrong with a pod, or with the pod template at root; a nil root
// means a pod itself. The pod's namespace must be set. defs are the definitions that
// exist, at least those among the ones that [Rules.Select] names.
func (r *Rules) Pod(pod *corev1.Pod, root *field.Path, defs map[planner.Ref]*netattach.Definition) []Finding {
	if defs == nil {
		defs = map[planner.Ref]*netattach.Definition{}
	}
	c := &checkedPod{rules: r, pod: pod, root: root, defs: maps.Clone(defs)}
	inv, err := r.invocation(pod, defs)
	if err != nil { // New has already tried the same configuration
		c.add(Error, c.path("metadata"), "%v", err)
		return c.list
	}
	c.conf = &inv.Conf
	whole, selects := true, false
	for _, key := range []string{netattach.DefaultNetworkAnnotation, netattach.NetworksAnnotation} {
		if strings.TrimSpace(pod.Annotations[key]) != "" {
			selects = true
			whole = c.annotation(key) && whole
		}
	}
	if selects && pod.Spec.HostNetwork {
		c.add(Warning, c.path("spec").Child("hostNetwork"), "the pod is on the node's own network, so its annotation has no effect")
		return c.list
	}
	whole = c.container() && whole
	c.volume()
	if whole && selects && !(c.guessed && c.pins) {
		c.plan(inv)
	}
	return c.list
}

// annotation checks one of the pod's annotations, and reports whether a plan can be made
// from it.
func (c *checkedPod) annotation(key string) bool {
	at, namespace := annotation(c.path("metadata"), key), c.pod.Namespace
	if key == netattach.DefaultNetworkAnnotation {
		namespace = c.conf.MultusNamespace
	}
	selected, err := netattach.ParseSelections(c.pod.Annotations[key], namespace)
	if err != nil {
		severity := Error
		if c.conf.BadAnnot == "ignore" {
			severity = Warning
		}
		c.add(severity, at, "%v", err)
		return false
	}
	whole := true
	for i := range selected {
		whole = c.selection(at, &selected[i]) && whole
	}
	return whole
}

// selection checks what a plan does not reveal about one entry, and reports whether a
// plan can be made. With an unknown configuration, that is so only if the entry asks for
// nothing that depends on it.
func (c *checkedPod) selection(at *field.Path, s *netattach.Selection) bool {
	whole := c.configuration(at, s) || s.DeviceID == "" && s.Container == "" && s.Claim == ""
	if s.DeviceID != "" {
		c.pins = true
		c.add(Warning, at, "network %s pins device %s: only the kubelet chooses devices, so a second pod like this one is refused", s, s.DeviceID)
	}
	if s.Container != "" && !slices.Contains(containers(c.pod), s.Container) {
		c.add(Error, at, "network %s names container %q, but the pod has no container of that name", s, s.Container)
		whole = false
	}
	if s.Claim != "" && !slices.ContainsFunc(c.pod.Spec.ResourceClaims, func(claim corev1.PodResourceClaim) bool { return claim.Name == s.Claim }) {
		c.add(Error, at, "network %s names claim %q, but the pod's resourceClaims have none of that name", s, s.Claim)
		whole = false
	}
	return whole
}

// configuration reports whether it is known what a network asks of the pod. If it is not,
// anyNetwork stands in for it.
func (c *checkedPod) configuration(at *field.Path, s *netattach.Selection) bool {
	stands := &netattach.Definition{Spec: netattach.DefinitionSpec{Config: anyNetwork}}
	stands.Namespace, stands.Name = s.Namespace, s.Name
	switch def := c.defs[refOf(s)]; {
	case def == nil || def.Spec.Config == anyNetwork:
		c.add(Warning, at, "definition %s %s: what it needs from the pod is not checked", refOf(s), c.rules.absent)
	case strings.TrimSpace(def.Spec.Config) == "": // a file on the node has the configuration
		stands.Annotations = def.Annotations
	default:
		return true
	}
	c.defs[refOf(s)], c.guessed = stands, true
	return false
}

// MountPath returns why a directory of [netattach.StatusVolumeAnnotation] cannot be
// mounted, or nil if it can.
func MountPath(dir string) error {
	if !path.IsAbs(dir) || path.Clean(dir) != dir || dir == "/" || strings.Contains(dir, ":") || len(dir) > maxMountPath {
		return fmt.Errorf("%.64q is not the absolute path of a directory, without ':' and without a trailing '/'", dir)
	}
	return nil
}

// maxMountPath is the longest path that Linux accepts, in bytes.
const maxMountPath = 4095

// volume checks the annotation that asks for a volume.
func (c *checkedPod) volume() {
	if dir, ok := c.pod.Annotations[netattach.StatusVolumeAnnotation]; ok {
		if err := MountPath(dir); err != nil {
			c.add(Error, annotation(c.path("metadata"), netattach.StatusVolumeAnnotation), "%v", err)
		}
	}
}

// container checks the annotation that names a container for the whole pod, and reports
// whether a plan can be made.
func (c *checkedPod) container() bool {
	name, ok := c.pod.Annotations[netattach.ContainerKey]
	if !ok || slices.Contains(containers(c.pod), name) {
		return true
	}
	c.add(Error, annotation(c.path("metadata"), netattach.ContainerKey), "the pod has no container %.64q", name)
	return false
}

// plan plans the pod, and adds what the planner refuses or warns of.
func (c *checkedPod) plan(inv *netconf.Invocation) {
	networks := annotation(c.path("metadata"), netattach.NetworksAnnotation)
	made, err := planOf(inv, c.pod, c.defs)
	switch {
	case c.guessed && cnierr.Is(err, cnierr.NoDevice):
		return
	case err != nil:
		c.refused(networks, err)
		return
	}
	for _, w := range made.Warnings {
		c.add(Warning, networks, "%s", w)
	}
}

// planOf plans a pod as if the kubelet had allocated what its limits request.
func planOf(inv *netconf.Invocation, pod *corev1.Pod, defs map[planner.Ref]*netattach.Definition) (*plan.Plan, error) {
	sel, err := planner.Select(inv, podOf(pod))
	if err != nil {
		return nil, err
	}
	return sel.Plan(planner.Sources{Definitions: defs, Allocation: requested(pod, sel.Demands(defs))})
}

// defaultAlone returns what is wrong with the default network's annotation, whatever the
// networks annotation says.
func (c *checkedPod) defaultAlone() error {
	alone := c.pod.DeepCopy()
	delete(alone.Annotations, netattach.NetworksAnnotation)
	_, err := c.rules.Select(alone)
	return err
}

// refused records why planning failed. It omits the pod's name, which the reader sees
// beside the finding. Missing devices are corrected in the containers' limits, everything
// else in an annotation.
func (c *checkedPod) refused(networks *field.Path, err error) {
	at := networks
	switch {
	case cnierr.Is(err, cnierr.NoDevice):
		at = c.path("spec").Child("containers")
	case cnierr.Is(err, cnierr.InvalidAnnotation) && c.defaultAlone() != nil:
		at = annotation(c.path("metadata"), netattach.DefaultNetworkAnnotation)
	}
	var e *cnierr.Error
	if !errors.As(err, &e) {
		c.add(Error, at, "%v", err)
		return
	}
	short := *e
	short.Pod, short.Fix = "", ""
	c.add(Error, at, "%v", &short).Fix = e.Fix
}
