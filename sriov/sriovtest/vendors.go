package sriovtest

import "fmt"

// AddI40E adds both ports of an Intel XL710, whose driver names no ports: only the
// links tell which VF belongs to which PF.
//
//	PF 0000:5e:00.0 ens3f0 (i40e), node 0; VFs 0, 1 at 0000:5e:02.0 ens3f0v0, 02.1 ens3f0v1 (iavf)
//	PF 0000:5e:00.1 ens3f1 (i40e), node 0; VFs 0, 1 at 0000:5e:0a.0 ens3f1v0, 0a.1 bound to vfio-pci
//
// Each PF has the auxiliary device of its RDMA driver, which has no network device.
func (t *Tree) AddI40E() {
	for port, first := range []int{0x02, 0x0a} {
		pf, name := fmt.Sprintf("0000:5e:00.%d", port), fmt.Sprintf("ens3f%d", port)
		t.AddPF(PF{Address: pf, Device: "1583", Driver: "i40e", TotalVFs: 64, Bridge: "0000:5d:00.0", IOMMUGroup: fmt.Sprint(50 + port)})
		t.AddNetDev(pf, NetDev{Name: name})
		t.AddAuxiliary(Auxiliary{ID: fmt.Sprintf("i40e.iwarp.%d", port), Parent: pf, Driver: "irdma.gen_1", SFNum: NoSF})
		for i := range 2 {
			v := VF{
				PF: pf, Index: i, Device: "154c", Address: fmt.Sprintf("0000:5e:%02x.%d", first, i), Driver: "iavf",
				NetDev: fmt.Sprintf("%sv%d", name, i), IOMMUGroup: fmt.Sprint(60 + 2*port + i),
			}
			if port == 1 && i == 1 {
				v.Driver, v.NetDev = "vfio-pci", ""
			}
			t.AddVF(v)
		}
	}
}

// AddICESwitchdev adds an Intel E810 port in switchdev mode, whose ports are named by
// devlink:
//
//	PF 0000:51:00.0 ens4f0np0 (ice), port name p0, node 1
//	VF 0 0000:51:01.0 ens4f0v0 (iavf), representor ens4f0npf0vf0 (pf0vf0)
//	VF 1 0000:51:01.1 bound to vfio-pci, representor ens4f0npf0vf1 (pf0vf1)
//
// The PF has the auxiliary device of its RDMA driver, which has no network device.
func (t *Tree) AddICESwitchdev() {
	const pf, id = "0000:51:00.0", "40a6b70a1b2c"
	t.AddPF(PF{Address: pf, Device: "1592", Driver: "ice", NUMA: 1, TotalVFs: 256, Bridge: "0000:50:02.0", IOMMUGroup: "70"})
	t.AddNetDev(pf, NetDev{Name: "ens4f0npf0vf0", PhysPortName: "pf0vf0", PhysSwitchID: id})
	t.AddNetDev(pf, NetDev{Name: "ens4f0npf0vf1", PhysPortName: "pf0vf1", PhysSwitchID: id})
	t.AddNetDev(pf, NetDev{Name: "ens4f0np0", PhysPortName: "p0", PhysSwitchID: id})
	t.AddAuxiliary(Auxiliary{ID: "ice.roce.0", Parent: pf, Driver: "irdma.gen_2", SFNum: NoSF})
	t.AddVF(VF{PF: pf, Index: 0, Device: "1889", Address: "0000:51:01.0", Driver: "iavf", NetDev: "ens4f0v0", IOMMUGroup: "71"})
	t.AddVF(VF{PF: pf, Index: 1, Device: "1889", Address: "0000:51:01.1", Driver: "vfio-pci", IOMMUGroup: "72"})
}

// AddBNXT adds both ports of a Broadcom BCM57414. PF and VF have the same driver, which
// numbers its ports by PCI function, in legacy mode too:
//
//	PF 0000:86:00.0 enp134s0f0np0 (bnxt_en), port name p0, legacy
//	VF 0 0000:86:02.0 enp134s0f0v0 (bnxt_en), VF 1 0000:86:02.1 without a driver
//	PF 0000:86:00.1 enp134s0f1np1 (bnxt_en), port name p1, switchdev
//	VF 0 0000:86:0a.0 enp134s0f1v0 (bnxt_en), representor eth4 (pf1vf0)
//
// Each PF has the auxiliary device of its RDMA driver, which has no network device.
func (t *Tree) AddBNXT() {
	const id = "bc97e1fffe5a7c10"
	for port := range 2 {
		pf := fmt.Sprintf("0000:86:00.%d", port)
		uplink := NetDev{Name: fmt.Sprintf("enp134s0f%dnp%d", port, port), PhysPortName: fmt.Sprintf("p%d", port)}
		t.AddPF(PF{Address: pf, Vendor: "14e4", Device: "16d7", Driver: "bnxt_en", NUMA: 1, TotalVFs: 64, Bridge: "0000:85:00.0"})
		if port == 1 {
			uplink.PhysSwitchID = id
			t.AddNetDev(pf, NetDev{Name: "eth4", PhysPortName: "pf1vf0", PhysSwitchID: id})
		}
		t.AddNetDev(pf, uplink)
		t.AddAuxiliary(Auxiliary{ID: fmt.Sprintf("bnxt_en.rdma.%d", port), Parent: pf, Driver: "bnxt_re.rdma", SFNum: NoSF})
		t.AddVF(VF{
			PF: pf, Index: 0, Device: "16dc", Address: []string{"0000:86:02.0", "0000:86:0a.0"}[port],
			Driver: "bnxt_en", NetDev: fmt.Sprintf("enp134s0f%dv0", port),
		})
	}
	t.AddVF(VF{PF: "0000:86:00.0", Index: 1, Device: "16dc", Address: "0000:86:02.1"})
}

