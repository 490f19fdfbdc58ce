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

// TestUninstallAndReinstall proves docs/uninstall.md: helm uninstall harms no pod.
// Existing pods give back all they have when they are deleted, new pods get the primary
// network, and when the last pod with more is gone the runtime calls the primary
// network alone. Then Manifold can be installed again: by hand on the node, from the
// kustomize base, and by Helm.
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
			err = fmt.Errorf("its phase is %s: %s", pod.Status.Phase, f.events("meanwhile"))
		}
		return err
	})
	f.interfaces(pod, map[string]string{"eth0": "cluster-net"})
	f.remove("meanwhile", "from-before")
	f.remove("networked")
	f.forget()
	f.unchanged() // although no part of Manifold runs any more
	f.withdrawn()
	f.onOneNode(func() { f.check(f.run("networked", networked...), want) })
	f.fromBase(func() { f.check(f.run("networked", networked...), want) })
	reinstall()
	f.check(f.run("networked", networked...), want)
}

// TestNoCredentialIsLeftOnTheHost proves that no credential of the cluster is left on
// the host: the agent's token is only in its pod's volume, which the kubelet keeps.
func TestNoCredentialIsLeftOnTheHost(t *testing.T) {
	f := begin(t)
	tokens, err := filepath.Glob("/var/lib/kubelet/pods/*/volumes/kubernetes.io~projected/*/token")
	f.must(err)
	if len(tokens) == 0 {
		t.Fatal("no pod has a token, so this test proves nothing")
	}
	token, err := os.ReadFile(tokens[0])
	f.must(err)
	header, _, _ := bytes.Cut(token, []byte(".")) // the same for every token signed with the cluster's key
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
			if errors.Is(err, os.ErrNotExist) { // the file has gone meanwhile
				err = nil
			}
			return err
		}))
	}
	if len(holders) != 1 || !strings.HasPrefix(holders[0], filepath.Dir(tokens[0])) {
		t.Errorf("the cluster's token is in %v, want it only in the agent's volume", holders)
	}
}

// forget removes libcni's cached results of network manifold. The runtime removes the
// result of a pod only when it calls the plugin for the pod's DEL, so results of pods
// that end while the plugin is withdrawn stay.
func (f *fixture) forget() {
	f.Helper()
	records, err := filepath.Glob("/var/lib/cni/results/manifold-*")
	f.must(err)
	for _, r := range records {
		f.must(os.Remove(r))
	}
}

// onOneNode installs Manifold on the node without the chart as docs/install.md says,
// calls do, then upgrades and uninstalls as those pages say.
func (f *fixture) onOneNode(do func()) {
	f.Helper()
	config, err := json.Marshal(map[string]string{"apiServer": lab.Kubeconfig, "node": NodeName})
	f.must(err)
	f.must(os.WriteFile(filepath.Join(lab.userDir(), "agent.json"), config, 0o600))
	install, err := lab.commands(f.ctx, "install.md", 2)
	f.must(err)
	_, err = harness.StartProcess(lab.Node.path("agent.log"), install) // the last command serves until it is killed
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
	f.remove("networked") // the plugin's program has changed
	f.must(f.killAgent())
	f.must(lab.follow(f.ctx, "uninstall.md", 1))
	if _, err := os.Stat(filepath.Join(pluginDir, "manifold")); !errors.Is(err, os.ErrNotExist) {
		f.Errorf("the plugin is still installed: %v", err)
	}
}

// baseImage matches the image that a manifest names; its groups are the image and its
// repository.
var baseImage = regexp.MustCompile(`image: ((\S+):\S+)`)

// fromBase installs Manifold from the kustomize base as docs/install.md says, calls do,
// then uninstalls as docs/uninstall.md says.
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

// TestUpgradeDuringChurn proves docs/upgrade.md while pods come and go: no ADD and no
// DEL fails, and every pod has exactly its networks, both on the way to the new release
// and on the way back. If the kubelet serves no Pods API, ADDs are refused while no
// agent runs, and retried.
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
		t.Errorf("the kubelet counts %d failures to create or stop a sandbox", n)
	}
	if !hasPodsAPI() {
		return
	}
	events, err := lab.Client.CoreV1().Events(namespace).List(f.ctx, metav1.ListOptions{FieldSelector: "type=Warning"})
	f.must(err)
	for _, e := range events.Items { // a busy machine may cause other components' warnings too
		ours := e.Source.Component == "manifold" || strings.Contains(e.Reason, "Sandbox") || strings.Contains(e.Message, "manifold")
		if ours && strings.HasPrefix(e.InvolvedObject.Name, c.label) {
			t.Errorf("pod %s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
		}
	}
}

// TestKubeletOlderThanTheAPIServer proves that an agent works on a kubelet older than
// the API server. Unless the values say what kubelets serve, the chart goes by the API
// server's version: the agent then may not watch pods, asks for each pod instead, and
// becomes ready.
func TestKubeletOlderThanTheAPIServer(t *testing.T) {
	if hasPodsAPI() {
		t.Skip("this node's kubelet is as new as its API server; set " + kubeletEnv + "=" + harness.OlderKubelet + " for an older one")
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
		t.Fatal("the agent may watch pods, so this test proves nothing")
	}
	f.check(f.run("undecided", networks("storage, red"), container("main", Red)), map[string]string{"eth0": "cluster-net", "net1": storage, "net2": red})
}

// upgrade installs another release on the node.
func (f *fixture) upgrade(to string) {
	f.Helper()
	f.must(errors.Join(lab.Choose(to), lab.Follow(f.ctx, "upgrade.md")))
	if now := f.agentRelease(); now != to {
		f.Errorf("the agent's release is %q, want %q", now, to)
	}
}

// agentRelease returns the running agent's release.
func (f *fixture) agentRelease() (release string) {
	f.Helper()
	f.eventually("the agent's metrics to name its release", func() error {
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
		return errors.New("the metrics name no release")
	})
	return release
}

// failedCalls returns the kubelet's count of sandboxes that the runtime failed to stop
// or, if the kubelet serves the Pods API, failed to create.
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
