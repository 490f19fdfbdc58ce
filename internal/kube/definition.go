package kube

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
)

// maxConfig bounds the configuration of one definition that is kept in memory and on
// disk, in bytes. Parsing would refuse a longer one, and with the API server's own
// limit of 1.5 MiB one namespace could fill the agent's memory.
const maxConfig = netattach.MaxConfig

// origin is where a [DefinitionInformer] found a definition.
type origin string

const (
	fromMemory   origin = "informer"
	fromServer   origin = "API server"
	fromSnapshot origin = "snapshot"
)

// entry is a definition as it is kept: only the fields that planning reads.
type entry struct {
	netattach.Definition
	oversized int // length of a configuration that was too long to keep; else 0
}

// newEntry moves the fields worth keeping out of def, which must not be used
// afterwards.
func newEntry(def *netattach.Definition) *entry {
	e := &entry{Definition: netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{
			Name: def.Name, Namespace: def.Namespace, UID: def.UID,
			ResourceVersion: def.ResourceVersion, // client-go resumes its watch from it
			Annotations:     trimAnnotations(def.Annotations),
		},
		Spec: netattach.DefinitionSpec{Config: def.Spec.Config},
	}}
	if n := len(def.Spec.Config); n > maxConfig {
		e.Spec.Config, e.oversized = "", n
	}
	return e
}

// definition returns the definition, or ErrInvalid for one that was not kept.
func (e *entry) definition() (*netattach.Definition, error) {
	if e.oversized > 0 {
		return nil, fmt.Errorf("%s: configuration of %d bytes, at most %d are allowed: %w",
			definitionText(e.Namespace, e.Name), e.oversized, maxConfig, ErrInvalid)
	}
	return &e.Definition, nil
}

func (e *entry) key() string { return e.Namespace + "/" + e.Name }

func definitionText(namespace, name string) string { return "definition " + namespace + "/" + name }
