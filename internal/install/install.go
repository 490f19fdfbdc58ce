// Package install puts Manifold on a node, keeps it there, and takes it away.
//
// An [Installer] writes programs and configurations, and at the end hands the sandboxes
// over to Multus where that takes its place; [Guard], in the agent, puts the plugin's
// configuration back when another program has taken it away; [Await] is what a chart
// waits for nodes with.
package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/netconf"
)

// Installer puts Manifold on a node and takes it away. Every file is replaced by
// renaming: a running program keeps its own, a reader sees the old or the new
// one, and a name is never absent in between.
type Installer struct {
	From           string        // directory of the programs; empty: this program's own
	BinDir         string        // directory of CNI plugins
	ConfDir        string        // directory of CNI configurations
	ConfName       string        // name of Manifold's configuration in ConfDir
	StateDir       string        // directory of the journal; empty: as in Config, as in place, or the default
	ClusterNetwork string        // cluster default network; empty: the first in ConfDir
	Config         string        // file with the plugin's configuration, or keys of it
	AgentConfig    string        // file with the agent's configuration
	Wait           time.Duration // how long Install waits for a cluster default network; 0: it looks for none that is named
	Node           string        // this node's name in the agent's configuration; empty: as the file says
	ToMultus       string        // Multus's cniDir, where it finds the sandboxes that are attached; empty: they are not handed over
	LeaveAttached  bool          // Uninstall without error while sandboxes are attached
	Force          bool          // also where the node would be left without pods or networks, or with journals in another directory

	askPause, askTime time.Duration // 0: the constants
}

// programs are the names of what is installed, in order: the plugin runs the agent's,
// which understands an older plugin.
var programs = []string{"manifold-agent", "manifold"}

// agentFile is the agent's configuration in ConfDir: in a subdirectory, which
// runtimes do not read.
func (i *Installer) agentFile() string { return filepath.Join(i.ConfDir, "manifold.d", "agent.json") }

func (i *Installer) confFile() string { return filepath.Join(i.ConfDir, i.ConfName) }

// Install puts programs, the agent's configuration and last the plugin's
// configuration in place: from that moment the runtime calls Manifold. What it
// does is printed to out. While it waits for a cluster default network, the end of ctx
// ends it; the rest is a moment.
func (i *Installer) Install(ctx context.Context, out io.Writer) error {
	const op = "install"
	conf, err := i.awaitConfig(ctx, out)
	if err != nil {
		return err
	}
	if err := errors.Join(i.checkAgentConfig(), i.checkStateDir()); err != nil {
		return err
	}
	agents, err := i.newAgentConfig() // before anything is replaced: it may be refused
	if err != nil {
		return err
	}
	from := i.From
	if from == "" {
		self, err := os.Executable()
		if err != nil {
			return cnierr.New(op, cnierr.IO, "%w", err)
		}
		from = filepath.Dir(self)
	}
	for _, dir := range []string{i.BinDir, filepath.Dir(i.agentFile()), i.StateDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return cnierr.New(op, cnierr.IO, "%w", err)
		}
	}
	if err := i.installPrograms(from, out); err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	if err := i.writeAgentConfig(agents); err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	fmt.Fprintln(out, "installed", i.agentFile())
	if err := writeConf(i.confFile(), conf); err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	fmt.Fprintln(out, "installed", i.confFile())
	return i.withdrawEarlier(out)
}

// copyBuffer is how much of a program is written at once. The kernel keeps a file in
// memory in pieces as large as it was written; a program in large ones is mapped with
// fewer faults, which a plugin that starts for every call has a quarter less time from.
const copyBuffer = 256 << 10

// installPrograms copies the programs, one installation at a time: what one that was
// killed has left can be told from what another is writing.
func (i *Installer) installPrograms(from string, out io.Writer) error {
	lock, err := os.Open(i.BinDir)
	if err != nil {
		return err
	}
	defer lock.Close() // which unlocks
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	for _, p := range programs {
		to := filepath.Join(i.BinDir, p)
		if err := files.RemoveUnfinished(to); err != nil {
			return err
		}
		if err := installProgram(filepath.Join(from, p), to); err != nil {
			return err
		}
		fmt.Fprintln(out, "installed", to)
	}
	return nil
}

