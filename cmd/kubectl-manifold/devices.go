package main

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

const devicesLong = `Shows every virtual function of the nodes: who has it, its driver, and what is
wrong with it. A device is attached if a sandbox has it, allocated if the kubelet has
given it to a pod but no sandbox has it, unknown if the kubelet cannot be asked, and
otherwise free.

` + needs

// devicesOptions are the flags of devices.
type devicesOptions struct {
	nodes nodeFlags
	out   output
}

func newDevices(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	o := &devicesOptions{nodes: nodeFlags{kube: kube}}
	c := &cobra.Command{
		Use: "devices [NODE...]", Short: "Show every virtual function, who has it and what is wrong with it", Long: devicesLong,
		Example: "  # the virtual functions of one node\n  kubectl manifold devices worker-1\n\n" +
			"  # those of all nodes, for a program\n  kubectl manifold devices -o json\n\n" +
			"  # on the node itself\n  kubectl manifold devices --local",
		RunE: func(c *cobra.Command, args []string) error { return o.run(c.Context(), streams, args) },
	}
	o.nodes.bind(c)
	c.ValidArgsFunction = o.nodes.completeNodes
	o.out.bind(c, true)
	return c
}

func (o *devicesOptions) run(ctx context.Context, streams genericiooptions.IOStreams, args []string) error {
	if err := o.out.check(); err != nil {
		return err
	}
	all, err := o.nodes.views(ctx, args)
	if err != nil {
		return err
	}
	wrong := all.problems(streams.ErrOut)
	for _, v := range all.Nodes {
		v.Attachments, v.Proposals = nil, nil // status and repair show them
		wrong = wrong || len(v.Findings) > 0
	}
	if err := o.out.print(streams.Out, all, func(w io.Writer, wide bool) error { return devicesText(w, all, wide) }); err != nil {
		return err
	}
	return foundIf(wrong)
}

// devicesText writes a line for each virtual function.
func devicesText(w io.Writer, all *views, wide bool) error {
	t := table{header: []string{"NODE", "DEVICE", "PF", "VF", "NUMA", "DRIVER", "USE", "POD", "CONTAINER", "RESOURCE", "DRIFT", "QUARANTINE", "STATE"}, empty: all.nothing("there is no virtual function")}
	if wide {
		t.header = []string{"NODE", "DEVICE", "PF", "VF", "NUMA", "DRIVER", "USE", "POD", "CONTAINER", "RESOURCE", "PFDEV", "IOMMU", "NETDEVS", "NETWORK", "INTERFACE", "DRIFT", "QUARANTINE", "STATE"}
	}
	for _, v := range all.Nodes {
		for i := range v.Devices {
			d := &v.Devices[i]
			cells := append([]string{v.Node}, deviceLine(d)...)
			if wide {
				cells = append(cells, d.PFNetDev, d.IOMMUGroup, strings.Join(d.NetDevs, ","), d.Network, d.Interface)
			}
			cells = append(cells, yesIf(d, reconcile.Drifted), yesIf(d, reconcile.Quarantined), stateOf(d))
			t.add(verdict(len(d.Findings) == 0), cells...)
		}
	}
	return t.write(w)
}

// deviceLine returns the columns of a device except those about its findings.
func deviceLine(d *nodeview.Device) []string {
	h := nodeview.Holder{}
	if d.Holder != nil {
		h = *d.Holder
	}
	if h.Pod == "" && h.PodUID != "" {
		h.Pod = "UID " + h.PodUID
	}
	node := ""
	if d.NUMANode >= 0 {
		node = strconv.Itoa(d.NUMANode)
	}
	return []string{d.Address, d.PF, strconv.Itoa(d.VFIndex), node, d.Driver, d.Use, h.Pod, h.Container, h.Resource}
}

// yesIf tells whether the device has a finding of a kind.
func yesIf(d *nodeview.Device, kind reconcile.Kind) string {
	for _, f := range d.Findings {
		if f.Kind == kind {
			return "yes"
		}
	}
	return "no"
}

// stateOf returns what is wrong with a device, in words.
func stateOf(d *nodeview.Device) string {
	var out []string
	for _, f := range d.Findings {
		out = append(out, string(f.Kind)+": "+f.Text)
	}
	if len(out) == 0 {
		return "ok"
	}
	return strings.Join(out, "; ")
}
