// Package checkpoint decodes the kubelet's device-manager checkpoint, the file
// kubelet_internal_checkpoint in the kubelet's device-plugins directory.
//
// The file says which devices the kubelet allocated to which container, by pod
// UID, ordinary init containers included, and what the device plugin answered.
// It is complete and costs no call, but it is a memory and not a statement about
// now: entries of deleted pods stay until the next allocation purges them, and
// the file survives a reboot. An entry says whose a device would be, never that
// its pod lives.
//
// [Decode] accepts a file only with the right checksum, in today's form and in
// the one before Kubernetes 1.20, which lists devices without NUMA nodes.
// [File] reads a path again only when it changed, and tells of changes.
package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// MaxSize is the largest file that is decoded, in bytes. A node with 250 pods of
// eight devices each writes less than 2 MiB.
const MaxSize = 64 << 20

// NoNUMA is the node of devices without NUMA affinity.
const NoNUMA = -1

// Reasons to refuse a file, for errors.Is.
var (
	ErrTooLarge = errors.New("checkpoint is too large")
	ErrFormat   = errors.New("checkpoint is not in a known form")
	ErrChecksum = errors.New("checkpoint's checksum is wrong")
)

// Checkpoint is a decoded file.
type Checkpoint struct {
	Entries    []Entry
	Registered map[string][]string // device IDs by resource, as the plugins advertise them

	byPod    map[string][]int
	byDevice map[device][]int
}

type device struct{ resource, id string }

// Entry is one allocation: devices of one resource to one container.
type Entry struct {
	PodUID    string
	Container string
	Resource  string
	Devices   []NUMADevices // ascending by node
	// AllocResp is the device plugin's ContainerAllocateResponse, protobuf.
	AllocResp []byte
}

// NUMADevices are an entry's devices on one NUMA node.
type NUMADevices struct {
	Node int64 // NoNUMA for none
	IDs  []string
}

// IDs returns the entry's device IDs, by node and inside a node as the file has
// them.
func (e Entry) IDs() []string {
	var ids []string
	for _, d := range e.Devices {
		ids = append(ids, d.IDs...)
	}
	return ids
}

// Pod returns the entries of a pod.
func (c *Checkpoint) Pod(uid string) []Entry { return c.pick(c.byPod[uid]) }

// Holders returns the entries that have a device: more than one while entries of
// deleted pods have not been purged, and where an application container reuses
// an init container's device.
func (c *Checkpoint) Holders(resource, id string) []Entry {
	return c.pick(c.byDevice[device{resource, id}])
}

func (c *Checkpoint) pick(indexes []int) []Entry {
	out := make([]Entry, 0, len(indexes))
	for _, i := range indexes {
		out = append(out, c.Entries[i])
	}
	return out
}

// file, data, entry and deviceIDs are the file's JSON.
type file struct {
	Data     *data
	Checksum uint64
}

type data struct {
	PodDeviceEntries  []entry
	RegisteredDevices map[string][]string
}

type entry struct {
	PodUID        string
	ContainerName string
	ResourceName  string
	DeviceIDs     deviceIDs
	AllocResp     []byte
}

// deviceIDs is a map of NUMA node to IDs, or before 1.20 a list of IDs.
type deviceIDs struct {
	isList bool
	list   []string
	byNode map[int64][]string
}

// UnmarshalJSON reads either form.
func (d *deviceIDs) UnmarshalJSON(raw []byte) error {
	if d.isList = bytes.HasPrefix(raw, []byte("[")); d.isList {
		return json.Unmarshal(raw, &d.list)
	}
	return json.Unmarshal(raw, &d.byNode)
}

// Decode decodes and indexes a checkpoint file. Keys that are not known are
// passed over, as the kubelet does; its checksum does not cover them.
func Decode(raw []byte) (*Checkpoint, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(raw), MaxSize)
	}
	var f file
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if f.Data == nil {
		return nil, fmt.Errorf("%w: it has no Data", ErrFormat)
	}
	if sum := checksum(f.Data); uint64(sum) != f.Checksum {
		return nil, fmt.Errorf("%w: it says %d, its content gives %d", ErrChecksum, f.Checksum, sum)
	}
	return index(f.Data), nil
}

// index builds the exported form of d and its indexes.
func index(d *data) *Checkpoint {
	c := &Checkpoint{
		Entries: make([]Entry, len(d.PodDeviceEntries)), Registered: d.RegisteredDevices,
		byPod: map[string][]int{}, byDevice: map[device][]int{},
	}
	for i := range d.PodDeviceEntries {
		in, out := &d.PodDeviceEntries[i], &c.Entries[i]
		*out = Entry{PodUID: in.PodUID, Container: in.ContainerName, Resource: in.ResourceName, AllocResp: in.AllocResp}
		if in.DeviceIDs.isList {
			out.Devices = []NUMADevices{{Node: NoNUMA, IDs: in.DeviceIDs.list}}
		}
		for _, node := range slices.Sorted(maps.Keys(in.DeviceIDs.byNode)) {
			out.Devices = append(out.Devices, NUMADevices{Node: node, IDs: in.DeviceIDs.byNode[node]})
		}
		c.byPod[out.PodUID] = append(c.byPod[out.PodUID], i)
		for _, n := range out.Devices {
			for _, id := range n.IDs {
				k := device{out.Resource, id}
				c.byDevice[k] = append(c.byDevice[k], i)
			}
		}
	}
	return c
}

// Encode returns a checkpoint file as a kubelet of 1.20 or newer writes it.
func Encode(entries []Entry, registered map[string][]string) ([]byte, error) {
	type jsonEntry struct {
		PodUID, ContainerName, ResourceName string
		DeviceIDs                           map[int64][]string
		AllocResp                           []byte
	}
	type jsonData struct {
		PodDeviceEntries  []jsonEntry
		RegisteredDevices map[string][]string
	}
	d, out := data{RegisteredDevices: registered}, jsonData{RegisteredDevices: registered}
	for _, e := range entries {
		byNode := map[int64][]string{}
		for _, n := range e.Devices {
			byNode[n.Node] = append(byNode[n.Node], n.IDs...)
		}
		d.PodDeviceEntries = append(d.PodDeviceEntries, entry{e.PodUID, e.Container, e.Resource, deviceIDs{byNode: byNode}, e.AllocResp})
		out.PodDeviceEntries = append(out.PodDeviceEntries, jsonEntry{e.PodUID, e.Container, e.Resource, byNode, e.AllocResp})
	}
	raw, err := json.Marshal(struct {
		Data     jsonData
		Checksum uint64
	}{out, uint64(checksum(&d))})
	if err != nil {
		return nil, fmt.Errorf("encode checkpoint: %w", err)
	}
	return raw, nil
}
