package inspect

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/nodeview"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/words"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
	"github.com/manifold-cni/manifold/sriov/inventory"
)

// doctor examines one node.
type doctor struct {
	ctx    context.Context
	conf   *configfile.Agent
	plugin *netconf.Conf // nil when it cannot be read
	out    *nodeview.Diagnosis
	looked map[string]bool // programs that were already looked for
}

// Diagnose checks what the node needs, in the order in which a pod needs it. It changes
// nothing and makes at most one call of each kind to the kubelet.
func (l Local) Diagnose(ctx context.Context) *nodeview.Diagnosis {
	d := &doctor{ctx: ctx, out: &nodeview.Diagnosis{Version: nodeview.Version}, looked: map[string]bool{}}
	var err error
	if d.conf, err = configfile.ReadAgent(l.Config); err != nil {
		d.refused("agent's configuration", "correct it, or run 'manifold-agent install'", err)
		return d.out
	}
	d.out.Node = d.conf.Node
	d.ok("agent's configuration", "%s", l.Config)
	for _, look := range []func(){
		d.configuration, d.order, d.networks, d.programs, d.agent, d.podResources, d.checkpoint, d.podsAPI, d.apiServer, d.snapshot, d.state, d.hardware,
	} {
		look()
	}
	d.view(l)
	return d.out
}

// add adds a check. Its text is one line, even for errors that span several.
func (d *doctor) add(name, state, fix, format string, args ...any) {
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "; ")
	d.out.Checks = append(d.out.Checks, nodeview.Check{Name: name, State: state, Text: text, Fix: fix})
}

func (d *doctor) ok(name, format string, args ...any) {
	d.add(name, nodeview.CheckOK, "", format, args...)
}

func (d *doctor) failed(name, fix, format string, args ...any) {
	d.add(name, nodeview.CheckFailed, fix, format, args...)
}

// refused adds a failed check for an error. A fix that the error itself carries is better
// than the check's: it replaces the check's and is not repeated in the text.
func (d *doctor) refused(name, fix string, err error) {
	own, bare := withoutFix(err)
	d.failed(name, cmp.Or(own, fix), "%v", bare)
}

// withoutFix returns the fix that err carries, and err without it.
func withoutFix(err error) (fix string, bare error) {
	var e *cnierr.Error
	if !errors.As(err, &e) || e.Fix == "" {
		return "", err
	}
	unfixed := *e
	unfixed.Fix = ""
	return e.Fix, &unfixed
}

// configuration reads the plugin's configuration and compares it with the agent's.
func (d *doctor) configuration() {
	const name = "plugin's configuration"
	conf, findings, err := configfile.ReadPlugin(d.conf.CNIConfig)
	if err != nil {
		d.refused(name, "run 'manifold-agent install', or set the agent's key cniConfig", err)
		return
	}
	d.plugin = conf
	for _, f := range findings {
		d.add(name, nodeview.CheckWarning, "correct "+d.conf.CNIConfig, "line %s", f)
	}
	if len(findings) == 0 {
		d.ok(name, "%s", d.conf.CNIConfig)
	}
	if conf.CNIDir != d.conf.CNIDir {
		d.failed(name, "set cniDir to the same directory in both", "the plugin keeps its journals in %s, but the agent looks in %s", conf.CNIDir, d.conf.CNIDir)
	}
	if conf.AgentSocket != d.conf.Socket {
		d.failed(name, "set agentSocket to the agent's socket", "the plugin calls the agent at %s, but the agent listens at %s", conf.AgentSocket, d.conf.Socket)
	}
}

// order checks that the runtime takes Manifold's configuration: it takes the first file
// of the directory.
func (d *doctor) order() {
	const name = "configuration order"
	dir := filepath.Dir(d.conf.CNIConfig)
	first, problems := netconf.First(dir)
	for _, err := range problems {
		d.add(name, nodeview.CheckWarning, "correct or remove the file", "%v", err)
	}
	switch {
	case first == nil:
		d.failed(name, "run 'manifold-agent install'", "%s has no network configuration", dir)
	case !first.Runs("manifold") && d.plugin == nil:
		d.failed(name, "correct the plugin's configuration, see above", "the runtime takes %s, which is not Manifold's", first.Path)
	case !first.Runs("manifold"):
		d.failed(name, "rename it so that it sorts after "+filepath.Base(d.conf.CNIConfig), "the runtime takes %s, which is not Manifold's", first.Path)
	default:
		d.loadable(name, first.Path)
	}
}

