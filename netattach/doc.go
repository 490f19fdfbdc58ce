// Package netattach implements the documents of the Kubernetes Network Plumbing Working
// Group's multi-network specification (version 1.3) and device information
// specification (version 1.1.0): definitions, selections, network-status and
// device-info.
//
// Read a pod's annotation with [ParseSelections], parse a definition's configuration
// with [ParseConfig], and render what a delegate runs with [Config.Render]. Turn a
// delegate's result into network-status with [NewStatus].
//
// All input comes from users: sizes, depth, names and numbers are checked, nothing
// panics, and every error is an [*Error] that names the wrong entry and field. Unknown
// keys survive, and those of a configuration keep their values verbatim, numbers
// included.
package netattach

import (
	"fmt"
	"strings"
)

// Annotations of pods and definitions.
const (
	// NetworksAnnotation selects a pod's networks (specification 4.1).
	NetworksAnnotation = "k8s.v1.cni.cncf.io/networks"
	// StatusAnnotation holds the pod's network-status (specification 5).
	StatusAnnotation = "k8s.v1.cni.cncf.io/network-status"
	// ResourceNameAnnotation of a definition names the device plugin's resource that
	// its attachments use.
	ResourceNameAnnotation = "k8s.v1.cni.cncf.io/resourceName"
	// NodeSelectorAnnotation of a definition lists labels, key=value separated by
	// commas, of the nodes that its pods are bound to if admission is in use.
	NodeSelectorAnnotation = "k8s.v1.cni.cncf.io/nodeSelector"
	// CarrierAnnotation of a definition says what to do when the interface of a device
	// has no carrier: warn, require or ignore. It overrides the node's configuration.
	CarrierAnnotation = "manifold.dev/carrier"
	// DefaultNetworkAnnotation of a pod replaces the cluster default network.
	DefaultNetworkAnnotation = "v1.multus-cni.io/default-network"
	// ContainerKey is the key of a selection that names the container whose device it
	// wants. As a pod's annotation it names the container to which admission adds
	// requests for devices.
	ContainerKey = "manifold.dev/container"
	// StatusVolumeAnnotation of a pod names the directory in its containers where
	// admission, if in use, mounts a file with network-status.
	StatusVolumeAnnotation = "manifold.dev/network-status-volume"
	// ClaimKey is the key of a selection that names the resource claim whose device it
	// wants, by its name in the pod's spec.resourceClaims.
	ClaimKey = "manifold.dev/claim"
	// RequestKey is the key of a selection that names the request of that claim.
	RequestKey = "manifold.dev/request"
)

// Error reports what is wrong in a document.
type Error struct {
	Entry string // which part of the document, for example `entry 2 (default/net)`; may be empty
	Field string // which field, for example "ips"; may be empty
	Text  string // what is wrong and what is allowed
	Err   error  // cause; may be nil
}

// Error returns "entry: field: text: cause".
func (e *Error) Error() string {
	var parts []string
	for _, p := range []string{e.Entry, e.Field, e.Text} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	if e.Err != nil {
		parts = append(parts, e.Err.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func fieldError(field, format string, args ...any) *Error {
	return &Error{Field: field, Text: fmt.Sprintf(format, args...)}
}

// clip shortens and quotes user input for an error message.
func clip(s string) string {
	const most = 64
	if len(s) > most {
		s = s[:most] + "…"
	}
	return fmt.Sprintf("%q", s)
}
