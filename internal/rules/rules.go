// Package rules tells what is wrong with a definition or a pod before any node sees it.
// Admission refuses by these rules and `kubectl manifold lint` prints them. What passes
// lint passes admission if both know the same of the nodes; the reverse holds if lint has
// also been told that admission requests devices.
//
// [Definition] checks one definition. [Rules.Pod] checks a pod with the definitions that
// it selects, which [Rules.Select] names. If all of them are known, the pod is planned by
// the node's own planner, as if the kubelet had allocated what the containers' limits
// request. So what a node would refuse is refused here in the same words, and no rule is
// written twice.
//
// Nothing in this package does I/O, and every input may be hostile.
package rules

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
)

// Severity tells what a finding leads to.
type Severity string

// The severities of a [Finding].
const (
	Error   Severity = "error"   // it will be refused, or fail
	Warning Severity = "warning" // it works, and may surprise
)

// Finding is something wrong with an object.
type Finding struct {
	Severity Severity
	Field    string // a path as the API server writes it, for example spec.config
	Text     string // what is wrong
	Fix      string // what to do about it; may be empty
}

// String returns text and fix as one sentence.
func (f Finding) String() string {
	if f.Fix == "" {
		return f.Text
	}
	return f.Text + "; " + f.Fix
}

// list collects findings.
type list []Finding

// add adds a finding at a path, with a formatted text. The caller may set a fix on the
// result.
func (l *list) add(s Severity, at *field.Path, format string, args ...any) *Finding {
	*l = append(*l, Finding{Severity: s, Field: at.String(), Text: fmt.Sprintf(format, args...)})
	return &(*l)[len(*l)-1]
}

// annotation returns the path of an annotation of the object whose metadata is at the
// path metadata.
func annotation(metadata *field.Path, key string) *field.Path {
	return metadata.Child("annotations").Key(key)
}

// Rules are the rules for pods in one cluster.
type Rules struct {
	config json.RawMessage
	absent string
}

// standIn stands in for a default network that every pod gets, if that network is a file
// on the nodes or nothing is known of it.
var standIn = json.RawMessage(`{"cniVersion":"1.0.0","name":"default-network","type":"default-network"}`)

// New returns the rules of a cluster whose nodes have config as the plugin's
// configuration; nil means the defaults of every key. Files that the configuration names
// are not looked for: they are on the nodes. absent completes the sentence that begins
// with "definition namespace/name" for a definition that is not known.
func New(config json.RawMessage, absent string) (*Rules, error) {
	keys := map[string]json.RawMessage{}
	if config != nil {
		if err := json.Unmarshal(config, &keys); err != nil {
			return nil, cnierr.New("read plugin's configuration", cnierr.Decode, "%w", err)
		}
		if keys == nil {
			return nil, cnierr.New("read plugin's configuration", cnierr.Decode, "not a JSON object")
		}
	}
	for key, value := range map[string]string{"cniVersion": `"1.1.0"`, "name": `"manifold"`, "type": `"manifold"`} {
		if keys[key] == nil {
			keys[key] = json.RawMessage(value)
		}
	}
	if keys["clusterNetwork"] == nil && keys["delegates"] == nil {
		keys["delegates"] = json.RawMessage("[" + string(standIn) + "]")
	}
	raw, err := json.Marshal(keys)
	if err != nil {
		return nil, cnierr.New("read plugin's configuration", cnierr.Decode, "%w", err)
	}
	r := &Rules{config: raw, absent: absent}
	_, err = r.invocation(&corev1.Pod{}, nil)
	return r, err
}

// The sandbox of a dry run does not exist; these are its ID and interface name.
const (
	dryRunSandbox = "dry-run"
	defaultIfName = "eth0"
)

// invocation returns the plugin's invocation for a pod. Networks that the configuration
// names and that are not in defs are files of the nodes: a stand-in serves as the default
// network, others are omitted. With nil defs nothing is omitted.
func (r *Rules) invocation(pod *corev1.Pod, defs map[planner.Ref]*netattach.Definition) (*netconf.Invocation, error) {
	inv, err := netconf.FromRequest(plan.Request{
		Version: plan.Version, PodNamespace: pod.Namespace, PodName: pod.Name,
		ContainerID: dryRunSandbox, NetNS: "/" + dryRunSandbox, IfName: defaultIfName, Config: r.config,
	})
	if err != nil {
		return nil, err
	}
	inv.Warnings = nil // warnings about the configuration, which are not the pod's
	conf := &inv.Conf
	conf.AuxChain = ""
	if defs == nil {
		return inv, nil
	}
	known := func(text string) bool {
		n, err := conf.Network(text)
		return err == nil && defs[planner.Ref{Namespace: n.Namespace, Name: n.Name}] != nil
	}
	if conf.ClusterNetwork != "" && !known(conf.ClusterNetwork) {
		conf.ClusterNetwork, conf.Delegates = "", []json.RawMessage{standIn}
	}
	conf.DefaultNets = slices.DeleteFunc(conf.DefaultNets, func(text string) bool { return !known(text) })
	return inv, nil
}

// refOf returns the name of the definition that an entry selects.
func refOf(s *netattach.Selection) planner.Ref {
	return planner.Ref{Namespace: s.Namespace, Name: s.Name}
}

// podOf returns the parts of a pod that planning reads.
func podOf(pod *corev1.Pod) *planner.Pod {
	out := &planner.Pod{Annotations: pod.Annotations}
	out.Namespace, out.Name = pod.Namespace, pod.Name
	for _, name := range containers(pod) {
		out.Containers = append(out.Containers, podresources.Container{Name: name})
	}
	return out
}

// containers returns the names of a pod's containers, init containers first.
func containers(pod *corev1.Pod) []string {
	var names []string
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		names = append(names, c.Name)
	}
	return names
}

// Select returns the definitions that the pod's networks may need: those of its
// annotations, and those that the configuration gives to every pod. It fails on an
// annotation that cannot be read, as [Rules.Pod] does.
func (r *Rules) Select(pod *corev1.Pod) ([]planner.Ref, error) {
	inv, err := r.invocation(pod, nil)
	if err != nil {
		return nil, err
	}
	sel, err := planner.Select(inv, podOf(pod))
	if err != nil {
		return nil, err
	}
	var refs []planner.Ref
	for _, need := range sel.Definitions(nil) {
		refs = append(refs, need.Ref)
	}
	return refs, nil
}

// Demands returns the devices that the pod's networks ask for. defs are the definitions
// that exist.
func (r *Rules) Demands(pod *corev1.Pod, defs map[planner.Ref]*netattach.Definition) ([]planner.Demand, error) {
	inv, err := r.invocation(pod, defs)
	if err != nil {
		return nil, err
	}
	sel, err := planner.Select(inv, podOf(pod))
	if err != nil {
		return nil, err
	}
	return sel.Demands(defs), nil
}

// Plan plans the pod as a node would, as if the kubelet had allocated what its
// containers' limits request. defs are the definitions that exist.
func (r *Rules) Plan(pod *corev1.Pod, defs map[planner.Ref]*netattach.Definition) (*plan.Plan, error) {
	inv, err := r.invocation(pod, defs)
	if err != nil {
		return nil, err
	}
	return planOf(inv, pod, defs)
}