// installProgram copies a program over another that may be running, by way of a file
// beside it, see [files.Replace].
func installProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	w, err := renameio.NewPendingFile(to, renameio.WithTempDir(filepath.Dir(to)), renameio.WithStaticPermissions(0o755))
	if err != nil {
		return err
	}
	defer w.Cleanup()
	// Behind the bare interfaces, or it would be the files that choose how to copy.
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{in}, make([]byte, copyBuffer)); err != nil {
		return err
	}
	return w.CloseAtomicallyReplace()
}

// agentConfig reads the agent's configuration as it will be.
func (i *Installer) agentConfig() (*configfile.Agent, error) {
	file := i.AgentConfig
	if file == "" && files.Exists(i.agentFile()) {
		file = i.agentFile()
	}
	if file != "" {
		return configfile.ReadAgent(file)
	}
	c := &configfile.Agent{}
	return c, c.Complete()
}

// checkAgentConfig refuses an agent's configuration that names no source of pods: every
// pod would wait for ever to be known.
func (i *Installer) checkAgentConfig() error {
	c, err := i.agentConfig()
	if err != nil || i.Force || c.APIServer != "" || c.PodManifests != "" || files.Exists(c.PodsAPI) {
		return err
	}
	return cnierr.New("install", cnierr.InvalidConfig, "the agent's configuration names no source of pods: neither apiServer nor podManifests, and the kubelet serves no Pods API at %s", c.PodsAPI).
		WithFix("give --agent-config with apiServer, or --force")
}

// newAgentConfig returns the agent's configuration as it will be: the one given, else
// the one in place. It says where the journals are, which the plugin's says too, and
// which file that is: an agent would keep, and read, one of another name that is not
// there.
func (i *Installer) newAgentConfig() ([]byte, error) {
	const op = "install"
	keys := map[string]json.RawMessage{}
	file := i.AgentConfig
	if file == "" && files.Exists(i.agentFile()) {
		file = i.agentFile()
	}
	if file != "" {
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, cnierr.New(op, cnierr.IO, "%w", err)
		}
		if err := json.Unmarshal(raw, &keys); err != nil {
			return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: %w", file, err)
		}
		if keys == nil {
			return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: it is no JSON object", file)
		}
	}
	if i.Node != "" { // one file serves all nodes of a cluster
		keys["node"] = quoted(i.Node)
	}
	if err := i.tell(keys, "cniDir", i.StateDir, "state-dir"); err != nil {
		return nil, err
	}
	if configfile.StringValue(keys["cniConfig"]) != configfile.None { // who wants none kept has none
		if err := i.tell(keys, "cniConfig", i.confFile(), "cni-conf-dir and --cni-conf-name"); err != nil {
			return nil, err
		}
	}
	raw, err := json.MarshalIndent(keys, "", "  ")
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: %w", file, err)
	}
	return append(raw, '\n'), nil
}

// tell sets a path of the plugin's in the keys of the agent's configuration, and refuses
// one that was given and is another. Of what is in place nothing is asked: the flags go
// before it.
func (i *Installer) tell(keys map[string]json.RawMessage, key, path, flags string) error {
	given := configfile.StringValue(keys[key])
	if given != "" && i.AgentConfig != "" && filepath.Clean(given) != filepath.Clean(path) {
		return cnierr.New("install", cnierr.InvalidConfig, "key %q: the agent's configuration says %s, the plugin's is %s", key, given, path).
			WithFix("leave it out of the agent's, or give --%s as it says", flags)
	}
	keys[key] = quoted(path)
	return nil
}

// writeAgentConfig writes the agent's configuration under the lock of the plugin's.
func (i *Installer) writeAgentConfig(content []byte) error {
	unlock, err := netconf.Lock(i.confFile())
	if err != nil {
		return err
	}
	defer unlock()
	return files.ReplaceLocked(i.agentFile(), content)
}

