package planner

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/utils"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// builder makes one plan.
type builder struct {
	*Selection
	src     Sources
	plan    *plan.Plan
	configs []*netattach.Config
	ifNames []string
	chosen  []*podresources.Device // by request; nil for none
	movedBy map[int]string         // by request: the network to which it left another device
	devices []*plan.Device         // the same as the plan has them
	size    int                    // bytes of configuration so far
}

// maxConfigs is the maximum size of the configurations of one plan, in bytes: a pod
// that selects a large definition many times must not exhaust the agent's memory.
const maxConfigs = 1 << 20

// grow counts bytes of configuration that request i adds to the plan, up to maxConfigs.
func (b *builder) grow(n int) error {
	if b.size += n; b.size > maxConfigs {
		return cnierr.New("select network", cnierr.InvalidAnnotation, "the configurations of the pod's networks exceed %d bytes in total", maxConfigs).
			WithFix("select fewer networks, or make their definitions and cni-args smaller")
	}
	return nil
}

// build fills in the plan: configurations, interface names, devices, attachments,
// routes.
func (b *builder) build() error {
	for i := range b.requests {
		if err := b.resolve(i); err != nil {
			return cnierr.Annotate(err, b.subject(i))
		}
	}
	if err := b.nameInterfaces(); err != nil {
		return err
	}
	if err := b.assignDevices(); err != nil {
		return err
	}
	for i := range b.requests {
		a, err := b.attachment(i)
		if err != nil {
			return cnierr.Annotate(err, b.subject(i))
		}
		b.plan.Attachments = append(b.plan.Attachments, *a)
	}
	return b.defaultRoutes()
}

// subject names request i in errors.
func (b *builder) subject(i int) cnierr.Subject {
	s := cnierr.Subject{Pod: b.inv.Pod.String(), Network: b.name(i)}
	if i < len(b.ifNames) {
		s.Interface = b.ifNames[i]
	}
	if d := b.device(i); d != nil {
		s.Resource, s.Device = d.Resource, d.ID
	}
	return s
}

// device returns the device of request i, nil for none and before devices are assigned.
func (b *builder) device(i int) *plan.Device {
	if i < len(b.devices) {
		return b.devices[i]
	}
	return nil
}

// definition returns the definition of request i, nil when another source serves.
func (b *builder) definition(i int) *netattach.Definition {
	r := &b.requests[i]
	if r.Name == "" {
		return nil
	}
	return b.src.Definitions[Ref{r.Namespace, r.Name}]
}

// name is the attachment's name in network-status.
func (b *builder) name(i int) string {
	r := &b.requests[i]
	if r.Name != "" && (b.definition(i) != nil || !r.trusted) {
		return Ref{r.Namespace, r.Name}.String()
	}
	if i < len(b.configs) && b.configs[i].Name() != "" {
		return b.configs[i].Name()
	}
	if r.written != nil {
		return r.written.Path + r.Name // exactly one of them is set
	}
	return ""
}

// resolve finds and parses the configuration of request i.
func (b *builder) resolve(i int) error {
	r := &b.requests[i]
	if err := b.checkIsolation(r); err != nil {
		return err
	}
	raw, err := b.rawConfig(i)
	if err == nil && r.isDef {
		raw, err = b.inv.Conf.Chained(raw)
	}
	if err != nil {
		return err
	}
	if err := b.grow(len(raw)); err != nil {
		return err
	}
	c, err := b.src.Parsed.runnable(raw, b.inv.Conf.Type)
	if err != nil {
		return err
	}
	b.configs = append(b.configs, c)
	args := 0
	for key, value := range r.CNIArgs {
		args += len(key) + len(value)
	}
	return b.grow(args * len(c.Plugins())) // they are merged into each plugin
}

// checkIsolation refuses definitions of other namespaces if namespaceIsolation is on
// (multi-network specification 7.4).
func (b *builder) checkIsolation(r *request) error {
	conf := &b.inv.Conf
	if !conf.NamespaceIsolation || r.trusted || r.Name == "" || r.Namespace == b.inv.Pod.Namespace {
		return nil
	}
	for _, global := range strings.Split(conf.GlobalNamespaces, ",") {
		if strings.TrimSpace(global) == r.Namespace {
			return nil
		}
	}
	return cnierr.New("select network", cnierr.Isolation, "namespaceIsolation is on, and namespace %s is not global", r.Namespace).
		WithFix("use a definition of namespace %s, or list %s in globalNamespaces", b.inv.Pod.Namespace, r.Namespace)
}

