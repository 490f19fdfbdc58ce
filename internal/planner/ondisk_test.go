package planner

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/podresources"
)

// TestDevicesReachConfigurationsOnDisk injects the device into definitions
// whose configuration is a file, single or list.
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
				t.Error("planning wrote over the file's bytes")
			}
		})
	}
}
