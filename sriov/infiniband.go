package sriov

import (
	"cmp"
	"net"
)

// The address of an InfiniBand network device: flags and the number of a queue pair,
// the subnet's prefix, then the GUID of its port.
const (
	infinibandLength = 20
	guidOffset       = 12
)

// SameMAC reports whether two hardware addresses, as [NetDev] has them, are those of one
// network device. Of InfiniBand's 20 bytes the GUID decides, which are the last 8: the
// queue pair is another when the driver makes the device anew, and the prefix is the
// subnet manager's to give.
func SameMAC(a, b string) bool {
	guid := guidOf(a)
	return a == b || guid != "" && guid == guidOf(b)
}

// guidOf returns the GUID in the address of an InfiniBand network device, empty for
// another address.
func guidOf(address string) string {
	hw, err := net.ParseMAC(address)
	if err != nil || len(hw) != infinibandLength {
		return ""
	}
	return hw[guidOffset:].String()
}

// identity returns what of the network device's address is its function's, and how that
// is called.
func (d NetDev) identity() (field, value string) {
	if guid := guidOf(d.MAC); guid != "" {
		return "GUID", guid
	}
	return "MAC", d.MAC
}

// toSet returns what to set so that a network device with the address is has the MAC to,
// nil where it has it or to is none. Of InfiniBand's the kernel lets the GUID alone be
// set: it refuses an address that begins otherwise than the device's.
func toSet(is, to string) net.HardwareAddr {
	mac, err := net.ParseMAC(to)
	if err != nil || SameMAC(is, to) {
		return nil
	}
	if begin, err := net.ParseMAC(is); err == nil && len(begin) == infinibandLength && len(mac) == infinibandLength {
		copy(mac, begin[:guidOffset])
	}
	return mac
}

// takenGUID is what a VF is given to have no GUID any more.
const takenGUID = "ff:ff:ff:ff:ff:ff:ff:ff"

// unsetGUID reports whether a PF that tells guid was never set to one: all zeros. The
// VF has its own then.
func unsetGUID(guid string) bool { return guid != "" && noMAC(guid) }

// sameGUID reports whether the PF gives the VF the InfiniBand GUID that it gave it in s.
// One of which nothing was told is not missed. Where it gave none, it may give the VF
// what it is restored to; and a VF that was to have none has none either where the PF
// was never set to one.
func (s *Snapshot) sameGUID(was, is string) bool {
	switch {
	case was == "" || was == is:
		return true
	case unsetGUID(was):
		return is == s.restoredGUID(was)
	}
	return was == takenGUID && unsetGUID(is)
}

// restoredGUID returns what the PF is to be set to where it told guid in s. A PF that was
// set to a GUID cannot be set to none again: its driver tells what it was set to, never
// what the VF has by itself, and to it all zeros are another GUID, which no VF can use.
// So the VF is given its own. Where that is not known, as of a VF that is bound to VFIO
// and has no network device to read it from, it is given none: what its last user had
// must not be the next one's, who has to ask for a GUID.
func (s *Snapshot) restoredGUID(guid string) string {
	if unsetGUID(guid) {
		return cmp.Or(s.ownGUID(), takenGUID)
	}
	return guid
}

// ownGUID returns the GUID of the one network device of s. It is empty where there is
// none, also for all zeros.
func (s *Snapshot) ownGUID() string {
	if len(s.NetDevs) != 1 {
		return ""
	}
	guid := guidOf(s.NetDevs[0].MAC)
	if unsetGUID(guid) {
		return ""
	}
	return guid
}

// keptGUID reports whether the one network device of s must have its GUID now: its PF
// tells the same of it as in s, so that whoever may administer the device has changed
// it. A GUID that a PF is set to is the device's from when the VF's driver is next bound:
// the device may have it already.
func (s *Snapshot) keptGUID(now *Snapshot) bool {
	if s.VF == nil || now.VF == nil || s.VF.PortGUID == "" {
		return false
	}
	return s.VF.PortGUID == now.VF.PortGUID && guidOf(now.NetDevs[0].MAC) != now.VF.PortGUID
}
