package main

import (
	"context"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/nodeview"
)

const devicesLong = `Shows every virtual function of the node: who has it, its driver, and what is wrong
with it. A device is attached when a sandbox has it, allocated when the kubelet has
given it to a pod and no sandbox has it, else free; unknown when the kubelet cannot
be asked.

It reads the node that it runs on, through the agent's socket or, where the agent
does not answer, itself; both need root.`

// devicesOptions are the flags of devices.
type devicesOptions struct {
	node nodeFlags
	out  output
}

func newDevices(streams genericiooptions.IOStreams) *cobra.Command {
	o := &devicesOptions{}
	c := &cobra.Command{
		Use: "devices", Short: "Show every virtual function, who has it and what is wrong with it", Long: devicesLong, Args: cobra.NoArgs,
		Example: "  # the virtual functions of this node\n  kubectl manifold devices\n\n" +
			"  # for a program\n  kubectl manifold devices -o json",
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context(), streams) },
	}
	o.node.bind(c)
	o.out.bind(c, true)
	return c
}

func (o *devicesOptions) run(ctx context.Context, streams genericiooptions.IOStreams) error {
	if err := o.out.check(); err != nil {
		return err
	}
	all, err := o.node.views(ctx)
	if err != nil {
		return err
	}
	wrong := all.problems(streams.ErrOut)
	for _, v := range all.Nodes {
		v.Attachments = nil // they are what status shows
		wrong = wrong || len(v.Findings) > 0
	}
	if err := o.out.print(streams.Out, all, func(w io.Writer, wide bool) error { return devicesText(w, all, wide) }); err != nil {
		return err
	}
	return foundIf(wrong)
}

// devicesText writes a line for each virtual function.
func devicesText(w io.Writer, all *views, wide bool) error {
	t := table{header: []string{"NODE", "DEVICE", "PF", "VF", "NUMA", "DRIVER", "USE", "POD", "CONTAINER", "RESOURCE", "STATE"}}
	if wide {
		t.header = []string{"NODE", "DEVICE", "PF", "VF", "NUMA", "DRIVER", "USE", "POD", "CONTAINER", "RESOURCE", "PFDEV", "IOMMU", "NETDEVS", "NETWORK", "INTERFACE", "STATE"}
	}
	for _, v := range all.Nodes {
		for i := range v.Devices {
			d := &v.Devices[i]
			cells := append([]string{v.Node}, deviceLine(d)...)
			if wide {
				cells = append(cells, d.PFNetDev, d.IOMMUGroup, strings.Join(d.NetDevs, ","), d.Network, d.Interface)
			}
			t.add(verdict(len(d.Findings) == 0), append(cells, stateOf(d))...)
		}
	}
	return t.write(w)
}

// deviceLine are the columns of a device without what is wrong with it.
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

// stateOf words what is wrong with a device.
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
