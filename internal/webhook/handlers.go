package webhook

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/json" // matches keys by case, as the API server does
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/inject"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/rules"
	"github.com/manifold-cni/manifold/netattach"
)

// notThere is the text of the warning about a definition that does not exist. The
// definition may follow the pod.
const notThere = "does not exist (yet)"

// definitions looks up definitions; *kube.DefinitionInformer implements it.
type definitions interface {
	kube.Definitions
	// Local is Definition, answered from memory without asking the API server.
	Local(ctx context.Context, namespace, name string) (*netattach.Definition, error)
}

// reviewer answers the API server's admission reviews.
type reviewer struct {
	rules       *rules.Rules
	definitions definitions
	metrics     *metrics
}

// maxAsked bounds the definitions that one review asks the API server for. Without it
// a pod that selects hundreds of absent definitions would use up the request rate that
// all reviews share.
const maxAsked = 8

// definitionsFor returns those of the selected definitions that exist. A definition
// that is missing in memory may have been created a moment ago, so definitionsFor
// asks the API server for it. It fails if it cannot tell whether a definition exists:
// a pod admitted without its definitions would lack the devices that they need.
func (r *reviewer) definitionsFor(ctx context.Context, refs []planner.Ref) (map[planner.Ref]*netattach.Definition, error) {
	out := map[planner.Ref]*netattach.Definition{}
	asked := 0
	for _, ref := range refs {
		def, err := r.definitions.Local(ctx, ref.Namespace, ref.Name)
		if asked < maxAsked && (errors.Is(err, kube.ErrNotFound) || errors.Is(err, kube.ErrUnavailable)) {
			asked++
			def, err = r.definitions.Definition(ctx, ref.Namespace, ref.Name)
		}
		switch {
		case err == nil:
			out[ref] = def
		case errors.Is(err, kube.ErrNotFound), errors.Is(err, kube.ErrName):
		case errors.Is(err, kube.ErrInvalid):
			return nil, cnierr.New("read definition", cnierr.InvalidDefinition, "%w", err).WithFix("correct the definition")
		default:
			return nil, cnierr.New("find definition", cnierr.TryAgain, "%w", err).WithFix("create the pod again when the API server answers")
		}
	}
	return out, nil
}

// podOf decodes the pod of a review. The pod's namespace is taken from the request,
// because the object may not have it yet.
func podOf(req *admission.Request) (*corev1.Pod, error) {
	pod, err := rules.DecodePod(req.Object.Raw)
	if err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	pod.Namespace = req.Namespace
	return pod, nil
}

// failed refuses an object that could not be reviewed: with 503 if trying again may
// help, otherwise with 422.
func failed(err error) admission.Response {
	code := int32(http.StatusServiceUnavailable)
	if !cnierr.Is(err, cnierr.TryAgain) {
		code = http.StatusUnprocessableEntity
	}
	return admission.Errored(code, err)
}

// mutatePod adds to a pod what its networks need. It leaves an invalid pod unchanged:
// validation refuses it, after all other mutating webhooks have run.
func (r *reviewer) mutatePod(ctx context.Context, req admission.Request) admission.Response {
	pod, err := podOf(&req)
	if err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	var object map[string]any
	if err := json.Unmarshal(req.Object.Raw, &object); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read pod: %w", err))
	}
	in, err := inject.Pod(r.rules, object, pod, func(refs []planner.Ref) (map[planner.Ref]*netattach.Definition, error) {
		return r.definitionsFor(ctx, refs)
	})
	if err != nil {
		return failed(err)
	}
	r.metrics.injected(in.Devices)
	resp := admission.Allowed("")
	for _, op := range in.Operations {
		resp.Patches = append(resp.Patches, jsonpatch.NewOperation(op.Op, op.Path, op.Value))
	}
	resp.Warnings = clip(in.Warnings)
	return resp
}

// validatePod refuses a pod that a node would refuse.
func (r *reviewer) validatePod(ctx context.Context, req admission.Request) admission.Response {
	pod, err := podOf(&req)
	if err != nil {
		return admission.Errored(http.StatusBadRequest, err)
	}
	defs := map[planner.Ref]*netattach.Definition{}
	if refs, err := r.rules.Select(pod); err == nil { // else the rules below say why
		if defs, err = r.definitionsFor(ctx, refs); err != nil {
			return failed(err)
		}
	}
	return r.answer(&req, "Pod", r.rules.Pod(pod, nil, defs))
}

// validateDefinition refuses a definition that cannot work. It admits every update
// that changes neither spec nor annotations, so that an invalid definition older than
// these rules can still be labeled, owned and deleted.
func (r *reviewer) validateDefinition(_ context.Context, req admission.Request) admission.Response {
	def, old := &netattach.Definition{}, &netattach.Definition{}
	if err := json.Unmarshal(req.Object.Raw, def); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read definition: %w", err))
	}
	if req.Operation == admissionv1.Update {
		if err := json.Unmarshal(req.OldObject.Raw, old); err == nil && old.Spec == def.Spec && maps.Equal(old.Annotations, def.Annotations) {
			return admission.Allowed("")
		}
	}
	return r.answer(&req, "NetworkAttachmentDefinition", rules.Definition(def))
}

// answer turns findings into the response to a review. Errors refuse the object and
// become causes with the paths of their fields; warnings are shown to the user. kind
// is the kind that was reviewed. The request's own kind is whatever the sender wrote:
// counting by it would let strangers create any number of series.
func (r *reviewer) answer(req *admission.Request, kind string, found []rules.Finding) admission.Response {
	var causes []metav1.StatusCause
	var texts, warnings []string
	for _, f := range found {
		r.metrics.found(kind, f.Severity)
		if f.Severity == rules.Warning {
			warnings = append(warnings, f.Field+": "+f.String())
			continue
		}
		causes = append(causes, metav1.StatusCause{Type: metav1.CauseTypeFieldValueInvalid, Field: f.Field, Message: f.String()})
		texts = append(texts, f.Field+": "+f.String())
	}
	resp := admission.Allowed("")
	if len(causes) > 0 {
		resp = admission.Denied(strings.Join(texts, "\n"))
		resp.Result = &metav1.Status{
			Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid, Message: strings.Join(texts, "\n"),
			Details: &metav1.StatusDetails{Group: req.Kind.Group, Kind: kind, Name: req.Name, Causes: causes},
		}
	}
	resp.Warnings = clip(warnings)
	return resp
}

// Limits of a response's warnings: the API server drops what exceeds them.
const (
	maxWarnings = 10
	maxWarning  = 256
)

// clip shortens warnings to the limits, in number and in bytes each.
func clip(warnings []string) []string {
	var out []string
	for _, w := range warnings[:min(len(warnings), maxWarnings)] {
		if len(w) > maxWarning {
			w = strings.ToValidUTF8(w[:maxWarning-len("…")], "") + "…"
		}
		out = append(out, w)
	}
	return out
}
