package planner

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

// ledger hands out the pod's devices, each at most once across the default network and
// all other networks.
type ledger struct {
	devices   []podresources.Device      // in assignment order
	functions map[string]*sriov.Function // by device ID, see [Sources]
	keys      []string                   // of the devices
	taken     map[string]taken           // by key of the device
}

// taken says which request has a device, for which network, and under which resource.
type taken struct {
	request           int
	network, resource string
}

// key identifies a device across all resources. A PCI function is one device, however
// many resources of device plugins and DRA drivers advertise it, even if one of them
// names it by its netdev. Any other ID means something only to its own plugin. Shares
// of one device are separate devices.
func (l *ledger) key(d *podresources.Device) string {
	k := pciAddress(d.ID)
	if f := l.functions[d.ID]; f != nil {
		k = f.Address
	}
	switch {
	case k != "":
	case d.ID == "" && d.Claim != nil:
		k = strings.Join([]string{d.Claim.Driver, d.Claim.Pool, d.Claim.Name}, "\x00")
	default:
		k = d.Resource + "\x00" + d.ID
	}
	if d.Claim != nil {
		k += "\x00" + d.Claim.ShareID
	}
	return strings.TrimSuffix(k, "\x00")
}

// newLedger orders the allocation: containers as the pod lists them, and within a
// container ascending by device ID (PCI addresses numerically) or in the order of the
// device plugin's own answer. Sorting across the whole pod would give one container's
// network the device of another.
func newLedger(pod *Pod, a *podresources.Allocation, functions map[string]*sriov.Function, order string) *ledger {
	l := &ledger{functions: functions, taken: map[string]taken{}}
	if a == nil {
		return l
	}
	rank := map[string]int{}
	if pod != nil {
		for i, c := range pod.Containers {
			rank[c.Name] = i
		}
	}
	container := func(d podresources.Device) int {
		if len(d.Containers) > 0 {
			if i, ok := rank[d.Containers[0]]; ok {
				return i
			}
		}
		return len(rank)
	}
	l.devices = slices.Clone(a.Devices)
	slices.SortStableFunc(l.devices, func(x, y podresources.Device) int {
		byPlugin := 0
		if order == "plugin" {
			byPlugin = cmp.Compare(x.PluginIndex, y.PluginIndex)
		}
		return cmp.Or(cmp.Compare(container(x), container(y)), cmp.Compare(x.Resource, y.Resource), byPlugin, sriov.CompareIDs(x.ID, y.ID))
	})
	l.keys = make([]string, len(l.devices))
	for i := range l.devices {
		l.keys[i] = l.key(&l.devices[i])
	}
	return l
}

// free returns the position of the first free device that fits, -1 if there is none.
// For a network that names a container, it prefers a device that only this container
// holds to one that the container took over from an init container, which another
// network may name.
func (l *ledger) free(r *request, fits func(*podresources.Device) bool) int {
	best := -1
	for i := range l.devices {
		d := &l.devices[i]
		if _, used := l.taken[l.keys[i]]; used || !fits(d) {
			continue
		}
		if best < 0 || r.Container != "" && len(d.Containers) < len(l.devices[best].Containers) {
			best = i
		}
	}
	return best
}

// Classes of requests, by how precisely they name their device.
const (
	pinnedDevice = iota // its ID
	requestOfClaim
	anyOfClaim
	ofContainer
	anyDevice
)

// class returns the class of the request.
func (r *request) class() int {
	switch {
	case r.DeviceID != "":
		return pinnedDevice
	case r.Request != "":
		return requestOfClaim
	case r.Claim != "":
		return anyOfClaim
	case r.Container != "":
		return ofContainer
	}
	return anyDevice
}

// names reports whether the selection names a device, so that it needs one even if the
// definition has no resourceName.
func (r *request) names() bool { return r.DeviceID != "" || r.Claim != "" }

// assignDevices gives every attachment that needs a device its device. The most precise
// requests choose first, so that none loses the device it names to a request that takes
// any.
func (b *builder) assignDevices() error {
	b.devices = make([]*plan.Device, len(b.requests))
	b.chosen = make([]*podresources.Device, len(b.requests))
	l := newLedger(b.pod, b.src.Allocation, b.src.Functions, b.inv.Conf.DeviceOrder)
	for class := range anyDevice + 1 {
		for i := range b.requests {
			r := &b.requests[i]
			if r.class() != class {
				continue
			}
			var err error
			switch resource := b.resource(i); {
			case resource != "" || r.names():
				if !b.assign(l, i, map[string]bool{}) {
					err = b.refuse(l, i, resource)
				}
			case r.Container != "":
				err = aimless(r.Container)
			}
			if err != nil {
				return cnierr.Annotate(err, b.subject(i))
			}
		}
	}
	for i, d := range b.chosen {
		if d == nil {
			continue
		}
		if err := contradiction(d); err != nil {
			return cnierr.Annotate(err, b.subject(i))
		}
		b.devices[i] = b.planned(i, d)
	}
	return nil
}

