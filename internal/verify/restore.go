package verify

import (
	"context"
	"errors"
	"os"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

// Restore restores a VF on the host after its delegate's DEL: the netdev with its name,
// MAC and MTU, and the PF's view. It waits, until ctx ends, for the netdev, which the
// kernel returns some time after the network namespace is gone. It returns what it
// changed. What cannot be restored is an error of kind [cnierr.TeardownIncomplete]. A
// device that left the node needs nothing, nor does one that came back as another
// function: that is as the kernel made it.
func Restore(ctx context.Context, host sriov.Host, d *plan.Device, before *sriov.Snapshot) (changed []sriov.Difference, err error) {
	if before == nil || d.PCIAddress == "" || d.PF == "" {
		return nil, nil
	}
	_, err = host.Wait(ctx, d.PCIAddress, func(now *sriov.Snapshot) bool {
		// A device that has another driver now has no netdev to wait for.
		return now == nil || !before.SameFunction(now) || now.Driver != before.Driver || len(now.NetDevs) >= len(before.NetDevs)
	})
	if err != nil && ctx.Err() != nil {
		return nil, incomplete(d, "its network device is not back on the host: %w", err)
	}
	if err == nil {
		changed, err = host.Reset(d.PCIAddress, before)
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, sriov.ErrReplaced) {
		return nil, nil
	}
	if err != nil {
		return nil, incomplete(d, "%w", err)
	}
	return changed, nil
}

func incomplete(d *plan.Device, format string, err error) error {
	return cnierr.New("restore device", cnierr.TeardownIncomplete, format, err).
		About(cnierr.Subject{Resource: d.Resource, Device: d.Name()}).
		WithFix("see what holds the device or what its driver refuses, or reset it by hand")
}
