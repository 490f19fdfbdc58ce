//go:build clusterlab

package cluster

import (
	"fmt"
	"sync"
	"testing"
)

// As docs/uninstall.md has it: when pods with secondary networks are gone, helm
// uninstall costs the plain ones nothing. Those from before can be deleted, new
// ones start, and it can be installed again.
func TestUninstallAndReinstall(t *testing.T) {
	f := begin(t)
	networked := []option{networks("storage, red"), container("main", Red)}
	want := map[string]string{"eth0": "cluster-net", "net1": storage, "net2": red}
	f.check(f.run("networked", networked...), want)
	f.run("from-before")
	f.remove("networked")
	f.must(lab.Uninstall(f.ctx))
	reinstall := sync.OnceFunc(func() { f.must(lab.Helm(f.ctx, "install")) })
	f.Cleanup(reinstall)
	f.create("meanwhile")
	f.eventually("a plain pod to run", func() error {
		pod, err := f.get("meanwhile")
		if err == nil && !ready(pod) {
			err = fmt.Errorf("it is %s: %s", pod.Status.Phase, f.events("meanwhile"))
		}
		return err
	})
	f.remove("from-before")
	f.remove("meanwhile")
	reinstall()
	f.check(f.run("networked", networked...), want)
}
