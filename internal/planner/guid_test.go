package planner

import (
	"testing"

	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// The PF is asked for a requested GUID if the device is a VF; without a VF there is no
// PF to ask.
func TestGUIDIsWantedOfThePF(t *testing.T) {
	const id, guid = "0000:21:10.4", "c2:11:22:33:44:55:66:77"
	for pf, wanted := range map[string]bool{"0000:21:00.0": true, "": false} {
		w := world{
			networks: `[{"name":"fast","infiniband-guid":"` + guid + `"}]`, containers: []string{"rx"}, devices: []podresources.Device{dev("rx", id)},
			definitions: map[string]string{"fast": `{"type":"ib-sriov","capabilities":{"infinibandGUID":true}}`}, resources: map[string]string{"fast": vfs},
		}
		src := w.sources()
		src.Functions[id] = &sriov.Function{Address: id, PF: pf, Driver: "mlx5_core"}
		p, err := w.planWith(t, src)
		if err != nil {
			t.Fatal(err)
		}
		if vf := p.Attachments[1].Want.VF; (vf != nil) != wanted || wanted && vf.GUID != guid {
			t.Errorf("PF %q: wanted of it %+v", pf, vf)
		}
	}
}
