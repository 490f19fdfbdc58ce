package sriovtest

import (
	"fmt"
	"strings"
)

// Node describes a NUMA node.
type Node struct {
	ID        int
	CPUs      []int // logical processors, each a core of its own
	Distances []int // to every node, in order of their IDs
	MemoryKB  int   // usable memory in units of 1024 bytes
}

// AddNode adds a NUMA node with its processors and memory, and the tree's
// proc/meminfo, without which topology readers find no memory at all.
func (t *Tree) AddNode(n Node) {
	const hugepages = "hugepages-2048kB"
	dir := fmt.Sprintf("sys/devices/system/node/node%d", n.ID)
	t.mkdir(dir + "/hugepages/" + hugepages)
	for _, name := range []string{"nr_hugepages", "free_hugepages", "surplus_hugepages"} {
		t.attr(dir+"/hugepages/"+hugepages+"/"+name, 0)
	}
	t.attr(dir+"/distance", list(n.Distances, " "))
	t.attr(dir+"/cpulist", list(n.CPUs, ","))
	t.attr(dir+"/meminfo", fmt.Sprintf("Node %d MemTotal: %d kB", n.ID, n.MemoryKB))
	for _, cpu := range n.CPUs {
		target := fmt.Sprintf("sys/devices/system/cpu/cpu%d", cpu)
		t.mkdir(target + "/topology")
		t.attr(target+"/topology/core_id", cpu)
		t.link(fmt.Sprintf("%s/cpu%d", dir, cpu), target)
	}
	t.mkdir("sys/devices/system/memory")
	t.attr("sys/devices/system/memory/block_size_bytes", "8000000")
	t.mkdir("proc")
	t.attr("proc/meminfo", "MemTotal: 0 kB\nHugepagesize: 2048 kB\nHugetlb: 0 kB")
}

func list(numbers []int, sep string) string {
	return strings.Join(strings.Fields(strings.Trim(fmt.Sprint(numbers), "[]")), sep)
}
