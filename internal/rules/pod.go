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

// anyNetwork is a configuration with which everything can be planned that can be
// with one at least: it takes the place of one that is not known, so that the rest
// of a pod is looked at.
var anyNetwork = func() string {
	capabilities := map[string]bool{}
	for _, name := range capable {
		capabilities[name] = true
	}
	raw, _ := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "any", "type": "any", "capabilities": capabilities}) // strings and booleans
	return string(raw)
}()

// checkedPod is a pod that is looked at, and what is found.
type checkedPod struct {
	list
	rules   *Rules
	pod     *corev1.Pod
	root    *field.Path
	conf    *netconf.Conf
	defs    map[planner.Ref]*netattach.Definition
	guessed bool // some of defs stand in for networks that are not known, nor are their devices
	pins    bool // a network names its device, which may be one of another network's
}

// path returns the path of a field of the pod.
func (c *checkedPod) path(name string) *field.Path {
	if c.root == nil {
		return field.NewPath(name)
	}
	return c.root.Child(name)
}

// Pod returns what is wrong with a pod, or with the template of pods at root; nil
// is the root of a pod itself. The pod's namespace is set. defs are the definitions
// that exist, of those that [Rules.Select] names at least.
func (r *Rules) Pod(pod *corev1.Pod, root *field.Path, defs map[planner.Ref]*netattach.Definition) []Finding {
	if defs == nil {
		defs = map[planner.Ref]*netattach.Definition{}
	}
	c := &checkedPod{rules: r, pod: pod, root: root, defs: maps.Clone(defs)}
	inv, err := r.invocation(pod, defs)
	if err != nil { // New has seen it pass
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
		c.add(Warning, c.path("spec").Child("hostNetwork"), "the pod is on the node's own network: its annotation has no effect")
		return c.list
	}
	whole = c.container() && whole
	c.volume()
	if whole && selects && !(c.guessed && c.pins) {
		c.plan(inv)
	}
	return c.list
}

// annotation looks at one of the pod's annotations, and reports whether a plan can
// be made of it.
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

// selection looks at what a plan does not tell of one entry, and reports whether a
// plan can be made: of an entry whose configuration is not known only when nothing
// is asked that depends on it.
func (c *checkedPod) selection(at *field.Path, s *netattach.Selection) bool {
	whole := c.configuration(at, s) || s.DeviceID == "" && s.Container == "" && s.Claim == ""
	if s.DeviceID != "" {
		c.pins = true
		c.add(Warning, at, "network %s pins device %s: only the kubelet chooses devices, and a second pod of this kind is refused", s, s.DeviceID)
	}
	if s.Container != "" && !slices.Contains(containers(c.pod), s.Container) {
		c.add(Error, at, "network %s names container %q, and the pod has none of that name", s, s.Container)
		whole = false
	}
	if s.Claim != "" && !slices.ContainsFunc(c.pod.Spec.ResourceClaims, func(claim corev1.PodResourceClaim) bool { return claim.Name == s.Claim }) {
		c.add(Error, at, "network %s names claim %q, and the pod's resourceClaims have none of that name", s, s.Claim)
		whole = false
	}
	return whole
}

// configuration reports whether it is known what a network asks of the pod; if not
// anyNetwork stands in for it.
func (c *checkedPod) configuration(at *field.Path, s *netattach.Selection) bool {
	stands := &netattach.Definition{Spec: netattach.DefinitionSpec{Config: anyNetwork}}
	stands.Namespace, stands.Name = s.Namespace, s.Name
	switch def := c.defs[refOf(s)]; {
	case def == nil || def.Spec.Config == anyNetwork:
		c.add(Warning, at, "definition %s %s: what it asks of the pod is not checked", refOf(s), c.rules.absent)
	case strings.TrimSpace(def.Spec.Config) == "": // a file on the node says
		stands.Annotations = def.Annotations
	default:
		return true
	}
	c.defs[refOf(s)], c.guessed = stands, true
	return false
}

// MountPath returns why a directory of [netattach.StatusVolumeAnnotation] cannot be
// mounted, nil when it can.
func MountPath(dir string) error {
	if !path.IsAbs(dir) || path.Clean(dir) != dir || dir == "/" || strings.Contains(dir, ":") || len(dir) > maxMountPath {
		return fmt.Errorf("%.64q is not an absolute path of a directory, without ':' and a '/' at its end", dir)
	}
	return nil
}

// maxMountPath is the longest path that Linux takes, in bytes.
const maxMountPath = 4095

// volume looks at the annotation that asks for a volume.
func (c *checkedPod) volume() {
	if dir, ok := c.pod.Annotations[netattach.StatusVolumeAnnotation]; ok {
		if err := MountPath(dir); err != nil {
			c.add(Error, annotation(c.path("metadata"), netattach.StatusVolumeAnnotation), "%v", err)
		}
	}
}

// container looks at the annotation that names a container for the whole pod.
func (c *checkedPod) container() bool {
	name, ok := c.pod.Annotations[netattach.ContainerKey]
	if !ok || slices.Contains(containers(c.pod), name) {
		return true
	}
	c.add(Error, annotation(c.path("metadata"), netattach.ContainerKey), "the pod has no container %.64q", name)
	return false
}

// plan plans the pod.
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

// planOf plans a pod as if the kubelet had allocated what its limits ask for.
func planOf(inv *netconf.Invocation, pod *corev1.Pod, defs map[planner.Ref]*netattach.Definition) (*plan.Plan, error) {
	sel, err := planner.Select(inv, podOf(pod))
	if err != nil {
		return nil, err
	}
	return sel.Plan(planner.Sources{Definitions: defs, Allocation: requested(pod, sel.Demands(defs))})
}

// defaultAlone returns what is wrong with the annotation of the default network,
// whatever the other one says.
func (c *checkedPod) defaultAlone() error {
	alone := c.pod.DeepCopy()
	delete(alone.Annotations, netattach.NetworksAnnotation)
	_, err := c.rules.Select(alone)
	return err
}

// refused records why no plan is made, without the pod, which the reader sees
// beside it. Devices are corrected in the containers' limits, everything else in
// the annotation.
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
