//go:build nodelab

package cluster

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// onVLAN defines a network of VFs on a VLAN of their PF, with addresses that differ
// in the last byte, from first on.
func (f *fixture) onVLAN(vlan, first int) (name string) {
	f.Helper()
	name = fmt.Sprintf("vlan-%d", vlan)
	f.network(name, Red, fmt.Sprintf(`{"cniVersion": "1.0.0", "plugins": [
		{"type": "vfprops", "vlan": %d},
		{"type": "host-device", "capabilities": {"deviceID": true}, "ipam": {"type": "host-local", "subnet": "10.33.0.0/24", "rangeStart": "10.33.0.%d"}}]}`, vlan, first))
	return name
}

// ping asks once whether a pod reaches the address that another has on net1.
func (f *fixture) ping(from, to *corev1.Pod) error {
	f.Helper()
	pods := f.probe()
	sender := pods[string(from.UID)].containers["main"].PID
	address := pods[string(to.UID)].links["net1"].Addresses[0]
	_, err := lab.Node.run(f.ctx, "/bin/nsenter", fmt.Sprintf("-n/proc/%d/ns/net", sender), "/bin/ping", "-c", "1", "-W", "2", address)
	return err
}

// Pods whose VFs are on one VLAN reach each other, and no others.
func TestTrafficOverVLANs(t *testing.T) {
	f := begin(t)
	together, apart := f.onVLAN(100, 100), f.onVLAN(200, 200)
	for name, network := range map[string]string{"here": together, "there": together, "elsewhere": apart} {
		f.create(name, networks(network), container("main", Red))
	}
	here, there, elsewhere := f.running("here"), f.running("there"), f.running("elsewhere")
	for pod, network := range map[*corev1.Pod]string{here: together, there: together, elsewhere: apart} {
		f.stands(pod, []string{network}, place{"main", Red})
	}
	f.eventually("one pod to reach the other", func() error { return f.ping(here, there) })
	for range 3 {
		if f.ping(here, elsewhere) == nil || f.ping(elsewhere, there) == nil {
			t.Error("a pod on one VLAN reaches one on another")
		}
	}
	f.must(f.ping(there, here))
	f.inOrder()
}
