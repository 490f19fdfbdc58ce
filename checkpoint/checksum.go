package checkpoint

import (
	"maps"
	"slices"
	"strconv"
)

// checksum computes the kubelet's checksum of d: FNV-32a over a dump of the
// kubelet's own types, Go type names included; a nil slice or map is dumped as
// "<nil>", an empty one as "[]". The dump is the one that
// k8s.io/utils/dump.ForHash makes; it is written here by hand, straight into the
// hash, because the general printer walks every byte of AllocResp by reflection,
// and because a decoder of one file should not need a dependency for it. A test
// holds the two against each other.
//
// lists says that device IDs are of the type that they had before Kubernetes
// 1.20. The types around them had the same names then.
func checksum(d *data, lists bool) uint32 {
	h := hash(offset)
	h.text("(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)")
	if d.PodDeviceEntries == nil {
		h.text("<nil>")
	} else {
		h.text("[")
		for i := range d.PodDeviceEntries {
			h.blank(i)
			h.entry(&d.PodDeviceEntries[i], lists)
		}
		h.text("]")
	}
	h.text(" RegisteredDevices:(map[string][]string)")
	if d.RegisteredDevices == nil {
		h.text("<nil>")
	} else {
		h.text("map[")
		for i, k := range slices.Sorted(maps.Keys(d.RegisteredDevices)) {
			h.blank(i)
			h.text(k)
			h.text(":")
			h.strings(d.RegisteredDevices[k])
		}
		h.text("]")
	}
	h.text("}")
	return uint32(h)
}

// hash is an FNV-32a sum in the making. The standard library's takes its bytes
// through an interface, at twice the cost.
type hash uint32

const (
	offset = 2166136261
	prime  = 16777619
)

func (h *hash) text(s string) {
	sum := *h
	for i := range len(s) {
		sum = (sum ^ hash(s[i])) * prime
	}
	*h = sum
}

// blank separates element i of a list from the one before it.
func (h *hash) blank(i int) {
	if i > 0 {
		h.text(" ")
	}
}

func (h *hash) entry(e *entry, lists bool) {
	h.text("{PodUID:(string)")
	h.text(e.PodUID)
	h.text(" ContainerName:(string)")
	h.text(e.ContainerName)
	h.text(" ResourceName:(string)")
	h.text(e.ResourceName)
	h.text(" DeviceIDs:")
	if lists {
		h.text("([]string)")
	} else {
		h.text("(checkpoint.DevicesPerNUMA)")
	}
	h.deviceIDs(&e.DeviceIDs)
	h.text(" AllocResp:([]uint8)")
	h.bytes(e.AllocResp)
	h.text("}")
}

func (h *hash) deviceIDs(d *deviceIDs) {
	switch d.form {
	case formNull:
		h.text("<nil>")
	case formList:
		h.strings(d.nodes[0].IDs)
	case formMap:
		h.text("map[")
		for i, n := range d.nodes {
			h.blank(i)
			h.text(strconv.FormatInt(n.Node, 10))
			h.text(":")
			h.strings(n.IDs)
		}
		h.text("]")
	}
}

func (h *hash) strings(list []string) {
	if list == nil {
		h.text("<nil>")
		return
	}
	h.text("[")
	for i, s := range list {
		h.blank(i)
		h.text(s)
	}
	h.text("]")
}

// bytes prints b in decimal. Nine tenths of a file's dump are these.
func (h *hash) bytes(b []byte) {
	if b == nil {
		h.text("<nil>")
		return
	}
	h.text("[")
	sum := *h
	for i, c := range b {
		if i > 0 {
			sum = (sum ^ ' ') * prime
		}
		if c >= 100 {
			sum = (sum ^ hash('0'+c/100)) * prime
		}
		if c >= 10 {
			sum = (sum ^ hash('0'+c/10%10)) * prime
		}
		sum = (sum ^ hash('0'+c%10)) * prime
	}
	*h = sum
	h.text("]")
}
