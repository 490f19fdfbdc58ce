package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/fsnotify/fsnotify"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/test/harness"
)

// install runs the agent's install or uninstall with the node's directories.
func (n *node) install(verb string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(programDir, "manifold-agent"), slices.Concat([]string{verb}, n.directories(), args)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// directories returns the flags for the node's directories.
func (n *node) directories() []string {
	return []string{"--from", programDir, "--cni-bin-dir", n.path("opt"), "--cni-conf-dir", n.path("net.d"), "--state-dir", n.path("installed")}
}

// follow runs the commands for a single node from a page of docs/, a block that
// begins with the agent, with the node's directories.
func (n *node) follow(page string) (string, error) {
	n.t.Helper()
	blocks, err := harness.Commands(page)
	n.must(err)
	flags := strings.Join(n.directories(), " ")
	with := strings.NewReplacer("manifold-agent install", "manifold-agent install "+flags, "manifold-agent uninstall", "manifold-agent uninstall "+flags)
	onOneNode := slices.IndexFunc(blocks, func(b string) bool { return strings.HasPrefix(b, "manifold-agent ") })
	cmd := exec.Command("sh", "-ec", with.Replace(blocks[onOneNode]))
	cmd.Env = append(os.Environ(), "PATH="+programDir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestInstallTellsTheAgentWhereJournalsAre proves that plugin and agent use the
// same directory of journals.
func TestInstallTellsTheAgentWhereJournalsAre(t *testing.T) {
	n := newNode(t, nil)
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	if c, err := configfile.ReadAgent(n.path("net.d/manifold.d/agent.json")); err != nil || c.CNIDir != n.path("installed") {
		t.Errorf("the agent looks for journals in %+v, %v", c, err)
	}
	n.agentConfig(map[string]any{"node": "node1", "podManifests": n.path("pods"), "cniDir": "/elsewhere"})
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err == nil || !strings.Contains(out, "/elsewhere") {
		t.Errorf("install with two journal directories: %v\n%s", err, out)
	}
}

func TestInstallOverRunningProgramsAndUninstall(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	out, err := n.install("install", "--agent-config", n.path("agent.json"))
	if err != nil {
		t.Fatalf("install: %v\n%s", err, out)
	}
	running := exec.Command(filepath.Join(n.path("opt"), "manifold-agent"), "serve", "--config", n.path("agent.json"))
	n.must(running.Start())
	t.Cleanup(func() {
		_ = running.Process.Kill()
		_ = running.Wait()
	})
	if out, err := n.follow("upgrade.md"); err != nil {
		t.Fatalf("install over a running program: %v\n%s", err, out)
	}
	n.link2opt()
	n.rt = n.installedRuntime()
	p := n.addPod("app", "")
	n.succeed("ADD", p)
	if out, err := n.follow("uninstall.md"); err == nil || !strings.Contains(out, "1 sandbox is still attached") {
		t.Errorf("uninstall with a pod: %v\n%s", err, out)
	}
	if out, err := n.install("uninstall", "--leave-attached"); err != nil || !exists(n.path("opt/manifold")) || exists(n.path("net.d/00-manifold.conflist")) {
		t.Errorf("uninstall --leave-attached with a pod: %v\n%s", err, out)
	}
	n.succeed("DEL", p)
	if out, err := n.follow("uninstall.md"); err != nil {
		t.Errorf("uninstall: %v\n%s", err, out)
	}
	for _, gone := range []string{"opt/manifold", "opt/manifold-agent", "net.d/00-manifold.conflist", "net.d/manifold.d"} {
		if exists(n.path(gone)) {
			t.Errorf("%s was not removed", gone)
		}
	}
	if !exists(n.path("net.d/10-default.conflist")) {
		t.Error("the primary network's configuration is gone")
	}
}

// link2opt links the delegates into the installed directory.
func (n *node) link2opt() {
	n.t.Helper()
	for _, p := range []string{"bridge", "host-local"} {
		n.must(os.Symlink(filepath.Join(pluginDir, p), n.path("opt/"+p)))
	}
}

// installedRuntime returns a runtime with the configuration that install wrote.
// Like a real one, it copies name and version of the list into the plugin's
// configuration.
func (n *node) installedRuntime() harness.Runtime {
	n.t.Helper()
	raw, err := os.ReadFile(n.path("net.d/00-manifold.conflist"))
	n.must(err)
	var list struct {
		CNIVersion string           `json:"cniVersion"`
		Name       string           `json:"name"`
		Plugins    []map[string]any `json:"plugins"`
	}
	n.must(json.Unmarshal(raw, &list))
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	if conf["clusterNetwork"] != "cluster-net" {
		n.t.Errorf("primary network: %v", conf["clusterNetwork"])
	}
	raw, err = json.Marshal(conf)
	n.must(err)
	return harness.Runtime{Plugin: n.path("opt/manifold"), Path: n.path("opt"), Conf: raw}
}

func TestInstallRefusesWhatCannotWork(t *testing.T) {
	n := newNode(t, nil)
	n.must(errors.Join(os.WriteFile(n.path("bad.json"), []byte(`{"verify":"perhaps"}`), 0o600), os.WriteFile(n.path("agent-bad.json"), []byte(`{"sokcet":"/x"}`), 0o600)))
	for _, tc := range []struct{ flag, value, want string }{
		{"--config", n.path("bad.json"), "enforce warn off"},
		{"--agent-config", n.path("agent-bad.json"), "sokcet"},
	} {
		if out, err := n.install("install", tc.flag, tc.value); err == nil || !strings.Contains(out, tc.want) {
			t.Errorf("install %s: %v\n%s", tc.flag, err, out)
		}
		if exists(n.path("net.d/00-manifold.conflist")) {
			t.Error("a configuration was installed")
		}
	}
	if out, err := n.install("install"); err == nil || !strings.Contains(out, "source of pods") {
		t.Errorf("install without a source of pods: %v\n%s", err, out)
	}
	n.must(os.Remove(n.path("net.d/10-default.conflist")))
	if out, err := n.install("install", "--force"); err == nil || !strings.Contains(out, "--cluster-network") {
		t.Errorf("install without a primary network: %v\n%s", err, out)
	}
}

// TestConfigurationIsNeverAbsent proves that updates never remove the
// configuration: the runtime would fall back to the primary network, and pods that
// select more networks would start without them.
func TestConfigurationIsNeverAbsent(t *testing.T) {
	n := newNode(t, nil)
	install := func(args ...string) {
		if out, err := n.install("install", append([]string{"--agent-config", n.path("agent.json")}, args...)...); err != nil {
			t.Fatalf("install: %v\n%s", err, out)
		}
	}
	n.agentConfig(map[string]any{
		"node": "node1", "socket": n.path("agent.sock"), "kubeletDir": n.path("kubelet"), "podsAPI": "-", "podManifests": n.path("pods"),
		"snapshot": n.path("state/snapshot"), "cniConfig": n.path("net.d/00-manifold.conflist"),
	})
	install()
	w, err := fsnotify.NewWatcher()
	n.must(err)
	defer w.Close()
	n.must(w.Add(n.path("net.d")))
	n.file("keys.json", `{"logLevel":"debug"}`)
	for _, end := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		agent := exec.Command(n.path("opt/manifold-agent"), "serve", "--config", n.path("agent.json"))
		n.must(agent.Start())
		n.eventually("the agent to serve", func() bool { return exists(n.path("agent.sock")) })
		// Files that sort earlier or later change nothing either.
		n.file("net.d/05-early.conflist", `{"cniVersion":"1.0.0","name":"early","plugins":[{"type":"ptp"}]}`)
		install()
		install("--config", n.path("keys.json"))
		n.must(agent.Process.Signal(end))
		_ = agent.Wait() // it was signaled
		n.must(os.Remove(n.path("agent.sock")))
		n.must(os.Remove(n.path("net.d/05-early.conflist")))
	}
	n.link2opt()
	n.installedRuntime() // checks the primary network
	n.file("net.d/99-last", "")
	for last := false; !last; {
		select {
		case e := <-w.Events:
			last = e.Name == n.path("net.d/99-last")
			if e.Name == n.path("net.d/00-manifold.conflist") && e.Has(fsnotify.Remove|fsnotify.Rename) {
				t.Errorf("the configuration was missing for a moment: %s", e)
			}
		case err := <-w.Errors:
			t.Fatal(err)
		}
	}
}

// TestInstallPinsWhatTheRuntimeUses proves that install pins the first file by
// name, whatever its form, but not a meta-plugin's.
func TestInstallPinsWhatTheRuntimeUses(t *testing.T) {
	n := newNode(t, nil)
	n.must(os.Rename(n.path("net.d/10-default.conflist"), n.path("net.d/87-other.conflist")))
	n.file("net.d/00-multus.conf", `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"multus","clusterNetwork":"ovn"}`)
	n.file("net.d/05-broken.conf", `{"name":"broken"`)
	n.file("net.d/07-empty.conflist", `{"name":"empty","plugins":[]}`)
	n.file("net.d/10-ovn.conf", `{"cniVersion":"1.0.0","name":"ovn","type":"ptp"}`)
	pinned := func() map[string]any {
		raw, err := os.ReadFile(n.path("net.d/00-manifold.conflist"))
		n.must(err)
		var list struct{ Plugins []map[string]any }
		n.must(json.Unmarshal(raw, &list))
		return list.Plugins[0]
	}
	if out, err := n.install("install", "--agent-config", n.path("agent.json")); err != nil || pinned()["clusterNetwork"] != "ovn" {
		t.Errorf("install: %v\n%s", err, out)
	}
	n.file("delegates.json", `{"delegates":[{"type":"ptp","name":"own"}]}`)
	if out, err := n.install("install", "--config", n.path("delegates.json")); err != nil || pinned()["clusterNetwork"] != nil {
		t.Errorf("install with delegates of its own: %v %v\n%s", pinned(), err, out)
	}
	for _, f := range []string{"00-multus.conf", "10-ovn.conf", "87-other.conflist"} {
		n.must(os.Remove(n.path("net.d/" + f)))
	}
	if out, err := n.install("uninstall"); err == nil || !strings.Contains(out, "--force") || !exists(n.path("net.d/00-manifold.conflist")) {
		t.Errorf("uninstall of the only network: %v\n%s", err, out)
	}
	if out, err := n.install("uninstall", "--force"); err != nil {
		t.Errorf("uninstall --force: %v\n%s", err, out)
	}
}
