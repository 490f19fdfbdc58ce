package netattach

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
)

func TestClauseStatus(t *testing.T) {
	o := StatusOptions{Name: "ns/net", IfName: "net1", MTU: 1500, MAC: "02:00:00:00:00:02"}
	base := Status{Name: "ns/net", Interface: "net1", MTU: 1500, MAC: "02:00:00:00:00:02"}
	with := func(change func(*Status)) Status {
		s := base
		change(&s)
		return s
	}
	for id, tc := range map[string]struct {
		result string
		want   Status
	}{
		"MN-5-minimal":      {``, base},
		"MN-5-minimal/null": {`null`, base},
		"MN-5.1-source": {`{"cniVersion":"1.1.0","interfaces":[{"name":"veth0"},{"name":"net1","mac":"02:00:00:00:00:01","mtu":9000,"sandbox":"/x"},{"name":"net9","sandbox":"/x"}]}`,
			with(func(s *Status) { s.MAC, s.MTU = "02:00:00:00:00:01", 9000 })},
		"MN-5.3-ips": {`{"cniVersion":"1.0.0","interfaces":[{"name":"veth0"},{"name":"net1","sandbox":"/x"}],"ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.2/24","interface":1},{"address":"fd00::2/64","interface":1},{"address":"10.0.0.3/24"}]}`,
			with(func(s *Status) { s.IPs = []string{"10.0.0.2", "fd00::2"} })},
		"MN-5.3-ips/no sandbox interface": {`{"cniVersion":"1.0.0","interfaces":[{"name":"veth0"}],"ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.2/24"},{"address":"10.0.0.3/24"}]}`,
			with(func(s *Status) { s.IPs = []string{"10.0.0.2"} })},
		"MN-5.3-legacy": {`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"},"ip6":{"ip":"fd00::2/64"}}`,
			with(func(s *Status) { s.IPs = []string{"10.0.0.2", "fd00::2"} })},
		"MN-5.3-dns": {`{"cniVersion":"1.0.0","dns":{"nameservers":["10.0.0.53"],"domain":"d","search":["s"]}}`,
			with(func(s *Status) {
				s.DNS = types.DNS{Nameservers: []string{"10.0.0.53"}, Domain: "d", Search: []string{"s"}}
			})},
	} {
		t.Run(id, func(t *testing.T) {
			got, err := NewStatus([]byte(tc.result), o)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("got  %+v\nwant %+v", got, tc.want)
			}
		})
	}
	if _, err := NewStatus([]byte(`{"cniVersion":"7.0.0"}`), o); err == nil {
		t.Error("a result of an unknown version was accepted")
	}
}

func TestClauseStatusDocument(t *testing.T) {
	info, err := NewPCIInfo("0000:21:10.4", "0000:21:00.0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStatus(nil, StatusOptions{Name: "n", IfName: "eth0", Default: true, Gateway: []string{"10.0.0.1"}, DeviceInfo: info})
	if err != nil {
		t.Fatal(err)
	}
	text, err := MarshalStatuses([]Status{s})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]string{
		"MN-5.2-default": `"default": true`, "MN-5.3-name": `"name": "n"`, "MN-5.3-gateway": `"default-route": [`,
		"MN-5.3-device-info": `"pf-pci-address": "0000:21:00.0"`,
	} {
		t.Run(id, func(t *testing.T) {
			if !strings.Contains(text, want) {
				t.Errorf("%s lacks %s", text, want)
			}
		})
	}
}

func TestClauseDeviceInfo(t *testing.T) {
	t.Run("DI-4.1-dp-file", func(t *testing.T) {
		name, err := DPFileName("rig.example/igb_vfs", "0000:01:10.0")
		if err != nil || name != "rig.example-igb_vfs-0000:01:10.0-device.json" {
			t.Errorf("%q, %v", name, err)
		}
		for _, bad := range [][2]string{{"", "x"}, {"x", ""}, {"x", "a\x00b"}, {"x", strings.Repeat("y", 255)}} {
			if name, err := DPFileName(bad[0], bad[1]); err == nil {
				t.Errorf("%q gives %q", bad, name)
			}
		}
		if name, err := DPFileName("a/../b", "../../etc/passwd"); err != nil || strings.Contains(name, "/") {
			t.Errorf("%q, %v", name, err)
		}
	})
	t.Run("DI-6-status", func(t *testing.T) {
		good := `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:01:11.4"}}`
		if d, err := ParseDeviceInfo([]byte(good)); err != nil || d.PCI.Address != "0000:01:11.4" {
			t.Errorf("%+v, %v", d, err)
		}
		for _, bad := range []string{``, `{}`, `{"type":"pci"}`, `{"type":"vdpa","vdpa":{}}`, `{"type":"memif","memif":{"path":""}}`, `{"type":"usb"}`, `[]`} {
			if d, err := ParseDeviceInfo([]byte(bad)); err == nil {
				t.Errorf("%s gives %+v", bad, d)
			}
		}
	})
}

func TestAsked(t *testing.T) {
	c, err := ParseConfig([]byte(`{"plugins":[{"type":"sriov","vlan":100,"trust":"on","max_tx_rate":200,"mac":"02:00:00:00:00:01"},{"type":"bridge","mtu":1400,"vlan":7},{"type":"tuning","mtu":1300}]}`))
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Asked(nil)
	if err != nil {
		t.Fatal(err)
	}
	if a.MTU != 1300 || *a.VLAN != 100 || a.Trust != "on" || *a.MaxTxRate != 200 || a.MAC != "02:00:00:00:00:01" || a.MinTxRate != nil {
		t.Errorf("%+v", a)
	}
	for _, bad := range []string{`{"type":"bridge","mtu":"big"}`, `{"type":"sriov","vlan":"x"}`, `{"type":"sriov","trust":true}`} {
		c, err := ParseConfig([]byte(bad))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := c.Asked(nil); err == nil {
			t.Errorf("%s gives %+v", bad, a)
		}
	}
}

