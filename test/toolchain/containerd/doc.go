// Package containerd pins the container runtime that tests build for a real node.
package containerd
