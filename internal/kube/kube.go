// Package kube finds pods and network definitions for the agent, and writes the outcome
// of an attachment back to the cluster. It is the only package that links client-go.
//
// # Sources
//
// A pod ([Pods]) and a NetworkAttachmentDefinition ([Definitions]) can come from
// several places. Each source works alone; [FirstPods] and [FirstDefinitions] combine
// them:
//
//   - [PodInformer] watches the pods of one node;
//   - [DefinitionInformer] watches every definition of the cluster and mirrors them to
//     a snapshot file, which answers while the API server does not;
//   - [Snapshot] reads that file alone, for a process that lives for one request;
//   - [ManifestPods] and [ManifestDefinitions] read a directory of manifests, for a
//     kubelet that runs static pods without a control plane.
//
// [Slices] reads the attributes of the devices in claims from the node's
// ResourceSlices.
//
// Every source fails with one of three sentinels: [ErrNotFound] (it knows that the
// object does not exist), [ErrUnavailable] (it cannot tell now; ask again) or
// [ErrInvalid] (the request or the object found breaks a limit). A source may share the
// objects that it returns with its cache, so callers must not change them.
//
// # Writing
//
// [Writer] publishes network-status in one PATCH that touches a single annotation and
// nothing else of the pod, and keeps one Event per pod and reason.
//
// # Size
//
// The agent's memory is small. This package therefore uses REST clients with a scheme
// of the few kinds it needs instead of the generated clientset, and keeps only the
// fields of an object that planning reads. client-go reports some failures of a watch
// through its own logger, klog; the informers' Failing methods tell the rest.
package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/manifold-cni/manifold/netattach"
)

// The three ways in which a source fails. An error wraps exactly one of them and names
// the object.
var (
	// ErrNotFound: the source is up to date and has no such object, or has one of the
	// same name with another UID.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable: the source cannot answer now. It is not synced, its files are
	// absent or unreadable, or the API server does not answer. Another source, or the
	// same one later, may answer the question.
	ErrUnavailable = errors.New("source unavailable")
	// ErrInvalid: a name in the request is not a Kubernetes name, or the object exceeds
	// a limit. Asking again, or another source, does not help.
	ErrInvalid = errors.New("invalid")
)

// ErrName is the [ErrInvalid] of a name that no Kubernetes object can have, in any
// source. A CNI network can have such a name, for example my_net.
var ErrName = fmt.Errorf("not a Kubernetes name: %w", ErrInvalid)

// Pods finds pods.
type Pods interface {
	// Pod returns the pod of that namespace and name. A uid that is not empty must be
	// the pod's UID or, for the mirror pod of a static pod, the UID that the kubelet
	// uses (see [IsMirror]). A pod with another UID is another pod: [ErrNotFound].
	Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error)
}

// Definitions finds NetworkAttachmentDefinitions.
type Definitions interface {
	// Definition returns the definition of that namespace and name.
	Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error)
}

// Annotations that the kubelet sets on static pods and on their mirror pods in
// the API.
const (
	// annotationConfigHash holds the UID that the kubelet computed.
	annotationConfigHash = "kubernetes.io/config.hash"
	// annotationConfigMirror marks a mirror pod; its value is the same UID.
	annotationConfigMirror = corev1.MirrorPodAnnotationKey
	// annotationConfigSource tells where the kubelet got a pod: "api", "file" or
	// "http". The kubelet overwrites whatever the user put there, but only in its own
	// memory. In the API the value is the user's text or, on a mirror pod, the
	// kubelet's copy.
	annotationConfigSource = "kubernetes.io/config.source"

	sourceAPI  = "api"
	sourceFile = "file"
)

// IsStatic reports whether pod, as a source returned it, comes from the kubelet's own
// files and not from the API server. The sources ensure that no user can make an
// ordinary pod look static: a pod read from the API server is static only as a mirror
// (see [IsMirror]).
func IsStatic(pod *corev1.Pod) bool {
	source := pod.Annotations[annotationConfigSource]
	return IsMirror(pod) || source != "" && source != sourceAPI
}

// IsMirror reports whether pod is the API's mirror of a static pod. The API server
// gives a mirror pod a UID of its own, while the kubelet, the runtime and the device
// manager know the pod by the UID in its annotations. Write to a mirror pod with an
// empty UID.
func IsMirror(pod *corev1.Pod) bool {
	_, ok := pod.Annotations[annotationConfigMirror]
	return ok
}

// KubeletUID returns the UID by which the kubelet, the runtime and the device manager
// know a pod that a source returned.
func KubeletUID(pod *corev1.Pod) string {
	if IsMirror(pod) {
		return pod.Annotations[annotationConfigMirror]
	}
	return string(pod.UID)
}

