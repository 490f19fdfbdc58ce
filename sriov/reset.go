package sriov

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// ResetError says that a device is not as it was to be made.
type ResetError struct {
	Left []Difference // what is still not as wanted
	Err  error        // what the kernel or the driver refused; may be nil
}

// Error names what is left and why.
func (e *ResetError) Error() string {
	if e.Err == nil {
		return Sentences(e.Left)
	}
	return fmt.Sprintf("%s: %v", Sentences(e.Left), e.Err)
}

// Unwrap returns the refusals.
func (e *ResetError) Unwrap() error { return e.Err }

// ErrReplaced is wrapped by the error of [Host.Reset] when another PCI function has
// got the address since the snapshot, see [Snapshot.SameFunction].
var ErrReplaced = errors.New("another function has its address by now")

// Reset makes a device stand as in to, a snapshot of it: its network device's name,
// alias, MTU, settings and MAC, then what the PF keeps for a VF. What is so already is not
// touched, and a device that has another driver by now is not bound anew. It looks again afterwards, and returns what it changed; what is
// still different then is a [*ResetError]. Nobody else must use the device
// meanwhile. Where it has no network device on the host it cannot be given one:
// see [Host.Wait]. A function that came after the snapshot is left as it is, with
// [ErrReplaced].
func (h Host) Reset(id string, to *Snapshot) ([]Difference, error) {
	now, err := h.Snapshot(id)
	if err != nil {
		return nil, err
	}
	if !to.SameFunction(now) {
		return nil, fmt.Errorf("sriov: PCI function %s: %w", id, ErrReplaced)
	}
	differences := to.Compare(now)
	if len(differences) == 0 {
		return nil, nil
	}
	var refused error
	// Again after a refusal, since a network device that has just come is also udev's: it
	// renames it, or takes the name that it is to get for an alternative one.
	for range 2 {
		refused = errors.Join(h.resetNetDev(to, now), h.resetVF(to, now))
		if now, err = h.Snapshot(id); err != nil {
			return nil, errors.Join(refused, err)
		}
		if refused == nil {
			break
		}
	}
	if to.VF != nil && now.VF != nil && !to.sameMAC(now) {
		// Last, and where nothing else helps: a MAC that the PF was told by its VF is
		// told anew by then, and one that is set through the PF is the VF's for good
		// with some drivers, which let it choose no other ever after. No message of
		// the kernel's shows which it is.
		refused = errors.Join(refused, h.setVF(now, PropertyMAC, *to.VF), h.resetNetDev(to, now))
		if now, err = h.Snapshot(id); err != nil {
			return nil, errors.Join(refused, err)
		}
	}
	if left := to.Compare(now); len(left) > 0 {
		return nil, &ResetError{Left: left, Err: refused}
	}
	return differences, nil
}

// resetVF sets what differs of what the PF keeps for the VF, but its MAC.
func (h Host) resetVF(to, now *Snapshot) error {
	b, n := to.VF, now.VF
	if b == nil || n == nil {
		return nil
	}
	give := *b
	give.NodeGUID, give.PortGUID = to.restoredGUID(b.NodeGUID), to.restoredGUID(b.PortGUID)
	var problems []error
	for _, p := range []struct {
		Property
		differs bool
	}{
		{PropertyVLAN, b.VLAN != n.VLAN || b.VLANQoS != n.VLANQoS || b.VLAN != 0 && b.VLANProto != n.VLANProto},
		{PropertySpoofChk, b.SpoofChk != n.SpoofChk},
		{PropertyTrust, b.Trust != n.Trust},
		{PropertyLinkState, b.LinkState != n.LinkState},
		{PropertyRate, b.MinTxRate != n.MinTxRate || b.MaxTxRate != n.MaxTxRate},
		{PropertyNodeGUID, !to.sameGUID(b.NodeGUID, n.NodeGUID)},
		{PropertyPortGUID, !to.sameGUID(b.PortGUID, n.PortGUID)},
	} {
		if p.differs {
			problems = append(problems, h.setVF(now, p.Property, give))
		}
	}
	return errors.Join(problems...)
}

// setVF sets one property of the VF that stands as in now.
func (h Host) setVF(now *Snapshot, p Property, to VFState) error {
	if err := h.SetVF(now.PF, now.VFIndex, p, to); err != nil {
		return fmt.Errorf("%s of VF %d on %s: %w", p, now.VFIndex, now.PF, err)
	}
	return nil
}

// resetNetDev gives the device's network device its name, alias, MTU, settings
// and MAC.
func (h Host) resetNetDev(to, now *Snapshot) error {
	was, is := to.single(now)
	if was == nil {
		return nil
	}
	give := *was
	if guidOf(is.MAC) != "" && !to.ownMAC(now) { // then it is its PF's to give, and comes when its driver is next bound
		give.MAC = is.MAC
	}
	if give.stands(*is) {
		return nil
	}
	return h.links().SetNetDev(is.Name, give)
}

// stands reports whether the network device is as now, but for its index.
func (d NetDev) stands(now NetDev) bool {
	return d.Name == now.Name && d.Alias == now.Alias && d.MTU == now.MTU && SameMAC(d.MAC, now.MAC) && len(d.Settings.differences(d.Name, now.Settings)) == 0
}

// errDeaf ends a wait that nothing would ever end.
var errDeaf = errors.New("the kernel's events cannot be heard any more")

// Wait returns the first snapshot of a device that ready accepts, or the error of
// ctx with the device as it last stood. It looks at once, and then whenever
// network devices or drivers change: it does not poll. A device that is not there
// is shown to ready as nil; where that is accepted, the error is that of
// [Host.Snapshot]. One that its PF leaves out, for all that Snapshot asks it again,
// ends the wait with [ErrOmitted]: no event tells that a driver has done with a reset.
//
// [HasNetDev] and [HasDriver] are what is most often waited for.
func (h Host) Wait(ctx context.Context, id string, ready func(*Snapshot) bool) (*Snapshot, error) {
	s, done, err := h.look(id, ready)
	if done || err != nil {
		return s, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := h.Events(ctx)
	if err != nil {
		return nil, fmt.Errorf("sriov: %w", err)
	}
	for {
		// The first look is one for what happened before the events were heard.
		if s, done, err = h.look(id, ready); done || err != nil {
			return s, err
		}
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("sriov: wait for device %s: %w", id, context.Cause(ctx))
		case _, open := <-events:
			if !open && ctx.Err() == nil {
				return s, fmt.Errorf("sriov: wait for device %s: %w", id, errDeaf)
			}
		}
	}
}

// look takes a snapshot and reports whether it ends the wait. That there is no
// such device is an error only then.
func (h Host) look(id string, ready func(*Snapshot) bool) (s *Snapshot, done bool, err error) {
	s, err = h.Snapshot(id)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, true, err
	}
	if !ready(s) {
		return s, false, nil
	}
	return s, true, err
}

// HasNetDev is a condition for [Host.Wait]: the device has a network device on the
// host.
func HasNetDev(s *Snapshot) bool { return s != nil && len(s.NetDevs) > 0 }

// HasDriver returns the condition for [Host.Wait] that the device is bound to the
// driver.
func HasDriver(driver string) func(*Snapshot) bool {
	return func(s *Snapshot) bool { return s != nil && s.Driver == driver }
}
