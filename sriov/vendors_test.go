package sriov_test

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// layout is what must be read from a vendor's adapter.
type layout struct {
	add     func(*sriovtest.Tree)
	uplinks map[string]string // by PF
	vfs     map[string]vfLayout
	// representors belong to a PF and are never its uplink.
	representors map[string]string
	// auxiliary devices with their parent function and number.
	auxiliary map[string]sriov.Auxiliary
}

// vfLayout is a VF: its PF's uplink, its index on the PF, and its driver.
type vfLayout struct {
	uplink string
	index  int
	driver string
}

// noSF returns an auxiliary device that is not a subfunction.
func noSF(parent, driver string) sriov.Auxiliary {
	return sriov.Auxiliary{Parent: parent, Driver: driver, SFNum: -1}
}

var layouts = map[string]layout{
	"i40e": {
		add:     (*sriovtest.Tree).AddI40E,
		uplinks: map[string]string{"0000:5e:00.0": "ens3f0", "0000:5e:00.1": "ens3f1"},
		vfs: map[string]vfLayout{
			"0000:5e:02.0": {"ens3f0", 0, "iavf"}, "0000:5e:02.1": {"ens3f0", 1, "iavf"},
			"0000:5e:0a.0": {"ens3f1", 0, "iavf"}, "0000:5e:0a.1": {"ens3f1", 1, "vfio-pci"},
		},
		auxiliary: map[string]sriov.Auxiliary{"i40e.iwarp.1": noSF("0000:5e:00.1", "irdma.gen_1")},
	},
	"ice": {
		add:     (*sriovtest.Tree).AddICE,
		uplinks: map[string]string{"0000:18:00.0": "ens1f0"},
		vfs:     map[string]vfLayout{"0000:18:01.0": {"ens1f0", 0, "iavf"}, "0000:18:01.1": {"ens1f0", 1, "vfio-pci"}, "0000:18:01.2": {"ens1f0", 2, ""}},
	},
	"ice switchdev": {
		add:          (*sriovtest.Tree).AddICESwitchdev,
		uplinks:      map[string]string{"0000:51:00.0": "ens4f0np0"},
		vfs:          map[string]vfLayout{"0000:51:01.0": {"ens4f0np0", 0, "iavf"}, "0000:51:01.1": {"ens4f0np0", 1, "vfio-pci"}},
		representors: map[string]string{"ens4f0npf0vf0": "0000:51:00.0", "ens4f0npf0vf1": "0000:51:00.0"},
		auxiliary:    map[string]sriov.Auxiliary{"ice.roce.0": noSF("0000:51:00.0", "irdma.gen_2")},
	},
	"bnxt": {
		add:     (*sriovtest.Tree).AddBNXT,
		uplinks: map[string]string{"0000:86:00.0": "enp134s0f0np0", "0000:86:00.1": "enp134s0f1np1"},
		vfs: map[string]vfLayout{
			"0000:86:02.0": {"enp134s0f0np0", 0, "bnxt_en"}, "0000:86:02.1": {"enp134s0f0np0", 1, ""}, "0000:86:0a.0": {"enp134s0f1np1", 0, "bnxt_en"},
		},
		representors: map[string]string{"eth4": "0000:86:00.1"},
		auxiliary:    map[string]sriov.Auxiliary{"bnxt_en.rdma.0": noSF("0000:86:00.0", "bnxt_re.rdma")},
	},
	"mlx5 switchdev": {
		add:          (*sriovtest.Tree).AddSwitchdev,
		uplinks:      map[string]string{"0000:08:00.0": "enp8s0f0np0"},
		vfs:          map[string]vfLayout{"0000:08:00.2": {"enp8s0f0np0", 0, "mlx5_core"}, "0000:08:00.3": {"enp8s0f0np0", 1, "mlx5_vfio_pci"}},
		representors: map[string]string{"enp8s0f0_0": "0000:08:00.0", "enp8s0f0_1": "0000:08:00.0", "en8f0pf0sf88": "0000:08:00.0"},
	},
	"mlx5 InfiniBand": {
		add:     (*sriovtest.Tree).AddMLX5InfiniBand,
		uplinks: map[string]string{"0000:3b:00.0": "ibp59s0f0"},
		vfs:     map[string]vfLayout{"0000:3b:00.2": {"ibp59s0f0", 0, "mlx5_core"}, "0000:3b:00.3": {"ibp59s0f0", 1, "vfio-pci"}},
	},
	"mlx5 bonded": {
		add:     (*sriovtest.Tree).AddMLX5Dual,
		uplinks: map[string]string{"0000:c1:00.0": "enp193s0f0np0", "0000:c1:00.1": "enp193s0f1np1"},
		vfs:     map[string]vfLayout{"0000:c1:00.2": {"enp193s0f0np0", 0, "mlx5_core"}, "0000:c1:01.2": {"enp193s0f1np1", 0, "mlx5_core"}},
		representors: map[string]string{
			"enp193s0f0r0": "0000:c1:00.0", "en193f0sf88": "0000:c1:00.0", "enp193s0f1r0": "0000:c1:00.1", "en193c1vf0": "0000:c1:00.1",
		},
		auxiliary: map[string]sriov.Auxiliary{
			"mlx5_core.eth.1": noSF("0000:c1:00.1", "mlx5_core.eth"),
			"mlx5_core.sf.4":  {Parent: "0000:c1:00.0", Driver: "mlx5_core.sf", SFNum: 88, NetDevs: []string{"enp193s0f0s88"}},
			"mlx5_core.eth.2": noSF("0000:c1:00.0", "mlx5_core.eth"), // on the subfunction
		},
	},
}

