//go:build clusterlab

package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	f.must(lab.Follow(f.ctx, "uninstall.md"))
	reinstall := sync.OnceFunc(func() { f.must(lab.Follow(f.ctx, "install.md")) })
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

// As docs/upgrade.md has it, while pods come and go: no ADD and no DEL fails, and
// every pod has exactly its networks; with the new release, and with the way back.
func TestUpgradeDuringChurn(t *testing.T) {
	f := begin(t)
	f.Cleanup(func() {
		if f.agentRelease() != release {
			f.upgrade(release)
		}
	})
	failed := f.failedCalls()
	c := &churn{f: f, label: "upgrade", patient: true}
	c.start(math.MaxInt)
	c.goOn()
	for _, to := range []string{nextRelease, release} {
		f.upgrade(to)
		c.goOn()
	}
	c.settle()
	if n := f.failedCalls() - failed; n != 0 {
		t.Errorf("the kubelet counts %d sandboxes more that were not made or not ended", n)
	}
	events, err := lab.Client.CoreV1().Events(namespace).List(f.ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	f.must(err)
	for _, e := range events.Items {
		if strings.HasPrefix(e.InvolvedObject.Name, c.label) {
			t.Errorf("pod %s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

// upgrade brings another release onto the node.
func (f *fixture) upgrade(to string) {
	f.Helper()
	f.must(errors.Join(lab.Choose(to), lab.Follow(f.ctx, "upgrade.md")))
	if now := f.agentRelease(); now != to {
		f.Errorf("the agent is of release %q", now)
	}
}

// agentRelease returns the running agent's release.
func (f *fixture) agentRelease() (release string) {
	f.Helper()
	f.eventually("the agent's metrics", func() error {
		resp, err := http.Get("http://127.0.0.1:9610/metrics")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			if rest, ok := strings.CutPrefix(lines.Text(), `manifold_build_info{release="`); ok {
				release, _, _ = strings.Cut(rest, `"`)
				return nil
			}
		}
		return errors.New("they name no release")
	})
	return release
}

// failedCalls returns how often the runtime failed to make a sandbox or to end
// one, as the kubelet counts.
func (f *fixture) failedCalls() (sum int) {
	f.Helper()
	for _, op := range []string{"run_podsandbox", "stop_podsandbox"} {
		sum += f.kubeletCounts(`kubelet_runtime_operations_errors_total{operation_type="` + op + `"`)
	}
	return sum
}
