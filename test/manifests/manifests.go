// Package manifests renders the chart in deploy/helm/manifold with the real Helm
// and generates the kustomize bases from it, so that the chart is the only source
// of what is installed in a cluster.
package manifests

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/manifold-cni/manifold/test/harness"
)

// Paths from the root of the source tree.
const (
	Chart = "deploy/helm/manifold"
	Bases = "deploy/kustomize"

	crd = Chart + "/crds/network-attachment-definitions.yaml"
)

// Presets are the distributions for which the chart has values.
var Presets = []string{"k3s", "rke2", "talos", "openshift", "microk8s", "k0s"}

// Preset returns the path of a distribution's values, from the root of the tree.
func Preset(name string) string { return filepath.Join(Chart, "presets", name+".yaml") }

// Helm runs helm in the root of the tree and returns its output.
func Helm(root string, args ...string) ([]byte, error) {
	program, err := harness.Helm()
	if err != nil {
		return nil, err
	}
	return run(root, program, args...)
}

// Kustomize runs kustomize in the root of the tree and returns its output.
func Kustomize(root string, args ...string) ([]byte, error) {
	program, err := harness.Kustomize()
	if err != nil {
		return nil, err
	}
	return run(root, program, args...)
}

func run(root, program string, args ...string) ([]byte, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = root
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(program), strings.Join(args, " "), err, out, stderr.Bytes())
	}
	return out, nil
}

// Render renders the chart as installed in kube-system, without the CRD; args are
// further arguments of helm template.
func Render(root string, args ...string) ([]byte, error) {
	return Helm(root, append([]string{"template", "manifold", Chart, "--namespace", "kube-system"}, args...)...)
}

// Objects parses a stream of manifests.
func Objects(stream []byte) ([]*unstructured.Unstructured, error) {
	var out []*unstructured.Unstructured
	for d := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(stream), 4096); ; {
		o := &unstructured.Unstructured{}
		err := d.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("object %d: %w", len(out)+1, err)
		}
		if len(o.Object) > 0 {
			out = append(out, o)
		}
	}
}

// baseValues make a base that works on any node of any supported release: the agent
// watches pods at the API server, in case the kubelet has no Pods API. Hooks only
// make sense for Helm.
var baseValues = []string{"--no-hooks", "--set", "podsAPI=false", "--set", "restrictWrites=true"}

// kustomization returns a kustomization.yaml that lists files.
func kustomization(files ...string) string {
	return "# Made from the chart by \"make deploy\".\napiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - " +
		strings.Join(files, "\n  - ") + "\n"
}

// helmsOwn matches what only means something to an installation by Helm.
var helmsOwn = regexp.MustCompile(`(?m)^(# Source: .*|\s*app\.kubernetes\.io/managed-by: Helm|  annotations:(\n    helm\.sh/.*)+)\n`)

// Kustomizations returns the files of the kustomize bases by path below [Bases]:
// the installation, and the DaemonSet of the chart's uninstallation, which
// withdraws Manifold from the nodes before it is deleted.
func Kustomizations(root string) (map[string]string, error) {
	objects, err := Render(root, baseValues...)
	if err != nil {
		return nil, err
	}
	hooks, err := Render(root, "--show-only", "templates/uninstall.yaml")
	if err != nil {
		return nil, err
	}
	var withdraws string
	for object := range strings.SplitSeq(string(hooks), "\n---\n") {
		if strings.Contains(object, "\nkind: DaemonSet\n") {
			withdraws = strings.TrimSpace(helmsOwn.ReplaceAllString(object, "")) + "\n"
		}
	}
	definitions, err := os.ReadFile(filepath.Join(root, crd))
	if err != nil {
		return nil, err
	}
	return map[string]string{
		"base/kustomization.yaml":      kustomization("crd.yaml", "manifold.yaml"),
		"base/crd.yaml":                string(definitions),
		"base/manifold.yaml":           string(helmsOwn.ReplaceAll(objects, nil)),
		"uninstall/kustomization.yaml": kustomization("manifold.yaml"),
		"uninstall/manifold.yaml":      withdraws,
	}, nil
}
