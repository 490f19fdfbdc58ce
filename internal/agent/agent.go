// Package agent makes the plans of a node: it gathers what planning needs, plans, and
// publishes the outcome.
//
// [Assemble] connects the sources that a configuration names, and [New] makes an
// [Agent] of them. An Agent serves as plan.Planner behind the unix socket (serve mode),
// for one call (plan mode), or in process. It runs no delegate. It changes nothing on the
// node but VFs, and those only when package reconcile is told to repair them.
package agent

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/killpoint"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/traces"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// Devices returns the devices that the kubelet allocated to a pod. The implementation
// is *podresources.Reader.
type Devices interface {
	Devices(ctx context.Context, pod podresources.Pod, resources []string) (*podresources.Allocation, error)
}

// Publisher writes to the API server. The implementation is *kube.Writer.
type Publisher interface {
	PublishStatus(ctx context.Context, namespace, name, uid, status string) error
	Event(ctx context.Context, ref kube.PodRef, eventType, reason, message string) error
	NodeEvent(ctx context.Context, eventType, reason, message string) error
}

// Sources is what an agent plans from and publishes to.
type Sources struct {
	Pods        kube.Pods
	Definitions kube.Definitions
	// Local looks a definition up without asking the API server, for names that a file
	// on the node also serves; nil asks Definitions.
	Local   kube.Definitions
	Devices Devices // nil: no device is known, and networks that need one are refused
	// Holders returns the holders of the devices that the kubelet has allocated, by PCI
	// address; nil for a planner that knows no kubelet.
	Holders   func(context.Context) (map[string]nodeview.Holder, error)
	Publisher Publisher // nil: nothing is published
	Outbox    outbox    // keeps reports while there is no Publisher; empty: nothing is kept
	// Journal tells which sandboxes exist. Without a path, every reported one counts as
	// existing.
	Journal journal.Dir
	// Ready returns nil when definitions can be looked up. It asks nobody. A nil Ready
	// means that they always can.
	Ready func() error
	// View returns the present state of the node; nil for a planner without a node.
	View func(context.Context) *nodeview.View
	// CNIConfig is the path of the plugin's configuration in the runtime's directory.
	// Pods are explained with it.
	CNIConfig string
	Node      string
	// Metrics counts plans, reports and calls; nil counts nothing.
	Metrics *metrics.Metrics
	// Traces sends the measurements of calls; nil sends nothing.
	Traces *traces.Exporter
	calls  *calls // nil counts nothing
}

// Agent implements plan.Planner.
type Agent struct {
	src Sources
	log *slog.Logger
	// background runs work that the caller need not wait for.
	background func(func())
	parsed     planner.Parsed
	newest     newest
}

// New returns an agent. background runs work that nobody waits for, such as writing an
// Event; nil runs it at once.
func New(src Sources, log *slog.Logger, background func(func())) *Agent {
	if background == nil {
		background = func(f func()) { f() }
	}
	return &Agent{src: src, log: log, background: background}
}

// Plan implements plan.Planner: it fetches what the selection needs, then plans.
func (a *Agent) Plan(ctx context.Context, req plan.Request) (p *plan.Plan, err error) {
	defer a.src.calls.begin(ctx, "plan")()
	began := time.Now()
	defer func() { a.src.Metrics.Planned(time.Since(began), p, err) }()
	if req.Version < 1 || req.Version > plan.Version {
		return nil, cnierr.New("plan", cnierr.Decode, "request version %d, this agent reads 1 to %d", req.Version, plan.Version).
			WithFix("upgrade the agent before the shim")
	}
	inv, err := netconf.FromRequest(req)
	if err != nil {
		return nil, err
	}
	a.newest.plans(inv.Pod, inv.ContainerID)
	p, err = a.plan(ctx, inv, nil)
	killpoint.Here("agent planned")
	if err != nil {
		err = cnierr.Annotate(err, cnierr.Subject{Pod: inv.Pod.String()})
		a.log.Warn("refused", "request", req.ID, "pod", inv.Pod.String(), "uid", inv.Pod.UID, "sandbox", inv.ContainerID, "kind", cnierr.KindOf(err), "err", err)
		if ctx.Err() == nil { // otherwise the caller has given up on this agent, and no pod was refused
			a.refused(ctx, inv.Pod, err)
		}
		return nil, err
	}
	a.log.Info("planned", "request", req.ID, "pod", inv.Pod.String(), "uid", inv.Pod.UID, "sandbox", inv.ContainerID, "attachments", len(p.Attachments))
	return p, nil
}

