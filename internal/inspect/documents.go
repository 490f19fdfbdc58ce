package inspect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/manifold-cni/manifold/internal/inject"
	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/rules"
	"github.com/manifold-cni/manifold/netattach"
)

// Document is one object of a manifest, with the file that it is from.
type Document struct {
	Source string
	Object *unstructured.Unstructured
}

// name returns the object's name, or the prefix of a generated one.
func (d Document) name() string { return cmp.Or(d.Object.GetName(), d.Object.GetGenerateName()) }

// podDoc is a pod, or a template of pods, in a document.
type podDoc struct {
	doc      Document
	template *field.Path // nil for a pod itself
	object   map[string]any
	pod      *corev1.Pod // object, decoded
}

// documents are the objects of manifests that concern the networks of pods.
type documents struct {
	definitions map[planner.Ref]*netattach.Definition
	defDocs     []defDoc
	pods        []podDoc
	problems    []Problem
}

// defDoc is a definition in a document.
type defDoc struct {
	doc Document
	def *netattach.Definition
}

// templates maps each kind that creates pods to the path of its pod template.
var templates = map[string][]string{
	"Deployment":            {"spec", "template"},
	"StatefulSet":           {"spec", "template"},
	"DaemonSet":             {"spec", "template"},
	"ReplicaSet":            {"spec", "template"},
	"ReplicationController": {"spec", "template"},
	"Job":                   {"spec", "template"},
	"CronJob":               {"spec", "jobTemplate", "spec", "template"},
}

// sortOut decodes documents. Objects without a namespace get the given one. Other kinds
// are skipped; an object that cannot be decoded becomes a problem.
func sortOut(docs []Document, namespace string) *documents {
	out := &documents{definitions: map[planner.Ref]*netattach.Definition{}}
	for _, doc := range docs {
		if doc.Object.GetNamespace() == "" {
			doc.Object.SetNamespace(namespace)
		}
		gvk := doc.Object.GroupVersionKind()
		switch {
		case gvk.Group == netattach.GroupVersion.Group && gvk.Kind == "NetworkAttachmentDefinition":
			out.addDefinition(doc)
		case gvk.Group == "" && gvk.Kind == "Pod":
			out.addPod(doc, doc.Object.Object, nil)
		case templates[gvk.Kind] != nil:
			out.addTemplate(doc, templates[gvk.Kind])
		}
	}
	return out
}

// problem records a problem of a document.
func (d *documents) problem(doc Document, severity, path, format string, args ...any) {
	d.problems = append(d.problems, Problem{
		Source: doc.Source, Kind: doc.Object.GetKind(), Namespace: doc.Object.GetNamespace(), Name: doc.name(),
		Field: path, Severity: severity, Text: fmt.Sprintf(format, args...),
	})
}

func (d *documents) addDefinition(doc Document) {
	def := &netattach.Definition{}
	if err := decodeDefinition(doc.Object.Object, def); err != nil {
		d.problem(doc, SeverityError, "", "%v", err)
		return
	}
	ref := planner.Ref{Namespace: def.Namespace, Name: def.Name}
	if d.definitions[ref] != nil {
		d.problem(doc, SeverityWarning, "metadata.name", "the definition is given twice; the later one counts")
	}
	d.definitions[ref] = def
	d.defDocs = append(d.defDocs, defDoc{doc, def})
}

func (d *documents) addTemplate(doc Document, path []string) {
	at := field.NewPath(path[0], path[1:]...)
	template, found, err := unstructured.NestedMap(doc.Object.Object, path...)
	if err != nil || !found {
		d.problem(doc, SeverityError, at.String(), "there is no pod template")
		return
	}
	d.addPod(doc, template, at)
}

func (d *documents) addPod(doc Document, object map[string]any, template *field.Path) {
	p := podDoc{doc: doc, template: template, object: object}
	if err := p.decode(); err != nil {
		d.problem(doc, SeverityError, p.at(), "%v", err)
		return
	}
	d.pods = append(d.pods, p)
}

// at returns the path of the pod in its document; empty for a pod itself.
func (p *podDoc) at() string {
	if p.template == nil {
		return ""
	}
	return p.template.String()
}

// decode decodes object into pod.
func (p *podDoc) decode() error {
	raw, err := json.Marshal(p.object)
	if err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	if _, err := rules.DecodePod(raw); err != nil { // first: the strict decoder accepts quantities that take minutes to decode
		return fmt.Errorf("decode: %w", err)
	}
	p.pod = &corev1.Pod{}
	if err := decode(p.object, p.pod); err != nil {
		return err
	}
	p.pod.Namespace = p.doc.Object.GetNamespace()
	p.pod.Name = cmp.Or(p.pod.Name, p.doc.name())
	return nil
}

// admitted are the annotations that make the API server call admission for a pod.
var admitted = []string{netattach.NetworksAnnotation, netattach.DefaultNetworkAnnotation, netattach.StatusVolumeAnnotation}

// admit changes the pod as admission would change it if these definitions existed.
func (p *podDoc) admit(r *rules.Rules, definitions map[planner.Ref]*netattach.Definition) (*inject.Injection, error) {
	has := func(key string) bool { _, ok := p.pod.Annotations[key]; return ok }
	if !slices.ContainsFunc(admitted, has) {
		return &inject.Injection{}, nil
	}
	p.object = runtime.DeepCopyJSON(p.object) // the document keeps its object unchanged
	given, err := inject.Pod(r, p.object, p.pod, func([]planner.Ref) (map[planner.Ref]*netattach.Definition, error) { return definitions, nil })
	if err != nil {
		return nil, fmt.Errorf("admission: %w", err)
	}
	return given, p.decode()
}

// decode converts an object strictly: a key that its type does not have is misspelled,
// and would otherwise be ignored silently.
func decode(object map[string]any, into any) error {
	if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object, into, true); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}

// decodeDefinition converts a definition strictly. DefinitionSpec itself decodes whatever
// somebody wrote, because nodes must cope with it, so the spec is first decoded into a
// plain copy of that type.
func decodeDefinition(object map[string]any, into *netattach.Definition) error {
	type plain netattach.DefinitionSpec
	var strict struct {
		Spec plain `json:"spec"`
	}
	if spec, given := object["spec"]; given {
		if err := decode(map[string]any{"spec": spec}, &strict); err != nil {
			return err
		}
	}
	return decode(object, into)
}