// loadable checks that no file sorts before Manifold's, the path ours, that a runtime
// cannot load. CRI-O passes over such a file, but containerd stops there.
func (d *doctor) loadable(name, ours string) {
	paths, err := libcni.ConfFiles(filepath.Dir(ours), []string{".conflist", ".conf", ".json"})
	if err != nil {
		d.failed(name, "make the directory readable", "%v", err)
		return
	}
	good := true
	for _, path := range paths {
		if path >= ours {
			continue
		}
		// A link may lead to where only the host can read.
		if err := load(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			good = false
			d.failed(name, "correct or remove "+path, "%s sorts before %s and cannot be loaded: %v: containerd then uses no configuration, and the node has no network; CRI-O passes over it", path, filepath.Base(ours), err)
		}
	}
	if good {
		d.ok(name, "the runtime takes %s", ours)
	}
}

// load loads a network configuration as runtimes do, except that it does not wait for
// what is no regular file.
func load(path string) error {
	raw, err := files.ReadRegular(path)
	if err != nil {
		return err
	}
	if filepath.Ext(path) != ".conflist" {
		_, err = libcni.NetworkPluginConfFromBytes(raw)
		return err
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return err
	}
	var more []string
	if !list.LoadOnlyInlinedPlugins {
		if more, err = libcni.ConfFiles(filepath.Join(filepath.Dir(path), list.Name), []string{".conf"}); err != nil {
			return err
		}
	}
	for _, plugin := range more {
		if err := load(plugin); err != nil {
			return err
		}
	}
	if len(list.Plugins)+len(more) == 0 {
		return errors.New("no plugins")
	}
	return nil
}

// networks checks the networks that the configuration names. Pods get these without
// asking for them.
func (d *doctor) networks() {
	const first = "default network"
	if d.plugin == nil {
		d.add(first, nodeview.CheckSkipped, "", "the plugin's configuration cannot be read")
		return
	}
	d.network(first, "check that the default network's own pods run, since they write its configuration, or correct clusterNetwork", d.plugin.ClusterDefault)
	further, err := d.plugin.Further()
	if err != nil {
		d.refused("delegates", "correct the network's configuration", err)
	}
	for _, raw := range further {
		d.programsOf("delegates", raw)
	}
	for _, network := range d.plugin.DefaultNets {
		d.network("network "+network, "create it, or correct defaultNetworks: until then no pod outside systemNamespaces can be attached",
			func(def netconf.Definition) (json.RawMessage, error) { return d.plugin.Configured(network, def) })
	}
}

// network checks one network of the configuration, and its programs.
func (d *doctor) network(check, fix string, find func(netconf.Definition) (json.RawMessage, error)) {
	found := ""
	raw, err := find(func(namespace, name string) (json.RawMessage, error) {
		def, err := d.definition(namespace, name)
		if err != nil {
			return nil, err
		}
		found = fmt.Sprintf("definition %s/%s", namespace, name)
		return json.RawMessage(def.Spec.Config), nil
	})
	if cnierr.Is(err, cnierr.NotReady) { // the check's fix says who must provide the network
		_, bare := withoutFix(err)
		d.failed(check, fix, "%v", bare)
		return
	}
	if err != nil {
		d.refused(check, fix, err)
		return
	}
	var conf struct {
		Name string `json:"name"`
	}
	if err := json.Unmarshal(raw, &conf); err != nil {
		d.failed(check, "correct the network's configuration", "%v", err)
		return
	}
	d.ok(check, "%s", cmp.Or(found, conf.Name, "a configuration on disk"))
	d.programsOf(check, raw)
}

