//go:build clusterlab

package cluster

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/test/harness"
)

// As docs/uninstall.md has it: helm uninstall costs no pod anything. Those from
// before are deleted and give back all that they have, new ones get the primary
// network, and when the last that has more is gone the runtime calls that alone.
// Then it can be installed again: on the node by hand, from the base of kustomize, by Helm.
func TestUninstallAndReinstall(t *testing.T) {
	f := begin(t)
	f.Cleanup(f.forget)
	networked := []option{networks("storage, red"), container("main", Red)}
	want := map[string]string{"eth0": "cluster-net", "net1": storage, "net2": red}
	f.check(f.run("networked", networked...), want)
	f.run("from-before")
	reinstall := sync.OnceFunc(func() { f.must(lab.Follow(f.ctx, "install.md")) })
	f.Cleanup(reinstall)
	f.must(lab.Follow(f.ctx, "uninstall.md"))
	f.create("meanwhile", networks("storage"))
	var pod *corev1.Pod
	f.eventually("a pod to run", func() (err error) {
		if pod, err = f.get("meanwhile"); err == nil && !ready(pod) {
			err = fmt.Errorf("it is %s: %s", pod.Status.Phase, f.events("meanwhile"))
		}
		return err
	})
	f.interfaces(pod, map[string]string{"eth0": "cluster-net"})
	f.remove("meanwhile", "from-before")
	f.remove("networked")
	f.forget()
	f.unchanged() // though nothing of it runs any more
	f.withdrawn()
	f.onOneNode(func() { f.check(f.run("networked", networked...), want) })
	f.fromBase(func() { f.check(f.run("networked", networked...), want) })
	reinstall()
	f.check(f.run("networked", networked...), want)
}

// Nothing of the cluster's credentials is left on the host: the agent's token is in its
// pod's volume alone, which the kubelet keeps.
func TestNoCredentialIsLeftOnTheHost(t *testing.T) {
	f := begin(t)
	tokens, err := filepath.Glob("/var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/*/token")
	f.must(err)
	if len(tokens) == 0 {
		t.Fatal("no pod has a token; then this test tests nothing")
	}
	token, err := os.ReadFile(tokens[0])
	f.must(err)
	header, _, _ := bytes.Cut(token, []byte(".")) // the same in all that the cluster's key has signed
	var holders []string
	for _, dir := range []string{"/etc", "/opt", "/run/manifold", "/var/lib/cni", filepath.Dir(tokens[0])} {
		f.must(filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) || err == nil && !d.Type().IsRegular() {
				return nil
			}
			if err != nil {
				return err
			}
			content, err := os.ReadFile(path)
			if bytes.Contains(content, header) {
				holders = append(holders, path)
			}
			if errors.Is(err, os.ErrNotExist) { // it has gone meanwhile
				err = nil
			}
			return err
		}))
	}
	if len(holders) != 1 || !strings.HasPrefix(holders[0], filepath.Dir(tokens[0])) {
		t.Errorf("a token of the cluster is in %v; it must be in the agent's volume alone", holders)
	}
}

// forget removes what libcni remembers for the runtime of the network manifold:
// for pods that end while the runtime does not call it, nobody else does.
func (f *fixture) forget() {
	f.Helper()
	records, err := filepath.Glob("/var/lib/cni/results/manifold-*")
	f.must(err)
	for _, r := range records {
		f.must(os.Remove(r))
	}
}

