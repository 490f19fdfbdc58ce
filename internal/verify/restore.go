package verify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

// returnPoll is how often Restore looks whether a network device is back: the
// kernel gives it back some time after its network namespace went, and says so
// to nobody who has no socket open.
const returnPoll = 20 * time.Millisecond

// Restore makes a VF stand on the host again as before, after its delegate's
// DEL: its network device back, under its name, with its MAC and MTU, and the
// PF's view as it was. It waits for the network device until ctx ends. It
// returns what it changed. What cannot be made as before is an error of kind
// [cnierr.TeardownIncomplete]; a device that left the node needs nothing.
func Restore(ctx context.Context, sysRoot string, d *plan.Device, before *Device) (changed []Finding, err error) {
	if before == nil || d.PCIAddress == "" || d.PF == "" {
		return nil, nil
	}
	now, err := awaitNetDev(ctx, sriov.FS{Root: sysRoot}, d, before)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, incomplete(d, err)
	}
	differences := Differ(before, now)
	if len(differences) == 0 {
		return nil, nil
	}
	restored := errors.Join(restorePF(before, now), restoreNetDev(before, now))
	if now, err = device(sriov.FS{Root: sysRoot}, d); err != nil {
		return nil, incomplete(d, errors.Join(restored, err))
	}
	if left := Differ(before, now); len(left) > 0 {
		return nil, incomplete(d, fmt.Errorf("%s: %w", sentences(left), restored))
	}
	return differences, nil
}

func incomplete(d *plan.Device, err error) error {
	return cnierr.New("restore device", cnierr.TeardownIncomplete, "%w", err).
		About(cnierr.Subject{Resource: d.Resource, Device: d.ID}).
		WithFix("the runtime will try again; see what holds the device, or reset it by hand")
}

func sentences(findings []Finding) string {
	var out []string
	for _, f := range findings {
		out = append(out, f.String())
	}
	return strings.Join(out, ", ")
}

