package install

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
)

// again installs over the present installation, and returns what is printed.
func (d *guarded) again(change func(*Installer)) (string, error) {
	i := d.installer(d.Path("bin"))
	change(i)
	var out bytes.Buffer
	err := i.Install(context.Background(), &out)
	return out.String(), err
}

// An installation under another file name leaves one file, with the default network as
// before, and uninstalling leaves none: the runtime would call programs that are gone.
func TestConfigurationOfAnotherName(t *testing.T) {
	for _, name := range []string{"000-manifold.conflist", "05-manifold.conflist"} {
		d := newGuarded(t)
		d.File("01-new.conflist", config("new-net", "bridge"))
		if out, err := d.again(func(i *Installer) { i.ConfName = name }); err != nil || !strings.Contains(out, "removed "+d.Path("00-manifold.conflist")) {
			t.Fatalf("%v\n%s", err, out)
		}
		raw, err := os.ReadFile(d.Path(name))
		d.Must(err)
		if !strings.Contains(string(raw), `"cluster-net"`) {
			t.Errorf("its default network is another:\n%s", raw)
		}
		if d.read() != nil || files.Exists(netconf.Kept(d.Path("00-manifold.conflist"))) {
			t.Error("the old one is left")
		}
		if kept := d.agentConfig().CNIConfig; kept != d.Path(name) {
			t.Errorf("the agent is to keep %s", kept)
		}
		// Nobody tells Uninstall the file's name.
		d.Must(d.installer("").Uninstall(new(bytes.Buffer)))
		if first, _ := netconf.First(d.Dir); first == nil || first.Name != "new-net" || files.Exists(d.Path("bin/manifold")) || files.Exists(d.Path("manifold.d")) {
			t.Errorf("after uninstall the runtime takes %+v", first)
		}
	}
}

// attach leaves the journal of a sandbox.
func (d *guarded) attach() {
	d.T.Helper()
	_, err := journal.Dir{Path: d.Path("state")}.Begin(context.Background(), journal.Key{ContainerID: "c1", IfName: "eth0"}, &plan.Plan{Version: plan.Version, ContainerID: "c1"})
	d.Must(err)
}

// agentConfig returns the agent's configuration as the agent reads it.
func (d *guarded) agentConfig() *configfile.Agent {
	d.T.Helper()
	c, err := configfile.ReadAgent(d.Path("manifold.d/agent.json"))
	d.Must(err)
	return c
}

// An agent guards the installed file or none: with another path it would be ready while
// nobody guards that file. A refused installation replaces nothing.
func TestAgentIsToldWhichFileToKeep(t *testing.T) {
	d := newGuarded(t)
	for given, want := range map[string]string{
		"":                                    d.Path("00-manifold.conflist"),
		d.Path("./x/../00-manifold.conflist"): d.Path("00-manifold.conflist"),
		"-":                                   "",
	} {
		d.File("agent.json", `{"cniConfig": "`+given+`"}`)
		_, err := d.again(func(i *Installer) { i.AgentConfig = d.Path("agent.json") })
		d.Must(err)
		if kept := d.agentConfig().CNIConfig; kept != want {
			t.Errorf("given %q it is to keep %q, want %q", given, kept, want)
		}
	}
	d.File("agent.json", `{"cniConfig": "/elsewhere/00-manifold.conflist"}`)
	out, err := d.again(func(i *Installer) { i.AgentConfig = d.Path("agent.json") })
	if out != "" {
		t.Errorf("refused after it was printed:\n%s", out)
	}
	for _, part := range []string{"cniConfig", "/elsewhere/00-manifold.conflist", d.Path("00-manifold.conflist"), "--cni-conf-name"} {
		if err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("%q is not in: %v", part, err)
		}
	}
}

