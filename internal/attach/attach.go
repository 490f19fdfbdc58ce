// Package attach is the engine. It executes a plan with libcni, verifies and records
// every step, undoes what failed, and later checks, releases and collects what it
// recorded.
//
// The order is the same everywhere: take the sandbox's lock, write the journal, then
// act. Whichever process dies at whatever moment, the next DEL finds in the journal
// everything that may exist, and learns from the lock whether a delegate still runs.
package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	cnins "github.com/containernetworking/cni/pkg/ns"
	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/killpoint"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// Engine serves the CNI verbs.
type Engine struct {
	Planner plan.Planner
	Journal journal.Dir
	Links   sriov.Links // the host's network devices; nil for the kernel's
	Log     *slog.Logger
	Stderr  io.Writer // standard error of the delegates
	Times   *Times    // of this call; nil records none
}

// reportTime is how long a verb waits at most for its report to be published.
const reportTime = 20 * time.Second

// run is one verb's work on one sandbox, under its lock.
type run struct {
	*Engine
	inv   *netconf.Invocation
	lock  *journal.Lock
	entry *journal.Entry
	exec  *executor
	cni   *libcni.CNIConfig
	lists []*libcni.NetworkConfigList // the plan's configurations in order; ADD only
	box   *verify.Sandbox             // opened at the first look into the sandbox
}

// begin takes the sandbox's lock. The lock comes first, even before the question to the
// planner: a DEL must wait for an ADD that is still asking, or the ADD would attach
// what nobody ever releases.
func (e *Engine) begin(ctx context.Context, inv *netconf.Invocation) (*run, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(inv.Conf.LockTime))
	defer cancel()
	done := e.Times.step(plan.StepLock, "", 0)
	lock, err := e.Journal.Lock(ctx, keyOf(inv))
	done(err)
	if err != nil {
		return nil, err
	}
	return e.newRun(inv, lock), nil
}

func (e *Engine) newRun(inv *netconf.Invocation, lock *journal.Lock) *run {
	exec := &executor{lock: lock, stderr: e.Stderr, times: e.Times, step: plan.StepDelegate}
	return &run{
		Engine: e, inv: inv, lock: lock, exec: exec,
		cni: libcni.NewCNIConfigWithCacheDir(inv.Path, e.Journal.Path, exec),
	}
}

func keyOf(inv *netconf.Invocation) journal.Key {
	return journal.Key{ContainerID: inv.ContainerID, IfName: inv.IfName}
}

// host returns the node as the verb sees it.
func (r *run) host() sriov.Host {
	return sriov.Host{FS: sriov.FS{Root: r.inv.Conf.SysRoot}, Links: r.Links}
}

// sandbox returns the view into the sandbox's network namespace and opens it on first
// use.
func (r *run) sandbox(netns string) (*verify.Sandbox, error) {
	if r.box != nil {
		return r.box, nil
	}
	var err error
	r.box, err = verify.OpenSandbox(netns)
	return r.box, err
}

// identify records in the plan which network namespace is the sandbox's. It refuses the
// host's: an ADD would change the host's own network, and no DEL could tell what to undo.
func (r *run) identify(p *plan.Plan) error {
	if host, err := cnins.CheckNetNS(r.inv.NetNS); err == nil && host {
		return cnierr.New("look up sandbox", cnierr.InvalidEnvironment, "CNI_NETNS %s is the host's network namespace", r.inv.NetNS).
			WithFix("the runtime must create a network namespace for the sandbox, or leave a pod in the host's alone").About(cnierr.Subject{Pod: p.Pod.String()})
	}
	box, err := r.sandbox(r.inv.NetNS)
	if err == nil {
		p.NetNSCookie, err = box.Cookie()
	}
	p.NetNSFile = netnsFile(r.inv.NetNS)
	return err
}

// netnsFile returns a plan's NetNSFile for a path, "" if there is no such file. As long
// as the file is mounted, which a namespace named by a path usually is, the kernel keeps
// it in memory: no other file has its inode, and no later one its time.
func netnsFile(path string) string {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return ""
	}
	return fmt.Sprintf("%d@%d.%09d", st.Ino, st.Ctim.Sec, st.Ctim.Nsec)
}

