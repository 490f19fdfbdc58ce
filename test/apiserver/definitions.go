package apiserver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"sigs.k8s.io/yaml"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// crds is the resource of CustomResourceDefinitions.
var crds = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// Definitions returns a client for the network definitions of a namespace, with the
// administrator's rights.
func (s *Server) Definitions(namespace string) (dynamic.ResourceInterface, error) {
	dyn, err := dynamic.NewForConfig(s.Config())
	if err != nil {
		return nil, err
	}
	return dyn.Resource(netattach.GroupVersion.WithResource(netattach.Resource)).Namespace(namespace), nil
}

// InstallDefinitions installs the CustomResourceDefinition of network definitions from
// the chart, and waits until it is served.
func (s *Server) InstallDefinitions() error {
	root, err := harness.ModuleRoot()
	if err != nil {
		return err
	}
	raw, err := os.ReadFile(filepath.Join(root, "deploy", "helm", "manifold", "crds", "network-attachment-definitions.yaml"))
	if err != nil {
		return err
	}
	var crd map[string]any
	if err := yaml.Unmarshal(raw, &crd); err != nil {
		return err
	}
	dyn, err := dynamic.NewForConfig(s.Config())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTime)
	defer cancel()
	if _, err := dyn.Resource(crds).Create(ctx, &unstructured.Unstructured{Object: crd}, metav1.CreateOptions{FieldValidation: "Strict"}); err != nil {
		return err
	}
	defs, err := s.Definitions(metav1.NamespaceDefault)
	if err != nil {
		return err
	}
	for {
		_, err := defs.List(ctx, metav1.ListOptions{})
		if err == nil {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait until network definitions are served: %w", err)
		}
	}
}

// Define creates a network definition.
func (s *Server) Define(d *netattach.Definition) error {
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(d)
	if err != nil {
		return err
	}
	u := &unstructured.Unstructured{Object: object}
	u.SetAPIVersion(netattach.GroupVersion.String())
	u.SetKind("NetworkAttachmentDefinition")
	defs, err := s.Definitions(d.Namespace)
	if err != nil {
		return err
	}
	_, err = defs.Create(context.Background(), u, metav1.CreateOptions{})
	return err
}