// When another plugin has removed the configuration while no agent ran, its copy still
// tells the default network and the directory of the journals.
func TestInstallAndUninstallOfWhatWasTakenAway(t *testing.T) {
	conf := "00-manifold.conflist"
	for name, tc := range map[string]struct {
		take func(*guarded) error
		to   string // the name under which it is installed then
	}{
		"renamed":              {func(d *guarded) error { return os.Rename(d.Path(conf), d.Path(conf+".cilium_bak")) }, conf},
		"overwritten":          {func(d *guarded) error { d.File(conf, config("new-net", "bridge")); return nil }, conf},
		"renamed, and another": {func(d *guarded) error { return os.Rename(d.Path(conf), d.Path(conf+".cilium_bak")) }, "05-manifold.conflist"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuarded(t)
			d.File("01-new.conflist", config("new-net", "bridge"))
			d.attach()
			d.Must(tc.take(d))
			out, err := d.again(func(i *Installer) { i.ConfName, i.StateDir = tc.to, "" })
			d.Must(err)
			if conf := ourConf(d.Path(tc.to)); conf.ClusterNetwork != "cluster-net" || conf.CNIDir != d.Path("state") {
				t.Errorf("its default network is %q, its journals are in %s\n%s", conf.ClusterNetwork, conf.CNIDir, out)
			}

			d = newGuarded(t)
			d.attach()
			d.Must(tc.take(d))
			i := d.installer("")
			i.ConfName, i.StateDir = tc.to, ""
			if err := i.Uninstall(new(bytes.Buffer)); !cnierr.Is(err, cnierr.TeardownIncomplete) || !files.Exists(d.Path("bin/manifold")) {
				t.Errorf("uninstalled with a sandbox attached: %v", err)
			}
		})
	}
}

// A loopback is not a network: with it alone, the node would have none.
func TestUninstallLooksPastALoopback(t *testing.T) {
	d := newGuarded(t)
	d.File("05-lo.conf", `{"cniVersion":"1.0.0","name":"lo","type":"loopback"}`)
	d.Must(os.Rename(d.Path("10-cluster.conflist"), d.Path("away")))
	i := d.installer("")
	i.Force = false
	if err := i.Uninstall(new(bytes.Buffer)); !cnierr.Is(err, cnierr.NotReady) || !bytes.Equal(d.read(), d.conf) {
		t.Errorf("with a loopback alone: %v", err)
	}
	d.Must(os.Rename(d.Path("away"), d.Path("10-cluster.conflist")))
	d.Must(i.Uninstall(new(bytes.Buffer)))
}

// A file that Multus has left behind, without its program, is no network either: the
// runtime would take it, since it sorts first, and run nothing. With the program it is
// the network.
func TestUninstallLooksForTheProgramOfMultus(t *testing.T) {
	for _, program := range netconf.MultusTypes {
		d := newGuarded(t)
		d.File("00-multus.conf", `{"cniVersion":"0.3.1","name":"multus-cni-network","type":"`+program+`","clusterNetwork":"cluster-net"}`)
		i := d.installer("")
		i.Force = false
		err := i.Uninstall(new(bytes.Buffer))
		if !cnierr.Is(err, cnierr.NotReady) || !bytes.Equal(d.read(), d.conf) {
			t.Fatalf("with a file of %s alone: %v", program, err)
		}
		for _, part := range []string{d.Path("00-multus.conf"), d.Path("bin/" + program), "remove"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: it does not say %s", err, part)
			}
		}
		d.File("bin/"+program, "")
		d.Must(i.Uninstall(new(bytes.Buffer)))
		if d.read() != nil {
			t.Error("Manifold's configuration is left")
		}
	}
}

// Install refuses another directory of journals: nobody would release the pods whose
// journals are left behind.
func TestAnotherDirectoryOfJournals(t *testing.T) {
	d := newGuarded(t)
	d.File("agent.json", `{"podManifests": "/srv/pods"}`)
	install := func(force bool) error {
		_, err := d.again(func(i *Installer) {
			i.StateDir, i.AgentConfig, i.Force = d.Path("elsewhere"), d.Path("agent.json"), force
		})
		return err
	}
	refused := func(parts ...string) {
		t.Helper()
		err := install(false)
		for _, part := range append(parts, d.Path("state"), d.Path("elsewhere")) {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%q is not in: %v", part, err)
			}
		}
		if !bytes.Equal(d.read(), d.conf) {
			t.Errorf("installed:\n%s", d.read())
		}
	}
	d.attach()
	refused("1 sandbox are", "--force")
	d.Must(os.Rename(d.Path("state"), d.Path("unseen"))) // as in a pod that mounts only the other directory
	refused("is not accessible", "--force", "uninstall")
	d.Must(os.Mkdir(d.Path("state"), 0o700))
	d.Must(install(false)) // it has no journals
	d.Must(os.RemoveAll(d.Path("elsewhere")))
	_, err := d.again(func(*Installer) {}) // guarded's installer forces it
	d.Must(err)
}