// inSandbox reports whether the sandbox has an interface of that name.
func (r *run) inSandbox(netns, name string) (bool, error) {
	defer r.Times.part(partLook)()
	box, err := r.sandbox(netns)
	if err != nil {
		return false, err
	}
	return box.Exists(name)
}

// end releases the lock. clean says that nothing of the sandbox is left, so that the
// lock file can go too.
func (r *run) end(clean bool, err error) error {
	defer r.Times.part(partClose)()
	if r.box != nil {
		r.box.Close()
	}
	if r.lock == nil {
		return err
	}
	return errors.Join(err, r.lock.Unlock(clean))
}

// about returns a logger with the attachment's network, interface and device.
func (r *run) about(a *plan.Attachment) *slog.Logger {
	log := r.Log.With("network", a.Name, "interface", a.IfName)
	if a.Device != nil {
		log = log.With("resource", a.Device.Resource, "device", a.Device.Name())
	}
	return log
}

func (r *run) warn(format string, args ...any) {
	r.Log.Warn(fmt.Sprintf(format, args...))
}

// Add attaches the sandbox to all networks of its plan and returns the default
// network's result in the version that the runtime asked for. On failure nothing stays
// attached. What could not be undone stays in the journal, and the runtime's DEL
// releases it.
func (e *Engine) Add(ctx context.Context, inv *netconf.Invocation) (types.Result, error) {
	if inv.Conf.ReleaseOnly != "" {
		return e.passOver(inv)
	}
	r, err := e.begin(ctx, inv)
	if err != nil {
		return nil, err
	}
	done := r.Times.step(plan.StepPlan, "", 0)
	p, err := r.plan(ctx)
	done(err)
	if err != nil {
		return nil, r.end(true, err)
	}
	if err = r.preflight(ctx, p); err == nil {
		err = r.nameVFs(ctx, p)
	}
	if err == nil {
		err = r.ownWritten(p)
	}
	if err == nil {
		err = r.identify(p)
	}
	if err != nil {
		r.report(plan.Report{Verb: "ADD", Plan: p}, err)
		return nil, r.end(true, err)
	}
	began := time.Now()
	done = r.Times.step(plan.StepJournal, "", 0)
	err = r.beginJournal(ctx, p)
	done(err)
	if err != nil {
		return nil, err
	}
	result, outcomes, err := r.attachAll(ctx)
	if err != nil {
		return nil, r.undo(err)
	}
	r.report(plan.Report{Verb: "ADD", Plan: p, Outcomes: outcomes, Took: time.Since(began)}, nil)
	if err := r.lock.MarkAdded(); err != nil {
		r.warn("the next GC may not spare the sandbox: %v", err)
	}
	return result, r.end(false, nil)
}

// beginJournal writes the journal's first record. On failure it releases the lock; the
// lock file stays if the sandbox already had a journal.
func (r *run) beginJournal(ctx context.Context, p *plan.Plan) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.LockTime))
	defer cancel()
	entry, err := r.Journal.Begin(ctx, keyOf(r.inv), p)
	if err != nil {
		_, missing := r.Journal.Open(keyOf(r.inv))
		return r.end(errors.Is(missing, os.ErrNotExist), err)
	}
	r.entry = entry
	return nil
}

// readinessPoll is how often ADD looks for the readiness file.
const readinessPoll = 50 * time.Millisecond

// awaitReadiness waits for the file that tells that the default network is ready. It
// does not wait when file is empty.
func awaitReadiness(ctx context.Context, file string) error {
	for file != "" {
		_, err := os.Stat(file)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(readinessPoll):
		case <-ctx.Done():
			return cnierr.New("wait for readinessindicatorfile", cnierr.TryAgain, "%w: %w", context.Cause(ctx), err).
				WithFix("see why the default network's plugin is not ready; the runtime will try again")
		}
	}
	return nil
}

// plan asks the planner once the default network is ready.
func (r *run) plan(ctx context.Context) (*plan.Plan, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.PlanTime))
	defer cancel()
	if err := awaitReadiness(ctx, r.inv.Conf.Readiness); err != nil {
		return nil, err
	}
	p, err := r.Planner.Plan(ctx, r.inv.Request())
	if err != nil {
		return nil, cnierr.Annotate(err, cnierr.Subject{Pod: r.inv.Pod.String()})
	}
	killpoint.Here("planned")
	for _, w := range p.Warnings {
		r.warn("%s", w)
	}
	return p, nil
}

