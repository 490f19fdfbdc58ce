//go:build clusterlab

package cluster

import (
	"testing"

	"github.com/manifold-cni/manifold/netattach"
)

func TestPlainPod(t *testing.T) {
	f := begin(t)
	f.check(f.run("plain-pod"), map[string]string{"eth0": "cluster-net"})
}

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

func TestDefaultNetworkOverride(t *testing.T) {
	f := begin(t)
	f.check(f.run("override", annotation(netattach.DefaultNetworkAnnotation, "default/plain")), map[string]string{"eth0": "plain"})
}
