// Package install puts Manifold on a node, keeps it there, and removes it.
//
// An [Installer] writes programs and configurations. When it uninstalls, it can hand
// the sandboxes over to Multus. [Guard], in the agent, restores the plugin's
// configuration when another program removes it. [Await] lets a chart wait for all
// nodes.
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
	"github.com/manifold-cni/manifold/internal/words"
)

// Installer puts Manifold on a node and removes it. It replaces every file by renaming:
// a running program keeps its own file, a reader sees the old or the new one, and no
// name is ever missing in between.
type Installer struct {
	From           string        // directory of the programs; empty: this program's own
	BinDir         string        // directory of CNI plugins
	ConfDir        string        // directory of CNI configurations
	ConfName       string        // name of Manifold's configuration in ConfDir
	StateDir       string        // directory of the journal; empty: as in Config, else as installed, else the default
	ClusterNetwork string        // cluster default network; empty: the first in ConfDir
	Config         string        // file with the plugin's configuration, or keys of it
	AgentConfig    string        // file with the agent's configuration
	Wait           time.Duration // how long Install waits for a cluster default network; 0: it does not check a named one
	Node           string        // this node's name in the agent's configuration; empty: as the file says
	ToMultus       string        // Multus's cniDir, where it finds the sandboxes that are attached; empty: they are not handed over
	LeaveAttached  bool          // Uninstall succeeds although sandboxes are attached
	Force          bool          // also if the node would lose its pods or networks, or the journals' directory changes

	askPause, askTime time.Duration // 0: the constants of these names
}

// programs are the names of the installed programs, in order. The agent's comes first:
// the plugin runs it, and it understands an older plugin.
var programs = []string{"manifold-agent", "manifold"}

// agentFile is the path of the agent's configuration, in a subdirectory of ConfDir,
// which runtimes do not read.
func (i *Installer) agentFile() string { return filepath.Join(i.ConfDir, "manifold.d", "agent.json") }

func (i *Installer) confFile() string { return filepath.Join(i.ConfDir, i.ConfName) }

// Install puts the programs, the agent's configuration and last the plugin's
// configuration in place; from that moment the runtime calls Manifold. It prints each
// step to out. The end of ctx stops the wait for a cluster default network; the other
// steps take only a moment.
func (i *Installer) Install(ctx context.Context, out io.Writer) error {
	const op = "install"
	if filepath.Base(i.ConfName) != i.ConfName || filepath.Ext(i.ConfName) != ".conflist" { // runtimes tell a list by its file's name
		return cnierr.New(op, cnierr.InvalidConfig, "%q is not the name of a file that ends in .conflist", i.ConfName).
			WithFix("correct --cni-conf-name")
	}
	conf, err := i.awaitConfig(ctx, out)
	if err != nil {
		return err
	}
	if err := errors.Join(i.checkAgentConfig(), i.checkStateDir()); err != nil {
		return err
	}
	agents, err := i.newAgentConfig() // before anything is replaced, because it may be refused
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
	if err := i.withdrawEarlier(out); err != nil {
		return err
	}
	if err := preferred(i.confFile()); err != nil { // the agent reports it too; without the agent nobody would
		fmt.Fprintln(out, "warning:", err)
	}
	return nil
}

// copyBuffer is how much of a program is written at once. The kernel caches a file in
// pieces as large as its writes, and mapping large pieces takes fewer page faults. The
// plugin starts for every call, and so saves a quarter of its time.
const copyBuffer = 256 << 10

