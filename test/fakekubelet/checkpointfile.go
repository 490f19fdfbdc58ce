package fakekubelet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"
	"google.golang.org/protobuf/proto"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/manifold-cni/manifold/checkpoint"
)

// persist writes the checkpoint as a kubelet does: to a temporary file in the same
// directory, then sync and rename; mu is held.
func (k *Kubelet) persist() error {
	if k.opts.noCheckpoint {
		return nil
	}
	var entries []checkpoint.Entry
	for _, e := range shuffled(k, k.entries) {
		// Deterministic only for repeatability: maps have no order on the wire.
		raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(e.resp)
		if err != nil {
			return fmt.Errorf("encode the device plugin's answer for %s: %w", e.resource, err)
		}
		entries = append(entries, checkpoint.Entry{PodUID: e.podUID, Container: e.container, Resource: e.resource, Devices: e.devices, AllocResp: raw})
	}
	registered := map[string][]string{}
	for name, r := range k.resources {
		registered[name] = append([]string{}, shuffled(k, r.healthy())...) // [] rather than null when there are none
	}
	raw, err := checkpoint.Encode(entries, registered)
	if err != nil {
		return err
	}
	return k.replaceCheckpoint(raw)
}

func (k *Kubelet) replaceCheckpoint(raw []byte) error {
	if err := renameio.WriteFile(k.CheckpointPath(), raw, 0o600, renameio.WithTempDir(k.DevicePluginDir())); err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	return nil
}

// load reads the allocations from the checkpoint as a starting process does. A
// missing or damaged file means that there are none: a kubelet carries on without.
// The resources are known again but have no devices until someone registers them;
// mu is held.
func (k *Kubelet) load() {
	if k.opts.noCheckpoint {
		return
	}
	k.entries = nil
	raw, err := os.ReadFile(k.CheckpointPath())
	if err != nil {
		return
	}
	decoded, err := checkpoint.Decode(raw)
	if err != nil {
		return
	}
	for _, e := range decoded.Entries {
		resp := &dpv1.ContainerAllocateResponse{}
		if err := proto.Unmarshal(e.AllocResp, resp); err != nil {
			continue // a kubelet skips such an entry, too
		}
		k.entries = append(k.entries, &entry{podUID: e.PodUID, container: e.Container, resource: e.Resource, devices: e.Devices, resp: resp})
	}
	for name := range decoded.Registered {
		k.resource(name)
	}
}

// CorruptCheckpoint atomically replaces the checkpoint with what change makes of
// its bytes. The kubelet notices at its next start, and writes a good one at its
// next change.
func (k *Kubelet) CorruptCheckpoint(change func([]byte) []byte) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	raw, err := os.ReadFile(k.CheckpointPath())
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	return k.replaceCheckpoint(change(raw))
}

// RemoveCheckpoint removes the checkpoint; a missing one is no error.
func (k *Kubelet) RemoveCheckpoint() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := os.Remove(k.CheckpointPath()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove checkpoint: %w", err)
	}
	return nil
}
