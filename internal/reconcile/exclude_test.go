package reconcile

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

func TestParseExclude(t *testing.T) {
	for in, want := range map[string]string{
		"0000:5e:00.0": "0000:5e:00.0", "0000:5E:00.0": "0000:5e:00.0", "5E:00.0": "0000:5e:00.0", " 0000:5e:00.0\n": "0000:5e:00.0",
		"10000:00:1f.0": "10000:00:1f.0", "enp33s0": "enp33s0", "enp33s0 ": "enp33s0", "enxaabbccddeeff0011": "enxaabbccddeeff0011",
		"": "", " ": "", "..": "", "0000:5e:00": "", "0000:5g:00.0": "", "eth0,eth1": "eth0,eth1", "eth0 eth1": "", "pci/0000": "", strings.Repeat("x", 128): "",
	} {
		got, err := ParseExclude(in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%q: %q, %v, want %q", in, got, err, want)
		}
	}
}

// A PF is excluded by each of its names, in any spelling.
func TestExcludedPFs(t *testing.T) {
	const excluded, maybe = "its PF is excluded", "its PF may be excluded, which is not known: "
	for name, tc := range map[string]struct {
		exclude string
		want    string // why not, empty for not excluded
	}{
		"its address":            {"0000:ab:00.0", excluded},
		"in upper case":          {"0000:AB:00.0", excluded},
		"as lspci has it":        {"AB:00.0", excluded},
		"with white space":       {" 0000:ab:00.0 ", excluded},
		"its network device":     {"enp171s0", excluded},
		"an alternative name":    {"a-name-that-is-longer-than-15", excluded},
		"another PF's address":   {"0000:41:00.0", ""},
		"another network device": {"other", ""},
		"no name of the node":    {"ens9", maybe},
		"no address of the node": {"0000:ac:00.0", maybe},
		"one on no function":     {"bond0", maybe},
		"senseless":              {"0000:ab:00", maybe},
	} {
		t.Run(name, func(t *testing.T) {
			tree := sriovtest.New(t.TempDir())
			tree.AddPF(sriovtest.PF{Address: "0000:ab:00.0", Driver: "igb", TotalVFs: 1})
			tree.AddNetDev("0000:ab:00.0", sriovtest.NetDev{Name: "enp171s0"})
			tree.AddAltName("enp171s0", "a-name-that-is-longer-than-15")
			tree.AddFunction(sriovtest.Function{Address: "0000:41:00.0", Driver: "igb"})
			tree.AddNetDev("0000:41:00.0", sriovtest.NetDev{Name: "other"})
			tree.AddNetDev("", sriovtest.NetDev{Name: "bond0"})
			if err := tree.Err(); err != nil {
				t.Fatal(err)
			}
			r := &Reconciler{Host: tree.Host(), Exclude: []string{tc.exclude}}
			got := r.excluded(Finding{Device: "0000:ab:10.0", PF: "0000:ab:00.0"})
			if tc.want == "" && got != "" || !strings.HasPrefix(got, tc.want) || got != tc.want && tc.want != maybe {
				t.Errorf("%q, want %q", got, tc.want)
			}
		})
	}
}

// The log tells why a repair gave way, once while the reason stays the same.
func TestWhyARepairGaveWayIsLogged(t *testing.T) {
	n := newNode(t)
	n.vlan(77)
	var out bytes.Buffer
	log, state := slog.New(slog.NewTextHandler(&out, nil)), round{}
	for range 2 {
		n.Exclude = []string{"ens9"}
		n.round(t.Context(), &state, true, log)
	}
	if got := out.String(); strings.Count(got, "left alone") != 1 || !strings.Contains(got, "ens9: no such network device") {
		t.Errorf("%s", got)
	}
	n.Exclude = []string{pf}
	n.round(t.Context(), &state, true, log)
	if got := out.String(); strings.Count(got, "left alone") != 2 || n.state().VF.VLAN != 77 {
		t.Errorf("VLAN %d, %s", n.state().VF.VLAN, got)
	}
}