// aimless is the error of a selection that asks for a container's device although the
// definition has no resourceName. It is unknown which of the container's devices is
// meant, and without a device the pod would run without the attachment it asks for.
func aimless(container string) error {
	return cnierr.New("assign device", cnierr.InvalidAnnotation, "the selection names container %s (%s), but the definition has no %s, so the network uses no device",
		container, netattach.ContainerKey, netattach.ResourceNameAnnotation).
		WithFix("set %s on the definition, or drop %s from the selection", netattach.ResourceNameAnnotation, netattach.ContainerKey)
}

// resource returns the resourceName of request i's definition, empty for none.
func (b *builder) resource(i int) string {
	if def := b.definition(i); def != nil {
		return def.ResourceName()
	}
	return ""
}

// assign chooses a device for request i, and reports whether there is one. If all that
// suit it are taken, a request that has one of them moves to another device, if it can:
// a pod is refused only if its devices cannot serve all of its networks. tried holds the
// keys of the devices that no request has to be asked for again.
func (b *builder) assign(l *ledger, i int, tried map[string]bool) bool {
	r, resource := &b.requests[i], b.resource(i)
	fits := func(d *podresources.Device) bool { return d.ID != "" && r.wants(d, resource) }
	at := l.free(r, fits)
	for j := 0; at < 0 && j < len(l.devices); j++ {
		if key := l.keys[j]; fits(&l.devices[j]) && !tried[key] {
			tried[key] = true
			if owner := l.taken[key].request; b.assign(l, owner, tried) {
				at = j
				if b.movedBy == nil {
					b.movedBy = map[int]string{}
				}
				b.movedBy[owner] = b.name(i)
			}
		}
	}
	if at < 0 {
		return false
	}
	b.chosen[i] = &l.devices[at]
	l.taken[l.keys[at]] = taken{i, b.name(i), b.chosen[i].Resource}
	return true
}

// planned describes the device of request i in the plan.
func (b *builder) planned(i int, d *podresources.Device) *plan.Device {
	out := &plan.Device{
		Resource: d.Resource, ID: d.ID, PCIAddress: pciAddress(d.ID), NUMANodes: d.NUMANodes, Source: d.Source,
		Container: strings.Join(d.Containers, ","),
	}
	if c := d.Claim; c != nil {
		out.Claim = &plan.Claim{Name: c.Claim, PodClaim: c.PodClaim, Requests: c.Requests, Driver: c.Driver, Pool: c.Pool, Device: c.Name, ShareID: c.ShareID}
	}
	if f := b.src.Functions[d.ID]; f != nil {
		out.PCIAddress = f.Address
		out.Driver, out.PF, out.Userspace, out.IOMMUGroup = f.Driver, f.PF, f.Userspace(), f.IOMMUGroup
		if f.IsVF() {
			out.VFIndex = f.VFIndex
		}
	}
	out.Reason = reason(&b.requests[i], d)
	if by := b.movedBy[i]; by != "" {
		out.Reason += ", such that network " + by + " has one too"
	}
	return out
}

// wants reports whether the request asks for a device such as d, free or not. A device
// of the claim that the selection names needs no resource name.
func (r *request) wants(d *podresources.Device, resource string) bool {
	named := r.Claim != "" && d.Claim != nil && d.Claim.PodClaim == r.Claim
	return (resource == "" || d.Resource == resource || named && d.Resource == "") &&
		(r.DeviceID == "" || d.ID == r.DeviceID) &&
		(r.Container == "" || slices.Contains(d.Containers, r.Container)) &&
		(r.Claim == "" || named) &&
		(r.Request == "" || d.Claim.Serves(r.Request))
}

