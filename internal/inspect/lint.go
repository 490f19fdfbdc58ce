package inspect

import (
	"errors"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
)

// Lint returns what is wrong with the definitions, pods and templates of pods
// among docs, in their order; other kinds are passed over. Objects that say no
// namespace are of namespace. A pod whose definitions are all among docs is
// planned, by the planner of the node, as if the kubelet had allocated what its
// containers' limits ask for; so what is refused here is refused there in the
// same words.
func Lint(docs []Document, namespace string) []Problem {
	d := sortOut(docs, namespace)
	for _, def := range d.defDocs {
		d.lintDefinition(def)
	}
	for _, p := range d.pods {
		d.lintPod(p)
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return index(docs, a) - index(docs, b) })
	return d.problems
}

// index returns the place of a problem's document.
func index(docs []Document, p Problem) int {
	return slices.IndexFunc(docs, func(d Document) bool {
		return d.Source == p.Source && d.Object.GetKind() == p.Kind && d.Object.GetName() == p.Name && d.Object.GetNamespace() == p.Namespace
	})
}

// annotation returns the path of an annotation.
func annotation(metadata *field.Path, key string) string {
	return metadata.Child("annotations").Key(key).String()
}

func (d *documents) lintDefinition(dd defDoc) {
	doc, def := dd.doc, dd.def
	meta := field.NewPath("metadata")
	for _, text := range validation.IsDNS1123Subdomain(def.Name) {
		d.problem(doc, SeverityError, "metadata.name", "%s", text)
	}
	if name := def.ResourceName(); name != "" {
		for _, text := range resourceName(name) {
			d.problem(doc, SeverityError, annotation(meta, netattach.ResourceNameAnnotation), "%q: %s", name, text)
		}
	}
	if strings.TrimSpace(def.Spec.Config) == "" {
		d.problem(doc, SeverityWarning, "spec.config", "it is empty: every node must have a file whose configuration is named %q", def.Name)
		return
	}
	c, err := netattach.ParseConfig([]byte(def.Spec.Config))
	if err != nil {
		d.problem(doc, SeverityError, "spec.config", "%v", err)
		return
	}
	d.lintConfig(dd, c)
}

// resourceName returns what is wrong with the name of a device plugin's resource.
func resourceName(name string) []string {
	domain, _, ok := strings.Cut(name, "/")
	if !ok || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") {
		return []string{"a device plugin's resource is domain/name, of a domain other than kubernetes.io"}
	}
	return validation.IsQualifiedName(name)
}

func (d *documents) lintConfig(dd defDoc, c *netattach.Config) {
	const at = "spec.config"
	doc := dd.doc
	if v := c.CNIVersion(); v != "" && !slices.Contains(version.All.SupportedVersions(), v) {
		d.problem(doc, SeverityError, at, "cniVersion %q is none of %s", v, strings.Join(version.All.SupportedVersions(), ", "))
	}
	if name := c.Name(); name != "" {
		if err := utils.ValidateNetworkName(name); err != nil {
			d.problem(doc, SeverityError, at, "name %.64q: %v", name, err)
		}
	}
	if _, err := c.Asked(); err != nil {
		d.problem(doc, SeverityError, at, "%v", err)
	}
	d.lintPlugins(dd, c)
}

// lintPlugins looks at what a configuration's plugins have to do with devices.
func (d *documents) lintPlugins(dd defDoc, c *netattach.Config) {
	const at = "spec.config"
	doc, resource := dd.doc, dd.def.ResourceName()
	for _, p := range c.Plugins() {
		switch {
		case p.Type == "manifold" || p.IPAMType == "manifold":
			d.problem(doc, SeverityError, at, "it delegates to manifold itself, without end; name another plugin")
		case p.DeviceID != "" && resource != "":
			d.problem(doc, SeverityError, at, "plugin %s names the device %s, and the definition a resource: "+
				"the kubelet's allocation would replace it; drop deviceID and pciBusID", p.Type, p.DeviceID)
		case resource == "" && p.DeviceID == "" && p.Type == "sriov":
			d.problem(doc, SeverityWarning, at, "plugin sriov needs a device, and the definition names no resource; "+
				"set the annotation %s", netattach.ResourceNameAnnotation)
		}
	}
	if resource == "" && c.HasCapability("deviceID") {
		d.problem(doc, SeverityWarning, at, "a plugin has the capability deviceID, and the definition names no resource; "+
			"set the annotation %s", netattach.ResourceNameAnnotation)
	}
}

func (d *documents) lintPod(p podDoc) {
	whole := true
	for _, key := range []string{netattach.DefaultNetworkAnnotation, netattach.NetworksAnnotation} {
		value := p.pod.Annotations[key]
		if strings.TrimSpace(value) == "" {
			continue
		}
		at := annotation(p.path("metadata"), key)
		namespace := p.pod.Namespace
		if key == netattach.DefaultNetworkAnnotation {
			namespace = defaultNetworkNamespace
		}
		selected, err := netattach.ParseSelections(value, namespace)
		if err != nil {
			d.problem(p.doc, SeverityError, at, "%v", err)
			whole = false
			continue
		}
		whole = d.lintSelections(p, at, selected) && whole
	}
	if whole && p.pod.Annotations[netattach.NetworksAnnotation]+p.pod.Annotations[netattach.DefaultNetworkAnnotation] != "" {
		d.lintPlan(p)
	}
}

// lintSelections looks at what a plan does not tell, and reports whether all
// definitions are there, so that a plan can be made.
func (d *documents) lintSelections(p podDoc, at string, selected []netattach.Selection) bool {
	whole := true
	for _, s := range selected {
		if d.definitions[planner.Ref{Namespace: s.Namespace, Name: s.Name}] == nil {
			d.problem(p.doc, SeverityWarning, at, "definition %s/%s is not among the files: what it asks of the pod is not checked", s.Namespace, s.Name)
			whole = false
		}
		if s.DeviceID != "" {
			d.problem(p.doc, SeverityWarning, at, "network %s pins device %s: only the kubelet chooses devices, and a second pod of this kind is refused", s, s.DeviceID)
		}
		if s.Container != "" && !slices.Contains(containers(p.pod), s.Container) {
			d.problem(p.doc, SeverityError, at, "network %s names container %q, and the pod has none of that name", s, s.Container)
			whole = false
		}
	}
	return whole
}

// lintPlan plans the pod.
func (d *documents) lintPlan(p podDoc) {
	plan, err := d.plan(p.pod, nil)
	if err != nil {
		d.problem(p.doc, SeverityError, fieldOf(p, err), "%s", sentence(err))
		return
	}
	for _, w := range plan.Warnings {
		d.problem(p.doc, SeverityWarning, annotation(p.path("metadata"), netattach.NetworksAnnotation), "%s", w)
	}
}

// fieldOf says where a refusal is corrected: devices in the containers' limits,
// everything else in the annotation.
func fieldOf(p podDoc, err error) string {
	if cnierr.Is(err, cnierr.NoDevice) {
		return p.path("spec").Child("containers").String()
	}
	return annotation(p.path("metadata"), netattach.NetworksAnnotation)
}

// sentence words a refusal without the pod, which the reader sees beside it.
func sentence(err error) string {
	var e *cnierr.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	short := *e
	short.Pod = ""
	return short.Error()
}
