package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/manifold-cni/manifold/internal/inspect"
	"github.com/manifold-cni/manifold/internal/words"
)

const lintLong = `Checks network-attachment definitions, pods and pod templates for mistakes, without a
cluster. It skips objects of other kinds.

A pod whose definitions are among the files is planned as a node would plan it, as if
the kubelet had allocated what the containers' limits request. An error is something
that a node would refuse; a warning is something that works but may surprise. A pod
that relies on admission to request its devices has too few of them, unless --admission
tells that the cluster has such a webhook.`

// lintReport is what lint prints as JSON and YAML.
type lintReport struct {
	Documents int               `json:"documents"` // objects read, of any kind
	Problems  []inspect.Problem `json:"problems"`
}

// files are the flags that name manifests and the configuration to check them by.
type files struct {
	names     []string
	recursive bool
	plugin    string
	admission bool
}

func (f *files) bind(c *cobra.Command, usage string) {
	c.Flags().StringSliceVarP(&f.names, "filename", "f", nil, usage)
	c.Flags().BoolVarP(&f.recursive, "recursive", "R", false, "with -f: read the directories below those given, too")
	c.Flags().StringVar(&f.plugin, "plugin-config", "", "with -f: `file` with the plugin's configuration on the nodes, JSON; by default every key has its default")
	c.Flags().BoolVar(&f.admission, "admission", false, "with -f: check pods as the webhook changes them, with the devices that it requests")
}

// setting returns what the flags tell of the cluster. Objects that name no namespace
// belong to namespace.
func (f *files) setting(namespace string) (inspect.Setting, error) {
	s := inspect.Setting{Namespace: namespace, Admission: f.admission, Source: f.plugin}
	if f.plugin == "" {
		return s, nil
	}
	var err error
	if s.Config, err = os.ReadFile(f.plugin); err != nil {
		return s, fmt.Errorf("read the plugin's configuration: %w", err)
	}
	return s, nil
}

func newLint(streams genericiooptions.IOStreams, kube *genericclioptions.ConfigFlags) *cobra.Command {
	var f files
	var o output
	c := &cobra.Command{
		Use: "lint -f FILE...", Short: "Check definitions and pods for mistakes, offline", Long: lintLong, Args: cobra.NoArgs,
		Example: "  # a definition and the pods that use it\n  kubectl manifold lint -f definition.yaml -f pod.yaml\n\n" +
			"  # everything below a directory, for a program\n  kubectl manifold lint -R -f deploy/ -o json\n\n" +
			"  # for a cluster whose webhook requests the devices\n  kubectl manifold lint -R -f deploy/ --admission",
		RunE: func(*cobra.Command, []string) error { return lint(streams, nodeFlags{kube: kube}, &f, &o) },
	}
	f.bind(c, "manifest `file`s, directories of such files, or - for standard input")
	o.bind(c, false)
	return c
}

func lint(streams genericiooptions.IOStreams, n nodeFlags, f *files, o *output) error {
	if err := o.check(); err != nil {
		return err
	}
	namespace, err := n.namespace()
	if err != nil {
		return err
	}
	in, err := f.setting(namespace)
	if err != nil {
		return err
	}
	docs, err := f.read(streams.In)
	if err != nil {
		return err
	}
	problems, err := inspect.Lint(docs, in)
	if err != nil {
		return err
	}
	r := lintReport{Documents: len(docs), Problems: problems}
	if r.Problems == nil {
		r.Problems = []inspect.Problem{}
	}
	if err := o.print(streams.Out, r, r.text); err != nil {
		return err
	}
	for _, p := range r.Problems {
		if p.Severity == inspect.SeverityError {
			return errFound
		}
	}
	return nil
}

// text writes one line for each problem, and a summary.
func (r lintReport) text(w io.Writer, _ bool) error {
	errs := 0
	for _, p := range r.Problems {
		if p.Severity == inspect.SeverityError {
			errs++
		}
		if err := printLine(w, p.String()); err != nil {
			return err
		}
	}
	return printLine(w, fmt.Sprintf("%s: %s, %s", words.Count(r.Documents, "document", "documents"),
		words.Count(errs, "error", "errors"), words.Count(len(r.Problems)-errs, "warning", "warnings")))
}

// read returns the objects of the files.
func (f *files) read(stdin io.Reader) ([]inspect.Document, error) {
	if len(f.names) == 0 {
		return nil, fmt.Errorf("no manifest is given: use -f FILE")
	}
	b := resource.NewLocalBuilder().Unstructured().ContinueOnError()
	for _, name := range f.names {
		switch {
		case name == "-":
			b.Stream(stdin, "standard input")
		case strings.HasPrefix(name, "http://"), strings.HasPrefix(name, "https://"):
			return nil, fmt.Errorf("%s: URLs are not read; download the file first", name)
		default:
			b.Path(f.recursive, name)
		}
	}
	infos, err := b.Flatten().Do().Infos()
	if err != nil {
		return nil, fmt.Errorf("read manifests: %w", err)
	}
	var docs []inspect.Document
	for _, info := range infos {
		if u, ok := info.Object.(*unstructured.Unstructured); ok {
			docs = append(docs, inspect.Document{Source: info.Source, Object: u})
		}
	}
	return docs, nil
}
