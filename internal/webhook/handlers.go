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
	"k8s.io/apimachinery/pkg/util/json" // names of keys are exact, as at the API server
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/inject"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/rules"
	"github.com/manifold-cni/manifold/netattach"
)

// notThere is what is said of a definition that does not exist.
const notThere = "does not exist (yet)"

// definitions finds definitions; *kube.DefinitionInformer is the real one.
type definitions interface {
	kube.Definitions
	// Local is Definition without asking the API server.
	Local(ctx context.Context, namespace, name string) (*netattach.Definition, error)
}

// reviewer answers the API server's reviews.
type reviewer struct {
	rules       *rules.Rules
	definitions definitions
	metrics     *metrics
}

// maxAsked bounds the definitions that one review asks the API server for, so that
// a pod which selects hundreds that nobody made does not use up what all reviews
// together may ask.
const maxAsked = 8

// definitionsFor returns the definitions that exist of those that a pod selects. One
// that is not in memory may be a moment old, so the API server is asked. It fails
// where it cannot tell: a pod that were let through unseen would wait for devices
// that nobody requested.
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

// podOf reads the pod of a review. Its namespace is the request's.
func podOf(req *admission.Request) (*corev1.Pod, error) {
	pod, err := rules.DecodePod(req.Object.Raw)
	if err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	pod.Namespace = req.Namespace
	return pod, nil
}

// failed refuses an object that could not be looked at.
func failed(err error) admission.Response {
	code := int32(http.StatusServiceUnavailable)
	if !cnierr.Is(err, cnierr.TryAgain) {
		code = http.StatusUnprocessableEntity
	}
	return admission.Errored(code, err)
}

// mutatePod gives a pod what its networks need. A pod that is wrong is left as it
// is: validation refuses it, after every other webhook has had its say.
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
	if refs, err := r.rules.Select(pod); err == nil { // else the rules say why
		if defs, err = r.definitionsFor(ctx, refs); err != nil {
			return failed(err)
		}
	}
	return r.answer(&req, "Pod", r.rules.Pod(pod, nil, defs))
}

// validateDefinition refuses a definition that cannot work. One that was there
// before these rules may still be labelled, owned and deleted.
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

// answer turns findings into the answer of a review: errors refuse, as causes with
// the paths of their fields, warnings are shown to the user. kind is what was looked
// at: that of the request is whatever its sender wrote, and counting by it would
// give strangers any number of series.
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

// The API server drops what is longer.
const (
	maxWarnings = 10
	maxWarning  = 256
)

// clip shortens warnings to what the API server passes on.
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
