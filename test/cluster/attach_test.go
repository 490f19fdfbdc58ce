//go:build clusterlab

package cluster

import (
	"testing"

	"github.com/manifold-cni/manifold/netattach"
)

// TestPlainPod proves that a pod without annotations gets the default network alone.
func TestPlainPod(t *testing.T) {
	f := begin(t)
	f.check(f.run("plain-pod"), map[string]string{"eth0": "cluster-net"})
}

// TestThreeNetworks proves that a pod gets the networks it selects, in either form of
// the annotation, with the interface names it asks for.
func TestThreeNetworks(t *testing.T) {
	for form, selection := range map[string]string{
		"comma": "storage, plain@side, default/storage",
		"json":  `[{"name":"storage"},{"name":"plain","interface":"side"},{"name":"storage","namespace":"default"}]`,
	} {
		t.Run(form, func(t *testing.T) {
			f := begin(t)
			f.check(f.run("three-"+form, networks(selection)),
				map[string]string{"eth0": "cluster-net", "net1": "storage", "side": "plain", "net3": "storage"})
		})
	}
}

// TestDefaultNetworkOverride proves that a pod's annotation replaces its default
// network.
func TestDefaultNetworkOverride(t *testing.T) {
	f := begin(t)
	f.check(f.run("override", annotation(netattach.DefaultNetworkAnnotation, "default/plain")), map[string]string{"eth0": "plain"})
}