// eachLayout runs a test on each vendor's adapter in a machine of its own.
func eachLayout(t *testing.T, test func(t *testing.T, tree *sriovtest.Tree, want layout)) {
	for name, want := range layouts {
		t.Run(name, func(t *testing.T) {
			tree := build(t, want.add)
			test(t, tree, want)
			check(t, tree)
		})
	}
}

func TestPFsOfVendors(t *testing.T) {
	eachLayout(t, func(t *testing.T, tree *sriovtest.Tree, want layout) {
		for pf, uplink := range want.uplinks {
			if got, err := tree.FS().Uplink(pf); got != uplink || err != nil {
				t.Errorf("uplink of %s: %s, %v, want %s", pf, got, err, uplink)
			}
			if f := function(t, tree, pf); !f.IsPF() || f.Userspace() {
				t.Errorf("PF %s: %+v", pf, f)
			}
		}
		for name, pf := range want.representors {
			if got, err := tree.FS().OfNetDev(name); got != pf || err != nil {
				t.Errorf("%s stands on %s, %v, want %s", name, got, err, pf)
			}
		}
	})
}

// A representor is never taken for its PF's uplink, even if it is the only network
// device.
func TestRepresentorsOfVendors(t *testing.T) {
	eachLayout(t, func(t *testing.T, tree *sriovtest.Tree, want layout) {
		for _, uplink := range want.uplinks {
			tree.RemoveNetDev(uplink)
		}
		for pf := range want.uplinks {
			if got, err := tree.FS().Uplink(pf); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("without its uplink %s has %q, %v", pf, got, err)
			}
		}
	})
}

func TestVFsOfVendors(t *testing.T) {
	eachLayout(t, func(t *testing.T, tree *sriovtest.Tree, want layout) {
		for vf, w := range want.vfs {
			uplink, index, err := tree.FS().PFNetDev(vf)
			if uplink != w.uplink || index != w.index || err != nil {
				t.Errorf("VF %s: %d of %s, %v, want %d of %s", vf, index, uplink, err, w.index, w.uplink)
			}
			if f := function(t, tree, vf); !f.IsVF() || f.Driver != w.driver || f.VFIndex != w.index {
				t.Errorf("VF %s: %+v", vf, f)
			}
			if s, err := tree.Host().Snapshot(vf); err != nil || s.VF == nil || s.PF != w.uplink {
				t.Errorf("VF %s: %+v, %v", vf, s, err)
			}
		}
	})
}

func TestAuxiliaryDevicesOfVendors(t *testing.T) {
	eachLayout(t, func(t *testing.T, tree *sriovtest.Tree, want layout) {
		for id, w := range want.auxiliary {
			got, err := tree.FS().Auxiliary(id)
			if err != nil || got.Parent != w.Parent || got.Driver != w.Driver || got.SFNum != w.SFNum || len(got.NetDevs) != len(w.NetDevs) {
				t.Errorf("%s: %+v, %v, want %+v", id, got, err, w)
			}
			for _, name := range w.NetDevs {
				if addr, err := tree.FS().OfNetDev(name); addr != w.Parent || err != nil {
					t.Errorf("%s of %s stands on %s, %v", name, id, addr, err)
				}
			}
		}
	})
}
