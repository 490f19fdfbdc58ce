package verify

import (
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

// Carrier checks, by the plan's policy, that an attachment's interface has a carrier.
// The policy must not be to ignore it. An interface that is up has until the deadline:
// a VF and its PF settle the link after setup. The kernel announces every change, so
// nothing is polled and no time is lost. A missing interface yields no finding: a
// device may serve without one, and [Compare] decides whether this one may.
func (s *Sandbox) Carrier(a *plan.Attachment, deadline time.Time) (Report, error) {
	var r Report
	flags, err := s.awaitCarrier(a.IfName, deadline)
	if err != nil {
		return r, cnierr.New("inspect sandbox", cnierr.IO, "%w", err)
	}
	if flags != noLink {
		compareCarrier(&r, a.Want.Carrier, flags)
	}
	return r, nil
}

// noLink stands for the flags of a missing link.
const noLink = ^uint32(0)

// flags returns [unix.IFF_UP] and [unix.IFF_LOWER_UP] as far as the link has them, or
// [noLink] without a link.
func (s *Sandbox) flags(ifName string) (uint32, error) {
	link, err := s.named(ifName)
	if err != nil || link == nil {
		return noLink, err
	}
	return link.Attrs().RawFlags & (unix.IFF_UP | unix.IFF_LOWER_UP), nil
}

// awaitCarrier waits until the deadline for a link that is up to get its carrier, and
// returns the link's flags.
func (s *Sandbox) awaitCarrier(ifName string, deadline time.Time) (uint32, error) {
	flags, err := s.flags(ifName)
	if err != nil || flags != unix.IFF_UP {
		return flags, err
	}
	changes, err := s.changes()
	if err != nil {
		return flags, err
	}
	defer changes.Close()
	for {
		// Look again first: changes before the subscription were missed.
		flags, err := s.flags(ifName)
		left := time.Until(deadline)
		if err != nil || flags != unix.IFF_UP || left < time.Microsecond { // a zero timeout would mean forever
			return flags, err
		}
		if err := await(changes, left); err != nil {
			return flags, fmt.Errorf("wait for the carrier of %s: %w", ifName, err)
		}
	}
}

// await waits for a change for at most patience. It does not matter which link changed
// or whether messages were lost: the caller looks at the link again.
func await(changes *nl.NetlinkSocket, patience time.Duration) error {
	timeout := unix.NsecToTimeval(patience.Nanoseconds())
	if err := changes.SetReceiveTimeout(&timeout); err != nil {
		return err
	}
	_, _, err := changes.Receive()
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
		return nil
	}
	return err
}

// changes subscribes to changes of the sandbox's links.
func (s *Sandbox) changes() (out *nl.NetlinkSocket, err error) {
	err = ns.WithNetNSPath(s.path, func(ns.NetNS) error {
		out, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("subscribe to links: %w", err)
	}
	return out, nil
}

// carrierField is the field of findings about the carrier.
const carrierField = "carrier"

// compareCarrier compares a link's flags with a policy.
func compareCarrier(r *Report, policy string, flags uint32) {
	if flags&unix.IFF_LOWER_UP != 0 {
		r.Checked = append(r.Checked, carrierField)
		return
	}
	found := "none, though the interface is up"
	if flags&unix.IFF_UP == 0 {
		found = "none, since the interface is down"
	}
	f := sriov.Difference{Field: carrierField, Want: "one", Found: found}
	if policy == plan.CarrierWarn {
		r.Warnings = append(r.Warnings, f)
	} else {
		r.Findings = append(r.Findings, f)
	}
}
