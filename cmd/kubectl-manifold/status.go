package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

const statusLong = `Shows what is attached: pod, network, resource, container, device, interface and
addresses, and whether the interface was verified against the plan. Differences that
the keys verify or carrier tolerate are listed, and make the exit status 1.

` + needs + `
For a single pod it also needs permission to get pods in the pod's namespace. With
--local it reads the journals of this node, through the agent's socket or, if the
agent does not answer, directly.`

// statusOptions are the flags of status.
type statusOptions struct {
	nodes nodeFlags
	out   output
	node  []string
	all   bool
}

func newStatus(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	o := &statusOptions{nodes: nodeFlags{kube: kube}}
	c := &cobra.Command{
		Use: "status [POD]", Short: "Show what is attached, on which device, and whether it is verified", Long: statusLong, Args: cobra.MaximumNArgs(1),
		Example: "  # one pod, with the physical function, NUMA node and driver of each device\n  kubectl manifold status packet-gateway -o wide\n\n" +
			"  # all pods of one node\n  kubectl manifold status --node worker-1 -A\n\n" +
			"  # on the node itself\n  kubectl manifold status --local -A",
		RunE: func(c *cobra.Command, args []string) error { return o.run(c.Context(), streams, args) },
	}
	o.nodes.bind(c)
	c.ValidArgsFunction = o.nodes.completePod
	o.out.bind(c, true)
	c.Flags().StringSliceVar(&o.node, "node", nil, "only pods of this `node`")
	// This fails only for flags that do not exist or were registered before.
	if err := c.RegisterFlagCompletionFunc("node", o.nodes.completeNodes); err != nil {
		c.PrintErrln(err)
	}
	c.Flags().BoolVarP(&o.all, "all-namespaces", "A", false, "pods of all namespaces")
	return c
}

func (o *statusOptions) run(ctx context.Context, streams genericiooptions.IOStreams, args []string) error {
	if err := o.out.check(); err != nil {
		return err
	}
	namespace, err := o.nodes.namespace()
	if err != nil {
		return err
	}
	pod := ""
	if len(args) > 0 {
		pod = args[0]
	}
	all, err := o.views(ctx, namespace, pod)
	if err != nil {
		return err
	}
	some, wrong := false, false
	for _, v := range all.Nodes {
		v.Attachments = inspect.Select(v.Attachments, func(a *nodeview.Attachment) bool {
			return (o.all || a.Pod.Namespace == namespace) && (pod == "" || a.Pod.Name == pod)
		})
		v.Devices, v.Findings, v.Proposals = nil, nil, nil // the devices of other pods are not part of the answer
		some, wrong = some || len(v.Attachments) > 0, wrong || inspect.AnyWrong(v.Attachments)
	}
	wrong = all.problems(streams.ErrOut) || wrong
	if pod != "" && !some {
		return errors.New(noAttachment(namespace, pod, all))
	}
	empty := o.nothing(namespace, all)
	if err := o.out.print(streams.Out, all, func(w io.Writer, wide bool) error { return statusText(w, all, empty, wide) }); err != nil {
		return err
	}
	return foundIf(wrong)
}

// noAttachment says that a pod has no attachment, and why if that is certain.
func noAttachment(namespace, pod string, all *views) string {
	none := fmt.Sprintf("pod %s/%s has no attachment", namespace, pod)
	if len(all.unread()) > 0 {
		return asRead(none, false)
	}
	return none + ": its ADD was refused and undone, or has not come; run kubectl manifold explain to see why"
}

// nothing returns the sentence for an empty answer.
func (o *statusOptions) nothing(namespace string, all *views) string {
	if o.all {
		return all.nothing("nothing is attached")
	}
	return all.nothing("nothing in namespace " + namespace + " is attached")
}

// views returns the views of the nodes that the flags and the pod choose.
func (o *statusOptions) views(ctx context.Context, namespace, pod string) (*views, error) {
	if pod == "" || o.all || len(o.node) > 0 {
		return o.nodes.views(ctx, o.node)
	}
	nodes, err := o.nodes.nodes()
	if err != nil {
		return nil, err
	}
	v, err := nodes.ViewOf(ctx, namespace, pod)
	return &views{Nodes: []*nodeview.View{v}}, err
}

// statusText writes a line for each attachment, or the sentence empty if there is none.
func statusText(w io.Writer, all *views, empty string, wide bool) error {
	t := table{header: []string{"POD", "NETWORK", "RESOURCE", "CONTAINER", "DEVICE", "INTERFACE", "ADDRESSES", "VERIFIED"}, empty: empty}
	if wide {
		t.header = []string{"NODE", "POD", "NETWORK", "RESOURCE", "CONTAINER", "DEVICE", "PF", "VF", "NUMA", "DRIVER", "INTERFACE", "ADDRESSES", "MAC", "MTU", "SANDBOX", "VERIFIED"}
	}
	for _, v := range all.Nodes {
		for i := range v.Attachments {
			a := &v.Attachments[i]
			text, good := inspect.Verdict(a)
			if a.VerifiedAt != nil && a.State == nodeview.StateAttached && a.Gone == "" {
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

// deviceCells returns the columns of an attachment's device.
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

// number returns a number as text; 0 means unknown and is empty.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
