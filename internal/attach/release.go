package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	cnins "github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/types"
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

// Del releases all attachments of the sandbox in reverse order, continues past
// failures, and uses the journal alone. It succeeds only when nothing is left. What
// failed stays in the journal for the next DEL.
func (e *Engine) Del(ctx context.Context, inv *netconf.Invocation) error {
	defer e.leave(inv)
	r, err := e.begin(ctx, inv)
	if err != nil {
		if r, err = e.unlocked(inv, err); err != nil {
			return err
		}
	}
	ended := r.Times.part(partRead)
	r.entry, err = e.Journal.Open(keyOf(inv))
	ended()
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

// unlocked serves a DEL when the journal directory cannot hold a lock. There is no
// journal there, so nothing was attached and nothing can be about to be.
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

// incomplete reports a DEL that left something to the agent and returns its error.
func (r *run) incomplete(problems []error) error {
	err := cnierr.New("release", cnierr.TeardownIncomplete, "%w", errors.Join(problems...)).
		About(cnierr.Subject{Pod: r.entry.Plan.Pod.String()}).
		WithFix("the runtime will try again; until then journal %s keeps what is left", keyOf(r.inv))
	r.report(plan.Report{Verb: "DEL", Plan: r.entry.Plan, Problems: texts(problems)}, err)
	return err
}

// releaseAll releases the sandbox and removes its journal when nothing is left.
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

// close removes the journal of a released sandbox. Before that it gives back the claims
// of VFs on which no delegate ran, and removes the files that were written for these
// delegates.
func (r *run) close(ctx context.Context) error {
	defer r.Times.part(partClose)()
	for i := range r.entry.Plan.Attachments {
		if phase, _ := r.entry.Phase(i); phase == "" || phase == journal.Untouched {
			a := &r.entry.Plan.Attachments[i]
			if err := errors.Join(r.unclaim(ctx, a), removeDeviceInfo(a)); err != nil {
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
		// A step that cannot be recorded must not keep an attachment alive. DEL is
		// repeatable, so at worst it runs twice.
		var recorded error
		if phase, _ := r.entry.Phase(i); phase != journal.ReleaseFailed { // else this is another try
			recorded = r.record(journal.Step{Attachment: i, Phase: journal.Releasing})
		}
		err := r.releaseOne(ctx, i)
		if err != nil {
			err = cnierr.Annotate(err, r.subject(i))
			problems = append(problems, err)
		}
		if e := errors.Join(recorded, r.released(i, err)); e != nil {
			r.warn("%v", e)
		}
	}
	return problems
}

// released records the outcome of an attachment's release.
func (r *run) released(i int, failed error) error {
	defer r.Times.part(partRecord)()
	if failed != nil {
		return r.entry.AppendFailure(i, failed.Error())
	}
	return r.entry.Append(journal.Step{Attachment: i, Phase: journal.Released})
}

// releaseOne releases one attachment: what its delegates created, its device, its
// files. If the device already serves another sandbox, it releases everything but the
// device, because the delegates' DEL would reset the device under its new owner.
func (r *run) releaseOne(ctx context.Context, i int) error {
	a := &r.entry.Plan.Attachments[i]
	fenced, err := r.fence(ctx, a)
	if cnierr.Is(err, cnierr.JournalCorrupt) {
		// No journal says who holds it. That must not keep the pod from being deleted.
		fenced, err = true, r.confine(i, err)
	}
	if err != nil {
		return err
	}
	netns := r.liveNetNS()
	list, err := listOf(a)
	if err == nil && !fenced {
		if netns, err = r.takeOut(i, netns, list); err != nil {
			return err
		}
	}
	t := teardown{a: a, list: list, rt: r.runtimeConf(a, netns), before: r.entry.Before(i), completed: r.entry.Result(i) != nil}
	switch {
	case err == nil && fenced:
		err = r.releaseRest(ctx, t, nil)
	case err == nil:
		err = r.releaseChain(ctx, i, t)
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
func (r *run) releaseChain(ctx context.Context, i int, t teardown) error {
	if err := r.seedCache(t.list, t.rt, r.entry.Result(i)); err != nil {
		return err
	}
	if err := r.runDEL(ctx, t); err != nil {
		return err
	}
	return r.left(t.a, t.rt.NetNS)
}

// teardown is the input to an attachment's release.
type teardown struct {
	a      *plan.Attachment
	list   *libcni.NetworkConfigList
	rt     *libcni.RuntimeConf
	before json.RawMessage // the device as recorded before ADD, nil when nothing was
	// completed says that ADD completed. If it did not, what failed it may fail every
	// DEL too: a value that the delegate cannot read, a version that it does not
	// support. Such failures do not keep the pod once the interface is out of the
	// sandbox and DEL of every plugin was tried.
	completed bool
}

// runDEL runs a delegate chain's DEL. It also releases the addresses where the
// delegates may not have, but not while the interface is in the sandbox: then they are
// in use, and only the delegates give them back.
func (r *run) runDEL(ctx context.Context, t teardown) error {
	failed, problems := r.delAll(ctx, t)
	if failed && !t.completed && !r.isOut(t.a, t.rt.NetNS) {
		problems = append(problems, r.delBare(ctx, t)...)
	}
	switch {
	case !failed && t.rt.NetNS != "":
		return nil
	case !failed:
		return r.outcome(t, r.releaseAddresses(ctx, t))
	case !r.isOut(t.a, t.rt.NetNS):
		return held(t, join(problems))
	case !r.gone(t):
		t.completed = true // the device is not back on the host, so a delegate may still hold it
	}
	return r.releaseRest(ctx, t, problems)
}

// held is the error of a DEL whose interface is still in the sandbox. A delegate
// created or moved that interface, and may hold more outside the sandbox that nobody
// else gives back. The interface is not deleted either: nothing tells a created
// interface from one moved in from the host, and deleting the latter would take the
// host's own device.
func held(t teardown, err error) error {
	if t.completed {
		return err
	}
	return cnierr.New("release", cnierr.TeardownIncomplete, "%w; its ADD was refused, and the interface that it created or moved is still in the sandbox", err).
		WithFix("correct the delegate so that the next DEL succeeds; or remove the interface by hand (nsenter --net=%s ip link: delete %s or move it back to the host), and the next DEL succeeds whatever the delegate does", t.rt.NetNS, t.rt.IfName)
}

// delAll runs DEL of a chain's plugins, last first and past failures. libcni stops at
// the first failure and would leave what the earlier plugins created. delAll reports
// whether a plugin failed, and returns the failures that count.
func (r *run) delAll(ctx context.Context, t teardown) (failed bool, problems []error) {
	sought := r.exec.sought
	ended := r.Times.part(partLibcni)
	err := r.within(ctx, func(ctx context.Context) error { return r.cni.DelNetworkList(ctx, t.list, t.rt) })
	ended()
	killpoint.Here("delegate released")
	if err == nil {
		return false, nil
	}
	tried := r.exec.sought - sought
	if tried == 0 { // libcni refused the list
		return true, []error{delegateError("del", err)}
	}
	for i := len(t.list.Plugins) - tried; ; {
		if err != nil && !r.nothingLeft(t, i == 0, err) {
			problems = append(problems, delegateError("del", err))
		}
		if i--; i < 0 {
			return true, problems
		}
		err = r.within(ctx, func(ctx context.Context) error { return r.delPlugin(ctx, t, t.list.Plugins[i], map[string]any{}) })
	}
}

// delBare runs DEL without "ipam" for the plugins of a chain that have an IPAM plugin.
// When its IPAM plugin refuses ADD, host-device leaves its device in the sandbox. Its
// DEL returns the device only after the IPAM plugin's DEL, which is refused as well.
func (r *run) delBare(ctx context.Context, t teardown) (problems []error) {
	for _, p := range slices.Backward(t.list.Plugins) {
		if p.Network.IPAM.Type == "" {
			continue
		}
		none := map[string]any{"ipam": map[string]any{}}
		if err := r.within(ctx, func(ctx context.Context) error { return r.delPlugin(ctx, t, p, none) }); err != nil {
			problems = append(problems, delegateError("del without addresses", err))
		}
	}
	return problems
}

// within runs f within the time limit for delegates.
func (r *run) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	return f(ctx)
}

// delPlugin runs DEL of one plugin of a chain with what libcni would pass to it, and
// with the additional keys more.
func (r *run) delPlugin(ctx context.Context, t teardown, p *libcni.PluginConfig, more map[string]any) error {
	if result, err := r.cni.GetNetworkListCachedResult(t.list, t.rt); err == nil && result != nil {
		more["prevResult"] = result
	}
	capabilities := map[string]any{}
	for name, has := range p.Network.Capabilities {
		if value, given := t.rt.CapabilityArgs[name]; has && given {
			capabilities[name] = value
		}
	}
	if len(capabilities) > 0 {
		more["runtimeConfig"] = capabilities
	}
	return r.execDEL(ctx, t, p, p.Network.Type, t.rt.NetNS, more)
}

// execDEL runs DEL of program with the configuration of plugin p and the additional
// keys more.
func (r *run) execDEL(ctx context.Context, t teardown, p *libcni.PluginConfig, program, netns string, more map[string]any) error {
	more["name"], more["cniVersion"] = t.list.Name, t.list.CNIVersion
	conf, err := libcni.InjectConf(p, more)
	if err != nil {
		return cnierr.New("render configuration", cnierr.InvalidDefinition, "%w", err)
	}
	path, err := r.exec.FindInPath(program, r.inv.Path)
	if err != nil {
		return err
	}
	args := &invoke.Args{
		Command: "DEL", ContainerID: t.rt.ContainerID, NetNS: netns, IfName: t.rt.IfName, PluginArgs: t.rt.Args,
		Path: strings.Join(r.inv.Path, string(os.PathListSeparator)),
	}
	return invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, args, r.exec)
}

// releaseRest releases everything but the device of an attachment whose chain did not
// run DEL or failed it: its addresses, and libcni's record, which libcni itself removes
// only after a successful DEL. problems are the chain's failures.
func (r *run) releaseRest(ctx context.Context, t teardown, problems []error) error {
	if err := r.outcome(t, append(problems, r.releaseAddresses(ctx, t)...)); err != nil {
		return err
	}
	return r.seedCache(t.list, t.rt, nil)
}

// outcome is the result of releasing an attachment whose interface is not in the
// sandbox: problems, unless they would keep the pod forever.
func (r *run) outcome(t teardown, problems []error) error {
	if t.completed || slices.ContainsFunc(problems, passes) {
		return join(problems)
	}
	for _, err := range problems {
		r.about(t.a).Warn("ADD never completed and the interface is not there: the failure of DEL is ignored", "err", err)
	}
	return nil
}

// passes reports whether a delegate's failure may be temporary: the delegate timed out
// or asked to be tried again.
func passes(err error) bool {
	var own *types.Error
	return cnierr.Is(err, cnierr.DelegateTimeout) || errors.As(err, &own) && own.Code == types.ErrTryAgainLater
}

// join joins problems into one error. A single problem stays as it is.
func join(problems []error) error {
	if len(problems) == 1 {
		return problems[0]
	}
	return errors.Join(problems...)
}

// liveNetNS returns the path of the sandbox's network namespace, empty when it is gone.
// Delegates take an empty CNI_NETNS as gone, but a path that cannot be opened as an
// error, which every DEL would repeat.
func (r *run) liveNetNS() string {
	path := r.inv.NetNS
	if path == "" && r.entry != nil {
		path = r.entry.Plan.NetNS
	}
	if path == "" || ns.IsNSorErr(path) != nil {
		return ""
	}
	if r.entry != nil && !r.entry.SameBoot() {
		return "" // the path now belongs to another sandbox
	}
	if r.leadsElsewhere(path) {
		r.warn("the network namespace at %s is not the sandbox's, which is gone", path)
		return ""
	}
	return path
}

// leadsElsewhere reports whether path is known to lead to another network namespace than
// the sandbox's. Of a sandbox without a journal only the host's is known to be another.
func (r *run) leadsElsewhere(path string) bool {
	if r.entry != nil && isSameFile(r.entry, path) {
		return false
	}
	if host, err := cnins.CheckNetNS(path); err == nil && host {
		return true
	}
	if r.entry == nil {
		return false
	}
	box, err := r.sandbox(path)
	return err == nil && isAnothers(r.entry, box)
}

// isSameFile reports whether path is the file that the sandbox of e had at ADD, and so
// surely its network namespace. It spares DEL from entering the namespace.
func isSameFile(e *journal.Entry, path string) bool {
	return e.Plan.NetNSFile != "" && e.Plan.NetNSFile == netnsFile(path)
}

// isAnothers reports whether the network namespace of box is known not to be that of the
// sandbox of e, although the path is. A path such as /proc/PID/ns/net leads to another
// namespace, even the host's, once the kernel gives the process ID to another process.
func isAnothers(e *journal.Entry, box *verify.Sandbox) bool {
	is, err := box.Cookie()
	return err == nil && is != 0 && e.Plan.NetNSCookie != 0 && is != e.Plan.NetNSCookie
}

// nothingLeft reports whether a delegate's DEL failed only because there was nothing to
// do. DEL must succeed then, but some delegates (host-device for one) do not know that,
// and the pod could never be deleted. Without a device this holds only for the chain's
// first plugin, which created the interface.
func (r *run) nothingLeft(t teardown, first bool, cause error) bool {
	if t.a.Device == nil && !first || t.rt.NetNS == "" || !cnierr.Is(cause, cnierr.DelegateFailed) || passes(cause) || !r.gone(t) {
		return false
	}
	r.about(t.a).Warn("interface is gone and no device is missing: the failure of DEL is ignored", "err", cause)
	return true
}

// gone reports whether the attachment's interface is out of the sandbox and its device
// is on the host as before ADD. If the sandbox is gone, both hold.
func (r *run) gone(t teardown) bool {
	if !r.isOut(t.a, t.rt.NetNS) {
		return false
	}
	if t.a.Device == nil || t.rt.NetNS == "" {
		return true
	}
	before, err := recorded(t.before)
	if err != nil {
		return false
	}
	back, err := verify.Returned(r.host(), t.a.Device, before)
	return err == nil && back
}

// recorded decodes the recorded state of a device, nil for none.
func recorded(raw json.RawMessage) (*sriov.Snapshot, error) {
	if raw == nil {
		return nil, nil
	}
	return verify.Recorded(raw)
}

// left returns an error while a device is still in the sandbox after its release.
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

// releaseAddresses runs DEL of the chain's IPAM plugins directly and past failures.
// When the network namespace is gone, some delegates (host-device for one) return
// success before they release their addresses, which would be lost forever. DEL of an
// IPAM plugin is repeatable, so a second run does no harm.
func (r *run) releaseAddresses(ctx context.Context, t teardown) (problems []error) {
	for _, p := range t.list.Plugins {
		ipam := p.Network.IPAM.Type
		if ipam == "" {
			continue
		}
		err := r.within(ctx, func(ctx context.Context) error { return r.execDEL(ctx, t, p, ipam, "", map[string]any{}) })
		if err != nil {
			problems = append(problems, delegateError("del of its addresses", err))
		}
	}
	return problems
}

// cacheFile returns where libcni keeps its record of an attachment.
func (r *run) cacheFile(network, containerID, ifName string) (string, error) {
	dir := filepath.Join(r.Journal.Path, "results")
	name := filepath.Join(dir, fmt.Sprintf("%s-%s-%s", network, containerID, ifName))
	if filepath.Dir(name) != dir {
		return "", cnierr.New("release", cnierr.InvalidDefinition, "network name %q is a path", network)
	}
	return name, nil
}

// record is libcni's record of an attachment in its form "cniCacheV1". Fields and order
// are libcni's, so that an unchanged record encodes to the same bytes.
type record struct {
	Kind           string         `json:"kind"`
	ContainerID    string         `json:"containerId"`
	Config         []byte         `json:"config"`
	IfName         string         `json:"ifName"`
	NetworkName    string         `json:"networkName"`
	NetNS          string         `json:"netns,omitempty"`
	CNIArgs        [][2]string    `json:"cniArgs,omitempty"`
	CapabilityArgs map[string]any `json:"capabilityArgs,omitempty"`
	Result         map[string]any `json:"result,omitempty"`
}

// seedCache makes libcni's record of the attachment match the journal, so that
// delegates get the recorded result as prevResult even if libcni's own file was torn or
// lost. Usually the file is as ADD left it and is not rewritten. An attachment without
// a result was never attached: any file is a torn one and is removed.
func (r *run) seedCache(list *libcni.NetworkConfigList, rt *libcni.RuntimeConf, result json.RawMessage) error {
	defer r.Times.part(partSeed)()
	name, err := r.cacheFile(list.Name, rt.ContainerID, rt.IfName)
	if err != nil {
		return err
	}
	if result == nil {
		return remove(name)
	}
	rec := record{
		Kind: libcni.CNICacheV1, ContainerID: rt.ContainerID, Config: list.Bytes, IfName: rt.IfName,
		NetworkName: list.Name, NetNS: rt.NetNS, CNIArgs: rt.Args, CapabilityArgs: rt.CapabilityArgs,
	}
	err = json.Unmarshal(result, &rec.Result)
	var body []byte
	if err == nil {
		body, err = json.Marshal(rec)
	}
	if err == nil {
		if stands, e := os.ReadFile(name); e == nil && bytes.Equal(stands, body) {
			return nil
		}
		err = errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), os.WriteFile(name, body, 0o600))
	}
	if err != nil {
		// libcni still has its own file. Without either, delegates get no prevResult,
		// which DEL allows.
		r.warn("seed cached result: %v", err)
	}
	return nil
}

// remove removes a file that may be absent, also one whose path cannot name a file.
func remove(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	return cnierr.New("remove "+path, cnierr.IO, "%w", err)
}

// delUnknown serves a DEL for which there is no journal: nothing was attached, or it
// was already released, or the pod is older than Manifold on this node. It releases
// what Multus and libcni recorded. Without any record it runs the default network's
// DEL, which is repeatable. That network may be broken by now, or ADD may have been
// refused because of it: a refused DEL is passed over unless the interface is there. A
// Multus file that names no attachment is removed too.
func (r *run) delUnknown(ctx context.Context) error {
	attachments, err := r.foreign()
	if err == nil && len(attachments) > 0 {
		err = r.releaseForeign(ctx, attachments)
	}
	if err == nil {
		err = r.forgetLost()
	}
	if err != nil || len(attachments) > 0 {
		return r.end(true, err)
	}
	if r.inv.Conf.ReleaseOnly != "" {
		return r.end(true, nil) // the runtime calls the default network itself
	}
	t, err := r.defaultAlone(ctx)
	if err != nil {
		r.warn("DEL of an unknown sandbox: %v", err)
		return r.end(true, nil)
	}
	if err = r.runDEL(ctx, t); err == nil {
		err = r.forgetFile()
	}
	return r.end(true, cnierr.Annotate(err, cnierr.Subject{Pod: r.inv.Pod.String(), Network: t.list.Name}))
}

// defaultAlone returns the teardown of the default network of a sandbox of which
// nothing is known. The error is the one that ADD would be refused with.
func (r *run) defaultAlone(ctx context.Context) (t teardown, err error) {
	if t.list, err = r.knownDefault(ctx, r.inv); err != nil {
		return t, err
	}
	t.a = &plan.Attachment{Name: t.list.Name, IfName: r.inv.IfName, Args: r.inv.Args}
	t.rt = r.runtimeConf(t.a, r.liveNetNS())
	_, err = r.cacheFile(t.list.Name, t.rt.ContainerID, t.rt.IfName)
	return t, err
}