// plan makes the plan. It records its reasons in why, which may be nil.
func (a *Agent) plan(ctx context.Context, inv *netconf.Invocation, why *nodeview.Explanation) (*plan.Plan, error) {
	ctx = kube.Together(ctx)
	pod, err := a.pod(ctx, inv.Pod)
	if err != nil {
		return nil, err
	}
	explainPod(why, pod)
	sel, err := planner.Select(inv, pod)
	if err != nil {
		return nil, err
	}
	src := planner.Sources{Parsed: &a.parsed}
	var problems []error
	src.Files, problems = netconf.ReadDir(inv.Conf.ConfDir)
	for _, err := range problems {
		a.log.Warn("network configuration ignored", "err", err)
		why.Say("configurations on disk", "ignored: %v", err)
	}
	needs := sel.Definitions(src.Files)
	if src.Definitions, err = a.definitions(ctx, needs); err != nil {
		return nil, err
	}
	explainDefinitions(why, needs, src.Definitions)
	if resources, needed := sel.Resources(src.Definitions); needed {
		if err := a.allocation(ctx, pod, resources, inv, &src); err != nil {
			return nil, err
		}
		explainDevices(why, resources, src.Allocation)
	}
	p, err := sel.Plan(src)
	if err != nil {
		return nil, err
	}
	return p, a.notAnothers(ctx, p, sriov.Host{FS: sriov.FS{Root: inv.Conf.SysRoot}})
}

// pod fetches the pod that the runtime named. It returns nil outside Kubernetes.
func (a *Agent) pod(ctx context.Context, id plan.Pod) (*planner.Pod, error) {
	if id.Name == "" {
		return nil, nil
	}
	found, err := a.src.Pods.Pod(ctx, id.Namespace, id.Name, id.UID)
	if errors.Is(err, kube.ErrNotFound) {
		return nil, cnierr.New("find pod", cnierr.TryAgain, "no source knows it yet: %w", err).
			WithFix("wait if the pod was just created or deleted; otherwise check that the agent reaches the kubelet and the API server")
	}
	if err != nil {
		return nil, cnierr.New("find pod", cnierr.TryAgain, "%w", err).
			WithFix("check that the agent reaches the kubelet and the API server; to find static pods without either, set podManifests in the agent's configuration to the directory of their manifests")
	}
	return podOf(found, id), nil
}

// podOf reduces a pod to what planning needs. The UID is the runtime's, else the
// kubelet's: the API server knows a static pod under another UID, that of its mirror.
func podOf(p *corev1.Pod, id plan.Pod) *planner.Pod {
	out := &planner.Pod{Annotations: p.Annotations, Static: kube.IsStatic(p)}
	out.Namespace, out.Name, out.UID = id.Namespace, id.Name, id.UID
	if out.UID == "" {
		out.UID = kube.KubeletUID(p)
	}
	out.Claims, out.Extended = claimsOf(p)
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		always := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		out.Containers = append(out.Containers, containerOf(c, true, always))
	}
	for i := range p.Spec.Containers {
		out.Containers = append(out.Containers, containerOf(&p.Spec.Containers[i], false, false))
	}
	return out
}

// definitions fetches those of needs that exist.
func (a *Agent) definitions(ctx context.Context, needs []planner.Need) (map[planner.Ref]*netattach.Definition, error) {
	out := map[planner.Ref]*netattach.Definition{}
	for _, need := range needs {
		ref := need.Ref
		def, err := a.definition(ctx, need)
		switch {
		case err == nil:
			out[ref] = def
		case errors.Is(err, kube.ErrNotFound), errors.Is(err, kube.ErrName), need.OnDisk && errors.Is(err, kube.ErrUnavailable):
			// The planner decides whether a file on disk serves instead.
		case errors.Is(err, kube.ErrInvalid):
			return nil, cnierr.New("read definition", cnierr.InvalidDefinition, "%w", err).
				About(cnierr.Subject{Network: ref.String()}).WithFix("correct the definition")
		default:
			return nil, cnierr.New("find definition", cnierr.TryAgain, "%w", err).
				About(cnierr.Subject{Network: ref.String()}).
				WithFix("check that the agent reaches the API server and has a snapshot of the definitions")
		}
	}
	return out, nil
}

// onDiskTime bounds the lookup of a definition that a file can replace.
const onDiskTime = 2 * time.Second

