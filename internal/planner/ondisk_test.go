package planner

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/podresources"
)

// A definition whose configuration is a file, single or list, gets the device injected.
func TestDevicesReachConfigurationsOnDisk(t *testing.T) {
	for name, file := range map[string]netconf.File{
		"MN-3.4.1-conf":     {Name: "fast", Raw: json.RawMessage(`{"name":"fast","type":"a"}`)},
		"MN-3.4.1-conflist": {Name: "fast", List: true, Raw: json.RawMessage(`{"name":"fast","plugins":[{"type":"a"},{"type":"b","capabilities":{"deviceID":true}}]}`)},
	} {
		t.Run(name, func(t *testing.T) {
			w := world{
				definitions: map[string]string{"fast": ""}, resources: map[string]string{"fast": vfs}, devices: []podresources.Device{dev("rx", "0000:21:10.4")},
			}
			src := w.sources()
			src.Files = []netconf.File{file}
			original := string(file.Raw)
			inv, err := netconf.FromRequest(plan.Request{Version: 1, ContainerID: "c0", IfName: "eth0",
				Config: []byte(`{"name":"m","type":"manifold","cniVersion":"1.0.0","delegates":[{"type":"bridge","name":"cluster"}]}`)})
			if err != nil {
				t.Fatal(err)
			}
			sel, err := Select(inv, &Pod{Pod: podresources.Pod{Namespace: "shop"}, Annotations: map[string]string{"k8s.v1.cni.cncf.io/networks": "fast"}})
			if err != nil {
				t.Fatal(err)
			}
			p, err := sel.Plan(src)
			if err != nil {
				t.Fatal(err)
			}
			var list struct {
				Plugins []struct{ DeviceID, PCIBusID string }
			}
			if err := json.Unmarshal(p.Attachments[1].Config, &list); err != nil {
				t.Fatal(err)
			}
			for _, plugin := range list.Plugins {
				if got := fmt.Sprint(plugin); got != "{0000:21:10.4 0000:21:10.4}" {
					t.Errorf("plugin %s in %s", got, p.Attachments[1].Config)
				}
			}
			if hasCapability := strings.Contains(original, "capabilities"); hasCapability != (p.Attachments[1].Capabilities["deviceID"] != nil) {
				t.Errorf("capabilities %v", p.Attachments[1].Capabilities)
			}
			if string(file.Raw) != original {
				t.Error("planning overwrote the file's bytes")
			}
		})
	}
}

// A default network is looked up in this order: a definition in the system namespace, a
// configuration in confDir, a directory, a file. Only the administrator may choose a
// file, never a pod.
func TestDefaultNetworksAreLookedUpInOrder(t *testing.T) {
	dir := t.TempDir()
	for name, kind := range map[string]string{"10-first": "first", "20-second": "second"} {
		if err := os.WriteFile(filepath.Join(dir, name+".conf"), []byte(`{"name":"`+kind+`","type":"`+kind+`"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	world := func(conf map[string]any, networks string) world {
		return world{conf: conf, networks: networks, definitions: map[string]string{"kube-system/both": `{"type":"ptp"}`, "kube-system/by-file": " "}}
	}
	src := world(nil, "").sources()
	for _, name := range []string{"both", "disk", "by-file"} {
		src.Files = append(src.Files, netconf.File{Name: name, Raw: json.RawMessage(`{"name":"` + name + `","type":"disk"}`)})
	}
	names := []string{"both", "disk", "by-file", dir, filepath.Join(dir, "20-second.conf")}
	want := []string{"kube-system/both ptp", "disk disk", "kube-system/by-file disk", "first first", "second second"}
	p, err := world(map[string]any{"defaultNetworks": names}, "").planWith(t, src)
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range names {
		if got := p.Attachments[i+1].Name + " " + typeOf(t, p.Attachments[i+1].Config); got != want[i] {
			t.Errorf("%s in defaultNetworks is %s, want %s", name, got, want[i])
		}
		p, err := world(map[string]any{"clusterNetwork": name}, "").planWith(t, src)
		if err != nil || p.Attachments[0].Name+" "+typeOf(t, p.Attachments[0].Config) != want[i] {
			t.Errorf("%s as clusterNetwork: %+v, %v; want %s", name, p, err, want[i])
		}
	}
	for _, networks := range []string{"disk", "kube-system/disk"} {
		if _, err := world(nil, networks).planWith(t, src); !cnierr.Is(err, cnierr.DefinitionMissing) {
			t.Errorf("a pod takes a file of the node by %s: %v", networks, err)
		}
		w := world(nil, "")
		w.defaultNet = networks
		if _, err := w.planWith(t, src); !cnierr.Is(err, cnierr.DefinitionMissing) {
			t.Errorf("a pod takes a file of the node as default network by %s: %v", networks, err)
		}
	}
}

// typeOf returns the type of a configuration's first plugin.
func typeOf(t *testing.T, raw json.RawMessage) string {
	t.Helper()
	var list struct {
		Plugins []struct {
			Type string `json:"type"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(raw, &list); err != nil || len(list.Plugins) == 0 {
		t.Fatalf("%s: %v", raw, err)
	}
	return list.Plugins[0].Type
}
