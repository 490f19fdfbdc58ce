package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/nodeview"
)

const explainLong = `Plans a pod as its node does for an ADD, without running anything, and prints each
step with its reason: the configuration, the annotations, the definitions, the devices
that the kubelet has allocated, and which interface uses which device; or why the pod
is refused, and what to do. So it tells why a running pod got what it got, and why a
hanging pod hangs. A program that the plan needs and the node lacks is a problem too:
the exit status is then 1, as for a refusal.

` + needs + `
It also needs permission to get pods in the pod's namespace and, to tell whether a
missing pod was refused by admission, to list validatingwebhookconfigurations.

With -f it takes pods and definitions from manifests and asks no node. It then assumes
that each container gets what its limits request and, with --admission, what the
webhook requests for it.`

// explainOptions are the flags of explain.
type explainOptions struct {
	nodes nodeFlags
	files files
	out   output
}

// explanations are what explain prints as JSON and YAML.
type explanations struct {
	Pods     []*nodeview.Explanation `json:"pods"`
	Problems []inspect.Problem       `json:"problems,omitempty"` // manifests that cannot be read
}

func newExplain(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	o := &explainOptions{nodes: nodeFlags{kube: kube}}
	c := &cobra.Command{
		Use: "explain (POD | -f FILE...)", Short: "Explain why a pod gets its networks and devices, or does not", Long: explainLong, Args: cobra.MaximumNArgs(1),
		Example: "  # a pod that hangs in ContainerCreating\n  kubectl manifold explain packet-gateway\n\n" +
			"  # a pod that does not exist yet\n  kubectl manifold explain -f pod.yaml -f definitions/",
		RunE: func(c *cobra.Command, args []string) error { return o.run(c.Context(), streams, args) },
	}
	o.nodes.bind(c)
	c.ValidArgsFunction = o.nodes.completePod
	o.files.bind(c, "manifest `file`s of pods and definitions, directories of such files, or - for standard input")
	o.out.bind(c, false)
	return c
}

func (o *explainOptions) run(ctx context.Context, streams genericiooptions.IOStreams, args []string) error {
	if err := o.out.check(); err != nil {
		return err
	}
	if (len(args) == 1) == (len(o.files.names) > 0) {
		return errors.New("give either the name of a pod or manifests with -f")
	}
	all, err := o.explain(ctx, streams.In, args)
	if err != nil {
		return err
	}
	if err := o.out.print(streams.Out, all, func(w io.Writer, _ bool) error { return all.text(w) }); err != nil {
		return err
	}
	wrong := len(all.Problems) > 0
	for _, e := range all.Pods {
		wrong = wrong || e.Wrong()
	}
	return foundIf(wrong)
}

func (o *explainOptions) explain(ctx context.Context, stdin io.Reader, args []string) (*explanations, error) {
	namespace, err := o.nodes.namespace()
	if err != nil {
		return nil, err
	}
	all := &explanations{}
	if len(args) == 1 {
		nodes, err := o.nodes.nodes()
		if err != nil {
			return nil, err
		}
		e, err := nodes.Explain(ctx, namespace, args[0])
		all.Pods = append(all.Pods, e)
		return all, err
	}
	in, err := o.files.setting(namespace)
	if err != nil {
		return nil, err
	}
	docs, err := o.files.read(stdin)
	if err != nil {
		return nil, err
	}
	all.Pods, all.Problems, err = inspect.Explain(docs, in)
	if err == nil && len(all.Pods)+len(all.Problems) == 0 {
		err = errors.New("the manifests have no pod and no pod template")
	}
	return all, err
}

// text writes a table for each pod.
func (all *explanations) text(w io.Writer) error {
	for i, e := range all.Pods {
		if i > 0 {
			fmt.Fprintln(w)
		}
		title := "pod " + e.Pod.String()
		if e.Node != "" {
			title += " on node " + e.Node
		}
		if err := printLine(w, title); err != nil {
			return err
		}
		t := table{header: []string{"ABOUT", "FOUND"}}
		for _, s := range e.Steps {
			colour := ""
			if s.Wrong {
				colour = red
			}
			t.add(colour, s.About, s.Text)
		}
		if r := e.Refusal; r != nil {
			t.add(red, fmt.Sprintf("refused, %d %s", r.Code, r.Kind), r.Subject.String()+": "+r.Text)
			if r.Fix != "" {
				t.add("", "what to do", r.Fix)
			}
		} else {
			t.add(green, "plan", fmt.Sprintf("%d interfaces", len(e.Plan.Attachments)))
		}
		if err := t.write(w); err != nil {
			return err
		}
	}
	for _, p := range all.Problems {
		if err := printLine(w, p.String()); err != nil {
			return err
		}
	}
	return nil
}