// A key that the plugin ignores, or that it applies to something other than the VF, asks
// for nothing.
func TestAskedOfPluginsThatMeanSomethingElse(t *testing.T) {
	for config, want := range map[string]Asked{
		`{"type":"dummy","mtu":1400}`: {},
		`{"type":"accelerated-bridge","bridge":"br1","vlan":1000,"trunk":[{"id":7}],"mac":"02:00:00:00:00:01"}`: {MAC: "02:00:00:00:00:01", VFMAC: "02:00:00:00:00:01"},
	} {
		c, err := ParseConfig([]byte(config))
		if err != nil {
			t.Fatal(err)
		}
		if a, err := c.Asked(nil); err != nil || a != want {
			t.Errorf("%s: %+v, %v, want %+v", config, a, err, want)
		}
	}
}

// For tuning, arguments override keys, and the selection's arguments override the
// definition's. A MAC that the PF keeps is told apart from the interface's own.
func TestAskedOfTuningByArguments(t *testing.T) {
	c, err := ParseConfig([]byte(`{"plugins":[{"type":"sriov","mac":"02:00:00:00:00:01","capabilities":{"mac":true}},
		{"type":"tuning","mac":"02:00:00:00:00:02","mtu":1400,"args":{"cni":{"mtu":1350}}}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]Asked{
		`null`: {MTU: 1350, MAC: "02:00:00:00:00:02", VFMAC: "02:00:00:00:00:01", SetsVFMAC: true},
		`{"mac":"02:00:00:00:00:03","mtu":1300,"x":[]}`: {MTU: 1300, MAC: "02:00:00:00:00:03", VFMAC: "02:00:00:00:00:01", SetsVFMAC: true},
	} {
		var cniArgs map[string]json.RawMessage
		if err := json.Unmarshal([]byte(args), &cniArgs); err != nil {
			t.Fatal(err)
		}
		if got, err := c.Asked(cniArgs); err != nil || got != want {
			t.Errorf("%s: %+v, %v, want %+v", args, got, err, want)
		}
	}
	if a, err := c.Asked(map[string]json.RawMessage{"mtu": json.RawMessage(`"big"`)}); err == nil {
		t.Errorf("an MTU that is none gives %+v", a)
	}
}

func FuzzSelections(f *testing.F) {
	for _, s := range []string{"a,b/c@d", `[{"name":"a","ips":["10.0.0.1"],"default-route":[]}]`, "[null]", `[{"name":"a","cni-args":{"x":null}}]`, "@", "/,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		all, err := ParseSelections(in, "pod")
		if err != nil || len(all) == 0 {
			return
		}
		raw, err := json.Marshal(all)
		if err != nil {
			t.Fatal(err)
		}
		again, err := ParseSelections(string(raw), "other")
		if err != nil || len(again) != len(all) {
			t.Fatalf("%s: %v", raw, err)
		}
		for i := range all {
			if all[i].String() != again[i].String() {
				t.Errorf("%s became %s", all[i], again[i])
			}
		}
	})
}

// FuzzConfig checks that libcni can run and tear down whatever renders.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{`{"type":"a"}`, `{"name":"n","plugins":[{"type":"a","args":{"cni":null}}]}`, `{"plugins":[{"type":"a","capabilities":null,"ipam":null,"dns":null}]}`, `{"type":"a","disableCheck":"TRUE","cniVersions":["1.0.0"]}`, `{"name":"n","Plugins":[],"TYPE":"b","type":"a"}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseConfig(in)
		if err != nil {
			return
		}
		out, _, err := c.Render(RenderOptions{Name: "n", DeviceID: "d", CNIArgs: map[string]json.RawMessage{"k": json.RawMessage("1")}})
		if err != nil {
			return
		}
		list, err := libcni.NetworkConfFromBytes(out)
		if err != nil || len(list.Plugins) != len(c.Plugins()) {
			t.Fatalf("libcni does not take %s: %v", out, err)
		}
		again, err := ParseConfig(out)
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		twice, _, err := again.Render(RenderOptions{DeviceID: "d", CNIArgs: map[string]json.RawMessage{"k": json.RawMessage("1")}})
		if err != nil || string(twice) != string(out) {
			t.Fatalf("rendering is not stable: %s then %s, %v", out, twice, err)
		}
	})
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[null],"ips":[null,{"address":"10.0.0.2/24","interface":7}]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		s, err := NewStatus(in, StatusOptions{Name: "n"})
		if err != nil {
			return
		}
		if _, err := MarshalStatuses([]Status{s}); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkParseSelections(b *testing.B) {
	for name, in := range map[string]string{"comma": "a,ns/b@net7,c", "json": `[{"name":"a","ips":["10.0.0.1/24"],"mac":"02:00:00:00:00:01"},{"name":"b"}]`} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := ParseSelections(in, "pod"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRender(b *testing.B) {
	c, err := ParseConfig([]byte(`{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"host-device","capabilities":{"deviceID":true}},{"type":"tuning","mtu":1400}]}`))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := c.Render(RenderOptions{DeviceID: "0000:21:10.4"}); err != nil {
			b.Fatal(err)
		}
	}
}
