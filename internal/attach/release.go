package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/plugins/pkg/ns"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/killpoint"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// Del releases all attachments of the sandbox, in reverse order and past
// failures, from the journal alone. It succeeds only when nothing is left; what
// failed stays in the journal for the next DEL.
func (e *Engine) Del(ctx context.Context, inv *netconf.Invocation) error {
	defer e.leave(inv)
	r, err := e.begin(ctx, inv)
	if err != nil {
		if r, err = e.unlocked(inv, err); err != nil {
			return err
		}
	}
	r.entry, err = e.Journal.Open(keyOf(inv))
	switch {
	case r.lock == nil || errors.Is(err, os.ErrNotExist):
		return r.delUnknown(ctx)
	case cnierr.Is(err, cnierr.JournalCorrupt):
		return r.delCorrupt(ctx, err)
	case err != nil:
		return r.end(false, err)
	}
	if problems := r.release(ctx); len(problems) > 0 {
		return r.end(false, r.incomplete(problems))
	}
	if err := r.close(ctx); err != nil {
		return r.end(false, err)
	}
	return r.end(true, nil)
}

// unlocked serves a DEL when the journal directory cannot hold a lock: without a
// journal nothing was attached there, and nothing can be being attached.
func (e *Engine) unlocked(inv *netconf.Invocation, lockErr error) (*run, error) {
	if !cnierr.Is(lockErr, cnierr.IO) {
		return nil, lockErr
	}
	_, err := e.Journal.Open(keyOf(inv))
	if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
		return nil, lockErr
	}
	return e.newRun(inv, nil), nil
}

// incomplete is the error of a DEL that left something, and tells the agent.
func (r *run) incomplete(problems []error) error {
	err := cnierr.New("release", cnierr.TeardownIncomplete, "%w", errors.Join(problems...)).
		About(cnierr.Subject{Pod: r.entry.Plan.Pod.String()}).
		WithFix("the runtime will try again; until then journal %s keeps what is left", keyOf(r.inv))
	r.report(plan.Report{Verb: "DEL", Plan: r.entry.Plan, Problems: texts(problems)}, err)
	return err
}

// releaseAll releases the sandbox and, when nothing is left, removes its journal.
func (r *run) releaseAll(ctx context.Context) []error {
	problems := r.release(ctx)
	if len(problems) > 0 {
		return problems
	}
	if err := r.close(ctx); err != nil {
		return []error{err}
	}
	return nil
}

// close removes the journal of a sandbox that is released, and before it the claims
// of VFs that no delegate was run on.
func (r *run) close(ctx context.Context) error {
	for i := range r.entry.Plan.Attachments {
		if phase, _ := r.entry.Phase(i); phase == "" || phase == journal.Untouched {
			if err := r.unclaim(ctx, &r.entry.Plan.Attachments[i]); err != nil {
				return err
			}
		}
	}
	return r.entry.Close()
}

// release runs DEL for every attachment that was tried and not yet released.
func (r *run) release(ctx context.Context) []error {
	var problems []error
	for _, i := range r.entry.Unreleased() {
		r.exec.attachment = i
		// That a step cannot be recorded must not keep an attachment alive: DEL
		// is repeatable, so the worst is that it runs twice.
		recorded := r.entry.Append(journal.Step{Attachment: i, Phase: journal.Releasing})
		err := r.releaseOne(ctx, i)
		step := journal.Step{Attachment: i, Phase: journal.Released}
		if err != nil {
			err = cnierr.Annotate(err, r.subject(i))
			problems = append(problems, err)
			step.Phase, step.Error = journal.ReleaseFailed, err.Error()
		}
		if e := errors.Join(recorded, r.entry.Append(step)); e != nil {
			r.warn("%v", e)
		}
	}
	return problems
}

// releaseOne releases one attachment: what its delegates made, its device, its
// files. Of a device that serves another sandbox by now the rest is released: the
// delegates' own DEL would reset it under its next owner.
func (r *run) releaseOne(ctx context.Context, i int) error {
	a := &r.entry.Plan.Attachments[i]
	fenced, err := r.fence(ctx, a)
	if cnierr.Is(err, cnierr.JournalCorrupt) {
		// Whose it is no journal says. That must not keep the pod from going.
		fenced, err = true, r.confine(i, err)
	}
	if err != nil {
		return err
	}
	netns := r.liveNetNS()
	rt := r.runtimeConf(a, netns)
	list, err := listOf(a)
	switch {
	case err == nil && fenced:
		err = r.releaseRest(ctx, list, rt)
	case err == nil:
		err = r.releaseChain(ctx, i, list, rt)
	}
	if !fenced {
		err = r.giveBack(ctx, i, netns, err)
	}
	if err != nil {
		return err
	}
	return removeDeviceInfo(a)
}