// waiting returns an installer for a new node's empty directory that waits for its
// cluster default network.
func (d *guarded) waiting(network string) *Installer {
	i := d.installer(d.Path("bin"))
	i.ConfDir, i.ClusterNetwork, i.Wait = d.Path("new"), network, time.Minute
	d.Must(os.RemoveAll(i.ConfDir))
	d.Must(os.Mkdir(i.ConfDir, 0o700))
	return i
}

// apiServer gives the agent that will be installed an API server.
func (d *guarded) apiServer(i *Installer) *kubetest.Server {
	d.T.Helper()
	api := kubetest.Start()
	d.T.Cleanup(api.Stop)
	kubeconfig, err := api.Kubeconfig(d.Dir)
	d.Must(err)
	i.AgentConfig = d.Path("agent.json")
	d.File("agent.json", `{"snapshot": "-", "apiServer": "`+kubeconfig+`"}`)
	return api
}

// told collects what is printed, and calls first at the first write.
type told struct {
	bytes.Buffer
	first func()
}

func (w *told) Write(p []byte) (int, error) {
	if w.Len() == 0 {
		w.first()
	}
	return w.Buffer.Write(p)
}

// On a new node the default network's plugin may come later, whether it is named or
// not: until then the runtime finds nothing.
func TestInstallWaitsForADefaultNetwork(t *testing.T) {
	for name, tc := range map[string]struct {
		network string
		comes   func(*guarded, *kubetest.Server)
		pinned  string
	}{
		"the first":         {"", func(d *guarded, _ *kubetest.Server) { d.File("new/10-late.conflist", config("late-net", "ptp")) }, "late-net"},
		"behind a loopback": {"", func(d *guarded, _ *kubetest.Server) { d.File("new/50-late.conflist", config("late-net", "ptp")) }, "late-net"},
		"named":             {"named-net", func(d *guarded, _ *kubetest.Server) { d.File("new/50-named.conflist", config("named-net", "ptp")) }, "named-net"},
		"a definition": {"defined", func(_ *guarded, api *kubetest.Server) {
			api.AddDefinition(&netattach.Definition{
				ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "defined"},
				Spec:       netattach.DefinitionSpec{Config: config("defined", "ptp")},
			})
		}, "defined"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newGuarded(t)
			i := d.waiting(tc.network)
			d.File("new/20-lo.conf", `{"cniVersion":"1.0.0","name":"lo","type":"loopback"}`)
			api := d.apiServer(i)
			i.askPause = time.Millisecond
			out := &told{first: func() {
				if files.Exists(i.confFile()) {
					t.Error("it is there before the default network")
				}
				tc.comes(d, api)
			}}
			if err := i.Install(context.Background(), out); err != nil || !strings.HasPrefix(out.String(), "waiting: ") {
				t.Fatalf("%v\n%s", err, out)
			}
			if had := i.inPlace(); had.ClusterNetwork != tc.pinned {
				t.Errorf("its default network is %q", had.ClusterNetwork)
			}
			d.Must(os.RemoveAll(d.Path("new/50-named.conflist")))
			api.Stop()
			if err := i.Install(context.Background(), new(bytes.Buffer)); err != nil {
				t.Errorf("again, while it is away: %v", err)
			}
		})
	}
}

// Ending ctx ends an installation that waits, and Wait 0 waits for nothing.
func TestInstallThatWaitsEnds(t *testing.T) {
	d := newGuarded(t)
	i := d.waiting("named-net")
	ctx, stop := context.WithCancel(context.Background())
	if err := i.Install(ctx, &told{first: stop}); err == nil || !strings.Contains(err.Error(), "named-net") || files.Exists(i.confFile()) {
		t.Errorf("ended: %v", err)
	}
	i.Wait = 0
	d.Must(i.Install(context.Background(), new(bytes.Buffer)))
}

// A silent API server blocks nobody: a configuration that appears on disk meanwhile is
// found.
func TestInstallPastASilentAPIServer(t *testing.T) {
	d := newGuarded(t)
	i := d.waiting("named-net")
	d.apiServer(i).Pause()
	i.askPause, i.askTime = time.Millisecond, time.Millisecond
	ctx, stop := context.WithTimeout(context.Background(), time.Minute)
	defer stop()
	out := &told{first: func() { d.File("new/50-named.conflist", config("named-net", "ptp")) }}
	if err := i.Install(ctx, out); err != nil || !strings.HasPrefix(out.String(), "waiting: ") {
		t.Errorf("%v\n%s", err, out)
	}
}

