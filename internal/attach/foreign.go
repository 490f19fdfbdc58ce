package attach

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/multus"
	"github.com/manifold-cni/manifold/internal/plan"
)

// A foreign sandbox has no journal: another meta-plugin attached it with the same
// cniDir. Its attachments are known from the file of Multus, which has their order, and
// from libcni's records, which have results, arguments and capability data.

// foreign returns the attachments of a foreign sandbox in order of attachment, none
// when nothing is known. Records that cannot be read do not keep the rest from being
// released.
func (r *run) foreign() ([]*libcni.NetworkAttachment, error) {
	out, lost, err := r.recordedForeign()
	if lost != nil {
		r.warn("%v", lost)
	}
	return out, err
}

// recordedForeign returns what foreign does. lost says which of the sandbox's
// attachments could not be read.
func (r *run) recordedForeign() (out []*libcni.NetworkAttachment, lost, err error) {
	records, lost, err := r.records()
	if err != nil {
		return nil, nil, err
	}
	delegates, bad, err := multus.Read(r.Journal.Path, r.inv.ContainerID, r.inv.IfName)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		lost = errors.Join(lost, fmt.Errorf("skip the sandbox's Multus file: %w", err))
	}
	if bad != nil {
		lost = errors.Join(lost, fmt.Errorf("skip part of the sandbox's Multus file: %w", bad))
	}
	for _, d := range delegates {
		a, err := r.ofDelegate(d)
		if err != nil {
			lost = errors.Join(lost, fmt.Errorf("skip a delegate in the sandbox's Multus file: %w", err))
			continue
		}
		same := func(x *libcni.NetworkAttachment) bool { return x.Network == a.Network && x.IfName == a.IfName }
		if i := slices.IndexFunc(records, same); i >= 0 {
			a = records[i]
			records = slices.Delete(records, i, i+1)
		}
		out = append(out, a)
	}
	// libcni does not keep the order. The runtime's interface belongs to the default
	// network, which was attached first.
	slices.SortStableFunc(records, func(x, y *libcni.NetworkAttachment) int {
		return rank(x.IfName == r.inv.IfName) - rank(y.IfName == r.inv.IfName)
	})
	return append(out, records...), lost, nil
}

// records returns libcni's records of the sandbox. lost says which of them have no
// runnable configuration, so that nothing can ever be released from them.
func (r *run) records() (out []*libcni.NetworkAttachment, lost, err error) {
	all, err := r.cached()
	if err != nil {
		return nil, nil, err
	}
	for _, a := range all {
		if _, err := chain.Runnable(a); err != nil {
			lost = errors.Join(lost, fmt.Errorf("skip libcni's record of network %q, interface %s: %w", a.Network, a.IfName, err))
			continue
		}
		out = append(out, a)
	}
	return out, lost, nil
}