// preflight finds every program of the plan, so that a pod whose delegates are not
// installed is refused before anything is done. It also sets each network's CNI
// version.
func (r *run) preflight(ctx context.Context, p *plan.Plan) error {
	for i := range p.Attachments {
		a := &p.Attachments[i]
		r.exec.attachment = i
		list, err := listOf(a)
		if err == nil {
			err = r.exec.findAll(list, r.inv.Path)
		}
		if err == nil {
			list, err = r.versioned(ctx, list)
			a.Config = list.Bytes
		}
		r.lists = append(r.lists, list)
		if err != nil {
			return cnierr.Annotate(err, subjectOf(p, a))
		}
	}
	return nil
}

// attachAll runs the plan's attachments in order, sets the default route, and waits for
// the carriers.
func (r *run) attachAll(ctx context.Context) (types.Result, []plan.Outcome, error) {
	var outcomes []plan.Outcome
	var recorded []int // number of findings that the journal has of each outcome
	for i := range r.entry.Plan.Attachments {
		r.exec.attachment = i
		out, err := r.attach(ctx, i)
		if err != nil {
			return nil, nil, cnierr.Annotate(err, r.subject(i))
		}
		outcomes, recorded = append(outcomes, *out), append(recorded, len(out.Findings))
	}
	if err := r.route(outcomes); err != nil {
		return nil, nil, cnierr.Annotate(err, cnierr.Subject{Pod: r.entry.Plan.Pod.String()})
	}
	if err := r.carriers(outcomes); err != nil {
		return nil, nil, err
	}
	for i := range outcomes {
		// A missing carrier was found after the comparison was recorded.
		if len(outcomes[i].Findings) > recorded[i] {
			if err := r.compared(i, &outcomes[i]); err != nil {
				return nil, nil, cnierr.Annotate(err, r.subject(i))
			}
		}
	}
	result, err := inVersion(outcomes[0].Result, r.inv.Conf.CNIVersion)
	return result, outcomes, cnierr.Annotate(err, r.subject(0))
}

// subject names attachment i in errors.
func (r *run) subject(i int) cnierr.Subject {
	return subjectOf(r.entry.Plan, &r.entry.Plan.Attachments[i])
}

func subjectOf(p *plan.Plan, a *plan.Attachment) cnierr.Subject {
	s := cnierr.Subject{Pod: p.Pod.String(), Network: a.Name, Interface: a.IfName}
	if a.Device != nil {
		s.Resource, s.Device = a.Device.Resource, a.Device.Name()
	}
	return s
}

// attach runs one attachment: refuse a taken interface name, record, run the delegates,
// record, verify, record.
func (r *run) attach(ctx context.Context, i int) (*plan.Outcome, error) {
	a := &r.entry.Plan.Attachments[i]
	taken, err := r.inSandbox(r.inv.NetNS, a.IfName)
	if err != nil {
		return nil, err
	}
	if taken {
		// Refuse before anything is tried, so that undo cannot touch the interface.
		return nil, cnierr.New("attach", cnierr.InterfaceConflict, "the sandbox already has an interface of that name").
			WithFix("choose another interface name in the pod's annotation")
	}
	if err := r.claim(ctx, a); err != nil {
		return nil, err
	}
	before, err := verify.Capture(r.host(), a.Device)
	if err != nil {
		return nil, err
	}
	step := journal.Step{Attachment: i, Phase: journal.Trying}
	if before != nil {
		if step.Before, err = json.Marshal(before); err != nil {
			return nil, cnierr.New("record device", cnierr.IO, "%w", err)
		}
	}
	if err := r.record(step); err != nil {
		return nil, err
	}
	started := r.exec.started
	result, err := r.add(ctx, i)
	if err != nil && r.exec.started == started {
		// No program of the chain ever ran: there is nothing to tear down.
		err = errors.Join(err, r.record(journal.Step{Attachment: i, Phase: journal.Untouched}))
	}
	if err != nil {
		return nil, verify.Vanished(r.host(), a.Device, before, err)
	}
	if err := r.record(journal.Step{Attachment: i, Phase: journal.Attached, Result: result}); err != nil {
		return nil, err
	}
	done := r.Times.step(plan.StepVerify, "", i)
	out, err := r.verify(a, result, before)
	done(err)
	if err != nil {
		return nil, err
	}
	out.DeviceInfo = plan.ReadDeviceInfo(a.DeviceInfoFile)
	r.about(a).Debug("attached", "reason", a.Reason, "verified", out.Verified)
	return out, r.compared(i, out)
}

