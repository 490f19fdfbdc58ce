package netattach

import (
	"encoding/json"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion is the API group and version of definitions.
var GroupVersion = schema.GroupVersion{Group: "k8s.cni.cncf.io", Version: "v1"}

// Resource is the plural name of definitions in the API.
const Resource = "network-attachment-definitions"

// Definition is a NetworkAttachmentDefinition (specification 3): a network that pods
// select by name.
type Definition struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              DefinitionSpec `json:"spec"`
}

// DefinitionSpec holds the network's configuration.
type DefinitionSpec struct {
	// Config is a CNI configuration or configuration list as JSON. If it is empty, a
	// file on the node has the configuration, under the definition's name.
	Config string `json:"config,omitempty"`
}

// UnmarshalJSON never fails. An API server whose schema does not cover a definition's
// spec, or did not when the object was written, returns whatever somebody wrote, and
// one object that fails would fail the whole list. What is not a string is kept as
// written, and whoever selects the definition gets the error.
func (s *DefinitionSpec) UnmarshalJSON(raw []byte) error {
	spec := map[string]json.RawMessage{}
	if json.Unmarshal(raw, &spec) != nil {
		spec["config"] = raw
	}
	config, there := spec["config"]
	if there && json.Unmarshal(config, &s.Config) != nil {
		s.Config = string(config)
	}
	return nil
}

// DefinitionList is a list of definitions as the API server returns it.
type DefinitionList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`
	Items           []Definition `json:"items"`
}

// ResourceName returns the resource that the definition's attachments use, empty for
// none.
func (d *Definition) ResourceName() string { return d.Annotations[ResourceNameAnnotation] }

// DeepCopyObject implements runtime.Object.
func (d *Definition) DeepCopyObject() runtime.Object {
	if d == nil {
		return nil
	}
	out := *d
	d.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	return &out
}

// DeepCopyObject implements runtime.Object.
func (l *DefinitionList) DeepCopyObject() runtime.Object {
	if l == nil {
		return nil
	}
	out := DefinitionList{TypeMeta: l.TypeMeta}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		item := l.Items[i]
		l.Items[i].ObjectMeta.DeepCopyInto(&item.ObjectMeta)
		out.Items = append(out.Items, item)
	}
	return &out
}

// AddToScheme registers the types with client-go's scheme.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypeWithName(GroupVersion.WithKind("NetworkAttachmentDefinition"), &Definition{})
	s.AddKnownTypeWithName(GroupVersion.WithKind("NetworkAttachmentDefinitionList"), &DefinitionList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
