// Package planner makes a plan. A plan is a pure function of the plugin's
// configuration, the pod, the definitions, the devices allocated to the pod, and the
// network configurations on disk. The package does no I/O.
//
// Planning has steps, because what must be fetched depends on what the pod selects.
// [Select] reads the configuration and the pod's annotations, and
// [Selection.Definitions] names the definitions that are needed. Given these,
// [Selection.Resources] names the resources whose devices must be known.
// [Selection.Plan] then makes the plan. The plan records a reason for every decision,
// for people to read.
package planner

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// Pod is what planning needs to know about a pod.
type Pod struct {
	podresources.Pod
	Annotations map[string]string
	Static      bool // from the kubelet's own files, not from the API server
}

// Ref names a definition.
type Ref struct{ Namespace, Name string }

// String returns namespace/name.
func (r Ref) String() string { return r.Namespace + "/" + r.Name }

// DeviceKey names a device. An ID means something only to the plugin of its own
// resource.
type DeviceKey struct{ Resource, ID string }

// Sources are what was fetched for a selection.
type Sources struct {
	Definitions map[Ref]*netattach.Definition // those that exist
	Files       []netconf.File                // the configurations in confDir, in look-up order
	Allocation  *podresources.Allocation      // nil when no device is needed
	Functions   map[string]*sriov.Function    // by device ID; only IDs of PCI functions of this node and of netdevs of VFs
	DeviceInfo  map[DeviceKey]json.RawMessage // what the device plugin wrote
	Parsed      *Parsed                       // configurations parsed before; nil remembers none
}

// request is one attachment before it is planned.
type request struct {
	netattach.Selection
	why     string           // who asked for it, for people
	isDef   bool             // the cluster default network
	inline  json.RawMessage  // a configuration inside Manifold's own configuration
	written *netconf.Network // as the configuration names it; nil if a pod or delegates do
	trusted bool             // named by the administrator: namespace isolation does not apply
}

// Selection is the set of networks to which a sandbox is to be attached.
type Selection struct {
	inv      *netconf.Invocation
	pod      *Pod // nil outside Kubernetes
	requests []request
	warnings []string
	ignored  string
}

// Select determines the networks of a sandbox: the cluster default network, those of
// the configuration, and those of the pod's annotation. pod is nil when the runtime
// named none.
func Select(inv *netconf.Invocation, pod *Pod) (*Selection, error) {
	s := &Selection{inv: inv, pod: pod, warnings: slices.Clone(inv.Warnings)}
	err := s.selectDefault()
	if err == nil {
		err = s.selectConfigured()
	}
	if err == nil {
		err = s.selectAnnotated()
	}
	if err != nil {
		return nil, cnierr.Annotate(err, cnierr.Subject{Pod: inv.Pod.String()})
	}
	return s, nil
}

// selectDefault puts the cluster default network first: the pod's own choice or the
// configuration's.
func (s *Selection) selectDefault() error {
	chosen, err := s.chosenDefault()
	if err != nil || chosen != nil {
		if chosen != nil {
			s.requests = append(s.requests, *chosen)
		}
		return err
	}
	conf := &s.inv.Conf
	if conf.ClusterNetwork == "" {
		s.requests = append(s.requests, request{isDef: true, trusted: true, why: "delegates", inline: conf.Delegates[0]})
		return nil
	}
	r, err := s.configured("clusterNetwork", conf.ClusterNetwork)
	r.isDef = true
	s.requests = append(s.requests, r)
	return err
}

// chosenDefault returns the network of the pod's default-network annotation, nil when
// the configuration's applies.
func (s *Selection) chosenDefault() (*request, error) {
	if s.pod == nil || strings.TrimSpace(s.pod.Annotations[netattach.DefaultNetworkAnnotation]) == "" {
		return nil, nil
	}
	const op = "read annotation " + netattach.DefaultNetworkAnnotation
	sel, err := s.parse(netattach.DefaultNetworkAnnotation, s.inv.Conf.MultusNamespace)
	switch {
	case err != nil:
	case len(sel) != 1:
		err = cnierr.New(op, cnierr.InvalidAnnotation, "it selects %d networks but must select one", len(sel)).
			WithFix("keep one network in it, and select the others in %s", netattach.NetworksAnnotation)
	case sel[0].Interface != "" && sel[0].Interface != s.inv.IfName:
		err = cnierr.New(op, cnierr.InvalidAnnotation, "it asks for the interface %s, but the container runtime names this one %s", sel[0].Interface, s.inv.IfName).
			WithFix("drop the interface from it")
	}
	if err != nil {
		return nil, s.ignore("the configuration's default network is attached", err)
	}
	return &request{Selection: sel[0], isDef: true, why: "the pod's default-network annotation"}, nil
}