// rawConfig returns the configuration of request i as written: inline in a definition,
// on disk under the definition's name (specification 3.4.1), or in Manifold's own
// configuration.
func (b *builder) rawConfig(i int) (json.RawMessage, error) {
	r := &b.requests[i]
	if r.inline != nil {
		return r.inline, nil
	}
	def := b.definition(i)
	if def != nil && strings.TrimSpace(def.Spec.Config) != "" {
		return json.RawMessage(def.Spec.Config), nil
	}
	switch {
	case def != nil:
		f := netconf.ByName(b.src.Files, r.Name)
		if f != nil {
			return f.Raw, nil
		}
		return nil, cnierr.New("find network configuration", cnierr.InvalidDefinition,
			"the definition has no spec.config, and no file in %s has the name %q", b.inv.Conf.ConfDir, r.Name).
			WithFix("write spec.config into the definition")
	case r.written != nil:
		return b.configuredOnDisk(r)
	}
	return nil, cnierr.New("find definition", cnierr.DefinitionMissing, "there is no such NetworkAttachmentDefinition").
		WithFix("create it, or correct the pod's annotation")
}

// configuredOnDisk returns the configuration of a network that the configuration names
// and that is no definition. When nothing is found, the error is retryable: whatever
// creates the definition or the file may not have run yet.
func (b *builder) configuredOnDisk(r *request) (json.RawMessage, error) {
	f, err := b.inv.Conf.Find(*r.written, b.src.Files)
	if err == nil {
		return f.Raw, nil
	}
	op, kind := "find network of "+r.why, cnierr.KindOf(err)
	if r.isDef {
		op = "find cluster default network"
	}
	if kind == cnierr.NotReady { // a code that only STATUS has
		kind = cnierr.TryAgain
	}
	switch conf := &b.inv.Conf; {
	case r.written.Path != "":
		return nil, cnierr.New(op, kind, "key %q: %s: %w", r.why, r.written.Path, errors.Unwrap(err)).
			WithFix("put a configuration there that the agent can read too, or correct %q", r.why)
	case !r.written.OnDisk:
		return nil, cnierr.New(op, kind, "key %q: there is no definition %s/%s", r.why, r.Namespace, r.Name).
			WithFix("create the definition, or correct %q", r.why)
	default:
		return nil, cnierr.New(op, kind, "key %q: there is no definition %s/%s, and no configuration in %s has the name %q", r.why, r.Namespace, r.Name, conf.ConfDir, r.Name).
			WithFix("create the definition, put such a configuration into %s (a default network's plugin may not have written its own yet), or correct %q", conf.ConfDir, r.why)
	}
}

// nameInterfaces gives each attachment its interface name: the runtime's for the
// default network, the requested one, or else the next free "net<n>".
func (b *builder) nameInterfaces() error {
	b.ifNames = make([]string, len(b.requests))
	used := map[string]int{loopback: -1} // the request that has the name
	take := func(i int, name string) error {
		if by, taken := used[name]; taken {
			return b.interfaceTaken(name, by).About(b.subject(i))
		}
		b.ifNames[i], used[name] = name, i
		return nil
	}
	for i := range b.requests {
		want := b.requests[i].Interface
		if b.requests[i].isDef {
			want = b.inv.IfName
		}
		if want == "" {
			continue
		}
		if err := take(i, want); err != nil {
			return err
		}
	}
	for i := range b.requests {
		for n := i; b.ifNames[i] == ""; n++ {
			name := fmt.Sprintf("net%d", n)
			if _, taken := used[name]; !taken {
				b.ifNames[i], used[name] = name, i
			}
		}
	}
	return nil
}

// loopback is the interface that every network namespace has from the start.
const loopback = "lo"

// interfaceTaken is the error of a network that requests an interface name that request
// by has. by is negative for the loopback interface.
func (b *builder) interfaceTaken(name string, by int) *cnierr.Error {
	const op = "name interface"
	switch {
	case by < 0:
		return cnierr.New(op, cnierr.InterfaceConflict, "every pod already has the loopback interface %s", name).
			WithFix("ask for another interface name, or for none")
	case b.requests[by].isDef:
		return cnierr.New(op, cnierr.InterfaceConflict, "the interface %s is that of the cluster default network, named by the container runtime", name).
			WithFix("ask for another interface name, or for none; to replace that network, name this one in the annotation %s", netattach.DefaultNetworkAnnotation)
	}
	return cnierr.New(op, cnierr.InterfaceConflict, "two networks of the pod ask for the interface %s, the other is %s", name, b.name(by)).
		WithFix("give each network of the pod its own interface name")
}

