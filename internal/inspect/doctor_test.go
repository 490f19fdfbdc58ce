package inspect

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/sriov/sriovtest"
)

// A network that is missing from the node gets one fix: that of the check, which says
// who must provide the network, not that of the look-up.
func TestFixOfAMissingNetworkIsGivenOnce(t *testing.T) {
	dir := t.TempDir()
	for check, c := range map[string]struct {
		plugin netconf.Conf
		fix    string
	}{
		"default network": {netconf.Conf{ConfDir: dir, ClusterNetwork: "cluster-net"}, "check that the default network's own pods run"},
		"network extra":   {netconf.Conf{ConfDir: dir, ClusterNetwork: "cluster-net", DefaultNets: []string{"extra"}}, "create it, or correct defaultNetworks"},
		"network /no/dir": {netconf.Conf{ConfDir: dir, ClusterNetwork: "cluster-net", DefaultNets: []string{"/no/dir"}}, "create it, or correct defaultNetworks"},
	} {
		d := &doctor{ctx: t.Context(), conf: &configfile.Agent{}, plugin: &c.plugin, out: &nodeview.Diagnosis{}}
		d.networks()
		i := slices.IndexFunc(d.out.Checks, func(got nodeview.Check) bool { return got.Name == check })
		if i < 0 {
			t.Fatalf("%s is not checked: %+v", check, d.out.Checks)
		}
		if got := d.out.Checks[i]; got.State != nodeview.CheckFailed || !strings.HasPrefix(got.Fix, c.fix) || strings.Contains(got.Text, "put a configuration") {
			t.Errorf("%s: %s; what to do: %s", check, got.Text, got.Fix)
		}
	}
}

// A definition that the agent refuses is the definition's mistake: no file of the same
// name stands in for it, as the agent takes none.
func TestDefinitionThatTheAgentRefusesFails(t *testing.T) {
	manifests, confs := t.TempDir(), t.TempDir()
	long, err := json.Marshal(map[string]any{
		"apiVersion": "k8s.cni.cncf.io/v1", "kind": "NetworkAttachmentDefinition", "metadata": map[string]string{"namespace": "kube-system", "name": "net"},
		"spec": map[string]string{"config": `{"type":"ptp","name":"` + strings.Repeat("n", netattach.MaxConfig) + `"}`},
	})
	if err := errors.Join(err, os.WriteFile(filepath.Join(manifests, "net.json"), long, 0o600),
		os.WriteFile(filepath.Join(confs, "10-net.conf"), []byte(`{"cniVersion":"1.0.0","name":"net","type":"ptp"}`), 0o600)); err != nil {
		t.Fatal(err)
	}
	plugin := &netconf.Conf{ConfDir: confs, ClusterNetwork: "net", MultusNamespace: "kube-system", DefaultNets: []string{"net"}}
	d := &doctor{ctx: t.Context(), conf: &configfile.Agent{DefinitionManifests: manifests}, plugin: plugin, out: &nodeview.Diagnosis{}, looked: map[string]bool{}}
	d.networks()
	for _, got := range d.out.Checks {
		if got.State != nodeview.CheckFailed || !strings.Contains(got.Text, "definition kube-system/net") || got.Fix != "correct the definition" {
			t.Errorf("%+v", got)
		}
	}
	if len(d.out.Checks) != 2 {
		t.Errorf("%d checks", len(d.out.Checks))
	}
}

// What blocks its reader cannot be loaded, and no check waits for it: neither a file that
// sorts before Manifold's, nor one that adds a plugin to a list, nor Manifold's own.
func TestNoConfigurationBlocks(t *testing.T) {
	for _, at := range []string{"00-first.conf", "net/10-more.conf", "50-manifold.conflist"} {
		dir := t.TempDir()
		ours := filepath.Join(dir, "50-manifold.conflist")
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "net"), 0o700),
			os.WriteFile(filepath.Join(dir, "10-net.conflist"), []byte(`{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"ptp"}]}`), 0o600),
			os.WriteFile(ours, []byte(`{"cniVersion":"1.0.0","name":"m","plugins":[{"type":"manifold","clusterNetwork":"net"}]}`), 0o600)); err != nil {
			t.Fatal(err)
		}
		blocked := filepath.Join(dir, at)
		if err := os.Remove(blocked); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		if err := unix.Mkfifo(blocked, 0o600); err != nil {
			t.Fatal(err)
		}
		d := &doctor{ctx: t.Context(), conf: &configfile.Agent{CNIConfig: ours}, out: &nodeview.Diagnosis{}}
		d.configuration()
		d.loadable("configuration order", ours)
		if !slices.ContainsFunc(d.out.Checks, func(c nodeview.Check) bool {
			return c.State == nodeview.CheckFailed && strings.Contains(c.Text, blocked+": not a regular file")
		}) {
			t.Errorf("%s: %+v", at, d.out.Checks)
		}
	}
}

