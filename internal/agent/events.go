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

// Reasons of Events about pods. The only others are those about the node, below and in
// package reconcile. People and alerts depend on these words, and the troubleshooting
// page has an entry for each.
const (
	ReasonAdded   = "AddedInterface"           // the pod has its networks; a warning if its annotation was ignored
	ReasonDiffers = "InterfaceNotAsPlanned"    // the pod has its networks, but one is not as planned
	ReasonFailed  = "FailedToAddInterface"     // ADD failed for a reason not listed below
	ReasonRelease = "FailedToReleaseInterface" // DEL left something behind

	ReasonAnnotation   = "InvalidNetworkAnnotation"
	ReasonNoNetwork    = "NetworkNotFound"
	ReasonNetwork      = "InvalidNetwork"
	ReasonNotAllowed   = "NetworkNotAllowed"
	ReasonNoDevice     = "NoDeviceAllocated"
	ReasonConflict     = "DeviceConflict"
	ReasonVanished     = "DeviceVanished"
	ReasonInUse        = "DeviceInUse" // the sandbox that held it has not been deleted
	ReasonQuarantined  = "DeviceQuarantined"
	ReasonNoDelegate   = "DelegateMissing"
	ReasonDelegate     = "DelegateFailed"
	ReasonTimeout      = "DelegateTimeout"
	ReasonVerification = "VerificationFailed"
	ReasonTaken        = "InterfaceConflict"
	ReasonAPI          = "APIUnavailable" // pods or definitions could not be read
	ReasonNotReady     = "SourceNotReady" // another source of the plan does not answer, or not yet
)

// Reasons of Events about the node.
const (
	ReasonRestored = "CNIConfigurationRestored" // somebody removed Manifold's configuration; it is back
	ReasonLost     = "CNIConfigurationLost"     // the runtime uses another configuration
)

// reasons maps the kind of a failed ADD's error to a reason. For refused plans,
// reasonOf decides about TryAgain.
var reasons = map[cnierr.Kind]string{
	cnierr.InvalidAnnotation: ReasonAnnotation, cnierr.DefinitionMissing: ReasonNoNetwork, cnierr.InvalidDefinition: ReasonNetwork,
	cnierr.Isolation: ReasonNotAllowed, cnierr.NoDevice: ReasonNoDevice, cnierr.DeviceConflict: ReasonConflict,
	cnierr.DeviceVanished: ReasonVanished, cnierr.DelegateMissing: ReasonNoDelegate, cnierr.DelegateFailed: ReasonDelegate,
	cnierr.DelegateTimeout: ReasonTimeout, cnierr.VerifyFailed: ReasonVerification, cnierr.InterfaceConflict: ReasonTaken,
	cnierr.Quarantined: ReasonQuarantined,
	// Only for reports: a plan that could not be made is refused, see reasonOf.
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

// reasonOfKind returns the reason of an ADD that was planned and failed.
func reasonOfKind(k cnierr.Kind) string {
	if r := reasons[k]; r != "" {
		return r
	}
	return ReasonFailed
}

// reasonOf returns the reason of a refused plan, whose cause is still known here.
func reasonOf(err error) string {
	switch {
	case cnierr.KindOf(err) != cnierr.TryAgain:
		return reasonOfKind(cnierr.KindOf(err))
	case errors.Is(err, kube.ErrUnavailable):
		return ReasonAPI
	}
	return ReasonNotReady
}

// Bounds of writing an Event. That of a refusal is short: the runtime tries again, and
// so does the Event, and a one-shot agent must write it before it exits.
const (
	eventTime   = 10 * time.Second
	refusalTime = 2 * time.Second
)

// refused writes the Event of a refused plan. If no source knows the pod, it writes
// none: the pod is gone, or nobody would find the Event.
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

// event writes an Event about a pod. Of a static pod it carries the UID that the
// kubelet computed, not the mirror's: the kubelet's own Events do the same, and kubectl
// describe finds no others.
func (a *Agent) event(ctx context.Context, pod plan.Pod, kind, reason, message string) {
	ref := kube.PodRef{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}
	if err := a.src.Publisher.Event(ctx, ref, kind, reason, message); err != nil {
		a.src.Metrics.NotPublished(metrics.PublishEvent)
		a.log.Warn("event not written", "pod", pod.String(), "uid", pod.UID, "reason", reason, "err", err)
	}
}

// apiUIDOf returns a pod's UID at the API server. It is empty for a static pod: the
// mirror's UID differs from the runtime's and is unknown here.
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