// attachment renders request i.
func (b *builder) attachment(i int) (*plan.Attachment, error) {
	r, c, d := &b.requests[i], b.configs[i], b.device(i)
	a := &plan.Attachment{
		Name: b.name(i), IfName: b.ifNames[i], Default: r.isDef, Args: b.inv.Args, Device: d, DefaultRoute: r.DefaultRoute,
		Reason: "selected by " + r.why,
	}
	opts := netattach.RenderOptions{
		Name: r.Name, CNIArgs: r.CNIArgs, IPAMClaimReference: r.IPAMClaimReference,
	}
	if opts.Name == "" {
		opts.Name = b.inv.Conf.Name
	}
	if d != nil {
		opts.DeviceID = d.ID
		a.Reason += ", on " + d.Reason
	}
	a.Written = c.Devices(d != nil)
	var notes []string
	var err error
	if a.Config, notes, err = c.Render(opts); err != nil {
		return nil, cnierr.New("render configuration", cnierr.InvalidDefinition, "%w", err)
	}
	for _, n := range notes {
		b.plan.Warnings = append(b.plan.Warnings, a.Name+": "+n)
	}
	a.Network = c.Name()
	if a.Network == "" {
		a.Network = opts.Name
	}
	if err := utils.ValidateNetworkName(a.Network); err != nil {
		return nil, cnierr.New("render configuration", cnierr.InvalidDefinition, "name %.64q: %w", a.Network, err)
	}
	if err := b.checkLength(a); err != nil {
		return nil, err
	}
	if err := b.capabilities(a, r, c); err != nil {
		return nil, err
	}
	if err := b.want(a, r, c); err != nil {
		return nil, err
	}
	a.Want.Carrier, err = b.carrier(i, a)
	return a, err
}

// maxFileName is the longest file name that file systems allow, in bytes.
const maxFileName = 255

// checkLength refuses a network name that is too long for libcni's record of the
// attachment, a file named <network>-<container ID>-<interface>. It could not be
// written after the delegate's ADD, and every DEL would fail to remove it.
func (b *builder) checkLength(a *plan.Attachment) error {
	n := len(a.Network) + len(b.inv.ContainerID) + len(a.IfName) + len("--")
	if n <= maxFileName {
		return nil
	}
	return cnierr.New("render configuration", cnierr.InvalidDefinition, "name %.64q is %d bytes too long", a.Network, n-maxFileName).
		WithFix(`give the configuration a shorter "name"`)
}

// capabilities fills in runtimeConfig: the runtime's own for the default network, and
// what the selection asks for. A request that no plugin of the chain can serve is
// refused, not dropped.
func (b *builder) capabilities(a *plan.Attachment, r *request, c *netattach.Config) error {
	asked := []struct {
		key   string
		value any
		set   bool
	}{
		{"ips", r.IPs, len(r.IPs) > 0},
		{"mac", r.MAC, r.MAC != ""},
		{"portMappings", r.Ports, len(r.Ports) > 0},
		{"bandwidth", r.Bandwidth, r.Bandwidth != nil},
		{"infinibandGUID", r.GUID, r.GUID != ""},
	}
	a.Capabilities = map[string]json.RawMessage{}
	if r.isDef {
		for k, v := range b.inv.RuntimeConfig {
			a.Capabilities[k] = v
		}
	}
	for _, q := range asked {
		if !q.set {
			continue
		}
		if !c.HasCapability(q.key) {
			return cnierr.New("select network", cnierr.InvalidAnnotation, "the selection sets %s, but no plugin of the network has the capability %q", q.key, q.key).
				WithFix(`add "capabilities": {%q: true} to a plugin that supports it, or drop it from the annotation`, q.key)
		}
		raw, err := json.Marshal(q.value)
		if err != nil {
			return cnierr.New("select network", cnierr.InvalidAnnotation, "%s: %w", q.key, err)
		}
		a.Capabilities[q.key] = raw
	}
	if a.Device != nil && c.HasCapability("deviceID") {
		a.Capabilities["deviceID"] = quote(a.Device.ID)
	}
	b.deviceInfo(a, c)
	return nil
}

// quote returns a string as JSON.
func quote(s string) json.RawMessage {
	raw, err := json.Marshal(s)
	if err != nil {
		return json.RawMessage(`""`) // a string always encodes
	}
	return raw
}

// deviceInfo sets the device information for network-status in case the delegate writes
// none, and names a file for a delegate that can write it (device information
// specification, sections 4 to 6).
func (b *builder) deviceInfo(a *plan.Attachment, c *netattach.Config) {
	if a.Device == nil {
		return
	}
	a.DeviceInfo = b.src.DeviceInfo[DeviceKey{a.Device.Resource, a.Device.ID}]
	if a.DeviceInfo == nil && a.Device.PCIAddress != "" {
		if raw, err := netattach.NewPCIInfo(a.Device.PCIAddress, a.Device.PF); err == nil {
			a.DeviceInfo = raw
		}
	}
	if c.HasCapability("CNIDeviceInfoFile") {
		a.DeviceInfoFile = filepath.Join(b.inv.Conf.DeviceInfo, "cni", infoFile(a.Name, b.inv.ContainerID, a.IfName))
		a.Capabilities["CNIDeviceInfoFile"] = quote(a.DeviceInfoFile)
	}
}

