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
	defer r.Times.part(partClose)()
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
		recorded := r.record(journal.Step{Attachment: i, Phase: journal.Releasing})
		err := r.releaseOne(ctx, i)
		step := journal.Step{Attachment: i, Phase: journal.Released}
		if err != nil {
			err = cnierr.Annotate(err, r.subject(i))
			problems = append(problems, err)
			step.Phase, step.Error = journal.ReleaseFailed, err.Error()
		}
		if e := errors.Join(recorded, r.record(step)); e != nil {
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

// teardown is what releases an attachment.
type teardown struct {
	a      *plan.Attachment
	list   *libcni.NetworkConfigList
	rt     *libcni.RuntimeConf
	before json.RawMessage // what was recorded of the device before ADD, nil for nothing
	// completed says that its ADD was. Of an ADD that was never completed the cause
	// may be one that the DEL has as well, and will have for ever: a value that the
	// delegate cannot read, a version that it does not speak. Then its failures do
	// not keep the pod, once its interface is not there and every plugin was tried.
	completed bool
}

// runDEL runs a delegate chain's DEL, and that of its addresses where the delegates
// may not have. While the interface is in the sandbox its addresses are in use, and
// only the delegates give them back.
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
		t.completed = true // its device is somewhere
	}
	return r.releaseRest(ctx, t, problems)
}

// held is the failure of a DEL whose interface is still in the sandbox. That it is
// there says that a delegate made or moved it, and may hold more outside of the
// sandbox, which nobody else gives back. Nor is it deleted: nothing tells one that was
// made from one that was moved in from the host, with which the host's own would go.
func held(t teardown, err error) error {
	if t.completed {
		return err
	}
	return cnierr.New("release", cnierr.TeardownIncomplete, "%w; its ADD was refused, and what it made or moved is still in the sandbox", err).
		WithFix("correct the delegate, and the next DEL succeeds; or take the interface away by hand (nsenter --net=%s ip link, delete %s or move it back to the host), then no failure of the delegate keeps the pod", t.rt.NetNS, t.rt.IfName)
}

// delAll runs DEL of a chain's plugins, last first and past failures: libcni ends
// at the first, and what the plugins before it made would stay. It reports whether
// one failed, and returns the failures that count.
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
	if tried == 0 { // libcni refuses the list
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

// delBare runs DEL of a chain's plugins that have an IPAM without it. host-device
// leaves its device in the sandbox when its IPAM refuses ADD, and gives it back
// after its IPAM's DEL alone, which is refused as well.
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

// within runs f within the time that delegates have.
func (r *run) within(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	return f(ctx)
}

// delPlugin runs DEL of one plugin of a chain, with what libcni gives it and more
// keys.
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

// execDEL runs DEL of a program with a plugin's configuration and more keys.
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

// releaseRest releases what an attachment has beside its device where the chain's DEL
// did not run or did not succeed: its addresses, and libcni's record, which libcni
// itself removes after a DEL that succeeded. problems are the chain's failures.
func (r *run) releaseRest(ctx context.Context, t teardown, problems []error) error {
	if err := r.outcome(t, append(problems, r.releaseAddresses(ctx, t)...)); err != nil {
		return err
	}
	return r.seedCache(t.list, t.rt, nil)
}

// outcome is what the release of an attachment ends with whose interface is not in
// the sandbox: problems, unless they are such as would keep the pod for ever.
func (r *run) outcome(t teardown, problems []error) error {
	if t.completed || slices.ContainsFunc(problems, passes) {
		return join(problems)
	}
	for _, err := range problems {
		r.about(t.a).Warn("ADD was never completed and the interface is not there, so the failure of DEL is passed over", "err", err)
	}
	return nil
}

// passes reports whether a delegate's failure is one that may pass: it did not end
// in time, or asks to be tried again.
func passes(err error) bool {
	var own *types.Error
	return cnierr.Is(err, cnierr.DelegateTimeout) || errors.As(err, &own) && own.Code == types.ErrTryAgainLater
}

// join makes one error of problems; one alone stays as it is.
func join(problems []error) error {
	if len(problems) == 1 {
		return problems[0]
	}
	return errors.Join(problems...)
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
// nothing to do. Some delegates do not know that DEL must succeed then (host-device
// for one), and the pod could never be deleted. Without a device this is said of
// the chain's first plugin alone, which made the interface.
func (r *run) nothingLeft(t teardown, first bool, cause error) bool {
	if t.a.Device == nil && !first || t.rt.NetNS == "" || !cnierr.Is(cause, cnierr.DelegateFailed) || passes(cause) || !r.gone(t) {
		return false
	}
	r.about(t.a).Warn("interface is gone and no device is missing, so the failure of DEL is passed over", "err", cause)
	return true
}

// gone reports whether the attachment's interface is not in the sandbox, and its
// device stands on the host as before ADD. A sandbox that is gone has none.
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

// releaseAddresses runs DEL of the chain's IPAM plugins themselves, past failures.
// With the network namespace gone some delegates return success before they release
// their addresses (host-device for one), which would then be lost for ever. An
// IPAM plugin's DEL is repeatable, so that it may run twice is no harm.
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

// cacheFile is where libcni keeps its record of an attachment.
func (r *run) cacheFile(network, containerID, ifName string) (string, error) {
	dir := filepath.Join(r.Journal.Path, "results")
	name := filepath.Join(dir, fmt.Sprintf("%s-%s-%s", network, containerID, ifName))
	if filepath.Dir(name) != dir {
		return "", cnierr.New("release", cnierr.InvalidDefinition, "network name %q is a path", network)
	}
	return name, nil
}

// record is libcni's of an attachment, in its form "cniCacheV1": the same fields in
// the same order, so that what libcni wrote itself is byte for byte the same.
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

// seedCache makes libcni's record of the attachment what the journal says, so that
// delegates get the recorded result as prevResult even if libcni's own file was cut
// in mid-write or lost. As a rule it stands there as ADD left it, and is not written
// again. An attachment without a result was never attached: what stands there was
// cut in mid-write.
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
		// libcni still has its own file; without either, delegates get no
		// prevResult, which DEL allows.
		r.warn("seed cached result: %v", err)
	}
	return nil
}

// remove removes a file that may be absent, as one is that no file can be called.
func remove(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG) {
		return nil
	}
	return cnierr.New("remove "+path, cnierr.IO, "%w", err)
}

// delUnknown serves a DEL of which there is no journal: nothing was attached, or
// it was released before, or the pod is older than Manifold on this node. Then
// what Multus and libcni recorded is released; without any record the default
// network's DEL runs, which is repeatable. That network may be broken by now, or
// have been when ADD was refused for it: what it refuses is passed over, unless the
// interface is there. A file of Multus that tells of no attachment goes with it.
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

// defaultAlone is the release of the default network of a sandbox of which nothing
// is known. The error is what an ADD would be refused for.
func (r *run) defaultAlone(ctx context.Context) (t teardown, err error) {
	if t.list, err = r.knownDefault(ctx, r.inv); err != nil {
		return t, err
	}
	t.a = &plan.Attachment{Name: t.list.Name, IfName: r.inv.IfName, Args: r.inv.Args}
	t.rt = r.runtimeConf(t.a, r.liveNetNS())
	_, err = r.cacheFile(t.list.Name, t.rt.ContainerID, t.rt.IfName)
	return t, err
}
