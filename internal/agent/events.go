package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/metrics"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/reconcile"
)

// Reasons of Events about pods. Beside these there are those about the node, below
// and in package reconcile, and no others; people and alerts depend on them, and the
// troubleshooting page has an entry for each.
const (
	ReasonAdded   = "AddedInterface"           // the pod has its networks; a warning where its annotation was passed over
	ReasonDiffers = "InterfaceNotAsPlanned"    // the pod has its networks, and one is not as planned
	ReasonFailed  = "FailedToAddInterface"     // ADD failed otherwise than the following say
	ReasonRelease = "FailedToReleaseInterface" // DEL left something behind

	ReasonAnnotation   = "InvalidNetworkAnnotation"
	ReasonNoNetwork    = "NetworkNotFound"
	ReasonNetwork      = "InvalidNetwork"
	ReasonNotAllowed   = "NetworkNotAllowed"
	ReasonNoDevice     = "NoDeviceAllocated"
	ReasonConflict     = "DeviceConflict"
	ReasonVanished     = "DeviceVanished"
	ReasonInUse        = "DeviceInUse" // the sandbox that had it has not been deleted
	ReasonQuarantined  = "DeviceQuarantined"
	ReasonNoDelegate   = "DelegateMissing"
	ReasonDelegate     = "DelegateFailed"
	ReasonTimeout      = "DelegateTimeout"
	ReasonVerification = "VerificationFailed"
	ReasonTaken        = "InterfaceConflict"
	ReasonAPI          = "APIUnavailable" // pods or definitions could not be asked for
	ReasonNotReady     = "SourceNotReady" // another source of the plan does not answer, or not yet
)

// Reasons of Events about the node.
const (
	ReasonRestored = "CNIConfigurationRestored" // somebody took Manifold's configuration away; it is back
	ReasonLost     = "CNIConfigurationLost"     // the runtime takes another one
)

// reasons are those of failed ADDs, by kind of the error; TryAgain is
// [reasonOf]'s.
var reasons = map[cnierr.Kind]string{
	cnierr.InvalidAnnotation: ReasonAnnotation, cnierr.DefinitionMissing: ReasonNoNetwork, cnierr.InvalidDefinition: ReasonNetwork,
	cnierr.Isolation: ReasonNotAllowed, cnierr.NoDevice: ReasonNoDevice, cnierr.DeviceConflict: ReasonConflict,
	cnierr.DeviceVanished: ReasonVanished, cnierr.DelegateMissing: ReasonNoDelegate, cnierr.DelegateFailed: ReasonDelegate,
	cnierr.DelegateTimeout: ReasonTimeout, cnierr.VerifyFailed: ReasonVerification, cnierr.InterfaceConflict: ReasonTaken,
	cnierr.Quarantined: ReasonQuarantined,
	// Of what is reported: plans that could not be made are refused, see reasonOf.
	cnierr.TryAgain: ReasonInUse,
}

// Reasons returns every reason of an Event.
func Reasons() []string {
	out := []string{ReasonAdded, ReasonDiffers, ReasonFailed, ReasonRelease, ReasonAPI, ReasonNotReady, ReasonRestored, ReasonLost}
	for _, k := range cnierr.Kinds() {
		if r := reasons[k]; r != "" {
			out = append(out, r)
		}
	}
	for _, k := range reconcile.Kinds() {
		out = append(out, reconcile.Reason(k))
	}
	return append(out, reconcile.ReasonRepaired)
}

// reasonOfKind is the reason of a failed ADD that was planned.
func reasonOfKind(k cnierr.Kind) string {
	if r := reasons[k]; r != "" {
		return r
	}
	return ReasonFailed
}

// reasonOf is the reason of a refusal, whose causes are known here.
func reasonOf(err error) string {
	switch {
	case cnierr.KindOf(err) != cnierr.TryAgain:
		return reasonOfKind(cnierr.KindOf(err))
	case errors.Is(err, kube.ErrUnavailable):
		return ReasonAPI
	}
	return ReasonNotReady
}

// Bounds of the writing of an Event: of a refusal a short one, since the runtime
// tries again and so does the Event, and a one-shot agent writes it before it ends.
const (
	eventTime   = 10 * time.Second
	refusalTime = 2 * time.Second
)

// refused writes the Event of a plan that was refused. Of a pod that no source
// knows none is written: it is gone, or nobody would find it.
func (a *Agent) refused(ctx context.Context, id plan.Pod, cause error) {
	if a.src.Publisher == nil || id.Name == "" {
		return
	}
	a.background(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), refusalTime)
		defer cancel()
		pod, err := a.pod(ctx, id)
		if errors.Is(err, kube.ErrNotFound) {
			return
		}
		if err == nil {
			id.UID, id.Static = pod.UID, pod.Static
		}
		a.event(ctx, id, corev1.EventTypeWarning, reasonOf(cause), cause.Error())
	})
}

// event writes an Event about a pod.
func (a *Agent) event(ctx context.Context, pod plan.Pod, kind, reason, message string) {
	ref := kube.PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: apiUIDOf(pod)}
	if err := a.src.Publisher.Event(ctx, ref, kind, reason, message); err != nil {
		a.src.Metrics.NotPublished(metrics.PublishEvent)
		a.log.Warn("event not written", "pod", pod.String(), "uid", pod.UID, "reason", reason, "err", err)
	}
}

// apiUIDOf is a pod's UID at the API server: not known of a static pod, whose
// mirror has another than the runtime gives.
func apiUIDOf(pod plan.Pod) string {
	if pod.Static {
		return ""
	}
	return pod.UID
}

// eventOf words the one Event of a report.
func eventOf(r *plan.Report) (kind, reason, message string) {
	switch {
	case r.Error != "" && r.Verb == "DEL":
		return corev1.EventTypeWarning, ReasonRelease, r.Error
	case r.Error != "" && r.Operation != nil:
		return corev1.EventTypeWarning, reasonOfKind(r.Operation.Kind), r.Error
	case r.Error != "":
		return corev1.EventTypeWarning, ReasonFailed, r.Error
	}
	kind, reason = corev1.EventTypeNormal, ReasonAdded
	var parts []string
	for _, o := range r.Outcomes {
		part := fmt.Sprintf("%s from %s", o.IfName, o.Name)
		if len(o.Findings) > 0 {
			kind, reason = corev1.EventTypeWarning, ReasonDiffers
			part += " (not as planned: " + strings.Join(o.Findings, "; ") + ")"
		}
		parts = append(parts, part)
	}
	message = "Add " + strings.Join(parts, ", ")
	if r.Plan.Ignored != "" {
		kind, message = corev1.EventTypeWarning, message+"; "+r.Plan.Ignored
	}
	return kind, reason, message
}
