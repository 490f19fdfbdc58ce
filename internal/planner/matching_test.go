package planner

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/podresources"
)

// A network moves to another device if only its own suits a later network.
func TestOneNetworkGivesWayToAnother(t *testing.T) {
	low, high := claimed("vf-0", "0000:21:10.0", "a"), claimed("vf-1", "0000:21:10.4", "b")
	other := with(high, func(d *podresources.Device) { d.Resource = "zeta.example/vfs" })
	inTX := func(d podresources.Device) podresources.Device {
		return with(d, func(d *podresources.Device) { d.Containers = []string{"tx"} })
	}
	ofContainer := `{"name":"fast","manifold.dev/claim":"nics","manifold.dev/container":"rx"}`
	for name, tc := range map[string]struct {
		networks []string
		devices  []podresources.Device
		want     string
	}{
		"of a claim, to one of a container": {
			[]string{ofNics("fast", ""), ofContainer}, []podresources.Device{low, inTX(high)},
			"net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"of any resource, to one of a resource": {
			[]string{ofNics("free", ""), ofNics("fast", "")}, []podresources.Device{low, other},
			"net1=shop/free:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"two": {
			[]string{ofNics("free", ""), ofNics("fast", ""), ofContainer}, []podresources.Device{low, inTX(with(claimed("vf-2", "0000:21:10.2", ""), unnamed)), inTX(other)},
			"net1=shop/free:0000:21:10.4 net2=shop/fast:0000:21:10.2 net3=shop/fast:0000:21:10.0"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world{networks: "[" + strings.Join(tc.networks, ",") + "]", definitions: map[string]string{"fast": hostDevice, "free": hostDevice},
				resources: map[string]string{"fast": vfs}, devices: tc.devices, claims: nics}
			p, err := w.plan(t)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := summary(p), "eth0=cluster "+tc.want; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			// The reason does not claim that a network which moved has simply the next device.
			for i, a := range p.Attachments[1:] {
				if moved := strings.Contains(a.Reason, ", such that network shop/fast has one too"); moved != (i < len(tc.networks)-1) {
					t.Errorf("%s: %s", a.IfName, a.Reason)
				}
			}
		})
	}
}

// feasible reports whether every wanted container, "" for any, can have one of the
// devices that it holds.
func feasible(wanted []string, devices []podresources.Device) bool {
	if len(wanted) == 0 {
		return true
	}
	for i, d := range devices {
		if (wanted[0] == "" || slices.Contains(d.Containers, wanted[0])) && feasible(wanted[1:], slices.Delete(slices.Clone(devices), i, i+1)) {
			return true
		}
	}
	return false
}

// A pod is refused exactly if its devices cannot serve its networks, and no device
// serves two.
func TestPodsAreRefusedOnlyIfTheirDevicesDoNotSuffice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	containers := []string{"setup", "rx", "tx"}
	planned, refused := 0, 0
	for range 500 {
		w := world{containers: containers, definitions: map[string]string{"fast": hostDevice}, resources: map[string]string{"fast": vfs}}
		for i := range 1 + rng.IntN(4) {
			w.devices = append(w.devices, shared(fmt.Sprintf("0000:21:10.%d", i), containers[rng.IntN(3):][:1]...))
			if d := &w.devices[i]; rng.IntN(2) == 0 && d.Containers[0] != "tx" {
				d.Containers = []string{d.Containers[0], "tx"}
			}
		}
		var networks, wanted []string
		for range 1 + rng.IntN(len(w.devices)) {
			name := append(containers, "")[rng.IntN(4)]
			wanted = append(wanted, name)
			networks = append(networks, fmt.Sprintf(`{"name":"fast","manifold.dev/container":%q}`, name))
		}
		w.networks = "[" + strings.Join(networks, ",") + "]"
		p, err := w.plan(t)
		if (err == nil) != feasible(wanted, w.devices) {
			t.Fatalf("%s of %+v: %v", w.networks, w.devices, err)
		}
		if err != nil {
			refused++
			continue
		}
		planned++
		seen := map[string]bool{}
		for i, a := range p.Attachments[1:] {
			if seen[a.Device.ID] || wanted[i] != "" && !slices.Contains(strings.Split(a.Device.Container, ","), wanted[i]) {
				t.Fatalf("%s of %+v: %s", w.networks, w.devices, summary(p))
			}
			seen[a.Device.ID] = true
		}
	}
	if planned < 100 || refused < 100 {
		t.Errorf("%d planned, %d refused: the cases are too one-sided", planned, refused)
	}
}
