// Package kubelet134 pins the kubelet of an older line, without a Pods API, for
// which tests build it. It is a module of its own, since Kubernetes replaces many
// of the modules that it needs.
package kubelet134
