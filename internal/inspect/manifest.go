package inspect

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
)

// defaultNetworkNamespace is the default of the key multusNamespace.
const defaultNetworkNamespace = "kube-system"

// anyNode is the plugin's configuration of a node that nothing is known of: its
// default network is one that every pod gets, and it has no other on disk.
var anyNode = json.RawMessage(`{"cniVersion":"1.1.0","name":"manifold","type":"manifold","confDir":"/nonexistent","multusNamespace":"` +
	defaultNetworkNamespace + `","delegates":[{"cniVersion":"1.0.0","name":"default-network","type":"default-network"}]}`)

// Names of a sandbox that does not exist.
const (
	dryRunSandbox = "dry-run"
	defaultIfName = "eth0"
)

// plan plans a pod of a manifest as if the kubelet had allocated what its limits
// ask for. config is the plugin's configuration, nil for that of anyNode.
func (d *documents) plan(pod *corev1.Pod, config json.RawMessage) (*plan.Plan, error) {
	if config == nil {
		config = anyNode
	}
	src := agent.Sources{Pods: onePod{pod}, Definitions: given(d.definitions), Devices: requested{pod}}
	return agent.New(src, slog.New(slog.DiscardHandler), nil).Plan(context.Background(), plan.Request{
		Version: plan.Version, PodNamespace: pod.Namespace, PodName: pod.Name,
		ContainerID: dryRunSandbox, NetNS: "/" + dryRunSandbox, IfName: defaultIfName, Config: config,
	})
}

// onePod is a source of one pod, whatever is asked for.
type onePod struct{ pod *corev1.Pod }

// Pod implements kube.Pods.
func (p onePod) Pod(context.Context, string, string, string) (*corev1.Pod, error) {
	return p.pod, nil
}

// given are the definitions of manifests as a source.
type given map[planner.Ref]*netattach.Definition

// Definition implements kube.Definitions.
func (g given) Definition(_ context.Context, namespace, name string) (*netattach.Definition, error) {
	if def := g[planner.Ref{Namespace: namespace, Name: name}]; def != nil {
		return def, nil
	}
	return nil, fmt.Errorf("%w: definition %s/%s is not among the files", kube.ErrNotFound, namespace, name)
}

// requested is an allocation that gives a pod what its limits ask for.
type requested struct{ *corev1.Pod }

// maxRequested bounds the devices of one resource that a container is taken to
// get: a pod has at most as many attachments as an annotation has entries.
const maxRequested = netattach.MaxSelections

// Devices implements agent.Devices.
func (r requested) Devices(_ context.Context, _ podresources.Pod, resources []string) (*podresources.Allocation, error) {
	out := &podresources.Allocation{}
	for _, name := range resources {
		n := 0
		for _, c := range slices.Concat(r.Spec.InitContainers, r.Spec.Containers) {
			limit := c.Resources.Limits[corev1.ResourceName(name)]
			for range min(limit.Value(), maxRequested) {
				n++
				out.Devices = append(out.Devices, podresources.Device{
					Resource: name, ID: fmt.Sprintf("device-%d", n), Containers: []string{c.Name}, PluginIndex: -1, Source: "by its limits",
				})
			}
		}
	}
	return out, nil
}

// containers returns the names of a pod's containers, init containers first.
func containers(pod *corev1.Pod) []string {
	var names []string
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		names = append(names, c.Name)
	}
	return names
}
