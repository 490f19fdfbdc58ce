//go:build nodelab

package cluster

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
)

// definitionDir holds the definitions of a node without an API server.
const definitionDir = "/etc/manifold/definitions"

// TestStandalone proves that a static pod gets its VF on a kubelet without an API
// server, with Manifold installed as docs/install.md says for one node.
//
// Its file's name makes it the first test. Where pods have ended, a kubelet that is
// killed may be in the middle of stopping their sandboxes once more, and what that DEL
// leaves waits a minute for the next one.
func TestStandalone(t *testing.T) {
	f := begin(t)
	f.Cleanup(f.rejoin)
	f.must(errors.Join(lab.API.Kill(), lab.Node.KillService(Kubelet), lab.Node.StartService(Standalone)))
	f.eventually("the cluster's agent to stop", func() error {
		if f.agentRuns() {
			return errors.New("it is still running")
		}
		return nil
	})
	f.installAlone()
	f.must(lab.Node.StartService(Agent))
	f.knowsDevices()
	remove := f.manifest("alone", networks(red), container("main", Red))
	var here *onNode
	f.eventually("the static pod to run", func() error {
		if here = f.sandbox("alone"); here == nil || here.containers["main"].PID == 0 {
			return errors.New("it is not running")
		}
		return nil
	})
	vf := f.device(here, "main", Red)
	if kubelets := f.allocated("alone-" + NodeName); !slices.Equal(kubelets, []string{vf}) {
		t.Errorf("the container has %s, but the kubelet has allocated %v to it", vf, kubelets)
	}
	if got := here.links["net1"].Parent; got != vf || len(here.links) != 2 {
		t.Errorf("net1 of %v is on device %s, want %s", here.links, got, vf)
	}
	f.isDevice(here, "net1", vf)
	f.inOrder()
	remove()
	f.unchanged() // before the kubelet is killed: that would cut off a DEL under way, and the next comes a minute later
	f.inOrder()
}

// agentRuns tells whether the cluster's agent runs on the node.
func (f *fixture) agentRuns() bool {
	f.Helper()
	for _, p := range f.probe() {
		if _, ok := p.containers["agent"]; ok {
			return true
		}
	}
	return false
}

// installAlone installs Manifold on a node without an API server, and the definition of
// network red.
func (f *fixture) installAlone() {
	f.Helper()
	definition, err1 := json.Marshal(netattach.Definition{
		TypeMeta:   metav1.TypeMeta{APIVersion: netattach.GroupVersion.String(), Kind: "NetworkAttachmentDefinition"},
		ObjectMeta: metav1.ObjectMeta{Name: red, Namespace: namespace, Annotations: map[string]string{netattach.ResourceNameAnnotation: Red}},
		Spec:       netattach.DefinitionSpec{Config: deviceConfig},
	})
	config, err2 := json.Marshal(map[string]any{"node": NodeName, "definitionManifests": definitionDir})
	f.must(errors.Join(err1, err2))
	f.must(lab.Node.write(f.ctx, definitionDir+"/red.json", definition))
	f.must(lab.Node.write(f.ctx, "/etc/manifold/agent.json", config))
	_, err := lab.Node.run(f.ctx, pluginDir+"/manifold-agent", "install", "--cluster-network", "cluster-net", "--agent-config", "/etc/manifold/agent.json")
	f.must(err)
}

// rejoin lets the node join the cluster again, with the cluster's agent.
func (f *fixture) rejoin() {
	f.Helper()
	f.must(errors.Join(lab.Node.KillService(Agent), lab.Node.KillService(Standalone), lab.API.Restart(), lab.Node.StartService(Kubelet)))
	f.knowsDevices() // the API server's status of the node may be that of the killed kubelet
	f.must(eventually(f.ctx, "the node to be ready with its devices", lab.nodeReady))
	f.eventually("the cluster's agent to run", func() error {
		if !f.agentRuns() {
			return errors.New("it is not running")
		}
		return nil
	})
}