// pluginConfig returns the configuration list that the runtime reads, validated
// as the plugin will read it, and settles StateDir.
func (i *Installer) pluginConfig() ([]byte, error) {
	const op = "make CNI configuration"
	list := map[string]json.RawMessage{"cniVersion": quoted("1.1.0"), "name": quoted("manifold")}
	given, err := i.givenConfig(list)
	if err != nil {
		return nil, err
	}
	if i.StateDir == "" {
		i.StateDir = i.stateDir(configfile.StringValue(given["cniDir"]))
	}
	plugin := map[string]any{
		"type": "manifold", "confDir": i.ConfDir, "binDir": i.BinDir, "cniDir": i.StateDir,
		"agentProgram": filepath.Join(i.BinDir, "manifold-agent"), "agentConfig": i.agentFile(),
		"capabilities": map[string]bool{"portMappings": true, "bandwidth": true},
	}
	for key, value := range given {
		plugin[key] = value
	}
	plugin["cniDir"] = i.StateDir
	// The flag before what --config says, and both before what is found.
	if i.ClusterNetwork != "" || plugin["clusterNetwork"] == nil && plugin["delegates"] == nil {
		primary, err := i.primary()
		if err != nil {
			return nil, err
		}
		plugin["clusterNetwork"] = primary
	}
	if err := netconf.Validate(plugin); err != nil {
		return nil, err
	}
	raw, err := json.Marshal([]any{plugin})
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	list["plugins"] = raw
	out, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return append(out, '\n'), nil
}

// givenConfig returns the keys of the file Config: of its plugin where it is a
// configuration, whose name and version go to list.
func (i *Installer) givenConfig(list map[string]json.RawMessage) (map[string]json.RawMessage, error) {
	const op = "make CNI configuration"
	if i.Config == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(i.Config)
	if err != nil {
		return nil, cnierr.New(op, cnierr.IO, "%w", err)
	}
	doc, err := configfile.ParseDocument(op, raw)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: %w", i.Config, err)
	}
	if len(doc.Plugins) != 1 {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: it has %d plugins, and must have one", i.Config, len(doc.Plugins)).
			WithFix("install Manifold alone, and put plugins of a chain into the default network's configuration")
	}
	for _, key := range []string{"name", "cniVersion"} {
		if doc.List[key] != nil {
			list[key] = doc.List[key]
		}
	}
	return doc.Plugins[0], nil
}

// stateDir returns the directory of the journal: as configured, as in place, or
// the default.
func (i *Installer) stateDir(configured string) string {
	if configured != "" {
		return configured
	}
	if dir := i.inPlace().CNIDir; dir != "" {
		return dir
	}
	return configfile.DefaultCNIDir
}

// checkStateDir refuses another directory of journals than the one in place while that
// one has any: nobody would find them to release their sandboxes by. In a pod a directory
// that is not mounted has what nobody knows.
func (i *Installer) checkStateDir() error {
	was := i.inPlace().CNIDir
	if i.Force || was == "" || filepath.Clean(was) == filepath.Clean(i.StateDir) {
		return nil
	}
	if !files.Exists(was) {
		return cnierr.New("install", cnierr.InvalidConfig, "the journals are in %s, which cannot be looked into, and would not be found in %s", was, i.StateDir).
			WithFix("keep that directory, or give --force if they were moved there; to have another, uninstall, delete the node's pods that have secondary networks, and install again")
	}
	keys, err := journal.Dir{Path: was}.List()
	if err != nil || len(keys) == 0 {
		return err
	}
	return cnierr.New("install", cnierr.InvalidConfig, "the journals of %d sandboxes are in %s, and would not be found in %s", len(keys), was, i.StateDir).
		WithFix("keep that directory until these pods are deleted, or give --force")
}

// quoted returns a string as JSON.
func quoted(s string) json.RawMessage {
	raw, err := json.Marshal(s)
	if err != nil {
		return json.RawMessage(`""`) // a string always encodes
	}
	return raw
}

// others are the plugins that are never the primary network: ourselves, those whose
// place Manifold takes, and the loopback that packages of runtimes bring.
var others = append([]string{"manifold", "loopback"}, configfile.MultusTypes...)

// primary returns the cluster default network, pinned by name so that no file
// that appears later can take its place.
func (i *Installer) primary() (string, error) {
	if i.ClusterNetwork != "" {
		return i.ClusterNetwork, nil
	}
	if name := i.inPlace().ClusterNetwork; name != "" {
		return name, nil
	}
	first, problems := netconf.First(i.ConfDir, others...)
	if first != nil {
		return first.Name, nil
	}
	err := fmt.Errorf("no network configuration in %s", i.ConfDir)
	return "", cnierr.New("find cluster default network", cnierr.NotReady, "%w", errors.Join(append([]error{err}, problems...)...)).
		WithFix("install the cluster's default network first, or give --cluster-network")
}