// infoFile names an attachment's device-information file. When a definition's name
// would make the file name too long, a digest replaces its end.
func infoFile(network, containerID, ifName string) string {
	network, rest := strings.ReplaceAll(network, "/", "-"), "-"+containerID+"_"+ifName
	file := network + rest
	if len(file) <= maxFileName {
		return file
	}
	sum := fmt.Sprintf("-%x", sha256.Sum256([]byte(file)))
	kept := maxFileName - len(sum) - len(rest)
	if kept < 0 { // when the container ID is too long
		return sum[1:]
	}
	return network[:kept] + sum + rest
}

// want sets what verification compares.
func (b *builder) want(a *plan.Attachment, r *request, c *netattach.Config) error {
	a.Want = plan.Want{Verify: b.inv.Conf.Verify, MAC: r.MAC, IPs: r.IPs}
	asked, err := c.Asked(r.CNIArgs)
	if err != nil {
		return cnierr.New("read network configuration", cnierr.InvalidDefinition, "%w", err)
	}
	a.Want.MTU = asked.MTU
	if a.Want.MAC == "" {
		a.Want.MAC = asked.MAC
	}
	if a.Device == nil || a.Device.PF == "" {
		return nil
	}
	vf := plan.VF{
		VLAN: asked.VLAN, VLANQoS: asked.VLANQoS, VLANProto: asked.VLANProto, SpoofChk: asked.SpoofChk, Trust: asked.Trust,
		LinkState: asked.LinkState, MinTxRate: asked.MinTxRate, MaxTxRate: asked.MaxTxRate, GUID: r.GUID,
	}
	switch {
	case a.Device.Userspace, r.MAC != "" && asked.SetsVFMAC: // a userspace device has no interface for the MAC
		vf.MAC = a.Want.MAC
	default:
		vf.MAC = asked.VFMAC
	}
	if vf != (plan.VF{}) {
		a.Want.VF = &vf
	}
	return nil
}

// carrier returns the policy for an interface of request i without a carrier: from the
// definition, else from the requested link state, else from the configuration. A VF
// whose link is to be down has no carrier, and one whose link is forced up must have
// one.
func (b *builder) carrier(i int, a *plan.Attachment) (string, error) {
	if a.Device == nil || a.Device.Userspace {
		return "", nil
	}
	if def := b.definition(i); def != nil && def.Annotations[netattach.CarrierAnnotation] != "" {
		policies := []string{plan.CarrierWarn, plan.CarrierRequire, plan.CarrierIgnore}
		policy := def.Annotations[netattach.CarrierAnnotation]
		if !slices.Contains(policies, policy) {
			return "", cnierr.New("read definition", cnierr.InvalidDefinition, "annotation %s: %.64q is unknown", netattach.CarrierAnnotation, policy).
				WithFix("choose one of: %s", strings.Join(policies, " "))
		}
		return policy, nil
	}
	policy, asked := b.inv.Conf.Carrier, ""
	if a.Want.VF != nil {
		asked = strings.ToLower(a.Want.VF.LinkState)
	}
	switch {
	case asked == "disable":
		return "", nil
	case asked == "enable" && policy == plan.CarrierWarn:
		return plan.CarrierRequire, nil
	}
	return policy, nil
}

// defaultRoutes marks the attachments that lose their default route to the one that
// asks for it.
func (b *builder) defaultRoutes() error {
	owner := -1
	for i, a := range b.plan.Attachments {
		if a.DefaultRoute == nil {
			continue
		}
		if owner >= 0 { // within one annotation netattach has refused this already
			return cnierr.New("select network", cnierr.InvalidAnnotation, "default-route is set here and for %s, but only one network of a pod can set it", b.name(owner)).
				About(b.subject(i)).WithFix("keep default-route on one network of the pod")
		}
		owner = i
	}
	for i := range b.plan.Attachments {
		b.plan.Attachments[i].DropDefaultRoute = owner >= 0 && i != owner
	}
	return nil
}

// pciAddress returns the device ID as a PCI address, empty when it is none.
func pciAddress(id string) string {
	addr, err := sriov.ParseAddress(id)
	if err != nil {
		return ""
	}
	return addr
}
