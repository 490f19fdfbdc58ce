package verify

import (
	"errors"
	"fmt"
	"time"

	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/sriov"
)

// lookForCarrier is look for an attachment's interface. One that is up and wants
// a carrier is given some time to have it: a VF and its PF agree on the link
// after it was set up. The kernel tells of every change, so that nothing is
// polled and no time is lost.
func (s *Sandbox) lookForCarrier(a *plan.Attachment, patience time.Duration) (Interface, error) {
	i, err := s.look(a.IfName, a.Device != nil)
	if err != nil || a.Want.Carrier == "" || a.Want.Carrier == plan.CarrierIgnore || i.Carrier || !i.Up {
		return i, err
	}
	changes, err := s.changes()
	if err != nil {
		return i, err
	}
	defer changes.Close()
	for end := time.Now().Add(patience); ; {
		// Again at first, since what happened before the subscription was missed.
		i, err := s.look(a.IfName, a.Device != nil)
		left := time.Until(end)
		if err != nil || i.Carrier || !i.Up || left < time.Microsecond { // which would mean for ever
			return i, err
		}
		if err := await(changes, left); err != nil {
			return i, fmt.Errorf("wait for the carrier of %s: %w", a.IfName, err)
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

// compareCarrier compares an interface with the policy for its carrier.
func compareCarrier(r *Report, policy string, i Interface) {
	if policy == "" || policy == plan.CarrierIgnore {
		return
	}
	if i.Carrier {
		r.Checked = append(r.Checked, carrierField)
		return
	}
	found := "none, though the interface is up"
	if !i.Up {
		found = "none, since the interface is down"
	}
	f := sriov.Difference{Field: carrierField, Want: "one", Found: found}
	if policy == plan.CarrierWarn {
		r.Warnings = append(r.Warnings, f)
	} else {
		r.Findings = append(r.Findings, f)
	}
}
