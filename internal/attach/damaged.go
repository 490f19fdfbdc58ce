package attach

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/internal/words"
	"github.com/manifold-cni/manifold/sriov"
)

// A sandbox whose journal is damaged is released from what else is known: its
// attachments from libcni's records, its VFs from their claims. The state of a VF
// before ADD may still be in a sound line of the journal.

// delCorrupt serves a DEL or GC of a sandbox whose journal cannot be read. When nothing
// is left, it sets the damaged file aside and reports the damage once, so that the next
// DEL lets the pod go.
func (r *run) delCorrupt(ctx context.Context, cause error) error {
	attachments, lost, err := r.records()
	if lost != nil {
		r.warn("%v", lost)
	}
	problems := []error{err}
	if r.inv.NetNS == "" && len(attachments) > 0 {
		r.inv.NetNS = attachments[0].NetNS // if that is still a namespace
	}
	for _, c := range slices.Backward(attachments) {
		if err := r.releaseCached(ctx, c); err != nil {
			problems = append(problems, cnierr.Annotate(err, cnierr.Subject{Network: c.Network, Interface: c.IfName}))
		}
	}
	devices, err := r.giveBackClaimed(ctx, errors.Join(problems...) == nil)
	if err = errors.Join(append(problems, err)...); err == nil {
		err = r.forgetLost()
	}
	if err != nil {
		return r.end(false, errors.Join(cause, err))
	}
	if len(attachments)+devices == 0 && lost == nil {
		if unbegun, err := r.Journal.DropUnbegun(keyOf(r.inv)); unbegun || err != nil {
			return r.end(unbegun, err)
		}
	}
	aside, err := r.Journal.SetAside(keyOf(r.inv), journal.AsideCorrupt)
	if err != nil {
		return r.end(false, errors.Join(cause, err))
	}
	return r.end(true, cnierr.New("release", cnierr.JournalCorrupt, "released %s from libcni's records and %s by claims: %w",
		words.Count(len(attachments), "attachment", "attachments"), words.Count(devices, "device", "devices"), cause).
		About(cnierr.Subject{Pod: r.inv.Pod.String()}).
		WithFix("the damaged journal is now %s; check what is left of the sandbox", aside))
}

// giveBackClaimed restores the VFs that the sandbox has claimed and gives them back. It
// returns how many they are. If something else could not be released, the VFs are
// restored but stay claimed.
func (r *run) giveBackClaimed(ctx context.Context, released bool) (int, error) {
	waiting, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	devices, err := r.Journal.Claimed(waiting, keyOf(r.inv))
	if err != nil || !released && r.liveNetNS() != "" {
		return 0, err // they may still be in the sandbox
	}
	remains := r.Journal.Remains(keyOf(r.inv))
	var problems []error
	for _, device := range devices {
		err := r.salvage(ctx, device, remains)
		if err == nil && released {
			err = r.Journal.Unclaim(ctx, device, keyOf(r.inv))
		}
		problems = append(problems, cnierr.Annotate(err, cnierr.Subject{Device: device}))
	}
	return len(devices), errors.Join(problems...)
}

// salvage restores a VF to its state before ADD, if the rest of the journal still holds
// that state. Otherwise, or when the VF cannot be restored, it puts the VF into
// quarantine: the next pod must not get what this one left on it.
func (r *run) salvage(ctx context.Context, device string, remains journal.Remains) error {
	if !r.inv.Conf.RestoreDevices || remains.OtherBoot {
		return nil
	}
	a := &plan.Attachment{Device: r.function(device)}
	if a.Device == nil {
		return nil // it left the node
	}
	raw, before := r.recordOf(device, remains)
	err := cnierr.New("restore device", cnierr.TeardownIncomplete, "the journal of its sandbox is damaged and does not tell its former state")
	if before != nil {
		if err := r.restore(ctx, a, before); !cnierr.Is(err, cnierr.TeardownIncomplete) {
			return err
		}
	}
	return r.Journal.Quarantine(journal.Quarantine{
		Device: device, Reason: err.Error(), Sandbox: keyOf(r.inv).String(), Pod: r.podOf(remains), To: raw,
	})
}

// podOf returns the sandbox's pod from the runtime, or else from the journal.
func (r *run) podOf(remains journal.Remains) plan.Pod {
	if r.inv.Pod.Name != "" {
		return r.inv.Pod
	}
	return remains.Pod
}

