// Package checkpoint decodes the kubelet's device-manager checkpoint, the file
// kubelet_internal_checkpoint in the kubelet's device-plugins directory.
//
// The file says which devices the kubelet allocated to which container, by pod
// UID, ordinary init containers included, and what the device plugin answered.
// It is complete and costs no call, but it may be out of date: entries of deleted
// pods stay until the next allocation purges them, and the file survives a reboot.
// An entry says which pod a device belongs to, but not that the pod is alive.
//
// [Decode] accepts a file only with the right checksum, in today's form or in the
// form before Kubernetes 1.20, which lists devices without NUMA nodes. The checksum
// covers only the keys that the kubelet itself knows; other keys are ignored.
//
// [File] reads a path again only when the file has changed, and reports changes.
//
// The kubelet keeps a second checkpoint, dra_manager_state in its own directory,
// for the devices of resource claims: [DecodeClaims] and [ClaimFile] read that
// one.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
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

// Checkpoint is a decoded file. It must not be changed.
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
	Container string        // its name in the pod's spec
	Resource  string        // for example vendor.example/vfs
	Devices   []NUMADevices // ascending by node; one element without node in the form before 1.20
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

// Pod returns the entries of a pod, in the file's order.
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

// Decode decodes and indexes a checkpoint file. Keys that are not known are
// passed over, as the kubelet does; its checksum does not cover them. A form that
// no kubelet writes is ErrFormat even where its checksum could be computed.
func Decode(raw []byte) (*Checkpoint, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrTooLarge, len(raw), MaxSize)
	}
	f, ok := parseCanonical(raw)
	if !ok {
		f = &file{}
		if err := json.Unmarshal(raw, f); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
	}
	if f.Data == nil {
		return nil, fmt.Errorf("%w: it has no Data", ErrFormat)
	}
	if err := verify(f); err != nil {
		return nil, err
	}
	return index(f.Data), nil
}

// verify compares the file's checksum with that of its content.
func verify(f *file) error {
	var found [formMap + 1]bool
	for i := range f.Data.PodDeviceEntries {
		found[f.Data.PodDeviceEntries[i].DeviceIDs.form] = true
	}
	if found[formList] && found[formMap] {
		return fmt.Errorf("%w: DeviceIDs are a list in one entry and a map in another", ErrFormat)
	}
	sum := checksum(f.Data, found[formList])
	if uint64(sum) != f.Checksum && found[formNull] && !found[formMap] {
		// Where nothing but null stands in place of IDs, either kubelet may have
		// written it.
		sum = checksum(f.Data, !found[formList])
	}
	if uint64(sum) != f.Checksum {
		return fmt.Errorf("%w: it says %d, its content gives %d", ErrChecksum, f.Checksum, sum)
	}
	return nil
}

// index builds the exported form of d and its indexes.
func index(d *data) *Checkpoint {
	c := &Checkpoint{
		Registered: d.RegisteredDevices,
		byPod:      make(map[string][]int, len(d.PodDeviceEntries)), byDevice: make(map[device][]int, len(d.PodDeviceEntries)),
	}
	if d.PodDeviceEntries != nil {
		c.Entries = make([]Entry, len(d.PodDeviceEntries))
	}
	for i := range d.PodDeviceEntries {
		in, out := &d.PodDeviceEntries[i], &c.Entries[i]
		*out = Entry{PodUID: in.PodUID, Container: in.ContainerName, Resource: in.ResourceName, Devices: in.DeviceIDs.nodes, AllocResp: in.AllocResp}
		c.byPod[out.PodUID] = append(c.byPod[out.PodUID], i)
		for _, n := range out.Devices {
			for _, id := range n.IDs {
				k := device{out.Resource, id}
				if held := c.byDevice[k]; len(held) == 0 || held[len(held)-1] != i {
					c.byDevice[k] = append(held, i)
				}
			}
		}
	}
	return c
}

// Encode returns a checkpoint file as a kubelet of 1.20 or newer writes it. What
// it returns is what [Decode] takes, if all strings are UTF-8.
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
	if entries != nil {
		d.PodDeviceEntries, out.PodDeviceEntries = make([]entry, 0, len(entries)), make([]jsonEntry, 0, len(entries))
	}
	for i := range entries {
		e := &entries[i]
		byNode := e.byNode()
		d.PodDeviceEntries = append(d.PodDeviceEntries, entry{e.PodUID, e.Container, e.Resource, ofMap(byNode), e.AllocResp})
		out.PodDeviceEntries = append(out.PodDeviceEntries, jsonEntry{e.PodUID, e.Container, e.Resource, byNode, e.AllocResp})
	}
	raw, err := json.Marshal(struct {
		Data     jsonData
		Checksum uint64
	}{out, uint64(checksum(&d, false))})
	if err != nil {
		return nil, fmt.Errorf("encode checkpoint: %w", err)
	}
	return raw, nil
}

// byNode returns the entry's devices as the kubelet keeps them.
func (e Entry) byNode() map[int64][]string {
	if e.Devices == nil {
		return nil
	}
	out := make(map[int64][]string, len(e.Devices))
	for _, n := range e.Devices {
		if ids, ok := out[n.Node]; ok {
			out[n.Node] = append(ids, n.IDs...)
		} else {
			out[n.Node] = slices.Clone(n.IDs)
		}
	}
	return out
}