// uidMatches reports whether the runtime's uid means pod. It reads the annotations of
// mirror pods only: on another pod they are the user's text.
func uidMatches(pod *corev1.Pod, uid string) bool {
	if uid == "" || string(pod.UID) == uid {
		return true
	}
	return IsMirror(pod) &&
		(pod.Annotations[annotationConfigMirror] == uid || pod.Annotations[annotationConfigHash] == uid)
}

// checkUID returns pod, or an ErrNotFound that names both UIDs.
func checkUID(pod *corev1.Pod, uid string) (*corev1.Pod, error) {
	if uidMatches(pod, uid) {
		return pod, nil
	}
	return nil, fmt.Errorf("pod %s/%s has UID %s, asked for %s: %w", pod.Namespace, pod.Name, pod.UID, uid, ErrNotFound)
}

// checkNames refuses names that would select something other than one object, before
// they become part of a URL.
func checkNames(kind, namespace, name string) error {
	if msgs := validation.IsDNS1123Label(namespace); len(msgs) > 0 {
		return fmt.Errorf("%s: namespace %.64q: %s: %w", kind, namespace, strings.Join(msgs, ", "), ErrName)
	}
	if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
		return fmt.Errorf("%s: name %.64q: %s: %w", kind, name, strings.Join(msgs, ", "), ErrName)
	}
	return nil
}

// FirstPods returns a source that asks each of sources in turn. A source that does not
// have the pod or cannot answer passes the question on; any other error, and the end of
// ctx, ends the search. When no source has the pod and one of them did not answer
// within a request's timeout, all are asked once more, now with the time that is left
// of ctx. When no source answers, the error is [ErrUnavailable] if at least one source
// could not tell, else [ErrNotFound]; its text contains every source's own.
func FirstPods(sources ...Pods) Pods { return firstPods(sources) }

type firstPods []Pods

func (f firstPods) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	return first(ctx, f, func(ctx context.Context, p Pods) (*corev1.Pod, error) { return p.Pod(ctx, namespace, name, uid) })
}

// FirstDefinitions is [FirstPods] for definitions.
func FirstDefinitions(sources ...Definitions) Definitions { return firstDefinitions(sources) }

type firstDefinitions []Definitions

func (f firstDefinitions) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	return first(ctx, f, func(ctx context.Context, d Definitions) (*netattach.Definition, error) {
		return d.Definition(ctx, namespace, name)
	})
}

// slowness is the context key of the state that [Together] shares between questions.
type slowness struct{}

// Together returns ctx for the questions of one purpose, such as a plan. Once one of
// them has outlasted a request's timeout, the others get all the time of ctx at once,
// instead of losing a request's timeout each. Questions with more than one source are
// excepted: the first source could use up all the time.
func Together(ctx context.Context) context.Context {
	return context.WithValue(ctx, slowness{}, new(atomic.Bool))
}

// first asks each source in turn. If a request's timeout was too short and no other
// source answers, it asks once more with all the time of ctx: a slow server delays a
// pod, but does not fail it.
func first[S, T any](ctx context.Context, sources []S, ask func(context.Context, S) (*T, error)) (*T, error) {
	slow, shared := ctx.Value(slowness{}).(*atomic.Bool)
	if shared && slow.Load() && len(sources) == 1 {
		return inTurn(patiently(ctx), sources, ask)
	}
	got, err := inTurn(ctx, sources, ask)
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		got, err = inTurn(patiently(ctx), sources, ask)
		if shared && ctx.Err() == nil {
			slow.Store(true)
		}
	}
	return got, err
}

func inTurn[S, T any](ctx context.Context, sources []S, ask func(context.Context, S) (*T, error)) (*T, error) {
	var failed []error
	for _, s := range sources {
		got, err := ask(ctx, s)
		if err == nil {
			return got, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil || !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrUnavailable) {
			break
		}
	}
	if len(failed) == 1 {
		return nil, failed[0]
	}
	return nil, combine(failed)
}

// combined is the failure of several sources. It matches one sentinel only, so that a
// caller cannot mistake "not here, and the other place is closed" for "does not exist".
type combined struct {
	text string
	errs []error // what errors.Is and errors.As may see
}

func (c *combined) Error() string   { return c.text }
func (c *combined) Unwrap() []error { return c.errs }

func combine(failed []error) error {
	if len(failed) == 0 {
		return fmt.Errorf("no source to ask: %w", ErrUnavailable)
	}
	texts := make([]string, 0, len(failed))
	var decisive []error
	for _, err := range failed {
		texts = append(texts, err.Error())
		if !errors.Is(err, ErrNotFound) {
			decisive = append(decisive, err)
		}
	}
	if len(decisive) == 0 {
		decisive = failed
	}
	return &combined{text: strings.Join(texts, "; "), errs: decisive}
}