// onOneNode has Manifold installed on the node without the chart, as
// docs/install.md says, while something is done, then upgrades and uninstalls it as
// those pages say.
func (f *fixture) onOneNode(do func()) {
	f.Helper()
	config, err := json.Marshal(map[string]string{"apiServer": lab.Kubeconfig, "node": NodeName})
	f.must(err)
	f.must(os.WriteFile(filepath.Join(lab.userDir(), "agent.json"), config, 0o600))
	install, err := lab.commands(f.ctx, "install.md", 2)
	f.must(err)
	_, err = harness.StartProcess(lab.Node.path("agent.log"), install) // whose last command serves
	f.must(err)
	f.eventually("the agent to serve", func() error {
		conn, err := net.Dial("unix", "/run/manifold/agent.sock")
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	do()
	f.must(lab.follow(f.ctx, "upgrade.md", 1))
	f.remove("networked") // the plugin is another program now
	f.must(f.killAgent())
	f.must(lab.follow(f.ctx, "uninstall.md", 1))
	if _, err := os.Stat(filepath.Join(pluginDir, "manifold")); !errors.Is(err, os.ErrNotExist) {
		f.Errorf("the plugin is left: %v", err)
	}
}

// baseImage finds the image that a manifest names, and its repository.
var baseImage = regexp.MustCompile(`image: ((\S+):\S+)`)

// fromBase has Manifold installed from the base of kustomize, as docs/install.md says,
// while something is done, then uninstalls it as docs/uninstall.md does.
func (f *fixture) fromBase(do func()) {
	f.Helper()
	base, err := os.ReadFile(filepath.Join(lab.root, "deploy", "kustomize", "base", "manifold.yaml"))
	f.must(err)
	image := baseImage.FindSubmatch(base)
	if image == nil {
		f.Fatal("the base names no image")
	}
	f.must(lab.Node.ctr(f.ctx, "--namespace", "k8s.io", "images", "tag", string(image[2])+":"+release, string(image[1])))
	f.must(lab.follow(f.ctx, "install.md", 1))
	rollout, err := lab.command(f.ctx, "kubectl", "--namespace", "kube-system", "rollout", "status", "daemonset/manifold")
	f.must(err)
	f.must(rollout.Run())
	do()
	f.remove("networked")
	f.must(lab.follow(f.ctx, "uninstall.md", 2))
	f.withdrawn()
}

// withdrawn fails if the runtime still calls the plugin.
func (f *fixture) withdrawn() {
	f.Helper()
	if _, err := os.Stat(filepath.Join(confDir, "00-manifold.conflist")); !errors.Is(err, os.ErrNotExist) {
		f.Errorf("the runtime still calls the plugin: %v", err)
	}
}

// As docs/upgrade.md has it, while pods come and go: no ADD and no DEL fails, and
// every pod has exactly its networks; with the new release, and with the way back.
// Where the kubelet serves no Pods API, ADDs are refused while no agent runs, and
// tried again.
func TestUpgradeDuringChurn(t *testing.T) {
	f := begin(t)
	f.Cleanup(func() {
		if f.agentRelease() != release {
			f.upgrade(release)
		}
	})
	failed := f.failedCalls()
	c := &churn{f: f, label: "upgrade", patient: true}
	c.start()
	c.goOn()
	for _, to := range []string{nextRelease, release} {
		f.upgrade(to)
		c.goOn()
	}
	c.settle()
	if n := f.failedCalls() - failed; n != 0 {
		t.Errorf("the kubelet counts %d sandboxes more that were not made or not ended", n)
	}
	if !hasPodsAPI() {
		return
	}
	events, err := lab.Client.CoreV1().Events(namespace).List(f.ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	f.must(err)
	for _, e := range events.Items { // of others' trouble on a busy machine there may be some
		ours := e.Source.Component == "manifold" || strings.Contains(e.Reason, "Sandbox") || strings.Contains(e.Message, "manifold")
		if ours && strings.HasPrefix(e.InvolvedObject.Name, c.label) {
			t.Errorf("pod %s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

// The chart goes by the API server's version where nobody says what kubelets serve:
// the agent of an older one may not watch pods then, asks for each, and is ready.
func TestKubeletOlderThanTheAPIServer(t *testing.T) {
	if hasPodsAPI() {
		t.Skip("this node's kubelet is as new as its API server; " + kubeletEnv + "=" + harness.OlderKubelet + " makes it an older one")
	}
	f := begin(t)
	f.Cleanup(func() {
		lab.values["podsAPI"] = false
		f.upgrade(release)
	})
	delete(lab.values, "podsAPI")
	f.upgrade(release)
	agent, err := lab.Client.RbacV1().ClusterRoles().Get(f.ctx, "manifold", metav1.GetOptions{})
	f.must(err)
	if slices.ContainsFunc(agent.Rules, func(r rbacv1.PolicyRule) bool {
		return slices.Contains(r.Resources, "pods") && slices.Contains(r.Verbs, "watch")
	}) {
		t.Fatal("the agent may watch pods; then this test tests nothing")
	}
	f.check(f.run("undecided", networks("storage, red"), container("main", Red)), map[string]string{"eth0": "cluster-net", "net1": storage, "net2": red})
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

// failedCalls returns how often the runtime failed to end a sandbox or, where it
// must not, to make one, as the kubelet counts.
func (f *fixture) failedCalls() int {
	f.Helper()
	failed := func(operation string) int {
		return f.kubeletCounts(`kubelet_runtime_operations_errors_total{operation_type="` + operation + `"`)
	}
	if !hasPodsAPI() {
		return failed("stop_podsandbox")
	}
	return failed("stop_podsandbox") + failed("run_podsandbox")
}