// definition looks up a definition in the sources that the node keeps on disk. As for the
// agent, no file serves instead of a definition that exceeds a limit.
func (d *doctor) definition(namespace, name string) (*netattach.Definition, error) {
	var sources []kube.Definitions
	err := errors.New("there are no definitions on disk")
	if d.conf.Snapshot != "" {
		var s *kube.Snapshot
		if s, err = kube.OpenSnapshot(d.conf.Snapshot); err == nil {
			sources = append(sources, s)
		}
	}
	if d.conf.DefinitionManifests != "" {
		sources = append(sources, kube.NewManifestDefinitions(d.conf.DefinitionManifests))
	}
	if len(sources) == 0 {
		return nil, err
	}
	def, err := kube.FirstDefinitions(sources...).Definition(d.ctx, namespace, name)
	if errors.Is(err, kube.ErrInvalid) && !errors.Is(err, kube.ErrName) {
		return nil, cnierr.New("read definition", cnierr.InvalidDefinition, "%w", err).WithFix("correct the definition")
	}
	return def, err
}

// programsOf checks the programs that a network configuration names.
func (d *doctor) programsOf(name string, raw json.RawMessage) {
	type plugin struct {
		Type string `json:"type"`
		IPAM struct {
			Type string `json:"type"`
		} `json:"ipam"`
	}
	var conf struct {
		plugin
		Plugins []plugin `json:"plugins"`
	}
	if err := json.Unmarshal(raw, &conf); err != nil {
		d.failed(name, "correct the network's configuration", "%v", err)
		return
	}
	for _, p := range append(conf.Plugins, conf.plugin) {
		for _, program := range []string{p.Type, p.IPAM.Type} {
			if program != "" {
				d.program(program, d.plugin.BinDir)
			}
		}
	}
}

// program checks that one program is installed, once per diagnosis.
func (d *doctor) program(program, dir string) {
	if d.looked[program] {
		return
	}
	d.looked[program] = true
	path, err := invoke.FindInPath(program, []string{dir})
	if err == nil {
		err = unix.Access(path, unix.X_OK)
	}
	if err != nil {
		d.failed("program "+program, "install it into "+dir, "%v", err)
		return
	}
	d.ok("program "+program, "%s", path)
}

// programs checks Manifold's own programs.
func (d *doctor) programs() {
	if d.plugin == nil {
		return
	}
	d.program("manifold", d.plugin.BinDir)
	d.program(filepath.Base(d.plugin.AgentProgram), filepath.Dir(d.plugin.AgentProgram))
}

// agent pings the agent.
func (d *doctor) agent() {
	ctx, cancel := context.WithTimeout(d.ctx, answerTime)
	defer cancel()
	if err := (plan.Client{Socket: d.conf.Socket}).Ping(ctx); err != nil {
		d.failed("agent", "start it, or see its log; until then the plugin runs the agent's program once for each pod", "%v", err)
		return
	}
	d.ok("agent", "answers at %s", d.conf.Socket)
}

// answerTime bounds each question to a local socket.
const answerTime = 5 * time.Second

// podResources lists the kubelet's allocations.
func (d *doctor) podResources() {
	const name = "PodResources API"
	if d.conf.PodResources == "" {
		d.add(name, nodeview.CheckSkipped, "", "not configured")
		return
	}
	client := podresources.NewClient(d.conf.PodResources)
	defer client.Close()
	pods, err := client.List(d.ctx)
	switch {
	case err != nil:
		d.failed(name, "check that the kubelet runs and that podResources is its socket", "%s: %v", d.conf.PodResources, err)
	case len(pods) == 0:
		d.add(name, nodeview.CheckWarning, "if the kubelet has just started, run doctor again", "%s answers but lists no pod", d.conf.PodResources)
	default:
		d.ok(name, "%s lists %s", d.conf.PodResources, words.Count(len(pods), "pod", "pods"))
	}
}

