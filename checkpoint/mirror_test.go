package checkpoint

import (
	"fmt"
	"hash/fnv"
	"strings"

	"k8s.io/utils/dump"
)

// The kubelet's own types, by name: its checksum is over a dump that prints the
// names, so these must not be renamed.

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

// PodDevicesEntryV1 mirrors the form before 1.20, whose names the kubelet
// replaces in the dump by the present ones.
type PodDevicesEntryV1 struct {
	PodUID, ContainerName, ResourceName string
	DeviceIDs                           []string
	AllocResp                           []byte
}

type checkpointDataV1 struct {
	PodDeviceEntries  []PodDevicesEntryV1
	RegisteredDevices map[string][]string
}

// kubeletChecksum computes the checksum the kubelet's way.
func kubeletChecksum(d *data) uint32 {
	m := checkpointData{RegisteredDevices: d.RegisteredDevices}
	if d.PodDeviceEntries != nil {
		m.PodDeviceEntries = []PodDevicesEntry{}
	}
	for _, e := range d.PodDeviceEntries {
		m.PodDeviceEntries = append(m.PodDeviceEntries, PodDevicesEntry{e.PodUID, e.ContainerName, e.ResourceName, e.DeviceIDs.byNode, e.AllocResp})
	}
	return hashOf(dump.ForHash(m))
}

// kubeletChecksumV1 does the same for the form before 1.20.
func kubeletChecksumV1(d *data) uint32 {
	m := checkpointDataV1{RegisteredDevices: d.RegisteredDevices}
	for _, e := range d.PodDeviceEntries {
		m.PodDeviceEntries = append(m.PodDeviceEntries, PodDevicesEntryV1{e.PodUID, e.ContainerName, e.ResourceName, e.DeviceIDs.list, e.AllocResp})
	}
	s := strings.ReplaceAll(strings.Replace(dump.ForHash(m), "checkpointDataV1", "checkpointData", 1), "PodDevicesEntryV1", "PodDevicesEntry")
	return hashOf(s)
}

func hashOf(s string) uint32 {
	h := fnv.New32a()
	fmt.Fprint(h, s)
	return h.Sum32()
}
