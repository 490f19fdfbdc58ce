package checkpoint

import (
	"maps"
	"slices"
	"strconv"
)

// checksum computes the kubelet's checksum of d: FNV-32a over a dump of the kubelet's
// own types, including their Go type names. A nil slice or map is dumped as "<nil>", an
// empty one as "[]". The dump equals the output of k8s.io/utils/dump.ForHash, but is
// written by hand, straight into the hash: the general printer walks every byte of
// AllocResp by reflection, and a decoder of one file should not need a dependency for
// it. A test compares the two dumps.
//
// lists selects the type that device IDs had before Kubernetes 1.20. The enclosing
// types had the same names then.
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

// hash is the running state of an FNV-32a sum. The standard library's implementation
// takes its bytes through an interface, at twice the cost.
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

// bytes dumps b in decimal. These bytes are nine tenths of a file's dump.
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