// The default network is never Manifold itself.
func TestInstallRefusesItself(t *testing.T) {
	d := newGuarded(t)
	for _, network := range []string{"manifold", d.Path("00-manifold.conflist")} {
		_, err := d.again(func(i *Installer) { i.ClusterNetwork = network })
		if err == nil || !strings.Contains(err.Error(), "another") || !bytes.Equal(d.read(), d.conf) {
			t.Errorf("%s: %v\n%s", network, err, d.read())
		}
	}
}

// The runtime takes the file for a list by its name alone. Another name is refused before
// anything is replaced: containerd would find no network at all.
func TestInstallRefusesANameThatIsNoList(t *testing.T) {
	for _, name := range []string{"00-manifold.conf", "00-manifold.json", "00-manifold", "sub/00-manifold.conflist", "../00-manifold.conflist", ""} {
		d := newGuarded(t)
		d.File("bin/manifold", "before")
		_, err := d.again(func(i *Installer) { i.ConfName, i.From = name, d.Path("nosuch") })
		if !cnierr.Is(err, cnierr.InvalidConfig) || !strings.Contains(err.Error(), "--cni-conf-name") || !bytes.Equal(d.read(), d.conf) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// An installation beside a configuration that the runtime prefers says so: nothing would
// call Manifold.
func TestInstallSaysWhoStandsBefore(t *testing.T) {
	d := newGuarded(t)
	if out, err := d.again(func(*Installer) {}); err != nil || strings.Contains(out, "warning") {
		t.Errorf("%v\n%s", err, out)
	}
	d.File("00-cluster.conflist", config("cluster-net", "bridge"))
	out, err := d.again(func(*Installer) {})
	if err != nil || !strings.Contains(out, "warning: the runtime uses "+d.Path("00-cluster.conflist")) || !strings.Contains(out, "00-manifold.conflist") {
		t.Errorf("%v\n%s", err, out)
	}
}

// Installed files are written in their final directory: files from elsewhere would have
// another SELinux type. The next installation removes the leftovers of a killed one.
func TestInstallWritesBesideWhatItReplaces(t *testing.T) {
	d := newGuarded(t)
	t.Setenv("TMPDIR", t.TempDir())
	w, err := fsnotify.NewWatcher()
	d.Must(err)
	defer w.Close()
	d.Must(w.Add(os.TempDir()))
	for _, name := range []string{".manifold123", ".manifold-agent6340244231178033926", ".manifold-x", ".manifold", ".other1"} {
		d.File("bin/"+name, "")
	}
	_, err = d.again(func(*Installer) {})
	d.Must(err)
	d.Must(os.WriteFile(filepath.Join(os.TempDir(), "end"), nil, 0o600))
	if e := <-w.Events; filepath.Base(e.Name) != "end" {
		t.Errorf("in the directory of temporary files: %s", e)
	}
	entries, err := os.ReadDir(d.Path("bin"))
	d.Must(err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{".manifold", ".manifold-x", ".other1", "manifold", "manifold-agent"}; !slices.Equal(names, want) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

// The next write removes the leftovers of a killed one, and so does Uninstall: the
// agent's directory could not be removed otherwise.
func TestWhatAKilledWriteLeftGoes(t *testing.T) {
	d := newGuarded(t)
	left := []string{d.Path(".00-manifold.conflist12"), d.Path("manifold.d/.00-manifold.conflist34"), d.Path("manifold.d/.agent.json56")}
	after := func(what string, do func() error) {
		for _, path := range left {
			d.Must(os.WriteFile(path, nil, 0o600))
		}
		d.Must(do())
		for _, path := range left {
			if files.Exists(path) {
				t.Errorf("%s leaves %s", what, path)
			}
		}
	}
	after("install", func() error { _, err := d.again(func(*Installer) {}); return err })
	d.Must(os.Remove(d.Path("10-cluster.conflist"))) // no configuration is left to release with
	after("uninstall", func() error { return d.installer("").Uninstall(new(bytes.Buffer)) })
	if files.Exists(d.Path("manifold.d")) {
		t.Error("the agent's directory is left")
	}
}
