package sriovtest

import (
	"fmt"
	"strings"
)

// Node describes a NUMA node.
type Node struct {
	ID        int
	CPUs      []int // logical processors, each a separate core
	Distances []int // to every node, ordered by node ID
	MemoryKB  int   // usable memory in units of 1024 bytes
}

// AddNode adds a NUMA node with its processors and memory. It also writes the tree's
// proc/meminfo, without which topology readers find no memory.
func (t *Tree) AddNode(n Node) {
	dir := fmt.Sprintf("sys/devices/system/node/node%d", n.ID)
	var cpus []entry
	for _, id := range n.CPUs {
		cpu := fmt.Sprintf("cpu%d", id)
		t.place("sys/devices/system/cpu/"+cpu+"/topology", []entry{attr("core_id", id)}, nil)
		cpus = append(cpus, entry{cpu, "sys/devices/system/cpu/" + cpu})
	}
	t.place(dir, []entry{
		attr("distance", list(n.Distances, " ")), attr("cpulist", list(n.CPUs, ",")),
		attr("meminfo", fmt.Sprintf("Node %d MemTotal: %d kB", n.ID, n.MemoryKB)),
	}, cpus)
	t.place(dir+"/hugepages/hugepages-2048kB", []entry{
		attr("nr_hugepages", 0), attr("free_hugepages", 0), attr("surplus_hugepages", 0),
	}, nil)
	t.mkdir("sys/devices/system/memory")
	t.write("sys/devices/system/memory", attr("block_size_bytes", "8000000"))
	t.mkdir("proc")
	t.write("proc", attr("meminfo", "MemTotal: 0 kB\nHugepagesize: 2048 kB\nHugetlb: 0 kB"))
}

func list(numbers []int, sep string) string {
	return strings.Join(strings.Fields(strings.Trim(fmt.Sprint(numbers), "[]")), sep)
}
