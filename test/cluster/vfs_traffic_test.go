//go:build nodelab

package cluster

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// onVLAN defines a network of VFs on a VLAN of their PF. Its addresses start at
// 10.33.0.first.
func (f *fixture) onVLAN(vlan, first int) (name string) {
	f.Helper()
	name = fmt.Sprintf("vlan-%d", vlan)
	f.network(name, Blue, fmt.Sprintf(`{"cniVersion": "1.0.0", "plugins": [
		{"type": "vfprops", "vlan": %d},
		{"type": "host-device", "capabilities": {"deviceID": true}, "ipam": {"type": "host-local", "subnet": "10.33.0.0/24", "rangeStart": "10.33.0.%d"}}]}`, vlan, first))
	return name
}

// ping sends pings, one a second, from one pod to the address that another has on net1,
// and returns nil if any is answered.
func (f *fixture) ping(pods map[string]*onNode, from, to *corev1.Pod, times int) error {
	sender := pods[string(from.UID)].containers["main"].PID
	address := pods[string(to.UID)].links["net1"].Addresses[0]
	_, err := lab.Node.run(f.ctx, "/bin/nsenter", fmt.Sprintf("-n/proc/%d/ns/net", sender), "/bin/ping", "-c", fmt.Sprint(times), "-W", "2", address)
	return err
}

// trafficOverVLANs creates three pods, two of them with VFs on the same VLAN, and
// proves that these two reach each other and not the third.
func (f *fixture) trafficOverVLANs() {
	f.Helper()
	together, apart := f.onVLAN(100, 100), f.onVLAN(200, 200)
	for name, network := range map[string]string{"here": together, "there": together, "elsewhere": apart} {
		f.create(name, networks(network), container("main", Blue))
	}
	here, there, elsewhere := f.running("here"), f.running("there"), f.running("elsewhere")
	for pod, network := range map[*corev1.Pod]string{here: together, there: together, elsewhere: apart} {
		f.stands(pod, []string{network}, place{"main", Blue})
	}
	pods := f.probe()
	f.eventually("one pod to reach the other", func() error { return f.ping(pods, here, there, 1) })
	apartFrom := func(from, to *corev1.Pod) func() error {
		return func() error {
			if f.ping(pods, from, to, 3) == nil {
				return fmt.Errorf("pod %s reaches %s, which is on another VLAN", from.Name, to.Name)
			}
			return nil
		}
	}
	f.must(atOnce(apartFrom(here, elsewhere), apartFrom(elsewhere, there)))
	f.eventually("the other pod to reach the first", func() error { return f.ping(pods, there, here, 1) })
}