// definition looks for one definition. If a file can serve as well, the node's own
// knowledge answers. Only while that is incomplete are the other sources asked, and
// only briefly: a node must come up without them.
func (a *Agent) definition(ctx context.Context, need planner.Need) (*netattach.Definition, error) {
	if need.OnDisk && a.src.Local != nil {
		def, err := a.src.Local.Definition(ctx, need.Namespace, need.Name)
		if !errors.Is(err, kube.ErrUnavailable) {
			return def, err
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, onDiskTime)
		defer cancel()
	}
	return a.src.Definitions.Definition(ctx, need.Namespace, need.Name)
}

// allocation fetches the pod's devices and the details of each.
func (a *Agent) allocation(ctx context.Context, pod *planner.Pod, resources []string, inv *netconf.Invocation, src *planner.Sources) error {
	if a.src.Devices == nil || pod == nil {
		src.Allocation = &podresources.Allocation{}
		return nil
	}
	alloc, err := a.src.Devices.Devices(ctx, pod.Pod, resources)
	if err != nil {
		kind := cnierr.TryAgain
		if errors.Is(err, podresources.ErrConflict) {
			kind = cnierr.DeviceConflict
		}
		return cnierr.New("read allocation", kind, "%w", err).
			About(cnierr.Subject{Resource: strings.Join(resources, ",")}).
			WithFix("check that the kubelet's PodResources socket and device-manager checkpoint are readable")
	}
	src.Allocation = alloc
	src.Functions = map[string]*sriov.Function{}
	src.DeviceInfo = map[planner.DeviceKey]json.RawMessage{}
	fs := sriov.FS{Root: inv.Conf.SysRoot}
	for _, d := range alloc.Devices {
		// A failed lookup is no error: a network device may be gone, or this agent may
		// be in another network namespace.
		if f, err := fs.FunctionNamed(d.ID); err == nil {
			src.Functions[d.ID] = f
		}
		if info := readDeviceInfo(inv.Conf.DeviceInfo, d.Resource, d.ID); info != nil {
			src.DeviceInfo[planner.DeviceKey{Resource: d.Resource, ID: d.ID}] = info
		}
	}
	return nil
}

// readDeviceInfo returns the device information that the device plugin wrote (device
// information specification 4.1), or nil when there is nothing usable.
func readDeviceInfo(dir, resource, id string) json.RawMessage {
	name, err := netattach.DPFileName(resource, id)
	if err != nil {
		return nil
	}
	return plan.ReadDeviceInfo(filepath.Join(dir, "dp", name))
}

// Status implements plan.Planner. It asks nobody, so that a runtime may call it every
// few seconds: a definition is looked up on this node alone.
func (a *Agent) Status(ctx context.Context, q plan.StatusQuery) (json.RawMessage, error) {
	const op = "status"
	defer a.src.calls.begin(ctx, op)()
	if a.src.Ready != nil {
		if err := a.src.Ready(); err != nil {
			return nil, cnierr.New(op, cnierr.NotReady, "%w", err).
				WithFix("check that the agent reaches the API server")
		}
	}
	if q.Name == "" {
		if q.Config == nil { // no network to check
			return nil, nil
		}
		return nil, a.parsed.Check(q.Config, q.Type)
	}
	source := a.src.Local
	if source == nil {
		source = a.src.Definitions
	}
	return configOf(ctx, source, q.Namespace, q.Name)
}

// laterTime bounds publishing network-status when nobody waits for it.
const laterTime = 20 * time.Second

// Report implements plan.Planner. It counts and traces the operation, then publishes
// the pod's network-status in one PATCH, and one Event.
func (a *Agent) Report(ctx context.Context, r plan.Report) error {
	defer a.src.calls.begin(ctx, "report")()
	killpoint.Here("agent got report")
	op := operationOf(&r)
	a.src.Metrics.Operation(op)
	a.src.Traces.Operation(op, r.Plan)
	a.log.Info("report", "verb", r.Verb, "request", op.Request, "pod", r.Plan.Pod.String(), "uid", r.Plan.Pod.UID, "sandbox", r.Plan.ContainerID,
		"took", op.Took.Duration(), "error", r.Error, "problems", r.Problems)
	if r.Verb == "ADD" && r.Error == "" && !r.Made.IsZero() && time.Since(r.Made) > lateTime && a.gone(r.Plan) {
		return nil // the plugin gave up on this agent and reported elsewhere
	}
	if r.Verb == "ADD" && a.newest.superseded(r.Plan.Pod, r.Plan.ContainerID) {
		a.log.Info("not published: the pod has a newer sandbox", "request", op.Request, "pod", r.Plan.Pod.String(), "sandbox", r.Plan.ContainerID)
		return nil
	}
	return a.tell(ctx, r)
}

