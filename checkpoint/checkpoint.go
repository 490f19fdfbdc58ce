// Package checkpoint decodes the kubelet's device-manager checkpoint, the file
// kubelet_internal_checkpoint in the kubelet's device-plugins directory.
//
// The checkpoint records which devices the kubelet allocated to which container, keyed
// by pod UID and including ordinary init containers, together with the device plugin's
// response. Reading it needs no call to the kubelet, and it is complete, but it may be
// out of date: entries of deleted pods stay until the next allocation purges them, and
// the file survives a reboot. An entry tells which pod a device belongs to, not that
// the pod is alive.
//
// [Decode] accepts a file only if its checksum is right. It knows the current form and
// the form before Kubernetes 1.20, which lists devices without NUMA nodes. The checksum
// covers only the keys that the kubelet itself knows; other keys are ignored.
//
// [File] rereads a path only when the file has changed, and reports changes.
//
// The kubelet keeps a second checkpoint, dra_manager_state in its own directory, for
// the devices of resource claims. [DecodeClaims] and [ClaimFile] read it.
package checkpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
)

// MaxSize is the size in bytes of the largest file that is decoded. A node that runs
// 250 pods with eight devices each writes less than 2 MiB.
const MaxSize = 64 << 20

// NoNUMA is the NUMA node of a device without NUMA affinity.
const NoNUMA = -1

// Reasons to refuse a file, to be matched with errors.Is.
var (
	ErrTooLarge = errors.New("checkpoint is too large")
	ErrFormat   = errors.New("checkpoint has an unknown form")
	ErrChecksum = errors.New("checkpoint has a wrong checksum")
)

// Checkpoint is a decoded file. Callers must not modify it.
type Checkpoint struct {
	Entries    []Entry
	Registered map[string][]string // device IDs by resource, as the plugins advertise them

	byPod    map[string][]int
	byDevice map[device][]int
}

type device struct{ resource, id string }

// Entry is one allocation: devices of one resource, allocated to one container.
type Entry struct {
	PodUID    string
	Container string        // the container's name in the pod's spec
	Resource  string        // for example vendor.example/vfs
	Devices   []NUMADevices // ascending by node; a single element with NoNUMA in the form before 1.20
	// AllocResp is the device plugin's ContainerAllocateResponse, as protobuf bytes.
	AllocResp []byte
}

// NUMADevices are an entry's devices on one NUMA node.
type NUMADevices struct {
	Node int64 // NoNUMA if the device has no affinity
	IDs  []string
}

// IDs returns the entry's device IDs, each once, ordered by NUMA node and within a node
// as in the file. The kubelet lists a device of several NUMA nodes under each of them.
func (e Entry) IDs() []string {
	var ids []string
	for _, d := range e.Devices {
		for _, id := range d.IDs {
			if !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// Pod returns the entries of a pod, in the file's order.
func (c *Checkpoint) Pod(uid string) []Entry { return c.pick(c.byPod[uid]) }

// Holders returns the entries that hold a device. A device has more than one entry
// while entries of deleted pods have not been purged, and when an application container
// reuses an init container's device.
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

// Decode decodes and indexes a checkpoint file. Like the kubelet it ignores unknown
// keys, which the checksum does not cover. It returns [ErrTooLarge] for more than
// [MaxSize] bytes, [ErrChecksum] for a wrong checksum, and [ErrFormat] for a form that
// no kubelet writes, even if the checksum of that form could be computed.
func Decode(raw []byte) (*Checkpoint, error) {
	if len(raw) > MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrTooLarge, len(raw), MaxSize)
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

// verify compares the file's checksum with the checksum of its content.
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
		// If every DeviceIDs is null, the file may come from a kubelet of either form.
		sum = checksum(f.Data, !found[formList])
	}
	if uint64(sum) != f.Checksum {
		return fmt.Errorf("%w: it is %d, the content gives %d", ErrChecksum, f.Checksum, sum)
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

// Encode returns a checkpoint file as a kubelet of 1.20 or newer writes it. [Decode]
// accepts the result if all strings are valid UTF-8.
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

// byNode returns the entry's devices in the form in which the kubelet stores them.
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
