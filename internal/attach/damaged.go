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
	"github.com/manifold-cni/manifold/sriov"
)

// A sandbox whose journal is damaged is released by what else is known of it: its
// attachments by libcni's records, its VFs by their claims. What must stand as
// before ADD may still be in a sound line of the journal.

// delCorrupt serves a DEL, or a GC, of a sandbox whose journal cannot be read. When
// nothing is left the damaged file is set aside and the damage reported once, so
// that the pod can go at the next DEL.
func (r *run) delCorrupt(ctx context.Context, cause error) error {
	attachments, lost, err := r.records()
	if lost != nil {
		r.warn("%v", lost)
	}
	problems := []error{err}
	if r.inv.NetNS == "" && len(attachments) > 0 {
		r.inv.NetNS = attachments[0].NetNS // if that still is one
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
	aside, err := r.Journal.SetAside(keyOf(r.inv), journal.AsideCorrupt)
	if err != nil {
		return r.end(false, errors.Join(cause, err))
	}
	return r.end(true, cnierr.New("release", cnierr.JournalCorrupt, "released %d attachments from libcni's records and %d devices by their claims: %w",
		len(attachments), devices, cause).
		About(cnierr.Subject{Pod: r.inv.Pod.String()}).
		WithFix("the damaged journal is now %s; look for what may be left of the sandbox", aside))
}

// giveBackClaimed gives back the VFs that the sandbox has claimed, and returns how
// many they are. Where something else could not be released, they stay claimed, and
// are only made as before.
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

// salvage makes a VF stand as before its ADD, if what remains of the journal tells
// how that was. Where it does not, or the VF cannot be made so, it goes into
// quarantine: what the pod left on it must not be the next one's.
func (r *run) salvage(ctx context.Context, device string, remains journal.Remains) error {
	if !r.inv.Conf.RestoreDevices || remains.OtherBoot {
		return nil
	}
	a := &plan.Attachment{Device: r.function(device)}
	if a.Device == nil {
		return nil // it left the node
	}
	raw, before := r.recordOf(device, remains)
	err := cnierr.New("restore device", cnierr.TeardownIncomplete, "the journal of its sandbox is damaged, and does not tell how it stood before")
	if before != nil {
		if err := r.restore(ctx, a, before); !cnierr.Is(err, cnierr.TeardownIncomplete) {
			return err
		}
	}
	return r.Journal.Quarantine(journal.Quarantine{
		Device: device, Reason: err.Error(), Sandbox: keyOf(r.inv).String(), Pod: r.podOf(remains), To: raw,
	})
}

// podOf is the sandbox's pod: as the runtime says, or else the journal.
func (r *run) podOf(remains journal.Remains) plan.Pod {
	if r.inv.Pod.Name != "" {
		return r.inv.Pod
	}
	return remains.Pod
}

// recordOf returns what was recorded of a VF before its ADD, nil when it is lost.
// The record names the PF's network device and the VF's index there.
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

// function returns the device of an ID as a plan has it, by its PCI address or as the
// network device of a VF, nil when there is none.
func (r *run) function(id string) *plan.Device {
	f, err := r.host().FunctionNamed(id)
	if err != nil {
		return nil
	}
	d := &plan.Device{ID: id}
	verify.StandsOn(d, f)
	return d
}

// hadBy returns the VF that another sandbox has under the name of its network device,
// by its journal; nil for none.
func (r *run) hadBy(ctx context.Context, name string) *plan.Device {
	had, err := r.Journal.Had(ctx, keyOf(r.inv), &plan.Device{ID: name})
	if err != nil || had == nil {
		return nil
	}
	return had.Device
}

// ofRecord makes an attachment of a record of libcni: its name, and the PCI function
// that its plugins were given.
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
	_ = json.Unmarshal(c.Config, &conf) // of what is no JSON, no device is known
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

// releaseCached runs DEL from a record of libcni. A VF that serves another sandbox
// by now is left to it.
func (r *run) releaseCached(ctx context.Context, c *libcni.NetworkAttachment) error {
	list, err := chain.List(c.Config)
	if err != nil {
		return err
	}
	rt := &libcni.RuntimeConf{
		ContainerID: c.ContainerID, NetNS: r.liveNetNS(), IfName: c.IfName, Args: c.CniArgs, CapabilityArgs: c.CapabilityArgs,
	}
	a := r.ofRecord(ctx, c)
	// libcni records what was attached. Multus writes its file before any ADD.
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
		return false // none can be called so
	}
	_, err = os.Lstat(name)
	return err == nil
}
