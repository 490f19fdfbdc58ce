package sriovtest

import "fmt"

// AddIGB adds two Intel 82576 ports, one on each of two NUMA nodes, with seven VFs
// each. It is the machine of the project's SR-IOV lab, which emulates these ports in
// software and drives them with the kernel's igb and igbvf.
//
//	node 0: PF 0000:21:00.0 enp33s0, VFs 0-6 at 0000:21:10.0 .2 .4 .6, 0000:21:11.0 .2 .4
//	node 1: PF 0000:41:00.0 enp65s0, VFs 0-6 at 0000:41:10.0 .2 .4 .6, 0000:41:11.0 .2 .4
//
// VF 0000:21:10.2 has the network device enp33s16f2, and so on. There is no IOMMU.
func (t *Tree) AddIGB() {
	for node, bus := range []int{0x21, 0x41} {
		distances := [][]int{{10, 20}, {20, 10}}[node]
		t.AddNode(Node{ID: node, CPUs: []int{2 * node, 2*node + 1}, Distances: distances, MemoryKB: 1 << 20})
		pf := fmt.Sprintf("0000:%02x:00.0", bus)
		t.AddPF(PF{
			Address: pf, Driver: "igb", NUMA: node, TotalVFs: 7,
			NetDev: fmt.Sprintf("enp%ds0", bus), Bridge: fmt.Sprintf("0000:%02x:00.0", bus-1),
		})
		for i := range 7 {
			// The first VF is 0x80 functions after the PF, and each further one 2 after
			// that.
			slot, function := 0x10+2*i/8, 2*i%8
			name := fmt.Sprintf("enp%ds%d", bus, slot)
			if function > 0 {
				name += fmt.Sprintf("f%d", function)
			}
			t.AddVF(VF{
				PF: pf, Index: i, Address: fmt.Sprintf("0000:%02x:%02x.%d", bus, slot, function),
				Driver: "igbvf", NetDev: name,
			})
		}
	}
}

// AddICE adds an Intel E810 port with an IOMMU and VFs in every kind of use:
//
//	PF 0000:18:00.0 ens1f0 (ice), node 0
//	VF 0 0000:18:01.0 ens1f0v0 (iavf)
//	VF 1 0000:18:01.1 bound to vfio-pci, group 83
//	VF 2 0000:18:01.2 without a driver
//	VF 3 0000:18:01.3 iavf, its network device in another network namespace
func (t *Tree) AddICE() {
	const pf = "0000:18:00.0"
	t.AddPF(PF{Address: pf, Device: "159b", Driver: "ice", TotalVFs: 128, IOMMUGroup: "40", Bridge: "0000:17:02.0", NetDev: "ens1f0"})
	for i, v := range []VF{
		{Driver: "iavf", NetDev: "ens1f0v0"},
		{Driver: "vfio-pci"},
		{},
		{Driver: "iavf"},
	} {
		v.PF, v.Index, v.Device = pf, i, "1889"
		v.Address = fmt.Sprintf("0000:18:01.%d", i)
		v.IOMMUGroup = fmt.Sprint(82 + i)
		t.AddVF(v)
	}
}

// AddSwitchdev adds an NVIDIA ConnectX-6 Dx port in switchdev mode, whose PF has
// representors besides the uplink:
//
//	PF 0000:08:00.0 enp8s0f0np0 (mlx5_core), port name p0, node 1
//	VF 0 0000:08:00.2 enp8s0f0v0, representor enp8s0f0_0 (pf0vf0)
//	VF 1 0000:08:00.3 bound to mlx5_vfio_pci, group 31, representor enp8s0f0_1 (pf0vf1)
//	subfunction mlx5_core.sf.2, number 88, enp8s0f0s88, representor en8f0pf0sf88 (pf0sf88)
func (t *Tree) AddSwitchdev() {
	const pf, id = "0000:08:00.0", "d0e3b20003a1420c"
	t.AddPF(PF{
		Address: pf, Vendor: "15b3", Device: "101d", Driver: "mlx5_core", NUMA: 1, TotalVFs: 8,
		IOMMUGroup: "29", Bridge: "0000:07:00.0",
	})
	t.AddNetDev(pf, NetDev{Name: "enp8s0f0_0", PhysPortName: "pf0vf0", PhysSwitchID: id})
	t.AddNetDev(pf, NetDev{Name: "enp8s0f0_1", PhysPortName: "pf0vf1", PhysSwitchID: id})
	t.AddNetDev(pf, NetDev{Name: "en8f0pf0sf88", PhysPortName: "pf0sf88", PhysSwitchID: id})
	t.AddNetDev(pf, NetDev{Name: "enp8s0f0np0", PhysPortName: "p0", PhysSwitchID: id})
	t.AddVF(VF{PF: pf, Index: 0, Address: "0000:08:00.2", Device: "101e", Driver: "mlx5_core", IOMMUGroup: "30", NetDev: "enp8s0f0v0"})
	t.AddVF(VF{PF: pf, Index: 1, Address: "0000:08:00.3", Device: "101e", Driver: "mlx5_vfio_pci", IOMMUGroup: "31"})
	t.AddAuxiliary(Auxiliary{ID: "mlx5_core.sf.2", Parent: pf, Driver: "mlx5_core.sf", SFNum: 88, NetDev: "enp8s0f0s88"})
}