// cached returns libcni's records of the container without those of the runtime's other
// interfaces: a container can have several, each with its own journal, and libcni does
// not record for which of them an attachment was made.
func (r *run) cached() ([]*libcni.NetworkAttachment, error) {
	const op = "read libcni's records"
	all, err := r.cni.GetCachedAttachments(r.inv.ContainerID)
	if err != nil && !errors.Is(err, unix.ENOTDIR) {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	err = r.Journal.Siblings(keyOf(r.inv), func(k journal.Key, e *journal.Entry, damage error) {
		if damage != nil {
			r.warn("skip libcni's records of the sandbox, which may belong to %s: %v", k, damage)
			all = nil
			return
		}
		all = slices.DeleteFunc(all, func(a *libcni.NetworkAttachment) bool {
			return slices.ContainsFunc(e.Plan.Attachments, func(b plan.Attachment) bool { return b.Network == a.Network && b.IfName == a.IfName })
		})
	})
	return all, err
}

// forgetLost removes the sandbox's records from which nothing can be released. It runs
// once everything else is released: no later DEL or GC would get further with them.
func (r *run) forgetLost() error {
	all, err := r.cached()
	if err != nil {
		return err
	}
	for _, a := range all {
		if _, err := chain.Runnable(a); err == nil {
			continue
		}
		name, err := r.cacheFile(a.Network, a.ContainerID, a.IfName)
		if err != nil {
			continue // the record is under another file name
		}
		if err := remove(name); err != nil {
			return err
		}
	}
	return nil
}

// planOf returns a plan with what GC needs of a foreign sandbox's attachments.
func planOf(containerID string, attachments []*libcni.NetworkAttachment) *plan.Plan {
	p := &plan.Plan{ContainerID: containerID}
	for _, a := range attachments {
		p.Attachments = append(p.Attachments, plan.Attachment{Name: a.Network, Network: a.Network, IfName: a.IfName, Config: a.Config})
	}
	return p
}

// rank orders the default network's attachment before the others.
func rank(first bool) int {
	if first {
		return 0
	}
	return 1
}

// ofDelegate converts a delegate in the file of Multus into an attachment, for use
// where libcni has no record.
func (r *run) ofDelegate(d multus.Delegate) (*libcni.NetworkAttachment, error) {
	list, err := chain.List(d.Config)
	if err != nil {
		return nil, cnierr.Annotate(err, cnierr.Subject{Network: d.Name, Interface: d.IfName, Device: d.DeviceID})
	}
	a := &libcni.NetworkAttachment{
		ContainerID: r.inv.ContainerID, Network: list.Name, IfName: d.IfName, Config: d.Config, NetNS: r.inv.NetNS, CniArgs: r.inv.Args,
	}
	a.CapabilityArgs = map[string]any{}
	for capability, value := range map[string]string{"deviceID": d.DeviceID, "mac": d.MAC, "infinibandGUID": d.GUID} {
		if value != "" {
			a.CapabilityArgs[capability] = value
		}
	}
	if len(d.IPs) > 0 {
		a.CapabilityArgs["ips"] = d.IPs
	}
	if _, err := chain.Runnable(a); err != nil {
		return nil, cnierr.Annotate(err, cnierr.Subject{Network: d.Name, Interface: d.IfName, Device: d.DeviceID})
	}
	return a, nil
}

// releaseForeign runs DEL of a foreign sandbox's attachments in reverse order and past
// failures. The file of Multus stays until all have succeeded.
func (r *run) releaseForeign(ctx context.Context, attachments []*libcni.NetworkAttachment) error {
	var problems []error
	for _, a := range slices.Backward(attachments) {
		// Without a journal no claim is kept for the next DEL.
		if err := errors.Join(r.releaseCached(ctx, a), r.unclaim(ctx, r.ofRecord(ctx, a))); err != nil {
			subject := cnierr.Subject{Pod: r.inv.Pod.String(), Network: a.Network, Interface: a.IfName}
			problems = append(problems, cnierr.Annotate(err, subject))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return cnierr.New("release", cnierr.TeardownIncomplete, "%w", err).
			WithFix("the runtime will try again; Manifold did not attach this sandbox; its records are in %s", r.Journal.Path)
	}
	return r.forgetFile()
}

// forgetFile removes the sandbox's file of Multus.
func (r *run) forgetFile() error {
	if err := multus.Remove(r.Journal.Path, r.inv.ContainerID); err != nil {
		return cnierr.New("release", cnierr.IO, "%w", err)
	}
	return nil
}

// checkForeign runs CHECK of a foreign sandbox's attachments with libcni's records. It
// skips networks of a CNI version before 0.4.0, which has no CHECK.
func (r *run) checkForeign(ctx context.Context, attachments []*libcni.NetworkAttachment) error {
	for _, a := range attachments {
		list, err := chain.List(a.Config)
		if err != nil {
			return err
		}
		if knows, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err != nil || !knows {
			continue
		}
		rt := &libcni.RuntimeConf{
			ContainerID: a.ContainerID, NetNS: r.inv.NetNS, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs,
		}
		ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
		err = r.cni.CheckNetworkList(ctx, list, rt)
		cancel()
		if err != nil {
			return cnierr.Annotate(delegateError("check", err), cnierr.Subject{Pod: r.inv.Pod.String(), Network: a.Network, Interface: a.IfName})
		}
	}
	return nil
}

// collectForeign releases the foreign sandboxes that libcni has records of and that the
// runtime no longer names.
func (e *Engine) collectForeign(ctx context.Context, g *collection) error {
	probe := e.newRun(&g.inv, nil)
	records, err := probe.cni.GetCachedAttachments("")
	if err != nil {
		return cnierr.New("read libcni's records", cnierr.IO, "%w", err)
	}
	// List the journals after the records: a sandbox of Manifold has a journal before
	// it has records.
	keys, err := e.Journal.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		g.keep[k.ContainerID] = true
	}
	var problems []error
	for _, a := range records {
		if g.keep[a.ContainerID] {
			continue
		}
		g.keep[a.ContainerID] = true // each sandbox once
		if g.sparesForeign(probe, records, a) {
			probe.spared(journal.Key{ContainerID: a.ContainerID, IfName: defaultIfName})
			continue
		}
		problems = append(problems, e.collectForeignOne(ctx, g, a))
	}
	return errors.Join(problems...)
}

// sparesForeign is collection.spares for the foreign sandbox of record a, one of
// records. Its newest record was written when its ADD finished. Only the wall clock
// tells when that was; a time in the future is no reason to spare the sandbox until
// then.
func (g *collection) sparesForeign(r *run, records []*libcni.NetworkAttachment, a *libcni.NetworkAttachment) bool {
	if _, err := os.Lstat(a.NetNS); err != nil {
		return false
	}
	return slices.ContainsFunc(records, func(o *libcni.NetworkAttachment) bool {
		if o.ContainerID != a.ContainerID {
			return false
		}
		name, err := r.cacheFile(o.Network, o.ContainerID, o.IfName)
		if err != nil {
			return false // the record is under another file name
		}
		fi, err := os.Stat(name)
		return err == nil && g.clock.Sub(fi.ModTime()) < time.Duration(g.inv.Conf.GCGrace) && time.Since(fi.ModTime()) >= 0
	})
}

// collectForeignOne releases the sandbox of record a.
func (e *Engine) collectForeignOne(ctx context.Context, g *collection, a *libcni.NetworkAttachment) error {
	inv := g.inv
	inv.ContainerID, inv.IfName, inv.NetNS, inv.Args = a.ContainerID, defaultIfName, a.NetNS, a.CniArgs
	lock, err := e.Journal.TryLock(journal.Key{ContainerID: inv.ContainerID, IfName: inv.IfName})
	if err != nil || lock == nil {
		return err
	}
	r := e.newRun(&inv, lock)
	attachments, err := r.foreign()
	if err == nil {
		err = r.releaseForeign(ctx, attachments)
	}
	if err == nil {
		err = r.forgetLost()
	}
	g.networks.know(planOf(a.ContainerID, attachments))
	return r.end(true, err)
}

// defaultIfName is the name that every runtime gives a pod's first interface.
const defaultIfName = "eth0"