// installPrograms copies the programs. The lock admits one installation at a time, so
// that leftovers of a killed one are not confused with files that another is writing.
func (i *Installer) installPrograms(from string, out io.Writer) error {
	lock, err := os.Open(i.BinDir)
	if err != nil {
		return err
	}
	defer lock.Close() // also unlocks
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

// installProgram copies a program over another that may be running. It writes a file
// beside the other first, see [files.Replace].
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
	// The structs hide the other methods of the files, which would copy in their own
	// way.
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

// checkAgentConfig refuses a configuration of the agent that names no source of pods:
// with it, no pod would ever be found.
func (i *Installer) checkAgentConfig() error {
	c, err := i.agentConfig()
	if err != nil || i.Force || c.APIServer != "" || c.PodManifests != "" || files.Exists(c.PodsAPI) {
		return err
	}
	return cnierr.New("install", cnierr.InvalidConfig, "the agent's configuration names no source of pods: neither apiServer nor podManifests, and the kubelet serves no Pods API at %s", c.PodsAPI).
		WithFix("give --agent-config with apiServer, or --force")
}

// newAgentConfig returns the agent's configuration as it will be: the given one, else
// the one in place. It sets the journals' directory and the path of the plugin's
// configuration to the plugin's own values: with another path, the agent would read and
// guard a file that does not exist.
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
			return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: not a JSON object", file)
		}
	}
	if i.Node != "" { // one file serves all nodes of a cluster
		keys["node"] = quoted(i.Node)
	}
	if err := i.tell(keys, "cniDir", i.StateDir, "state-dir"); err != nil {
		return nil, err
	}
	if configfile.StringValue(keys["cniConfig"]) != configfile.None { // "-" leaves the configuration unguarded
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

// tell sets a path of the plugin in the keys of the agent's configuration. It refuses a
// different path in the configuration that was given. A path in the configuration in
// place is overwritten, because flags take precedence over it.
func (i *Installer) tell(keys map[string]json.RawMessage, key, path, flags string) error {
	given := configfile.StringValue(keys[key])
	if given != "" && i.AgentConfig != "" && filepath.Clean(given) != filepath.Clean(path) {
		return cnierr.New("install", cnierr.InvalidConfig, "key %q: the agent's configuration says %s, the plugin's is %s", key, given, path).
			WithFix("remove it from the agent's configuration, or give --%s to match", flags)
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

// pluginConfig returns the configuration list that the runtime reads, validated as the
// plugin will read it. It also settles StateDir.
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
	// The flag takes precedence over Config, and both over what is found.
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

// givenConfig returns the keys of the file Config. If that is a whole configuration,
// these are the keys of its plugin, and its name and version go to list.
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
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%s: %d plugins, want exactly one", i.Config, len(doc.Plugins)).
			WithFix("install Manifold alone, and put chained plugins into the default network's configuration")
	}
	for _, key := range []string{"name", "cniVersion"} {
		if doc.List[key] != nil {
			list[key] = doc.List[key]
		}
	}
	return doc.Plugins[0], nil
}

// stateDir returns the directory of the journal: the configured one, else the one in
// place, else the default.
func (i *Installer) stateDir(configured string) string {
	if configured != "" {
		return configured
	}
	if dir := i.inPlace().CNIDir; dir != "" {
		return dir
	}
	return configfile.DefaultCNIDir
}

// checkStateDir refuses to change the journals' directory while the present one has
// journals: nobody would find them to release their sandboxes. In a pod, a directory
// that is not mounted may have journals that cannot be seen, so it is refused too.
func (i *Installer) checkStateDir() error {
	was := i.inPlace().CNIDir
	if i.Force || was == "" || filepath.Clean(was) == filepath.Clean(i.StateDir) {
		return nil
	}
	if !files.Exists(was) {
		return cnierr.New("install", cnierr.InvalidConfig, "the journals are in %s, which is not accessible, and would not be found in %s", was, i.StateDir).
			WithFix("keep that directory, or give --force if the journals were moved; to change it, uninstall, delete the node's pods that have secondary networks, and install again")
	}
	keys, err := journal.Dir{Path: was}.List()
	if err != nil || len(keys) == 0 {
		return err
	}
	return cnierr.New("install", cnierr.InvalidConfig, "the journals of %s are in %s, and would not be found in %s", words.Count(len(keys), "sandbox", "sandboxes"), was, i.StateDir).
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

// primary returns the cluster default network. It is pinned by name, so that no file
// that appears later can take its place.
func (i *Installer) primary() (string, error) {
	if i.ClusterNetwork != "" {
		return i.ClusterNetwork, nil
	}
	if name := i.inPlace().ClusterNetwork; name != "" {
		return name, nil
	}
	first, problems := netconf.Primary(i.ConfDir, "manifold")
	if first != nil {
		return first.Name, nil
	}
	err := fmt.Errorf("no network configuration in %s", i.ConfDir)
	return "", cnierr.New("find cluster default network", cnierr.NotReady, "%w", errors.Join(append([]error{err}, problems...)...)).
		WithFix("install the cluster's default network first, or give --cluster-network")
}

// inPlace returns the plugin's configuration in place, empty when there is none, so
// that an upgrade keeps the primary network and the journals' directory even when the
// file is renamed. If another plugin removed the file while no agent ran, its kept copy
// says the same.
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

// ourConf returns Manifold's configuration in a file, empty when there is none.
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

// earlier returns the files in ConfDir, in order of name, that an installation under
// another ConfName has left: all that call Manifold, and those that another plugin
// removed but that have a kept copy.
func (i *Installer) earlier() (paths []string) {
	files, _ := netconf.ReadDir(i.ConfDir) // the runtime does not use unreadable files either
	for _, f := range files {
		if f.Runs("manifold") {
			paths = append(paths, f.Path)
		}
	}
	kept, _ := os.ReadDir(filepath.Dir(netconf.Kept(i.confFile()))) // there is none where nothing is installed
	for _, e := range kept {
		if filepath.Ext(e.Name()) == ".conflist" {
			paths = append(paths, filepath.Join(i.ConfDir, e.Name()))
		}
	}
	slices.Sort(paths)
	return slices.DeleteFunc(slices.Compact(paths), func(path string) bool { return path == i.confFile() })
}

// withdrawEarlier removes those files. Otherwise the runtime would use one of them
// instead of the new one, or after an uninstallation, when their programs are gone.
func (i *Installer) withdrawEarlier(out io.Writer) error {
	for _, path := range i.earlier() {
		if err := withdrawConf(path, func(path string) error { return remove(out, path) }); err != nil {
			return err
		}
	}
	return nil
}

// Uninstall removes the CNI configuration first. From that moment the runtime calls the
// primary network alone, which must have a configuration in the directory, or the node
// would have no network. While sandboxes have more than the primary network, a
// configuration stays through which the runtime's DELs still reach the plugin, see
// [netconf.ReleaseOnly]; it goes with the last such sandbox. The programs stay while
// the journal has attachments, since nothing else can release them. In that case
// Uninstall says so and, unless LeaveAttached is set, returns an error; it can be run
// again.
func (i *Installer) Uninstall(out io.Writer) error {
	const op = "uninstall"
	i.settle()
	next, err := i.next()
	if err != nil {
		return err
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
		err := cnierr.New(op, cnierr.TeardownIncomplete, "%s still attached; the programs stay in %s", words.Count(len(keys), "sandbox is", "sandboxes are"), i.BinDir).
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

// next returns the configuration that the runtime uses once Manifold's is gone. Unless
// Force is set or Manifold's is gone already, it refuses to leave the node without one,
// or with one of Multus whose program is not installed.
func (i *Installer) next() (*netconf.File, error) {
	const op = "uninstall"
	next, problems := netconf.First(i.ConfDir, "manifold", "loopback")
	if i.Force || !files.Exists(i.confFile()) {
		return next, nil
	}
	if next == nil {
		err := fmt.Errorf("without %s there is no network configuration in %s", i.ConfName, i.ConfDir)
		return nil, cnierr.New(op, cnierr.NotReady, "%w", errors.Join(append([]error{err}, problems...)...)).
			WithFix("put the default network's configuration there, or give --force")
	}
	for _, program := range netconf.MultusTypes {
		if path := filepath.Join(i.BinDir, program); next.Runs(program) && !files.Exists(path) {
			return nil, cnierr.New(op, cnierr.NotReady, "without %s the runtime uses %s, whose program %s does not exist", i.ConfName, next.Path, path).
				WithFix("remove that file if Multus is not to come back, else install Multus first, or give --force")
		}
	}
	return next, nil
}

// removeAgentConfig removes the agent's configuration and its directory.
func (i *Installer) removeAgentConfig(out io.Writer) error {
	unlock, err := netconf.Lock(i.confFile())
	if errors.Is(err, os.ErrNotExist) { // then the agent's configuration does not exist either
		return nil
	}
	if err != nil {
		return cnierr.New("uninstall", cnierr.IO, "%w", err)
	}
	defer unlock()
	if err := errors.Join(files.RemoveUnfinished(i.agentFile()), remove(out, i.agentFile())); err != nil {
		return err
	}
	// The directory stays if others have files in it.
	_, _ = os.Remove(netconf.LockFile(i.confFile())), os.Remove(filepath.Dir(i.agentFile()))
	return nil
}

// settle finds out what Uninstall has not been told: the name of the configuration, and
// the directory of the journals.
func (i *Installer) settle() {
	if earlier := i.earlier(); !files.Exists(i.confFile()) && len(earlier) > 0 {
		i.ConfName = filepath.Base(earlier[0])
	}
	if i.StateDir == "" {
		i.StateDir = i.stateDir("")
	}
}

// withdraw removes the CNI configuration. primary is the configuration that the runtime
// finds then, nil for none. If Multus takes over, the sandboxes are handed over twice:
// before the removal, for a DEL that reaches Multus at once, and after it, with the
// sandboxes that were attached meanwhile.
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

// leaveReleaseOnly replaces the configuration by one that only releases, then removes
// that if there is nothing to release. In this order no sandbox can be attached between
// the check and the removal.
func (i *Installer) leaveReleaseOnly(primary *netconf.File, out io.Writer) error {
	conf := i.confFile()
	content, err := netconf.ReleaseOnly(conf, primary)
	if cnierr.Is(err, cnierr.InvalidConfig) { // another program's file, in place of Manifold's
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
		fmt.Fprintf(out, "left %s, which releases pods that have secondary networks; it is removed with the last of them\n", conf)
		return nil
	}
	return remove(out, conf)
}

// writeConf writes Manifold's CNI configuration and its copy under the lock, so that no
// agent sees one without the other and takes that for interference.
func writeConf(conf string, content []byte) error {
	unlock, err := netconf.Lock(conf)
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(files.ReplaceLocked(netconf.Kept(conf), content), files.ReplaceLocked(conf, content))
}

// withdrawConf removes Manifold's CNI configuration and its copy under the lock, so
// that no agent restores it.
func withdrawConf(conf string, remove func(path string) error) error {
	unlock, err := netconf.Lock(conf)
	if errors.Is(err, os.ErrNotExist) {
		return remove(conf) // a configuration installed by hand
	}
	if err != nil {
		return err
	}
	defer unlock()
	return errors.Join(files.RemoveUnfinished(netconf.Kept(conf)), files.RemoveUnfinished(conf), remove(netconf.Kept(conf)), remove(conf))
}

// remove removes a file that may be missing.
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