// checkpoint reads the kubelet's checkpoint.
func (d *doctor) checkpoint() {
	const name = "checkpoint"
	if d.conf.Checkpoint == "" {
		d.add(name, nodeview.CheckSkipped, "", "not configured")
		return
	}
	c, err := checkpoint.NewFile(d.conf.Checkpoint).Load()
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.add(name, nodeview.CheckWarning, "if pods have devices, correct kubeletDir", "%s does not exist: no device was ever allocated", d.conf.Checkpoint)
	case err != nil:
		d.failed(name, "drain the node, remove the file, restart the kubelet", "%v", err)
	default:
		d.ok(name, "%s, %s", d.conf.Checkpoint, words.Count(len(c.Entries), "allocation", "allocations"))
	}
}

// podsAPI connects to the kubelet's Pods API.
func (d *doctor) podsAPI() {
	const name = "Pods API"
	if d.conf.PodsAPI == "" {
		d.add(name, nodeview.CheckSkipped, "", "not configured")
		return
	}
	conn, err := (&net.Dialer{Timeout: answerTime}).DialContext(d.ctx, "unix", d.conf.PodsAPI)
	if err == nil {
		err = conn.Close()
	}
	switch {
	case err == nil:
		d.ok(name, "%s", d.conf.PodsAPI)
	case d.conf.APIServer == "" && d.conf.PodManifests == "":
		d.failed(name, "set apiServer, or enable the kubelet's Pods API", "%v: the agent has no other source of pods", err)
	default:
		d.add(name, nodeview.CheckSkipped, "", "the kubelet does not serve it; the agent has another source of pods")
	}
}