// inPlace returns the plugin's configuration in place, an empty one when there is
// none: an upgrade keeps its primary network and its directory, whatever the file is
// to be called. Of one that another plugin has taken away while no agent ran, the copy
// that is kept says the same.
func (i *Installer) inPlace() netconf.Conf {
	for _, path := range append([]string{i.confFile()}, i.earlier()...) {
		for _, file := range []string{path, netconf.Kept(path)} {
			if conf := ourConf(file); conf.Type != "" {
				return conf
			}
		}
	}
	return netconf.Conf{}
}

// ourConf returns Manifold's configuration in a file, an empty one where there is none.
func ourConf(file string) netconf.Conf {
	var list struct {
		Plugins []netconf.Conf `json:"plugins"`
	}
	raw, err := os.ReadFile(file)
	if err != nil || json.Unmarshal(raw, &list) != nil {
		return netconf.Conf{}
	}
	for _, p := range list.Plugins {
		if p.Type == "manifold" {
			return p
		}
	}
	return netconf.Conf{}
}

// earlier returns the files of ConfDir, in order of their names, that an installation
// which was told another name has left: all that call Manifold, and those that are kept
// though another plugin has taken them away.
func (i *Installer) earlier() (paths []string) {
	files, _ := netconf.ReadDir(i.ConfDir) // what cannot be read, no runtime takes
	for _, f := range files {
		if f.Runs("manifold") {
			paths = append(paths, f.Path)
		}
	}
	kept, _ := os.ReadDir(filepath.Dir(netconf.Kept(i.confFile()))) // none where nothing is installed
	for _, e := range kept {
		if filepath.Ext(e.Name()) == ".conflist" {
			paths = append(paths, filepath.Join(i.ConfDir, e.Name()))
		}
	}
	slices.Sort(paths)
	return slices.DeleteFunc(slices.Compact(paths), func(path string) bool { return path == i.confFile() })
}

// withdrawEarlier takes those files away: the runtime would take them in the place of
// the one that is to be, or once that is gone, when nobody keeps their programs.
func (i *Installer) withdrawEarlier(out io.Writer) error {
	for _, path := range i.earlier() {
		if err := withdrawConf(path, func(path string) error { return remove(out, path) }); err != nil {
			return err
		}
	}
	return nil
}

// Uninstall removes the CNI configuration first: from that moment the runtime
// calls the primary network alone, which must be in its directory, or the node
// would have no network. While sandboxes have more than that, a configuration
// stays by which the runtime's DELs of them still reach the plugin, see
// [netconf.ReleaseOnly]; with the last it goes. The programs stay while the
// journal still has attachments, since only they can release them; Uninstall says
// so and returns an error unless LeaveAttached is set, and can be run again.
func (i *Installer) Uninstall(out io.Writer) error {
	const op = "uninstall"
	i.settle()
	next, problems := netconf.First(i.ConfDir, "manifold", "loopback")
	if next == nil && !i.Force && files.Exists(i.confFile()) {
		err := fmt.Errorf("without %s there is no network configuration in %s", i.ConfName, i.ConfDir)
		return cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append([]error{err}, problems...)...)).
			WithFix("put the default network's configuration there, or give --force")
	}
	if err := i.withdrawEarlier(out); err != nil {
		return err
	}
	if err := i.withdraw(next, out); err != nil {
		return err
	}
	keys, err := journal.Dir{Path: i.StateDir}.List()
	if err != nil {
		return err
	}
	if len(keys) > 0 || files.Exists(i.confFile()) {
		err := cnierr.New(op, cnierr.TeardownIncomplete, "%d sandboxes are still attached, the programs stay in %s", len(keys), i.BinDir).
			WithFix("delete or drain the node's pods, release what is left with CNI_COMMAND=GC, then run uninstall again with --state-dir %s", i.StateDir)
		if !i.LeaveAttached {
			return err
		}
		fmt.Fprintln(out, err)
		return nil
	}
	for _, p := range programs {
		if err := remove(out, filepath.Join(i.BinDir, p)); err != nil {
			return err
		}
	}
	return i.removeAgentConfig(out)
}