// releaseChain runs the delegate chain's DEL with the recorded configuration and
// result, and checks that the device is out of the sandbox.
func (r *run) releaseChain(ctx context.Context, i int, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	a := &r.entry.Plan.Attachments[i]
	if err := r.seedCache(list, rt, r.entry.Result(i)); err != nil {
		return err
	}
	if err := r.runDEL(ctx, list, rt, a, r.entry.Before(i)); err != nil {
		return err
	}
	return r.left(a, rt.NetNS)
}

// runDEL runs a delegate chain's DEL, and that of its addresses where the delegates
// may not have. before is what was recorded of the device before ADD, nil for
// nothing.
func (r *run) runDEL(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, a *plan.Attachment, before json.RawMessage) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	err := r.cni.DelNetworkList(ctx, list, rt)
	killpoint.Here("delegate released")
	needless := err != nil && r.nothingLeft(a, before, rt.NetNS, err)
	if err != nil && !needless {
		return delegateError("del", err)
	}
	switch {
	case needless:
		return r.releaseRest(ctx, list, rt)
	case rt.NetNS == "":
		return r.releaseAddresses(ctx, list, rt)
	}
	return nil
}

// releaseRest releases what an attachment has beside its device where the chain's DEL
// did not run or did not succeed: its addresses, and libcni's record, which libcni
// itself removes after a DEL that succeeded.
func (r *run) releaseRest(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	if err := r.releaseAddresses(ctx, list, rt); err != nil {
		return err
	}
	return r.seedCache(list, rt, nil)
}

// liveNetNS returns the sandbox's network namespace, empty when it is gone:
// delegates take an empty CNI_NETNS as gone, a path that cannot be opened as an
// error that would return for ever.
func (r *run) liveNetNS() string {
	path := r.inv.NetNS
	if path == "" && r.entry != nil {
		path = r.entry.Plan.NetNS
	}
	if path == "" || ns.IsNSorErr(path) != nil {
		return ""
	}
	if r.entry != nil && !r.entry.SameBoot() {
		return "" // what has that path now is another sandbox's
	}
	return path
}

// nothingLeft reports whether a delegate's DEL failed only because there was
// nothing to do: its interface is not in the sandbox, and the device stands on
// the host as before ADD. Some delegates do not know that DEL must succeed then
// (host-device for one), and the pod could never be deleted.
func (r *run) nothingLeft(a *plan.Attachment, raw json.RawMessage, netns string, cause error) bool {
	if a.Device == nil || netns == "" || !cnierr.Is(cause, cnierr.DelegateFailed) {
		return false
	}
	if there, err := r.inSandbox(netns, a.IfName); err != nil || there {
		return false
	}
	before, err := recorded(raw)
	if err != nil {
		return false
	}
	back, err := verify.Returned(r.host(), a.Device, before)
	if err != nil || !back {
		return false
	}
	r.about(a).Warn("interface is gone and device is back, so the failure of DEL is passed over", "err", cause)
	return true
}

// before returns what was recorded of attachment i's device before its ADD.
func (r *run) before(i int) (*sriov.Snapshot, error) { return recorded(r.entry.Before(i)) }

// recorded decodes what was recorded of a device, nil for nothing.
func recorded(raw json.RawMessage) (*sriov.Snapshot, error) {
	if raw == nil {
		return nil, nil
	}
	return verify.Recorded(raw)
}

// left refuses to call a device released that is still in the sandbox.
func (r *run) left(a *plan.Attachment, netns string) error {
	if a.Device == nil || netns == "" {
		return nil
	}
	there, err := r.inSandbox(netns, a.IfName)
	if err != nil || !there {
		return err
	}
	return cnierr.New("release device", cnierr.TeardownIncomplete, "the delegate's DEL succeeded, but its interface is still in the sandbox")
}