// awaitNetDev returns the device's state once it has as many network devices on
// the host as before. A device that has another driver now is not waited for.
func awaitNetDev(ctx context.Context, fs sriov.FS, d *plan.Device, before *Device) (*Device, error) {
	for {
		now, err := device(fs, d)
		if err != nil {
			return nil, err
		}
		if now.Driver != before.Driver || len(now.NetDevs) >= len(before.NetDevs) {
			return now, nil
		}
		select {
		case <-time.After(returnPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("its network device is not back on the host: %w", context.Cause(ctx))
		}
	}
}

// Differ names what of a device is not as before.
func Differ(before, now *Device) []Finding {
	var r Report
	if before.VF != nil && now.VF != nil {
		b, n := before.VF, now.VF
		if !sameMAC(before, now) {
			r.expect("MAC of the VF", b.MAC, n.MAC)
		}
		r.expect("VLAN of the VF", fmt.Sprint(b.VLAN), fmt.Sprint(n.VLAN))
		r.expect("VLAN QoS of the VF", fmt.Sprint(b.VLANQoS), fmt.Sprint(n.VLANQoS))
		if b.VLAN != 0 {
			r.expect("VLAN protocol of the VF", b.VLANProto, n.VLANProto)
		}
		r.expect("spoof check of the VF", onOff(b.SpoofChk), onOff(n.SpoofChk))
		r.expect("trust of the VF", onOff(b.Trust), onOff(n.Trust))
		r.expect("link state of the VF", b.LinkState, n.LinkState)
		r.expect("minimum rate of the VF", fmt.Sprint(b.MinTxRate), fmt.Sprint(n.MinTxRate))
		r.expect("maximum rate of the VF", fmt.Sprint(b.MaxTxRate), fmt.Sprint(n.MaxTxRate))
	}
	if was, is := single(before, now); was != nil {
		r.expect("network device", was.Name, is.Name)
		r.expect("alias of "+was.Name, was.Alias, is.Alias)
		r.expect("MTU of "+was.Name, fmt.Sprint(was.MTU), fmt.Sprint(is.MTU))
		if before.VF != nil && before.VF.MAC == was.MAC {
			r.expect("MAC of "+was.Name, was.MAC, is.MAC)
		}
	}
	return r.Findings
}

// sameMAC reports whether the PF gives the VF the MAC that it gave before. A VF
// to which it gave none draws its own, and tells the PF when it is first up.
func sameMAC(before, now *Device) bool {
	b, n := before.VF.MAC, now.VF.MAC
	drawn := strings.Trim(b, "0:") == "" && len(before.NetDevs) == 1 && n == before.NetDevs[0].MAC
	return b == n || drawn
}

// single returns the one network device that a function has, before and now; nil
// where there is none or, with subfunctions, more than one.
func single(before, now *Device) (was, is *NetDev) {
	if len(before.NetDevs) != 1 || len(now.NetDevs) != 1 || before.Driver != now.Driver {
		return nil, nil
	}
	return &before.NetDevs[0], &now.NetDevs[0]
}

// restorePF sets what differs in the PF's view, each by itself: a driver refuses
// what it does not have, which must not keep the rest from being set.
func restorePF(before, now *Device) error {
	b, n := before.VF, now.VF
	if b == nil || n == nil || now.PF == "" {
		return nil
	}
	pf, err := netlinksafe.LinkByName(now.PF)
	if err != nil {
		return fmt.Errorf("physical function %s: %w", now.PF, err)
	}
	i := now.VFIndex
	var problems []error
	set := func(differs bool, what string, do func() error) {
		if !differs {
			return
		}
		if err := do(); err != nil {
			problems = append(problems, fmt.Errorf("%s of VF %d on %s: %w", what, i, now.PF, err))
		}
	}
	set(b.VLAN != n.VLAN || b.VLANQoS != n.VLANQoS || b.VLAN != 0 && b.VLANProto != n.VLANProto, "VLAN", func() error {
		return netlink.LinkSetVfVlanQosProto(pf, i, b.VLAN, b.VLANQoS, vlanProto(b.VLANProto))
	})
	set(b.SpoofChk != n.SpoofChk, "spoof check", func() error { return netlink.LinkSetVfSpoofchk(pf, i, b.SpoofChk) })
	set(b.Trust != n.Trust, "trust", func() error { return netlink.LinkSetVfTrust(pf, i, b.Trust) })
	set(b.LinkState != n.LinkState, "link state", func() error { return netlink.LinkSetVfState(pf, i, linkState(b.LinkState)) })
	set(b.MinTxRate != n.MinTxRate || b.MaxTxRate != n.MaxTxRate, "rate", func() error {
		return netlink.LinkSetVfRate(pf, i, b.MinTxRate, b.MaxTxRate)
	})
	set(!sameMAC(before, now), "MAC", func() error {
		mac, err := net.ParseMAC(b.MAC)
		if err != nil {
			return err
		}
		return netlink.LinkSetVfHardwareAddr(pf, i, mac)
	})
	return errors.Join(problems...)
}

func vlanProto(name string) int {
	if name == "802.1ad" {
		return unix.ETH_P_8021AD
	}
	return unix.ETH_P_8021Q
}

func linkState(name string) uint32 {
	return uint32(max(0, slices.Index([]string{"auto", "enable", "disable"}, name)))
}

// restoreNetDev gives the VF's network device its name, MTU and MAC.
func restoreNetDev(before, now *Device) error {
	was, is := single(before, now)
	if was == nil || *was == *is {
		return nil
	}
	link, err := netlinksafe.LinkByName(is.Name)
	if err != nil {
		return err
	}
	up := link.Attrs().Flags&net.FlagUp != 0
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("set %s down: %w", is.Name, err)
	}
	var problems []error
	if was.Name != is.Name {
		problems = append(problems, netlink.LinkSetName(link, was.Name))
	}
	if was.Alias != is.Alias {
		problems = append(problems, netlink.LinkSetAlias(link, was.Alias))
	}
	if was.MTU != is.MTU {
		problems = append(problems, netlink.LinkSetMTU(link, was.MTU))
	}
	if mac, err := net.ParseMAC(was.MAC); err == nil && was.MAC != is.MAC {
		// A VF may not choose its MAC where the PF did; then the PF's is in force.
		if err := netlink.LinkSetHardwareAddr(link, mac); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EPERM) {
			problems = append(problems, err)
		}
	}
	if up {
		problems = append(problems, netlink.LinkSetUp(link))
	}
	return errors.Join(problems...)
}