// removeAgentConfig removes the agent's configuration and the directory that it has.
func (i *Installer) removeAgentConfig(out io.Writer) error {
	unlock, err := netconf.Lock(i.confFile())
	if errors.Is(err, os.ErrNotExist) { // nor is there what would be in it
		return nil
	}
	if err != nil {
		return cnierr.New("uninstall", cnierr.IO, "%w", err)
	}
	defer unlock()
	if err := errors.Join(files.RemoveUnfinished(i.agentFile()), remove(out, i.agentFile())); err != nil {
		return err
	}
	// The directory may hold files of others.
	_, _ = os.Remove(netconf.LockFile(i.confFile())), os.Remove(filepath.Dir(i.agentFile()))
	return nil
}

// settle finds out for Uninstall what it has not been told: how the configuration is
// called, and where the journals are.
func (i *Installer) settle() {
	if earlier := i.earlier(); !files.Exists(i.confFile()) && len(earlier) > 0 {
		i.ConfName = filepath.Base(earlier[0])
	}
	if i.StateDir == "" {
		i.StateDir = i.stateDir("")
	}
}

// withdraw takes the CNI configuration away; primary is the one that the runtime
// finds then, nil for none. Where Multus takes over, the sandboxes are handed over
// before, for a DEL that reaches it at once, and again after it, with those that
// were attached meanwhile.
func (i *Installer) withdraw(primary *netconf.File, out io.Writer) error {
	if i.ToMultus == "" {
		return withdrawConf(i.confFile(), func(path string) error {
			if path == i.confFile() && primary != nil && files.Exists(path) {
				return i.leaveReleaseOnly(primary, out)
			}
			return remove(out, path)
		})
	}
	dir := journal.Dir{Path: i.StateDir}
	if err := handOver(dir, i.ToMultus, false, io.Discard); err != nil {
		return err
	}
	if err := withdrawConf(i.confFile(), func(path string) error { return remove(out, path) }); err != nil {
		return err
	}
	return handOver(dir, i.ToMultus, true, out)
}

// leaveReleaseOnly puts the configuration to release with in the place of the one
// that attaches, and removes it where there is nothing to release: in this order,
// so that no sandbox is attached between the look and the end.
func (i *Installer) leaveReleaseOnly(primary *netconf.File, out io.Writer) error {
	conf := i.confFile()
	content, err := netconf.ReleaseOnly(conf, primary)
	if cnierr.Is(err, cnierr.InvalidConfig) { // another's, in our place
		fmt.Fprintln(out, err)
		return remove(out, conf)
	}
	if err == nil {
		err = files.ReplaceLocked(conf, content)
	}
	if err != nil {
		return cnierr.New("uninstall", cnierr.IO, "%w", err)
	}
	holding, err := journal.Dir{Path: i.StateDir}.Holding()
	if err != nil {
		return err
	}
	if holding {
		fmt.Fprintf(out, "left %s, by which pods that have secondary networks are released; it goes with the last of them\n", conf)
		return nil
	}
	return remove(out, conf)
}

// writeConf writes Manifold's CNI configuration with its copy, under the lock, so
// that no agent takes the one for the other's theft.
func writeConf(conf string, content []byte) error {
	unlock, err := netconf.Lock(conf)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(files.ReplaceLocked(netconf.Kept(conf), content), files.ReplaceLocked(conf, content))
}

// withdrawConf takes Manifold's CNI configuration and its copy away, under the
// lock: no agent puts it back.
func withdrawConf(conf string, remove func(path string) error) error {
	unlock, err := netconf.Lock(conf)
	if errors.Is(err, os.ErrNotExist) {
		return remove(conf) // installed by hand
	}
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(files.RemoveUnfinished(netconf.Kept(conf)), files.RemoveUnfinished(conf), remove(netconf.Kept(conf)), remove(conf))
}

// remove removes a file that may be absent.
func remove(out io.Writer, path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return cnierr.New("remove "+path, cnierr.IO, "%w", err)
	}
	fmt.Fprintln(out, "removed", path)
	return nil
}
