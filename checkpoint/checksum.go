package checkpoint

import (
	"hash/fnv"
	"maps"
	"slices"
	"strconv"
)

// checksum computes the kubelet's checksum of d: FNV-32a over a dump of the
// kubelet's own types, Go type names included. The dump is the one that
// k8s.io/utils/dump.ForHash makes; it is written here by hand because the
// general printer walks every byte of AllocResp by reflection, and because a
// decoder of one file should not need a dependency for it. A test holds the two
// against each other.
func checksum(d *data) uint32 {
	p := &printer{buf: make([]byte, 0, 4096)}
	p.text("(checkpoint.checkpointData){PodDeviceEntries:([]checkpoint.PodDevicesEntry)")
	if d.PodDeviceEntries == nil {
		p.text("<nil>")
	} else {
		p.text("[")
		for i := range d.PodDeviceEntries {
			if i > 0 {
				p.text(" ")
			}
			p.entry(&d.PodDeviceEntries[i])
			p.flush()
		}
		p.text("]")
	}
	p.text(" RegisteredDevices:(map[string][]string)")
	if d.RegisteredDevices == nil {
		p.text("<nil>")
	} else {
		p.text("map[")
		for i, k := range slices.Sorted(maps.Keys(d.RegisteredDevices)) {
			if i > 0 {
				p.text(" ")
			}
			p.text(k)
			p.text(":")
			p.strings(d.RegisteredDevices[k])
		}
		p.text("]")
	}
	p.text("}")
	p.flush()
	return p.sum
}

// printer hashes what is printed to it.
type printer struct {
	buf []byte
	sum uint32
	any bool
}

func (p *printer) text(s string) { p.buf = append(p.buf, s...) }

// flush moves the buffer into the hash.
func (p *printer) flush() {
	const prime = 16777619
	if !p.any {
		p.sum, p.any = fnv.New32a().Sum32(), true
	}
	for _, c := range p.buf {
		p.sum = (p.sum ^ uint32(c)) * prime
	}
	p.buf = p.buf[:0]
}

func (p *printer) entry(e *entry) {
	p.text("{PodUID:(string)")
	p.text(e.PodUID)
	p.text(" ContainerName:(string)")
	p.text(e.ContainerName)
	p.text(" ResourceName:(string)")
	p.text(e.ResourceName)
	p.text(" DeviceIDs:")
	p.deviceIDs(&e.DeviceIDs)
	p.text(" AllocResp:([]uint8)")
	if e.AllocResp == nil {
		p.text("<nil>")
	} else {
		p.text("[")
		for i, b := range e.AllocResp {
			if i > 0 {
				p.text(" ")
			}
			p.buf = strconv.AppendUint(p.buf, uint64(b), 10)
		}
		p.text("]")
	}
	p.text("}")
}

func (p *printer) deviceIDs(d *deviceIDs) {
	if d.isList {
		p.text("([]string)")
		p.strings(d.list)
		return
	}
	p.text("(checkpoint.DevicesPerNUMA)")
	if d.byNode == nil {
		p.text("<nil>")
		return
	}
	p.text("map[")
	for i, node := range slices.Sorted(maps.Keys(d.byNode)) {
		if i > 0 {
			p.text(" ")
		}
		p.buf = strconv.AppendInt(p.buf, node, 10)
		p.text(":")
		p.strings(d.byNode[node])
	}
	p.text("]")
}

func (p *printer) strings(list []string) {
	if list == nil {
		p.text("<nil>")
		return
	}
	p.text("[")
	for i, s := range list {
		if i > 0 {
			p.text(" ")
		}
		p.text(s)
	}
	p.text("]")
}
