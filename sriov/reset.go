package sriov

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// ResetError reports that a device is not in the state to which it was to be reset.
type ResetError struct {
	Left []Difference // what still differs
	Err  error        // what the kernel or the driver refused, or nil
}

// Error describes the differences and their cause.
func (e *ResetError) Error() string {
	if e.Err == nil {
		return Sentences(e.Left)
	}
	return fmt.Sprintf("%s: %v", Sentences(e.Left), e.Err)
}

// Unwrap returns Err.
func (e *ResetError) Unwrap() error { return e.Err }

// ErrReplaced is wrapped by the error of [Host.Reset] if another PCI function took the
// address since the snapshot, see [Snapshot.SameFunction].
var ErrReplaced = errors.New("another function has taken its address")

// Reset restores a device to the state in its snapshot to: the name, alias, MTU,
// settings and MAC of its network device, then what the PF keeps for a VF. It touches
// only what differs, and does not rebind a device that has another driver by now.
// Afterwards it reads the state again and returns what it changed; what still differs
// is a [*ResetError]. A function that replaced the snapshot's function is left alone,
// with [ErrReplaced]. Reset cannot give a network device to a device that has none on
// the host: see [Host.Wait]. Nobody else may use the device meanwhile.
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
	// Try again after a refusal, because udev handles a network device that has just
	// come, too: it renames the device, or makes the device's future name an
	// alternative one.
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
		// The MAC comes last, and only if it is still wrong. A MAC that the VF told its
		// PF has been told anew by now. A MAC that is set through the PF is final with
		// some drivers, which never again let the VF choose another. No kernel message
		// tells the two apart.
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

// resetVF restores what differs in the PF's state for the VF, except for its MAC.
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

// setVF sets one property of the VF described by now.
func (h Host) setVF(now *Snapshot, p Property, to VFState) error {
	if err := h.SetVF(now.PF, now.VFIndex, p, to); err != nil {
		return fmt.Errorf("%s of VF %d on %s: %w", p, now.VFIndex, now.PF, err)
	}
	return nil
}

// resetNetDev restores the name, alias, MTU, settings and MAC of the device's network
// device.
func (h Host) resetNetDev(to, now *Snapshot) error {
	was, is := to.single(now)
	if was == nil {
		return nil
	}
	give := *was
	if guidOf(is.MAC) != "" && !to.ownMAC(now) { // then the PF gives the GUID, and it arrives when the driver is next bound
		give.MAC = is.MAC
	}
	if give.stands(*is) {
		return nil
	}
	return h.links().SetNetDev(is.Name, give)
}

// stands reports whether the network device equals now in everything but its index.
func (d NetDev) stands(now NetDev) bool {
	return d.Name == now.Name && d.Alias == now.Alias && d.MTU == now.MTU && SameMAC(d.MAC, now.MAC) && len(d.Settings.differences(d.Name, now.Settings)) == 0
}

// errDeaf ends a wait that no event could end any more.
var errDeaf = errors.New("the kernel's events can no longer be received")

// Wait returns the first snapshot of a device that ready accepts. It looks at once, and
// then whenever network devices or drivers change; it does not poll. If ctx ends first,
// Wait returns the error of ctx with the last snapshot. ready gets nil for a device
// that does not exist; if it accepts that, the error is that of [Host.Snapshot]. If the
// device's PF still omits the device after Snapshot has asked again, the wait ends with
// [ErrOmitted]: no event tells that a driver has completed a reset.
//
// [HasNetDev] and [HasDriver] are the most common conditions.
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
		// The first look here covers what happened before the subscription to events.
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

// look takes a snapshot and reports whether it ends the wait. An absent device is an
// error only if it does.
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

// HasNetDev is the condition for [Host.Wait] that the device has a network device on
// the host.
func HasNetDev(s *Snapshot) bool { return s != nil && len(s.NetDevs) > 0 }

// HasDriver returns the condition for [Host.Wait] that the device is bound to driver.
func HasDriver(driver string) func(*Snapshot) bool {
	return func(s *Snapshot) bool { return s != nil && s.Driver == driver }
}