// AddMLX5Dual adds both ports of an NVIDIA ConnectX-7 in a bond. All ports of both PFs
// then belong to one switch, and only the PF number in a representor's port name tells
// which PF it belongs to. Each PF and each subfunction has auxiliary devices of its own
// for its network and RDMA drivers; a subfunction's network device sits on the
// subfunction all the same.
//
//	PF 0000:c1:00.0 enp193s0f0np0 (mlx5_core), port name p0, node 1
//	VF 0 0000:c1:00.2 enp193s0f0v0, representor enp193s0f0r0 (pf0vf0)
//	subfunction mlx5_core.sf.4, number 88, enp193s0f0s88, representor en193f0sf88 (pf0sf88)
//	PF 0000:c1:00.1 enp193s0f1np1 (mlx5_core), port name p1
//	VF 0 0000:c1:01.2 enp193s0f1v0, representor enp193s0f1r0 (pf1vf0)
//	representor en193c1vf0 (c1pf1vf0) of a VF on an external controller
func (t *Tree) AddMLX5Dual() {
	const id = "c470bd0003a1420c"
	for port, vf := range []string{"0000:c1:00.2", "0000:c1:01.2"} {
		pf, name := fmt.Sprintf("0000:c1:00.%d", port), fmt.Sprintf("enp193s0f%d", port)
		t.AddPF(PF{Address: pf, Vendor: "15b3", Device: "1021", Driver: "mlx5_core", NUMA: 1, TotalVFs: 16, Bridge: "0000:c0:01.0"})
		t.AddNetDev(pf, NetDev{Name: name + "r0", PhysPortName: fmt.Sprintf("pf%dvf0", port), PhysSwitchID: id})
		t.AddNetDev(pf, NetDev{Name: fmt.Sprintf("%snp%d", name, port), PhysPortName: fmt.Sprintf("p%d", port), PhysSwitchID: id})
		t.AddVF(VF{PF: pf, Index: 0, Device: "101e", Address: vf, Driver: "mlx5_core", NetDev: name + "v0"})
		t.AddAuxiliary(Auxiliary{ID: fmt.Sprintf("mlx5_core.eth.%d", port), Parent: pf, Driver: "mlx5_core.eth", SFNum: NoSF})
		t.AddAuxiliary(Auxiliary{ID: fmt.Sprintf("mlx5_core.rdma.%d", port), Parent: pf, Driver: "mlx5_ib.rdma", SFNum: NoSF})
	}
	t.AddNetDev("0000:c1:00.0", NetDev{Name: "en193f0sf88", PhysPortName: "pf0sf88", PhysSwitchID: id})
	t.AddNetDev("0000:c1:00.1", NetDev{Name: "en193c1vf0", PhysPortName: "c1pf1vf0", PhysSwitchID: id})
	t.AddAuxiliary(Auxiliary{ID: "mlx5_core.sf.4", Parent: "0000:c1:00.0", Driver: "mlx5_core.sf", SFNum: 88, NetDev: "enp193s0f0s88"})
	t.AddAuxiliary(Auxiliary{ID: "mlx5_core.eth.2", Parent: "mlx5_core.sf.4", Driver: "mlx5_core.eth", SFNum: NoSF})
}

// AddMLX5InfiniBand adds an NVIDIA ConnectX-6 port on an InfiniBand network. Its
// network devices are IPoIB devices, and its VFs were never given a GUID:
//
//	PF 0000:3b:00.0 ibp59s0f0 (mlx5_core), node 0
//	VF 0 0000:3b:00.2 ibp59s0f0v0 (mlx5_core), its own GUID b8:59:9f:03:00:a4:3e:7c
//	VF 1 0000:3b:00.3 bound to vfio-pci, group 91
func (t *Tree) AddMLX5InfiniBand() {
	const pf, begin = "0000:3b:00.0", "00:00:10:%s:fe:80:00:00:00:00:00:00:b8:59:9f:03:00:a4:3e:%s"
	t.AddPF(PF{Address: pf, Vendor: "15b3", Device: "101b", Class: infinibandClass, Driver: "mlx5_core", TotalVFs: 8, Bridge: "0000:3a:00.0", IOMMUGroup: "89"})
	t.AddNetDev(pf, NetDev{Name: "ibp59s0f0", MAC: fmt.Sprintf(begin, "29", "7a")})
	t.AddVF(VF{PF: pf, Index: 0, Device: "101c", Address: "0000:3b:00.2", Driver: "mlx5_core", IOMMUGroup: "90"})
	t.AddNetDev("0000:3b:00.2", NetDev{Name: "ibp59s0f0v0", MAC: fmt.Sprintf(begin, "2a", "7c")})
	t.AddVF(VF{PF: pf, Index: 1, Device: "101c", Address: "0000:3b:00.3", Driver: "vfio-pci", IOMMUGroup: "91"})
}
