package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// delegateCall is one call of a scripted delegate, from the log "calls" of its
// node.
type delegateCall struct {
	Verb        string `json:"verb"`
	ContainerID string `json:"containerID"`
	NetNS       string `json:"netns"`
	IfName      string `json:"ifName"`
	Stdin       struct {
		CNIVersion    string                     `json:"cniVersion"`
		Name          string                     `json:"name"`
		DeviceID      string                     `json:"deviceID"`
		PCIBusID      string                     `json:"pciBusID"`
		RuntimeConfig map[string]json.RawMessage `json:"runtimeConfig"`
		PrevResult    json.RawMessage            `json:"prevResult"`
	} `json:"stdin"`
	raw string
}

// runtimeConfig returns a string of runtimeConfig, empty when it is not there.
func (c *delegateCall) runtimeConfig(key string) string {
	var s string
	if raw, ok := c.Stdin.RuntimeConfig[key]; ok && json.Unmarshal(raw, &s) != nil {
		return string(raw)
	}
	return s
}

// calls returns what scripted delegates logged, of these verbs or of all.
func (n *node) calls(verbs ...string) []delegateCall {
	n.t.Helper()
	text, err := os.ReadFile(n.path("calls"))
	if !os.IsNotExist(err) {
		n.must(err)
	}
	var out []delegateCall
	for line := range bytes.Lines(text) {
		call := delegateCall{raw: string(line)}
		n.must(json.Unmarshal(line, &call))
		wanted := len(verbs) == 0
		for _, v := range verbs {
			wanted = wanted || v == call.Verb
		}
		if wanted {
			out = append(out, call)
		}
	}
	return out
}

// containerOf asks for a number of devices of a resource.
func containerOf(name corev1.ResourceName, containerName string, devices int) corev1.Container {
	return corev1.Container{Name: containerName, Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
		name: *resource.NewQuantity(int64(devices), resource.DecimalSI),
	}}}
}

// advertised are devices of one NUMA node as a device plugin advertises them.
func (n *node) advertised(ids ...string) []fakekubelet.Device {
	var out []fakekubelet.Device
	for _, id := range ids {
		out = append(out, fakekubelet.Device{ID: id, NUMA: 0})
	}
	return out
}

// TestClauseDevices proves the clauses of devices, each under its id. DV-dra is
// not among them: no source of claims exists yet.
func TestClauseDevices(t *testing.T) {
}