// releaseAddresses runs DEL of the chain's IPAM plugins themselves. With the
// network namespace gone some delegates return success before they release
// their addresses (host-device for one), which would then be lost for ever. An
// IPAM plugin's DEL is repeatable, so that it may run twice is no harm.
func (r *run) releaseAddresses(ctx context.Context, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	for _, p := range list.Plugins {
		ipam := p.Network.IPAM.Type
		if ipam == "" {
			continue
		}
		conf, err := libcni.InjectConf(p, map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
		if err != nil {
			return cnierr.New("release addresses", cnierr.InvalidDefinition, "%w", err)
		}
		path, err := r.exec.FindInPath(ipam, r.inv.Path)
		if err != nil {
			return err
		}
		args := &invoke.Args{
			Command: "DEL", ContainerID: rt.ContainerID, IfName: rt.IfName, PluginArgs: rt.Args,
			Path: strings.Join(r.inv.Path, string(os.PathListSeparator)),
		}
		if err := invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, args, r.exec); err != nil {
			return delegateError("del of its addresses", err)
		}
	}
	return nil
}

// cacheFile is where libcni keeps its record of an attachment.
func (r *run) cacheFile(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (string, error) {
	dir := filepath.Join(r.Journal.Path, "results")
	name := filepath.Join(dir, fmt.Sprintf("%s-%s-%s", list.Name, rt.ContainerID, rt.IfName))
	if filepath.Dir(name) != dir {
		return "", cnierr.New("release", cnierr.InvalidDefinition, "network name %q is a path", list.Name)
	}
	return name, nil
}

// seedCache writes libcni's record of the attachment from the journal, so that
// delegates get the recorded result as prevResult even if libcni's own file was
// cut in mid-write or lost. Its form is libcni's "cniCacheV1". An attachment
// without a result was never attached: what stands there was cut in mid-write.
func (r *run) seedCache(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, result json.RawMessage) error {
	name, err := r.cacheFile(list, rt)
	if err != nil {
		return err
	}
	if result == nil {
		return remove(name)
	}
	body, err := json.Marshal(map[string]any{
		"kind": libcni.CNICacheV1, "containerId": rt.ContainerID, "config": []byte(list.Bytes), "ifName": rt.IfName,
		"networkName": list.Name, "netns": rt.NetNS, "cniArgs": rt.Args, "capabilityArgs": rt.CapabilityArgs, "result": result,
	})
	if err == nil {
		err = errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, body, 0o600))
	}
	if err != nil {
		// libcni still has its own file; without either, delegates get no
		// prevResult, which DEL allows.
		r.warn("seed cached result: %v", err)
	}
	return nil
}

// remove removes a file that may be absent.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return cnierr.New("remove "+path, cnierr.IO, "%w", err)
	}
	return nil
}

// delUnknown serves a DEL of which there is no journal: nothing was attached, or
// it was released before, or the pod is older than Manifold on this node. Then
// what Multus and libcni recorded is released; without any record the default
// network's DEL runs, which is repeatable.
func (r *run) delUnknown(ctx context.Context) error {
	attachments, err := r.foreign()
	if err != nil {
		return r.end(true, err)
	}
	if len(attachments) > 0 {
		return r.end(true, r.releaseForeign(ctx, attachments))
	}
	if r.inv.Conf.ReleaseOnly != "" {
		return r.end(true, nil) // the runtime calls the default network itself
	}
	raw, err := r.inv.Conf.ClusterDefault()
	if err != nil {
		r.warn("DEL of an unknown sandbox: %v", err)
		return r.end(true, nil)
	}
	list, err := asList(raw)
	if err != nil {
		r.warn("DEL of an unknown sandbox: %v", err)
		return r.end(true, nil)
	}
	rt := &libcni.RuntimeConf{ContainerID: r.inv.ContainerID, NetNS: r.liveNetNS(), IfName: r.inv.IfName, Args: r.inv.Args}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	if err := r.cni.DelNetworkList(ctx, list, rt); err != nil {
		err = cnierr.Annotate(delegateError("del", err), cnierr.Subject{Pod: r.inv.Pod.String(), Network: list.Name})
		return r.end(true, err)
	}
	return r.end(true, nil)
}

// asList parses a network configuration as written, single or list.
func asList(raw json.RawMessage) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(raw)
	if err == nil && len(list.Plugins) > 0 {
		return list, nil
	}
	var single struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion"`
	}
	if e := json.Unmarshal(raw, &single); e != nil {
		return nil, cnierr.New("read network configuration", cnierr.InvalidConfig, "%w", errors.Join(err, e))
	}
	wrapped, err := json.Marshal(map[string]any{"name": single.Name, "cniVersion": single.CNIVersion, "plugins": []json.RawMessage{raw}})
	if err == nil {
		list, err = libcni.NetworkConfFromBytes(wrapped)
	}
	if err != nil {
		return nil, cnierr.New("read network configuration", cnierr.InvalidConfig, "%w", err)
	}
	return list, nil
}
