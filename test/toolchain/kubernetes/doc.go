// Package kubernetes pins the Kubernetes programs that tests build. It is a
// module of its own, since Kubernetes replaces many of the modules that it needs.
package kubernetes
