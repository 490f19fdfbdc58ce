package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
)

// The sandbox and interface of a plan that nobody executes.
const (
	explainSandbox = "explain"
	explainIfName  = "eth0"
)

// Explain plans a pod as for an ADD, with the plugin's configuration on this node, and
// says why. A refusal is an answer too; an error means that there is no configuration
// to plan with.
func (a *Agent) Explain(ctx context.Context, pod plan.Pod) (*nodeview.Explanation, error) {
	raw, err := os.ReadFile(a.src.CNIConfig)
	if err != nil {
		return nil, cnierr.New("read the plugin's configuration", cnierr.IO, "%w", err).
			WithFix("run 'manifold-agent install', or set the agent's key cniConfig")
	}
	_, config, err := configfile.Plugin(a.src.CNIConfig, raw)
	if err != nil {
		return nil, err
	}
	inv, err := netconf.FromRequest(plan.Request{
		Version: plan.Version, PodNamespace: pod.Namespace, PodName: pod.Name, PodUID: pod.UID,
		ContainerID: explainSandbox, NetNS: "/" + explainSandbox, IfName: explainIfName, Config: config,
	})
	if err != nil {
		return nil, err
	}
	e := &nodeview.Explanation{Version: nodeview.Version, Node: a.src.Node, Pod: pod}
	e.Say("configuration", "%s", a.src.CNIConfig)
	e.Conclude(a.plan(ctx, inv, e))
	explainPrograms(e, inv.Conf.BinDir)
	return e, nil
}

// explainPod says what in a pod decides about its networks.
func explainPod(e *nodeview.Explanation, pod *planner.Pod) {
	if e == nil || pod == nil {
		return
	}
	e.Pod.UID, e.Pod.Static = pod.UID, pod.Static
	var names []string
	for _, c := range pod.Containers {
		name := c.Name
		if c.Init {
			name += " (init)"
		}
		names = append(names, name)
	}
	e.Say("pod", "found, UID %s, containers %s", pod.UID, strings.Join(names, ", "))
	for _, key := range []string{netattach.DefaultNetworkAnnotation, netattach.NetworksAnnotation} {
		if value, ok := pod.Annotations[key]; ok {
			e.Say("annotation "+key, "%s", value)
		}
	}
	if pod.Annotations[netattach.NetworksAnnotation] == "" {
		e.Say("annotation "+netattach.NetworksAnnotation, "none: the pod gets only the networks of the configuration")
	}
}

// explainDefinitions says which definitions exist.
func explainDefinitions(e *nodeview.Explanation, needs []planner.Need, found map[planner.Ref]*netattach.Definition) {
	if e == nil {
		return
	}
	for _, need := range needs {
		def := found[need.Ref]
		switch {
		case def == nil && need.OnDisk:
			e.Say("definition "+need.String(), "not found; a file on the node is used instead")
		case def == nil:
			e.Say("definition "+need.String(), "not found")
		case def.ResourceName() == "":
			e.Say("definition "+need.String(), "found, needs no device")
		default:
			e.Say("definition "+need.String(), "found, needs a device of %s", def.ResourceName())
		}
	}
}

// explainDevices says which devices the kubelet has allocated to the pod.
func explainDevices(e *nodeview.Explanation, resources []string, a *podresources.Allocation) {
	if e == nil || a == nil {
		return
	}
	about := "devices"
	if len(resources) > 0 {
		about += " of " + strings.Join(resources, ", ")
	}
	if len(a.Devices) == 0 {
		e.Say(about, "the kubelet has allocated none to the pod")
	}
	for _, d := range a.Devices {
		e.Say(about, "%s of %s, to container %s, by %s", d.ID, d.Resource, strings.Join(d.Containers, ", "), d.Source)
	}
	for _, n := range a.Notes {
		e.Say(about, "%s", n)
	}
}

// explainPrograms says which programs of the plan are missing. It looks only in the
// plugin's own directory, which an agent in a container may not see. Only the plugin
// knows the runtime's directories.
func explainPrograms(e *nodeview.Explanation, binDir string) {
	if _, err := os.Stat(binDir); err != nil || e.Plan == nil {
		return
	}
	said := map[string]bool{}
	for _, a := range e.Plan.Attachments {
		c, err := netattach.ParseConfig(a.Config)
		if err != nil {
			e.Object("interface "+a.IfName, "%v", err)
			continue
		}
		for _, p := range c.Plugins() {
			for _, program := range []string{p.Type, p.IPAMType} {
				_, err := os.Stat(filepath.Join(binDir, filepath.Base(program)))
				if program != "" && err != nil && !said[program] {
					said[program] = true
					e.Object("program "+program, "not in %s: install it there, unless it is in another directory of the runtime", binDir)
				}
			}
		}
	}
}