// record appends a step to the journal.
func (r *run) record(s journal.Step) error {
	defer r.Times.part(partRecord)()
	return r.entry.Append(s)
}

// compared records which properties of attachment i were compared and which differed.
func (r *run) compared(i int, out *plan.Outcome) error {
	return r.record(journal.Step{Attachment: i, Phase: journal.Verified, Checked: out.Verified, Differs: out.Findings})
}

// add runs the delegate chain's ADD and returns its result as JSON.
func (r *run) add(ctx context.Context, i int) (json.RawMessage, error) {
	a := &r.entry.Plan.Attachments[i]
	if err := placeDeviceInfo(a); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	ended := r.Times.part(partLibcni)
	result, err := r.cni.AddNetworkList(ctx, r.lists[i], r.runtimeConf(a, r.inv.NetNS))
	ended()
	killpoint.Here("delegate added")
	if err != nil {
		return nil, explainVersion(r.lists[i], explainUserspace(a, delegateError("add", err)))
	}
	raw, err := json.Marshal(result)
	if err != nil {
		return nil, cnierr.New("encode result", cnierr.DelegateFailed, "%w", err)
	}
	return raw, nil
}

// verify compares the interface with the plan and the delegate's result.
func (r *run) verify(a *plan.Attachment, result json.RawMessage, before *sriov.Snapshot) (*plan.Outcome, error) {
	out := &plan.Outcome{Name: a.Name, IfName: a.IfName, Result: result}
	if a.Want.Verify == plan.VerifyOff {
		return out, nil
	}
	claim, claimed, err := claimOf(result, a.IfName)
	if err != nil {
		return nil, err
	}
	box, err := r.sandbox(r.inv.NetNS)
	if err != nil {
		return nil, err
	}
	facts, err := verify.Look(r.host(), box, a, claimed, before)
	if err != nil {
		return nil, err
	}
	killpoint.Here("verified")
	out.MTU, out.MAC = facts.Interface.MTU, facts.Interface.MAC
	return out, verify.Vanished(r.host(), a.Device, before, r.judge(a, out, verify.Compare(a, claim, before, facts)))
}

// judge adds a comparison to an outcome. Differences are an error only in mode enforce.
func (r *run) judge(a *plan.Attachment, out *plan.Outcome, rep verify.Report) error {
	out.Verified = append(out.Verified, rep.Checked...)
	var found []string
	for _, d := range append(rep.Findings, rep.Warnings...) {
		r.Times.differed(verify.Class(d))
		found = append(found, d.String())
	}
	if len(rep.Findings) > 0 && a.Want.Verify == plan.VerifyEnforce {
		return cnierr.New("verify", cnierr.VerifyFailed, "%s", strings.Join(found, "\n")).WithFix("%s", rep.Fix())
	}
	out.Findings = append(out.Findings, found...)
	for _, f := range found {
		r.about(a).Warn("not as planned", "found", f)
	}
	return nil
}

// carriers waits for the carriers of all attachments up to a common deadline, because
// their links come up in parallel.
func (r *run) carriers(outcomes []plan.Outcome) error {
	box, err := r.sandbox(r.inv.NetNS)
	if err != nil {
		return err
	}
	deadline := time.Now().Add(time.Duration(r.inv.Conf.CarrierTime))
	for i := range outcomes {
		a := &r.entry.Plan.Attachments[i]
		if a.Want.Verify == plan.VerifyOff || a.Want.Carrier == "" || a.Want.Carrier == plan.CarrierIgnore {
			continue
		}
		done := r.Times.step(plan.StepCarrier, "", i)
		rep, err := box.Carrier(a, deadline)
		if err == nil {
			err = r.judge(a, &outcomes[i], rep)
		}
		done(err)
		if err != nil {
			return cnierr.Annotate(err, r.subject(i))
		}
	}
	return nil
}

