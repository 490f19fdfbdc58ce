//go:build nodelab

package cluster

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
	"github.com/manifold-cni/manifold/test/vm"
)

// page is a page of docs/ that a test follows, command block by command block.
type page struct {
	*fixture
	names  *strings.Replacer // replaces the page's names with the lab's
	blocks []string          // command blocks that have not run yet
}

// open opens a page of docs/. names are pairs of a name on the page and its name in the
// lab. The test's cleanup removes the pod and the network that the page creates.
func (f *fixture) open(file, pod, network string, names ...string) *page {
	f.Helper()
	blocks, err := harness.Commands(file)
	f.must(err)
	f.Cleanup(func() {
		f.remove(pod)
		definitions, err := lab.API.Definitions(namespace)
		f.must(err)
		if err := definitions.Delete(f.ctx, network, metav1.DeleteOptions{}); !apierrors.IsNotFound(err) {
			f.must(err)
		}
	})
	return &page{f, strings.NewReplacer(names...), blocks}
}

// next runs the next command block as a reader of the page does and returns its
// standard output.
func (p *page) next() string {
	p.Helper()
	out, err := p.try()
	p.must(err)
	p.blocks = p.blocks[1:]
	return out
}

// try is next for a block that fails or that will run again: it does not advance.
func (p *page) try() (string, error) {
	p.Helper()
	if len(p.blocks) == 0 {
		p.Fatal("the page has no more commands")
	}
	cmd, err := lab.command(p.ctx, "sh", "-ec", p.names.Replace(p.blocks[0]))
	p.must(err)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s%s", cmd.Args, err, &stdout, &stderr)
	}
	return stdout.String(), nil
}

// published runs the next block, which prints a pod's network-status, and fails unless
// its second network is on the VF.
func (p *page) published(pod *corev1.Pod, vf string) {
	p.Helper()
	var status []netattach.Status
	p.must(json.Unmarshal([]byte(p.next()), &status))
	if len(status) != 2 {
		p.Fatalf("network-status has %d networks: %+v", len(status), status)
	}
	p.isInfo(pod, status[1], vf)
}

// done fails unless all blocks of the page have run.
func (p *page) done() {
	p.Helper()
	if len(p.blocks) > 0 {
		p.Errorf("commands that did not run: %q", p.blocks)
	}
}

// says fails unless some line of a table has these cells in this order, possibly with
// others between them.
func (f *fixture) says(table string, cells ...string) {
	f.Helper()
	has := func(line string) bool {
		for _, c := range cells {
			_, rest, found := strings.Cut(line+" ", c+" ")
			if !found {
				return false
			}
			line = rest
		}
		return true
	}
	squeeze := func(line string) string { return strings.Join(strings.Fields(line), " ") }
	if !slices.ContainsFunc(strings.Split(table, "\n"), func(line string) bool { return has(squeeze(line)) }) {
		f.Errorf("no line with %q in:\n%s", cells, table)
	}
}

// index returns the number of a VF within its PF.
func index(vf string) int {
	for i := range 2 {
		if _, vfs := vm.Functions(i); slices.Contains(vfs, vf) {
			return slices.Index(vfs, vf)
		}
	}
	return -1
}

// TestFirstPodPage runs the commands of docs/first-sriov-pod.md on VFs of a real PF.
// kubectl manifold shows the devices through the API server.
func TestFirstPodPage(t *testing.T) {
	f := begin(t)
	const misspelt = Red + "dish"
	p := f.open("first-sriov-pod.md", "app", "fast", "vendor.example/vfs", Red, "vendor.example/vf", misspelt, "registry.example/app", BoxImage)
	devices := p.next()
	for i := range 2 {
		pf, vfs := vm.Functions(i)
		for n, vf := range vfs {
			f.says(devices, NodeName, vf, pf, fmt.Sprint(n), fmt.Sprint(i))
		}
	}
	p.next() // the network
	p.next() // the pod
	pod := f.running("app")
	here := f.interfaces(pod, map[string]string{"eth0": "", "net1": ""})
	vf := f.given(pod, here, "app", Red)[0]
	f.says(p.next(), "default/app", "default/fast", Red, "app", vf, "net1", "192.0.2.10", "yes,")
	p.published(pod, vf)
	f.isVF(pod, here, "net1", vf)
	explained := p.next()
	f.says(explained, "default/fast", "found, needs a device of "+Red)
	f.says(explained, "interface net1", "on device "+vf)
	f.says(explained, "device "+vf, fmt.Sprintf("VF %d of %s, driver igbvf", index(vf), pfOf(vf)))
	p.next() // misspells the resource
	f.eventually("the pod to be refused", func() error {
		if out, err := p.try(); err == nil || !strings.Contains(out, "found, needs a device of "+misspelt) {
			return errors.New(out)
		}
		return nil
	})
	out, _ := p.try()
	f.says(out, "refused, 105 no-device", "resource "+misspelt+":", "it has 1 of "+Red+",")
	f.says(out, "what to do", "request 1 of "+misspelt)
	p.blocks = p.blocks[1:]
	p.done()
}

// TestUserspaceVF runs the commands of docs/dpdk-pod.md on a VF that is bound to
// vfio-pci: the pod learns its address and has no interface. The guest has only small
// huge pages.
func TestUserspaceVF(t *testing.T) {
	f := begin(t)
	p := f.open("dpdk-pod.md", "forwarder", "dpdk", "vendor.example/vfs", Userspace, "registry.example/forwarder", BoxImage, "hugepages-1Gi: 2Gi, memory: 1Gi", "hugepages-2Mi: 4Mi, memory: 16Mi")
	_, vfs := vm.Functions(1)
	vf := vfs[len(vfs)-1]
	f.says(p.next(), NodeName, vf, pfOf(vf), "vfio-pci", "free")
	p.next() // the network and the pod
	pod := f.running("forwarder")
	here := f.interfaces(pod, map[string]string{"eth0": "cluster-net"})
	if got := f.given(pod, here, "forwarder", Userspace); !slices.Equal(got, []string{vf}) {
		t.Errorf("the pod has %v, want %s", got, vf)
	}
	f.says(p.next(), "device "+vf, "bound to vfio-pci: there will be no net1,")
	p.published(pod, vf)
	p.done()
}