// Most cards could have VFs and need none: such a PF is mentioned, and no warning. It is
// one if the kubelet knows a device that is gone, as VFs are after a boot that did not
// enable them again.
func TestPFWithoutVFsIsAWarningIfDevicesAreGone(t *testing.T) {
	for name, c := range map[string]struct {
		registered []string
		checkpoint bool
		warned     bool
	}{
		"no checkpoint":     {nil, false, false},
		"no devices":        {nil, true, false},
		"devices as usual":  {[]string{"0000:5e:01.0", "0000:3b:00.0", "gpu-7"}, true, false},
		"a VF that is gone": {[]string{"0000:5e:01.0", "0000:18:02.1"}, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			tree := sriovtest.New(t.TempDir())
			tree.AddPF(sriovtest.PF{Address: "0000:5e:00.0", NetDev: "used", TotalVFs: 4})
			tree.AddVF(sriovtest.VF{PF: "0000:5e:00.0", Address: "0000:5e:01.0", Driver: "iavf"})
			tree.AddPF(sriovtest.PF{Address: "0000:18:00.0", NetDev: "plain", TotalVFs: 8})
			tree.AddFunction(sriovtest.Function{Address: "0000:3b:00.0", Class: "030200"})
			conf := &configfile.Agent{SysRoot: tree.Root(), Checkpoint: filepath.Join(t.TempDir(), "checkpoint")}
			raw, err := checkpoint.Encode(nil, map[string][]string{"vendor.example/vfs": c.registered})
			if c.checkpoint {
				err = errors.Join(err, os.WriteFile(conf.Checkpoint, raw, 0o600))
			}
			if err := errors.Join(err, tree.Err()); err != nil {
				t.Fatal(err)
			}
			d := &doctor{conf: conf, out: &nodeview.Diagnosis{}}
			d.hardware()
			last := d.out.Checks[len(d.out.Checks)-1]
			if last.State != nodeview.CheckOK || !strings.HasPrefix(last.Text, "1 on kernel ") || !strings.HasSuffix(last.Text, "; none enabled on PF 0000:18:00.0") {
				t.Errorf("%+v", last)
			}
			warnings := d.out.Checks[:len(d.out.Checks)-1]
			if c.warned != (len(warnings) == 1) {
				t.Fatalf("%+v", warnings)
			}
			for _, w := range warnings {
				if w.Name != "PF 0000:18:00.0" || w.State != nodeview.CheckWarning || !strings.Contains(w.Text, "0000:18:02.1") {
					t.Errorf("%+v", w)
				}
			}
		})
	}
}

// A file system without room for a journal is a failure, whether bytes or inodes are
// used up. A large file system with a small share left has room for years.
func TestSpaceForJournals(t *testing.T) {
	const gib = 1 << 30 / 4096
	for name, c := range map[string]struct {
		fs          unix.Statfs_t
		state, text string
	}{
		"plenty":             {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib, Bavail: 50 * gib, Files: 1000, Ffree: 500}, nodeview.CheckOK, "51200 MiB"},
		"nearly full":        {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib, Bavail: gib / 64, Files: 1000, Ffree: 500}, nodeview.CheckFailed, "16 MiB"},
		"1 % of a large one": {unix.Statfs_t{Bsize: 4096, Blocks: 4000 * gib, Bavail: 30 * gib, Files: 1000, Ffree: 500}, nodeview.CheckOK, "30720 MiB"},
		"a small one":        {unix.Statfs_t{Bsize: 4096, Blocks: gib / 32, Bavail: gib / 64, Files: 1000, Ffree: 500}, nodeview.CheckOK, "16 MiB"},
		"no inodes":          {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib, Bavail: 50 * gib, Files: 1000}, nodeview.CheckFailed, "no inodes"},
		"inodes uncounted":   {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib, Bavail: 50 * gib}, nodeview.CheckOK, "51200 MiB"}, // as btrfs
		"read-only":          {unix.Statfs_t{Bsize: 4096, Blocks: 100 * gib, Bavail: 50 * gib, Flags: unix.ST_RDONLY}, nodeview.CheckFailed, "read-only"},
	} {
		d := &doctor{out: &nodeview.Diagnosis{}}
		d.space("state directory", "/state", &c.fs)
		if got := d.out.Checks[0]; len(d.out.Checks) != 1 || got.State != c.state || !strings.Contains(got.Text, c.text) {
			t.Errorf("%s: %+v", name, d.out.Checks)
		}
	}
}