// apiServer connects to the API server and checks when certificates expire.
func (d *doctor) apiServer() {
	const name = "API server"
	kubeconfig := d.conf.APIServer
	switch kubeconfig {
	case "":
		d.add(name, nodeview.CheckSkipped, "", "not configured")
		return
	case configfile.InCluster:
		kubeconfig = ""
	}
	ctx, cancel := context.WithTimeout(d.ctx, answerTime)
	defer cancel()
	certificates, err := kube.Certificates(ctx, kubeconfig)
	if errors.Is(err, rest.ErrNotInCluster) {
		d.add(name, nodeview.CheckSkipped, "", "the credential is that of the agent's pod: run doctor through the API server, without --local")
		return
	}
	if err != nil {
		d.failed(name, "check that it runs, and renew what has expired; meanwhile known definitions come from the snapshot", "%v", err)
		return
	}
	for _, c := range certificates {
		left := time.Until(c.NotAfter)
		switch {
		case left < 0:
			d.failed("certificate", "renew it", "%s expired at %s", c.Name, c.NotAfter.UTC().Format(time.RFC3339))
		case left < soon:
			d.add("certificate", nodeview.CheckWarning, "renew it", "%s expires at %s", c.Name, c.NotAfter.UTC().Format(time.RFC3339))
		default:
			d.ok("certificate", "%s is good until %s", c.Name, c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	d.ok(name, "%s answers", d.conf.APIServer)
}

// soon is how long before its expiry a certificate is reported.
const soon = 7 * 24 * time.Hour

// snapshot reads the snapshot of the definitions.
func (d *doctor) snapshot() {
	const name = "definitions on disk"
	if d.conf.Snapshot == "" || d.conf.APIServer == "" {
		d.add(name, nodeview.CheckSkipped, "", "not configured")
		return
	}
	if _, err := kube.OpenSnapshot(d.conf.Snapshot); err != nil {
		d.add(name, nodeview.CheckWarning, "let the agent reach the API server: it then writes the snapshot", "%v", err)
		return
	}
	d.ok(name, "%s", d.conf.Snapshot)
}

// state checks the directory of the journals.
func (d *doctor) state() {
	const name = "state directory"
	var fs unix.Statfs_t
	err := unix.Statfs(d.conf.CNIDir, &fs)
	switch {
	case errors.Is(err, os.ErrNotExist):
		d.add(name, nodeview.CheckWarning, "nothing to do: the first ADD creates it", "%s does not exist", d.conf.CNIDir)
	case err != nil:
		d.failed(name, "make it readable", "%s: %v", d.conf.CNIDir, err)
	default:
		d.space(name, d.conf.CNIDir, &fs)
	}
}

// scarce is the free space, in bytes, above which a file system is not nearly full, even
// if that is a small share of it: journals are small.
const scarce = 1 << 30

// space checks that the file system of the journals has room for more.
func (d *doctor) space(name, dir string, fs *unix.Statfs_t) {
	left := fs.Bavail * uint64(fs.Bsize)
	switch {
	case fs.Flags&unix.ST_RDONLY != 0:
		d.failed(name, "mount it writable: no pod can be attached", "%s is read-only", dir)
	case fs.Files > 0 && fs.Ffree == 0: // a file system without a fixed number of inodes counts none
		d.failed(name, "remove files: no pod can be attached", "%s has no inodes left", dir)
	case fs.Bavail*100 < fs.Blocks && left < scarce:
		d.failed(name, "free space: no pod can be attached once it is full", "%s has %d MiB left", dir, left>>20)
	default:
		d.ok(name, "%s has %d MiB left", dir, left>>20)
	}
}

// hardware checks what the kernel reports of virtual functions.
func (d *doctor) hardware() {
	const name = "virtual functions"
	all, err := inventory.Read(d.conf.SysRoot)
	if err != nil {
		d.failed(name, "check that sysfs is mounted and that sysRoot is correct", "%v", err)
		return
	}
	vfs, idle, gone := 0, []string{}, d.gone()
	for _, f := range all.Functions {
		if f.IsVF() {
			vfs++
			d.vf(&f)
			continue
		}
		if f.NumVFs > 0 || f.TotalVFs == 0 {
			continue
		}
		// Most cards could have VFs and need none. Who needs them is known only of those
		// that there were.
		idle = append(idle, f.Address)
		if len(gone) > 0 {
			d.add("PF "+f.Address, nodeview.CheckWarning, "if these were its VFs, write their number to its sriov_numvfs",
				"none of its %d VFs is enabled, and of the devices that the kubelet knows, %d do not exist, such as %s", f.TotalVFs, len(gone), gone[0])
		}
	}
	without := ""
	if len(idle) > 0 {
		without = "; none enabled on PF " + strings.Join(idle, ", ")
	}
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		d.failed(name, "", "%v", err)
		return
	}
	d.ok(name, "%d on kernel %s%s", vfs, unix.ByteSliceToString(kernel.Release[:]), without)
}

// vf checks one virtual function.
func (d *doctor) vf(f *inventory.Function) {
	switch {
	case f.Driver == "":
		d.add("VF "+f.Address, nodeview.CheckWarning, "bind it to its driver, or to vfio-pci", "it has no driver")
	case strings.HasPrefix(f.Driver, "vfio") && f.IOMMUGroup == "":
		d.failed("VF "+f.Address, "boot with intel_iommu=on or amd_iommu=on", "it is bound to %s, but the kernel has no IOMMU group for it", f.Driver)
	}
}

// gone returns the addresses of PCI functions that the kubelet's checkpoint knows as
// devices, advertised or allocated, but that do not exist. It is empty if the checkpoint
// cannot be read, which another check reports.
func (d *doctor) gone() []string {
	if d.conf.Checkpoint == "" {
		return nil
	}
	c, err := checkpoint.NewFile(d.conf.Checkpoint).Load()
	if err != nil {
		return nil
	}
	ids := slices.Concat(slices.Collect(maps.Values(c.Registered))...)
	for _, e := range c.Entries {
		ids = append(ids, e.IDs()...)
	}
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id string) bool {
		_, err := sriov.FS{Root: d.conf.SysRoot}.Function(id)
		return !errors.Is(err, os.ErrNotExist)
	})
}

// view checks the node's sandboxes and their devices.
func (d *doctor) view(l Local) {
	v, err := l.view(d.ctx)
	if err != nil {
		d.refused("sandboxes", "see the agent's configuration", err)
		return
	}
	for _, o := range Orphans([]*nodeview.View{v}) {
		d.add(o.What, nodeview.CheckWarning, "kubectl manifold repair --dry-run", "%s", o.Text)
	}
	d.ok("sandboxes", "%s", words.Count(len(v.Attachments), "attachment", "attachments"))
}
