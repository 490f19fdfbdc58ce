package attach

import (
	"slices"

	"github.com/containernetworking/cni/libcni"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// A delegate's DEL looks the interface up by name, and host-device moves what it finds
// to the host under the name in the interface's alias. A pod with NET_ADMIN can change
// name, alias and alternative names: it could keep its VF, or have an interface of its
// own moved to the host.

// takeOut takes the VF of attachment i out of a sandbox in which the delegates' DEL
// would miss it. It returns the network namespace to pass to the delegates: empty after
// such a removal, as for a sandbox that is gone.
func (r *run) takeOut(i int, netns string, list *libcni.NetworkConfigList) (string, error) {
	a := &r.entry.Plan.Attachments[i]
	if netns == "" || !isClaimed(a) || !r.inv.Conf.RestoreDevices {
		return netns, nil
	}
	before, err := recorded(r.entry.Before(i))
	if err != nil || before == nil {
		return netns, nil //nolint:nilerr // giveBack says what follows
	}
	box, err := r.sandbox(netns)
	if err != nil {
		return "", err
	}
	why, err := box.Evict(r.host().FS, a, before, aliasOf(list, before), func() bool { return r.movedIn(i, a) })
	if err != nil || why == "" {
		return netns, err
	}
	r.about(a).Warn("the pod has changed its interface; the device is moved to the host, and the delegates release the rest", "why", why)
	return "", nil
}

// aliasOf returns the alias that the netdev of before has in the sandbox, empty when no
// plugin of the chain depends on it.
func aliasOf(list *libcni.NetworkConfigList, before *sriov.Snapshot) string {
	moves := func(p *libcni.PluginConfig) bool { return p.Network.Type == "host-device" }
	if len(before.NetDevs) != 1 || !slices.ContainsFunc(list.Plugins, moves) {
		return ""
	}
	return before.NetDevs[0].Name
}

// movedIn reports whether the delegate had moved the VF's netdev into the sandbox:
// verification found it there, or the host does not have it.
func (r *run) movedIn(i int, a *plan.Attachment) bool {
	for _, s := range r.entry.Steps {
		if s.Attachment == i && s.Phase == journal.Verified && slices.Contains(s.Checked, verify.ParentDevice) {
			return true
		}
	}
	now, err := r.host().Snapshot(a.Device.PCIAddress)
	return err == nil && len(now.NetDevs) == 0
}
