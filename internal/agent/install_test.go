package agent

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
)

// again installs over what is there, and returns what is printed.
func (d *guarded) again(change func(*Installer)) (string, error) {
	i := d.installer(d.path("bin"))
	change(i)
	var out bytes.Buffer
	err := i.Install(&out)
	return out.String(), err
}

// Who calls Manifold's file otherwise has one of it all the same, with the default
// network that it had, and none when it is uninstalled: the runtime would call programs
// that are gone.
func TestConfigurationOfAnotherName(t *testing.T) {
	for _, name := range []string{"000-manifold.conflist", "05-manifold.conflist"} {
		d := newGuarded(t)
		d.file("01-new.conflist", config("new-net", "bridge"))
		if out, err := d.again(func(i *Installer) { i.ConfName = name }); err != nil || !strings.Contains(out, "removed "+d.path("00-manifold.conflist")) {
			t.Fatalf("%v\n%s", err, out)
		}
		raw, err := os.ReadFile(d.path(name))
		d.must(err)
		if !strings.Contains(string(raw), `"cluster-net"`) {
			t.Errorf("its default network is another:\n%s", raw)
		}
		if d.read() != nil || exists(netconf.Kept(d.path("00-manifold.conflist"))) {
			t.Error("the old one is left")
		}
		// Nobody tells uninstall how it is called.
		d.must(d.installer("").Uninstall(new(bytes.Buffer)))
		if first, _ := netconf.First(d.dir); first == nil || first.Name != "new-net" || exists(d.path("bin/manifold")) || exists(d.path("manifold.d")) {
			t.Errorf("after uninstall the runtime takes %+v", first)
		}
	}
}

// Nobody would release the pods whose journals are left behind.
func TestAnotherDirectoryOfJournals(t *testing.T) {
	d := newGuarded(t)
	d.file("agent.json", `{"podManifests": "/srv/pods"}`)
	install := func(force bool) error {
		_, err := d.again(func(i *Installer) {
			i.StateDir, i.AgentConfig, i.Force = d.path("elsewhere"), d.path("agent.json"), force
		})
		return err
	}
	refused := func(parts ...string) {
		t.Helper()
		err := install(false)
		for _, part := range append(parts, d.path("state"), d.path("elsewhere")) {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%q is not in: %v", part, err)
			}
		}
		if !bytes.Equal(d.read(), d.conf) {
			t.Errorf("installed:\n%s", d.read())
		}
	}
	_, err := journal.Dir{Path: d.path("state")}.Begin(context.Background(), journal.Key{ContainerID: "c1", IfName: "eth0"}, &plan.Plan{Version: plan.Version, ContainerID: "c1"})
	d.must(err)
	refused("1 sandboxes", "--force")
	d.must(os.Rename(d.path("state"), d.path("unseen"))) // as in a pod that mounts the other alone
	refused("cannot be looked into", "uninstall")
	d.must(os.Mkdir(d.path("state"), 0o700))
	d.must(install(false)) // it has none
	d.must(os.RemoveAll(d.path("elsewhere")))
	_, err = d.again(func(*Installer) {}) // forced
	d.must(err)
}