// undo releases what a failed ADD attached, reports what could not be released, and
// returns the ADD's error.
func (r *run) undo(cause error) error {
	r.exec.step = plan.StepUndo
	problems := r.releaseAll(context.Background())
	for _, p := range problems {
		r.warn("undo: %v", p)
	}
	r.report(plan.Report{Verb: "ADD", Plan: r.entry.Plan, Problems: texts(problems)}, cause)
	return r.end(len(problems) == 0, cause)
}

// report tells the agent how the verb went. A report that fails is only logged and
// never fails the verb: the pod has its networks.
func (r *run) report(rep plan.Report, cause error) {
	ctx, cancel := context.WithTimeout(context.Background(), reportTime)
	defer cancel()
	rep.Version, rep.Plan, rep.Made = plan.Version, rep.Plan.Digest(), time.Now()
	rep.Later = r.inv.Conf.Status == netconf.StatusAsync
	if cause != nil {
		rep.Error = cause.Error()
	}
	if r.Times != nil {
		op := r.Times.end(cause)
		rep.Operation, r.Times.told = &op, true
	}
	ended := r.Times.part(partReport)
	err := r.Planner.Report(ctx, rep)
	ended()
	if err != nil {
		r.warn("report: %v", err)
	}
	killpoint.Here("reported")
}

func texts(errs []error) []string {
	var out []string
	for _, err := range errs {
		out = append(out, err.Error())
	}
	return out
}

// listOf parses the attachment's configuration for libcni. It refuses a list without
// plugins.
func listOf(a *plan.Attachment) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return nil, cnierr.New("read rendered configuration", cnierr.InvalidDefinition, "%w", err)
	}
	if len(list.Plugins) == 0 {
		return nil, cnierr.New("read rendered configuration", cnierr.InvalidDefinition, "it has no plugins")
	}
	return list, nil
}

// runtimeConf is libcni's view of the attachment. It is the same for ADD, CHECK and DEL
// except for the network namespace, which may be gone at DEL.
func (r *run) runtimeConf(a *plan.Attachment, netns string) *libcni.RuntimeConf {
	rt := &libcni.RuntimeConf{ContainerID: r.inv.ContainerID, NetNS: netns, IfName: a.IfName, Args: a.Args}
	if len(a.Capabilities) > 0 {
		rt.CapabilityArgs = make(map[string]any, len(a.Capabilities))
		for k, v := range a.Capabilities {
			rt.CapabilityArgs[k] = v
		}
	}
	return rt
}

// delegateError gives a libcni error a kind unless the executor already has.
func delegateError(verb string, err error) *cnierr.Error {
	var typed *cnierr.Error
	if errors.As(err, &typed) {
		return typed // set by the executor; names the delegate as libcni's wrapping does
	}
	return cnierr.New("delegate "+verb, cnierr.DelegateFailed, "%w", err)
}

// explainUserspace adds a fix when a delegate fails on a device that has no interface
// because a userspace driver holds it. The delegate only says that it found no
// interface, not why.
func explainUserspace(a *plan.Attachment, err *cnierr.Error) *cnierr.Error {
	if a.Device == nil || !a.Device.Userspace || err.Kind != cnierr.DelegateFailed || err.Fix != "" {
		return err
	}
	return err.WithFix("the device is bound to %s and has no interface: bind it to its kernel driver, or remove from the network what needs an interface", a.Device.Driver)
}

// explainVersion adds a fix when a delegate does not support its network's CNI version.
func explainVersion(list *libcni.NetworkConfigList, err *cnierr.Error) *cnierr.Error {
	var own *types.Error
	if err.Fix != "" || !errors.As(err, &own) || own.Code != types.ErrIncompatibleCNIVersion {
		return err
	}
	return err.WithFix("set a cniVersion that every plugin of the network supports, or install plugins that support %s", list.CNIVersion)
}
