package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

const statusLong = `Shows what is attached: pod, network, resource, container, device, interface,
addresses, and whether the interface was compared with what was planned.

It reads the journals of the node that it runs on, through the agent's socket or,
where the agent does not answer, itself; both need root.`

// statusOptions are the flags of status.
type statusOptions struct {
	node      nodeFlags
	out       output
	namespace string
	all       bool
}

func newStatus(streams genericiooptions.IOStreams) *cobra.Command {
	o := &statusOptions{}
	c := &cobra.Command{
		Use: "status [POD]", Short: "Show what is attached, on which device, verified or not", Long: statusLong, Args: cobra.MaximumNArgs(1),
		Example: "  # all pods of this node\n  kubectl manifold status -A\n\n" +
			"  # one pod, with the physical function, NUMA node and driver of each device\n  kubectl manifold status packet-gateway -o wide",
		RunE: func(c *cobra.Command, args []string) error {
			return o.run(c.Context(), streams, args)
		},
	}
	o.node.bind(c)
	o.out.bind(c, true)
	c.Flags().StringVarP(&o.namespace, "namespace", "n", "default", "`namespace` of the pods")
	c.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "pods of all namespaces")
	return c
}

func (o *statusOptions) run(ctx context.Context, streams genericiooptions.IOStreams, args []string) error {
	if err := o.out.check(); err != nil {
		return err
	}
	all, err := o.node.views(ctx)
	if err != nil {
		return err
	}
	pod, some, wrong := "", false, false
	if len(args) > 0 {
		pod = args[0]
	}
	for _, v := range all.Nodes {
		v.Attachments = inspect.Select(v.Attachments, o.selects(pod))
		v.Devices, v.Findings = nil, nil // other pods' devices are no part of the answer
		some, wrong = some || len(v.Attachments) > 0, wrong || inspect.AnyWrong(v.Attachments)
	}
	wrong = all.problems(streams.ErrOut) || wrong
	if pod != "" && !some {
		return fmt.Errorf("pod %s/%s has no attachment: it is on another node, or its ADD was refused and undone; its Events say why", o.namespace, pod)
	}
	if err := o.out.print(streams.Out, all, func(w io.Writer, wide bool) error { return statusText(w, all, wide) }); err != nil {
		return err
	}
	return foundIf(wrong)
}

// selects returns what decides whether an attachment is asked for.
func (o *statusOptions) selects(pod string) func(*nodeview.Attachment) bool {
	return func(a *nodeview.Attachment) bool {
		return (o.all || a.Pod.Namespace == o.namespace) && (pod == "" || a.Pod.Name == pod)
	}
}

// statusText writes a line for each attachment.
func statusText(w io.Writer, all *views, wide bool) error {
	t := table{header: []string{"POD", "NETWORK", "RESOURCE", "CONTAINER", "DEVICE", "INTERFACE", "ADDRESSES", "VERIFIED"}}
	if wide {
		t.header = []string{"NODE", "POD", "NETWORK", "RESOURCE", "CONTAINER", "DEVICE", "PF", "VF", "NUMA", "DRIVER", "INTERFACE", "ADDRESSES", "MAC", "MTU", "SANDBOX", "VERIFIED"}
	}
	for _, v := range all.Nodes {
		for i := range v.Attachments {
			a := &v.Attachments[i]
			text, good := inspect.Verdict(a)
			if a.VerifiedAt != nil && good {
				text += ", " + duration.HumanDuration(time.Since(*a.VerifiedAt)) + " ago"
			}
			cells := append([]string{a.Pod.String(), a.Network}, deviceCells(a, wide)...)
			cells = append(cells, a.Interface, strings.Join(a.Addresses, ","))
			if wide {
				cells = append(append([]string{v.Node}, cells...), a.MAC, number(a.MTU), a.Sandbox)
			}
			t.add(verdict(good), append(cells, text)...)
		}
	}
	return t.write(w)
}

// deviceCells are the columns of an attachment's device.
func deviceCells(a *nodeview.Attachment, wide bool) []string {
	d := a.Device
	switch {
	case d == nil && wide:
		return make([]string, 7)
	case d == nil:
		return make([]string, 3)
	}
	cells := []string{d.Resource, d.Container, d.ID}
	if !wide {
		return cells
	}
	var nodes []string
	for _, n := range d.NUMANodes {
		nodes = append(nodes, strconv.FormatInt(n, 10))
	}
	vf := ""
	if d.PF != "" {
		vf = strconv.Itoa(d.VFIndex)
	}
	return append(cells, d.PF, vf, strings.Join(nodes, ","), d.Driver)
}

// number renders a number of which 0 stands for unknown.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