// configured returns the request for the network that a key of the configuration names
// as text.
func (s *Selection) configured(key, text string) (request, error) {
	n, err := s.inv.Conf.Network(text)
	if err != nil {
		return request{}, cnierr.New("read configuration", cnierr.InvalidConfig, "key %q: %w", key, err)
	}
	r := request{written: &n, trusted: true, why: key}
	r.Namespace, r.Name, r.Interface = n.Namespace, n.Name, n.Interface
	return r, nil
}

// selectConfigured adds the networks that the configuration attaches to every pod.
func (s *Selection) selectConfigured() error {
	conf := &s.inv.Conf
	further, err := conf.Further()
	if err != nil {
		return err
	}
	for _, raw := range further {
		s.requests = append(s.requests, request{inline: raw, trusted: true, why: "delegates"})
	}
	if s.pod == nil || slices.Contains(conf.SystemNamespaces, s.pod.Namespace) {
		return nil
	}
	for _, text := range conf.DefaultNets {
		r, err := s.configured("defaultNetworks", text)
		if err != nil {
			return err
		}
		s.requests = append(s.requests, r)
	}
	return nil
}

// selectAnnotated adds the networks that the pod's annotation selects.
func (s *Selection) selectAnnotated() error {
	if s.pod == nil {
		return nil
	}
	if strings.TrimSpace(s.pod.Annotations[netattach.NetworksAnnotation]) == "" {
		return nil
	}
	sel, err := s.parse(netattach.NetworksAnnotation, s.pod.Namespace)
	if err != nil {
		return s.ignore("only the default network is attached", err)
	}
	for _, one := range sel {
		s.requests = append(s.requests, request{Selection: one, why: "the pod's annotation"})
	}
	return nil
}

// parse reads an annotation of the pod, and warns about keys that have no effect.
// Entries without a namespace are of namespace.
func (s *Selection) parse(key, namespace string) ([]netattach.Selection, error) {
	sel, err := netattach.ParseSelections(s.pod.Annotations[key], namespace)
	if err != nil {
		return nil, cnierr.New("read annotation "+key, cnierr.InvalidAnnotation, "%w", err).
			WithFix("correct the pod's annotation, or its template's, and recreate the pod")
	}
	for _, one := range sel {
		for _, key := range one.UnknownReserved() {
			s.warnings = append(s.warnings, fmt.Sprintf("network %s: annotation key %q is reserved and has no effect", one, key))
		}
	}
	return sel, nil
}

// ignore records an invalid annotation as a warning that says what follows, if the
// configuration says to ignore it. Otherwise it returns the error.
func (s *Selection) ignore(follows string, err error) error {
	if s.inv.Conf.BadAnnot != "ignore" {
		return err
	}
	text := fmt.Sprintf("%s: %v", follows, err)
	s.warnings = append(s.warnings, text)
	if s.ignored != "" {
		text = s.ignored + "; " + text
	}
	s.ignored = text
	return nil
}

// Need is a definition that a selection needs. OnDisk reports that a file on the node
// serves if there is no such definition.
type Need struct {
	Ref
	OnDisk bool
}

// Definitions returns the definitions that may be needed, each once. files are the
// configurations in confDir.
func (s *Selection) Definitions(files []netconf.File) []Need {
	var needs []Need
	for _, r := range s.requests {
		n := Need{Ref: Ref{r.Namespace, r.Name}, OnDisk: r.written != nil && r.written.OnDisk && netconf.ByName(files, r.Name) != nil}
		if r.Name != "" && !slices.Contains(needs, n) {
			needs = append(needs, n)
		}
	}
	return needs
}

// Resources returns the resources whose devices the plan needs, each once, and whether
// any device must be known at all: a selection that names a device of a definition
// without resourceName needs the whole allocation.
func (s *Selection) Resources(defs map[Ref]*netattach.Definition) (names []string, needed bool) {
	for _, r := range s.requests {
		needed = needed || r.names()
		def := defs[Ref{r.Namespace, r.Name}]
		if def == nil {
			continue
		}
		if name := def.ResourceName(); name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, needed || len(names) > 0
}

// Plan makes the plan.
func (s *Selection) Plan(src Sources) (*plan.Plan, error) {
	p := &plan.Plan{
		Version: plan.Version, Pod: s.inv.Pod, ContainerID: s.inv.ContainerID, NetNS: s.inv.NetNS,
		Warnings: s.warnings, Ignored: s.ignored,
	}
	if s.pod != nil {
		p.Pod.Static = s.pod.Static
	}
	if src.Allocation != nil {
		p.Notes = src.Allocation.Notes
	}
	b := &builder{Selection: s, src: src, plan: p}
	if err := b.build(); err != nil {
		return nil, cnierr.Annotate(err, cnierr.Subject{Pod: p.Pod.String()})
	}
	return p, nil
}
