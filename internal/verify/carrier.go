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

// Carrier compares whether an attachment's interface has its link with the policy
// of the plan, which must not be to ignore it. An interface that is up is given
// time until the deadline: a VF and its PF agree on the link after it was set up.
// The kernel tells of every change, so that nothing is polled and no time is lost.
// Of an interface that is not there nothing is said: a device may serve without one,
// and whether this one may is [Compare]'s to say.
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

// noLink stands for the flags of a link that is not there.
const noLink = ^uint32(0)

// flags are a link's that say how far it has come, for [unix.IFF_UP] and
// [unix.IFF_LOWER_UP]; [noLink] without a link.
func (s *Sandbox) flags(ifName string) (uint32, error) {
	link, err := s.named(ifName)
	if err != nil || link == nil {
		return noLink, err
	}
	return link.Attrs().RawFlags & (unix.IFF_UP | unix.IFF_LOWER_UP), nil
}

// awaitCarrier returns the flags of a link that may yet get its carrier.
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
		// Again at first, since what happened before the subscription was missed.
		flags, err := s.flags(ifName)
		left := time.Until(deadline)
		if err != nil || flags != unix.IFF_UP || left < time.Microsecond { // which would mean for ever
			return flags, err
		}
		if err := await(changes, left); err != nil {
			return flags, fmt.Errorf("wait for the carrier of %s: %w", ifName, err)
		}
	}
}

// await waits for a change, at most that long. Which link has changed does not
// matter, nor that messages were lost: it is looked at again.
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

// changes subscribes to the sandbox's links.
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

// carrierField is what findings about the carrier are called.
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
