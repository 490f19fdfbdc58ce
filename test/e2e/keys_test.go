package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/test/harness"
)

func TestReadinessIndicatorFile(t *testing.T) {
	n := newNode(t, nil)
	ready := n.path("ready")
	n.withConf(map[string]any{"readinessindicatorfile": ready, "planTimeout": "300ms"})
	p := n.addPod("pod", "")
	n.refuse("STATUS", &pod{}, 50, "readinessindicatorfile", ready)
	n.refuse("ADD", p, 11, "readinessindicatorfile", ready)
	n.emptySandbox(p)
	n.withConf(map[string]any{"planTimeout": "30s"})
	added := make(chan *harness.Result)
	go func() { added <- n.call("ADD", p) }()
	n.file("ready", "")
	if res := <-added; res.Status != 0 {
		t.Errorf("ADD: %s", res.Stdout)
	}
	n.must(os.Remove(ready))
	n.succeed("DEL", p)
}

func TestLogKeys(t *testing.T) {
	n := newNode(t, nil)
	n.define("liar", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.94.0.2/24"],"script":{"ADD":{"lie":"mac"}}}`)
	p := n.addPod("pod", "liar")
	type has map[string]bool
	for _, tc := range []struct {
		level string
		lines has
	}{
		{"panic", has{"msg=failed": false, "level=WARN": false}},
		{"error", has{"msg=failed": true, "level=WARN": false, "msg=done": false}},
		{"warning", has{"msg=failed": true, "level=WARN": true, "msg=done": false}},
		{"verbose", has{"verb=ADD": true, "msg=done": true, "level=DEBUG": false}},
		{"debug", has{"level=DEBUG": true, "interface=eth0": true, "pod=default/pod": true}},
	} {
		t.Run(tc.level, func(t *testing.T) {
			log := n.path("manifold-" + tc.level + ".log")
			n.withConf(map[string]any{"logFile": log, "logLevel": tc.level, "logToStderr": false, "verify": "enforce"})
			res := n.call("ADD", p) // a failed verb
			n.withConf(map[string]any{"verify": "warn"})
			n.succeed("ADD", p) // a warning
			n.succeed("DEL", p)
			if len(res.Stderr) > 0 {
				t.Errorf("logToStderr is false: %s", res.Stderr)
			}
			text, err := os.ReadFile(log)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			for line, want := range tc.lines {
				if strings.Contains(string(text), line) != want {
					t.Errorf("%q logged: %v, want %v:\n%s", line, !want, want, text)
				}
			}
		})
	}
	n.withConf(map[string]any{"logLevel": "loud"})
	n.refuse("ADD", p, 7, "logLevel", "verbose")
}

// TestAConfigurationOfMultusIsTaken proves that every key of the Multus reference
// is known.
func TestAConfigurationOfMultusIsTaken(t *testing.T) {
	n := newNode(t, nil)
	n.withConf(map[string]any{
		"kubeconfig": "/etc/cni/net.d/multus.d/multus.kubeconfig", "logFile": n.path("multus.log"), "logLevel": "verbose", "logToStderr": true,
		"logOptions":   map[string]any{"maxAge": 5, "maxSize": 100, "maxBackups": 5, "compress": true},
		"capabilities": map[string]bool{"portMappings": true}, "readinessindicatorfile": "", "namespaceIsolation": true,
		"globalNamespaces": "default,other", "systemNamespaces": []string{"kube-system"}, "multusNamespace": "kube-system",
		"defaultNetworks": []string{}, "retryDeleteOnError": true,
	})
	p := n.addPod("pod", "")
	res := n.succeed("ADD", p)
	if strings.Contains(string(res.Stderr), "unknown") {
		t.Errorf("a key is unknown: %s", res.Stderr)
	}
	n.succeed("DEL", p)
}

// TestPluginsOfDirectories proves that the directory named after an on-disk list
// extends it, as in libcni, and that auxiliaryCNIChainName extends the default
// network.
func TestPluginsOfDirectories(t *testing.T) {
	n := newNode(t, map[string]any{"auxiliaryCNIChainName": "vendor-chain"})
	plugin := `{"type":"tail","name":"%s"}`
	n.must(os.Symlink(filepath.Join(pluginDir, "tuning"), filepath.Join(n.bin, "tail")))
	for _, dir := range []string{"cluster-net", "vendor-chain"} {
		n.must(os.MkdirAll(n.path("net.d/"+dir), 0o755))
		n.file("net.d/"+dir+"/10-x.conf", fmt.Sprintf(plugin, dir))
		n.file("net.d/"+dir+"/README", "not a plugin")
	}
	p := n.addPod("pod", "")
	n.succeed("ADD", p)
	n.succeed("STATUS", &pod{})
	j, err := os.ReadFile(n.path("state/" + p.ID + "@eth0.journal"))
	n.must(err)
	if got := strings.Count(strings.SplitN(string(j), "\n", 2)[0], `"type":"tail"`); got != 2 {
		t.Errorf("%d of 2 plugins run behind the default network's: %s", got, j)
	}
	n.succeed("DEL", p)
	n.must(os.Remove(filepath.Join(n.bin, "tail")))
	n.refuse("STATUS", &pod{}, 50, "tail")
	n.withConf(map[string]any{"auxiliaryCNIChainName": "../vendor-chain"})
	n.refuse("ADD", p, 7, "is a path")
}
