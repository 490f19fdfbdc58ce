package main

import (
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
)

// Every interface of every sandbox gets a name of its own on the host, which the kernel
// accepts.
func TestHostNames(t *testing.T) {
	const longest = 15 // bytes of an interface name
	taken := map[string]skel.CmdArgs{}
	for _, a := range []skel.CmdArgs{
		{ContainerID: "0123456789-web", IfName: "net1"}, {ContainerID: "0123456789-db", IfName: "net1"},
		{ContainerID: "0123456789-web", IfName: "net11"}, {ContainerID: "0123456789-web", IfName: "eth1"},
		{ContainerID: "a", IfName: "bc"}, {ContainerID: "ab", IfName: "c"},
	} {
		name := hostName(&a)
		if len(name) > longest {
			t.Errorf("%s has %d bytes, at most %d are allowed", name, len(name), longest)
		}
		if b, ok := taken[name]; ok {
			t.Errorf("%s is the name of %s %s and of %s %s", name, a.ContainerID, a.IfName, b.ContainerID, b.IfName)
		}
		taken[name] = a
		if again := hostName(&a); again != name {
			t.Errorf("ADD names it %s, DEL looks for %s", name, again)
		}
	}
}