// reason says in words why the request got this device.
func reason(r *request, d *podresources.Device) string {
	why := "the next device in order"
	switch {
	case r.DeviceID != "":
		why = "pinned by the selection"
	case r.Request != "":
		why = "of the request that the selection names"
	case r.Claim != "":
		why = "the next device of the claim that the selection names"
	case r.Container != "":
		why = "the next device of the container that the selection names"
	}
	where := ""
	if len(d.Containers) > 0 {
		where = " to container " + strings.Join(d.Containers, ", ")
	}
	of := ""
	if d.Resource != "" {
		of = " of " + d.Resource
	}
	if d.Claim != nil {
		of += " (" + d.Claim.String() + ", according to " + d.Claim.Attributes.Source + ")"
	}
	return fmt.Sprintf("device %s%s, allocated%s (%s): %s", d.ID, of, where, d.Source, why)
}

// refuse explains why request i gets no device.
func (b *builder) refuse(l *ledger, i int, resource string) error {
	r := &b.requests[i]
	if r.DeviceID != "" {
		text := "the pinned device is not among the pod's allocated devices"
		if n, taken := b.takenBy(l, r.DeviceID); taken {
			text = "the pinned device already serves network " + n
		}
		return cnierr.New("assign device", cnierr.DeviceConflict, "%s", text).
			About(cnierr.Subject{Resource: resource, Device: r.DeviceID}).
			WithFix("drop deviceID from the annotation, or name one of: %s", b.idsOf(l, resource))
	}
	if err := b.refuseClaim(l, i, resource); err != nil {
		return err
	}
	if err := l.overlap(resource); err != nil {
		return err
	}
	asked, where := 0, "the pod"
	for j := range b.requests {
		if b.resource(j) == resource && (r.Container == "" || b.requests[j].Container == r.Container) {
			asked++
		}
	}
	if r.Container != "" {
		where = "container " + r.Container
	}
	ask := "attachments ask"
	if asked == 1 {
		ask = "attachment asks"
	}
	given, others := b.given(l, r.Container)
	short := fmt.Sprintf("%d %s for a device of it, the kubelet allocated %d to %s%s", asked, ask, given[resource], where, others)
	if d := l.unknown(resource); d != nil {
		return cnierr.New("assign device", gapKind(d), "%s; it is not known whether this device is one: %s: %w", short, d.Claim, d.Claim.Gap).
			About(cnierr.Subject{Resource: resource}).WithFix(publish)
	}
	return cnierr.New("assign device", cnierr.NoDevice, "%s", short).
		About(cnierr.Subject{Resource: resource}).
		WithFix("request %d of %s in the resource limits of %s, or correct the definition's resourceName", asked, resource, where)
}

// given counts the devices of each resource that a container has, or the pod for "".
// others names the resources among them that no network asks for: one of these may be
// the one that was meant.
func (b *builder) given(l *ledger, container string) (counts map[string]int, others string) {
	wanted := map[string]bool{}
	for i := range b.requests {
		wanted[b.resource(i)] = true
	}
	counts = map[string]int{}
	seen := map[string]bool{} // a device counts once, whoever advertises it
	for _, d := range l.devices {
		if id := d.Resource + " " + l.key(&d); !seen[id] && (container == "" || slices.Contains(d.Containers, container)) {
			seen[id] = true
			counts[d.Resource]++
		}
	}
	for _, resource := range slices.Sorted(maps.Keys(counts)) {
		if !wanted[resource] && resource != "" {
			others += fmt.Sprintf("; it has %d of %s, which no network asks for", counts[resource], resource)
		}
	}
	return counts, others
}

// overlap returns an error if a device of resource already serves a network of another
// resource.
func (l *ledger) overlap(resource string) error {
	for _, d := range l.devices {
		if by, used := l.taken[l.key(&d)]; used && d.Resource == resource && by.resource != resource {
			return cnierr.New("assign device", cnierr.DeviceConflict, "it is advertised as %s and as %s, and serves network %s", resource, by.resource, by.network).
				About(cnierr.Subject{Resource: resource, Device: d.ID}).
				WithFix("correct the device plugin's configuration: its resources must not share devices")
		}
	}
	return nil
}

// takenBy returns which network has the device with that ID.
func (b *builder) takenBy(l *ledger, id string) (string, bool) {
	for i := range l.devices {
		if by, ok := l.taken[l.key(&l.devices[i])]; ok && l.devices[i].ID == id {
			return by.network, true
		}
	}
	return "", false
}

// idsOf lists the pod's devices of a resource, of all resources when it is empty.
func (b *builder) idsOf(l *ledger, resource string) string {
	var ids []string
	for _, d := range l.devices {
		if resource == "" || d.Resource == resource {
			ids = append(ids, d.ID)
		}
	}
	if len(ids) == 0 {
		return "(none is allocated)"
	}
	return strings.Join(ids, ", ")
}