// lateTime is the age from which nobody waits for the answer to a report any more. It
// is no less than the time in which a plugin gives up on an agent that hangs.
const lateTime = 5 * time.Second

// operationOf returns the measurements of the reported call. A plugin from before
// plan.Operation reports only verb, outcome and duration.
func operationOf(r *plan.Report) *plan.Operation {
	if r.Operation != nil {
		return r.Operation
	}
	return &plan.Operation{Verb: r.Verb, Failed: r.Error != "", Took: plan.Micros(r.Took.Microseconds())}
}

// tell publishes a report, or keeps it for an agent that can publish.
func (a *Agent) tell(ctx context.Context, r plan.Report) error {
	pod := r.Plan.Pod
	switch {
	case pod.Name == "" || a.src.Publisher == nil && a.src.Outbox == "":
		return nil
	case a.src.Publisher == nil:
		return a.src.Outbox.put(&r)
	}
	var err error
	switch {
	case attached(&r) && r.Later:
		a.background(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), laterTime)
			defer cancel()
			if err := a.publish(ctx, &r, apiUIDOf(pod)); err != nil {
				a.log.Warn("network-status not published", "pod", pod.String(), "err", err)
			}
		})
	case attached(&r):
		err = a.publish(ctx, &r, apiUIDOf(pod))
	}
	a.announce(ctx, &r)
	return err
}

// announce writes the Event of a report.
func (a *Agent) announce(ctx context.Context, r *plan.Report) {
	kind, reason, message := eventOf(r)
	a.background(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), eventTime)
		defer cancel()
		a.event(ctx, r.Plan.Pod, kind, reason, message)
	})
}

// attached reports whether a report is of a successful ADD, which has a network-status.
func attached(r *plan.Report) bool { return r.Verb == "ADD" && r.Error == "" }

// gone reports whether the sandbox of a report has been released by the time that the
// report is read. That happens when the report was kept while no agent ran, or when
// this agent hung. The status of a released sandbox must not become the status of the
// pod's next one.
func (a *Agent) gone(p *plan.Plan) bool {
	if a.src.Journal.Path == "" || len(p.Attachments) == 0 {
		return false
	}
	_, err := a.src.Journal.Stat(journal.Key{ContainerID: p.ContainerID, IfName: p.Attachments[0].IfName})
	return errors.Is(err, os.ErrNotExist)
}

// Observe implements plan.Observer.
func (a *Agent) Observe(_ context.Context, op plan.Operation) {
	a.src.Metrics.Operation(&op)
	if op.Verb != "STATUS" { // runtimes ask every few seconds, and no pod waits for it
		a.src.Traces.Operation(&op, nil)
	}
}

// publish writes network-status.
func (a *Agent) publish(ctx context.Context, r *plan.Report, uid string) error {
	statuses, err := statusesOf(r)
	if err != nil {
		return err
	}
	text, err := netattach.MarshalStatuses(statuses)
	if err != nil {
		return cnierr.New("publish network-status", cnierr.Other, "%w", err)
	}
	if err := a.src.Publisher.PublishStatus(ctx, r.Plan.Pod.Namespace, r.Plan.Pod.Name, uid, text); err != nil {
		a.src.Metrics.NotPublished(metrics.PublishStatus)
		return cnierr.New("publish network-status", cnierr.TryAgain, "%w", err).
			About(cnierr.Subject{Pod: r.Plan.Pod.String()})
	}
	return nil
}

// statusesOf returns the network-status entries of a successful ADD, in order of
// attachment.
func statusesOf(r *plan.Report) ([]netattach.Status, error) {
	var out []netattach.Status
	for i, o := range r.Outcomes {
		if i >= len(r.Plan.Attachments) {
			break
		}
		at := &r.Plan.Attachments[i]
		opts := netattach.StatusOptions{
			Name: at.Name, IfName: at.IfName, Default: at.Default, DeviceInfo: at.DeviceInfo, MTU: o.MTU, MAC: o.MAC,
		}
		if at.DefaultRoute != nil {
			opts.Gateway = *at.DefaultRoute
		}
		if o.DeviceInfo != nil {
			opts.DeviceInfo = o.DeviceInfo
		}
		st, err := netattach.NewStatus(o.Result, opts)
		if err != nil {
			return nil, cnierr.New("make network-status", cnierr.DelegateFailed, "%w", err).
				About(cnierr.Subject{Pod: r.Plan.Pod.String(), Network: at.Name, Interface: at.IfName})
		}
		out = append(out, st)
	}
	return out, nil
}