// recordOf returns what was recorded of a VF before its ADD, nil when that is lost. It
// finds the record by the PF's netdev and the VF's index.
func (r *run) recordOf(device string, remains journal.Remains) (json.RawMessage, *sriov.Snapshot) {
	now, err := r.host().Snapshot(device)
	if err != nil || now.PF == "" {
		return nil, nil
	}
	for _, raw := range slices.Backward(remains.Befores) {
		before, err := verify.Recorded(raw)
		if err == nil && before.PF == now.PF && before.VFIndex == now.VFIndex {
			return raw, before
		}
	}
	return nil, nil
}

// function returns the device that id names, by PCI address or as the netdev of a VF,
// in the form a plan has it; nil when there is none.
func (r *run) function(id string) *plan.Device {
	f, err := r.host().FunctionNamed(id)
	if err != nil {
		return nil
	}
	d := &plan.Device{ID: id}
	verify.StandsOn(d, f)
	return d
}

// hadBy returns the VF that another sandbox's journal knows by this netdev name, nil
// for none.
func (r *run) hadBy(ctx context.Context, name string) *plan.Device {
	had, err := r.Journal.Had(ctx, keyOf(r.inv), &plan.Device{ID: name})
	if err != nil || had == nil {
		return nil
	}
	return had.Device
}

// ofRecord converts a record of libcni into an attachment: its name, and the PCI
// function that its plugins were given.
func (r *run) ofRecord(ctx context.Context, c *libcni.NetworkAttachment) *plan.Attachment {
	a := &plan.Attachment{Name: c.Network, IfName: c.IfName}
	type ids struct {
		DeviceID string `json:"deviceID"`
		PCIBusID string `json:"pciBusID"`
	}
	var conf struct {
		ids
		Plugins []ids `json:"plugins"`
	}
	_ = json.Unmarshal(c.Config, &conf) // a configuration that is no JSON names no device
	capability, _ := c.CapabilityArgs["deviceID"].(string)
	all := []string{capability}
	for _, p := range append(conf.Plugins, conf.ids) {
		all = append(all, p.DeviceID, p.PCIBusID)
	}
	all = slices.DeleteFunc(all, func(id string) bool { return id == "" })
	for _, id := range all {
		if a.Device = r.function(id); a.Device == nil {
			a.Device = r.hadBy(ctx, id)
		}
		if a.Device != nil {
			break
		}
	}
	if file, _ := c.CapabilityArgs["CNIDeviceInfoFile"].(string); strings.HasPrefix(file, filepath.Clean(r.inv.Conf.DeviceInfo)+string(os.PathSeparator)) {
		a.DeviceInfoFile = filepath.Clean(file)
	}
	return a
}

// releaseCached runs DEL from a record of libcni. It leaves a VF alone that already
// serves another sandbox.
func (r *run) releaseCached(ctx context.Context, c *libcni.NetworkAttachment) error {
	list, err := chain.List(c.Config)
	if err != nil {
		return err
	}
	rt := &libcni.RuntimeConf{
		ContainerID: c.ContainerID, NetNS: r.liveNetNS(), IfName: c.IfName, Args: c.CniArgs, CapabilityArgs: c.CapabilityArgs,
	}
	a := r.ofRecord(ctx, c)
	// libcni records only what was attached. Multus writes its file before any ADD.
	t := teardown{a: a, list: list, rt: rt, completed: r.hasRecord(c)}
	fenced, err := r.fence(ctx, a)
	if cnierr.Is(err, cnierr.JournalCorrupt) {
		fenced, err = true, r.Journal.Quarantine(journal.Quarantine{
			Device: a.Device.PCIAddress, Reason: err.Error(), Sandbox: keyOf(r.inv).String(), Pod: r.inv.Pod, Network: a.Name,
		})
	}
	switch {
	case err != nil:
		return err
	case fenced:
		err = r.releaseRest(ctx, t, nil)
	default:
		err = r.runDEL(ctx, t)
	}
	if err != nil {
		return err
	}
	return removeDeviceInfo(a)
}

// hasRecord reports whether libcni has a record of an attachment.
func (r *run) hasRecord(c *libcni.NetworkAttachment) bool {
	name, err := r.cacheFile(c.Network, c.ContainerID, c.IfName)
	if err != nil {
		return false // no file can have that name
	}
	_, err = os.Lstat(name)
	return err == nil
}
