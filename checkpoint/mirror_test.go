package checkpoint

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"k8s.io/utils/dump"
)

// The kubelet's own types under their own names. The dump behind the kubelet's checksum
// contains the names, so these types must not be renamed.

// DevicesPerNUMA mirrors the kubelet's type.
type DevicesPerNUMA map[int64][]string

// PodDevicesEntry mirrors the kubelet's type.
type PodDevicesEntry struct {
	PodUID, ContainerName, ResourceName string
	DeviceIDs                           DevicesPerNUMA
	AllocResp                           []byte
}

type checkpointData struct {
	PodDeviceEntries  []PodDevicesEntry
	RegisteredDevices map[string][]string
}

// PodDevicesEntryV1 mirrors the form before 1.20. The kubelet replaces its name in the
// dump by the current one.
type PodDevicesEntryV1 struct {
	PodUID, ContainerName, ResourceName string
	DeviceIDs                           []string
	AllocResp                           []byte
}

type checkpointDataV1 struct {
	PodDeviceEntries  []PodDevicesEntryV1
	RegisteredDevices map[string][]string
}

// sum computes the checksum as the kubelet does.
func (m checkpointData) sum() uint32 { return fnv32a(dump.ForHash(m)) }

// sum computes the checksum of the form before 1.20 as the kubelet does.
func (m checkpointDataV1) sum() uint32 {
	s := strings.Replace(dump.ForHash(m), "checkpointDataV1", "checkpointData", 1)
	return fnv32a(strings.ReplaceAll(s, "PodDevicesEntryV1", "PodDevicesEntry"))
}

func fnv32a(s string) uint32 {
	h := fnv.New32a()
	fmt.Fprint(h, s)
	return h.Sum32()
}

// entries converts the content to this package's form.
func (m checkpointData) entries() []Entry {
	var out []Entry
	if m.PodDeviceEntries != nil {
		out = []Entry{}
	}
	for _, e := range m.PodDeviceEntries {
		to := Entry{PodUID: e.PodUID, Container: e.ContainerName, Resource: e.ResourceName, AllocResp: e.AllocResp}
		if e.DeviceIDs != nil {
			to.Devices = []NUMADevices{}
		}
		for _, node := range slices.Sorted(maps.Keys(e.DeviceIDs)) {
			to.Devices = append(to.Devices, NUMADevices{node, e.DeviceIDs[node]})
		}
		out = append(out, to)
	}
	return out
}

// entries converts the form before 1.20 to this package's form.
func (m checkpointDataV1) entries() []Entry {
	var out []Entry
	if m.PodDeviceEntries != nil {
		out = []Entry{}
	}
	for _, e := range m.PodDeviceEntries {
		to := Entry{PodUID: e.PodUID, Container: e.ContainerName, Resource: e.ResourceName, AllocResp: e.AllocResp}
		if e.DeviceIDs != nil {
			to.Devices = []NUMADevices{{NoNUMA, e.DeviceIDs}}
		}
		out = append(out, to)
	}
	return out
}

// kubeletReads reads the Data of a file as a kubelet does, trying the current form
// first. It returns the content and the checksum that the file must have.
func kubeletReads(raw json.RawMessage) (entries []Entry, registered map[string][]string, sum uint32, ok bool) {
	var now checkpointData
	if json.Unmarshal(raw, &now) == nil {
		return now.entries(), now.RegisteredDevices, now.sum(), true
	}
	var v1 checkpointDataV1
	if json.Unmarshal(raw, &v1) == nil {
		return v1.entries(), v1.RegisteredDevices, v1.sum(), true
	}
	return nil, nil, 0, false
}
