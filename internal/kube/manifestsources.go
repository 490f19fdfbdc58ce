package kube

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
)

// defaultNamespace is the namespace of an object that names none.
const defaultNamespace = corev1.NamespaceDefault

// ManifestPods reads pods from the directory of manifests that a kubelet runs its
// static pods from. It implements [Pods] without an API server.
//
// It reads the files *.yaml, *.yml and *.json of the directory, not those of its
// subdirectories. Each holds one or more documents of kind Pod, PodList or List; other
// kinds are ignored. Symbolic links are followed inside the directory only. Files are
// read again when they change. An unreadable file never hides the others, see
// [ManifestPods.Problems].
type ManifestPods struct {
	dir    manifestDir[corev1.Pod]
	suffix string
}

// NewManifestPods returns a source for the manifests in dir. nodeName is the name under
// which the kubelet registers, usually the host's.
func NewManifestPods(dir, nodeName string) *ManifestPods {
	return &ManifestPods{
		dir:    manifestDir[corev1.Pod]{dir: dir, collect: collectPod},
		suffix: "-" + strings.ToLower(nodeName), // as the kubelet builds it
	}
}

func collectPod(obj runtime.Object, into *manifestSet[corev1.Pod]) error {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return nil
	}
	if pod.Namespace == "" {
		pod.Namespace = defaultNamespace
	}
	return into.add("pod", pod.Namespace, pod.Name, trimPod(pod))
}

// Problems returns what is unreadable now, one error for each file or document.
func (m *ManifestPods) Problems() []error { return problems(&m.dir) }

// Pod implements [Pods]. The kubelet appends "-" and its node name to a static pod's
// name, so Pod looks the name up without that suffix. A manifest is found under its own
// name only with the UID written in it, because another pod may have that name. For a
// manifest without a UID the kubelet computes one, so such a manifest matches every
// uid. The pod is returned as the kubelet knows it, under the name and uid asked for,
// and is static (see [IsStatic]).
func (m *ManifestPods) Pod(_ context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	if err := checkNames("pod", namespace, name); err != nil {
		return nil, err
	}
	set, err := m.dir.load()
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", namespace, name, err)
	}
	if pod := set.objects[namespace+"/"+name]; pod != nil && uid != "" && string(pod.UID) == uid {
		return asKubelet(pod, name, uid), nil
	}
	pod := set.objects[namespace+"/"+m.manifestName(name)]
	if pod == nil {
		return nil, fmt.Errorf("pod %s/%s: no manifest in %s%s: %w", namespace, name, m.dir.dir, set.problemText(), ErrNotFound)
	}
	found, err := checkUID(asKubelet(pod, name, uid), uid)
	if err != nil {
		return nil, fmt.Errorf("manifests %s: %w", m.dir.dir, err)
	}
	return found, nil
}

// manifestName returns the name that the manifest gives the static pod that the kubelet
// calls name; empty if name is not a static pod's.
func (m *ManifestPods) manifestName(name string) string {
	short, ok := strings.CutSuffix(name, m.suffix)
	if !ok || m.suffix == "-" {
		return ""
	}
	return short
}

// asKubelet returns a copy of a manifest's pod with the kubelet's additions: the name,
// the UID unless the manifest has one, and the annotation of the pod's source.
func asKubelet(manifest *corev1.Pod, name, uid string) *corev1.Pod {
	pod := manifest.DeepCopy()
	pod.Name = name
	if pod.UID == "" {
		pod.UID = types.UID(uid)
	}
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, annotationConfigSource, sourceFile)
	return pod
}

// ManifestDefinitions reads NetworkAttachmentDefinitions from a directory of manifests,
// by the rules of [ManifestPods]. It implements [Definitions] without an API server.
type ManifestDefinitions struct {
	dir manifestDir[entry]
}

// NewManifestDefinitions returns a source for the manifests in dir.
func NewManifestDefinitions(dir string) *ManifestDefinitions {
	return &ManifestDefinitions{dir: manifestDir[entry]{dir: dir, collect: collectDefinition}}
}

func collectDefinition(obj runtime.Object, into *manifestSet[entry]) error {
	def, ok := obj.(*netattach.Definition)
	if !ok {
		return nil
	}
	if def.Namespace == "" {
		def.Namespace = defaultNamespace
	}
	return into.add("definition", def.Namespace, def.Name, newEntry(def))
}

// Problems returns what is unreadable now, one error for each file or document.
func (m *ManifestDefinitions) Problems() []error { return problems(&m.dir) }

// Definition implements [Definitions].
func (m *ManifestDefinitions) Definition(_ context.Context, namespace, name string) (*netattach.Definition, error) {
	if err := checkNames("definition", namespace, name); err != nil {
		return nil, err
	}
	set, err := m.dir.load()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", definitionText(namespace, name), err)
	}
	e, ok := set.objects[namespace+"/"+name]
	if !ok {
		return nil, fmt.Errorf("%s: no manifest in %s%s: %w", definitionText(namespace, name), m.dir.dir, set.problemText(), ErrNotFound)
	}
	return e.definition()
}

func problems[T any](m *manifestDir[T]) []error {
	set, err := m.load()
	if err != nil {
		return []error{err}
	}
	return set.problems
}
