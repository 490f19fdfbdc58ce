package sriov

import (
	"cmp"
	"net"
)

// The address of an InfiniBand network device: flags and a queue pair number, the
// subnet prefix, then the GUID of its port.
const (
	infinibandLength = 20
	guidOffset       = 12
)

// SameMAC reports whether two hardware addresses, in the form of [NetDev].MAC, belong
// to the same network device. Of the 20 bytes of an InfiniBand address only the GUID
// counts, the last 8: the queue pair changes when the driver recreates the device, and
// the subnet manager assigns the prefix.
func SameMAC(a, b string) bool {
	guid := guidOf(a)
	return a == b || guid != "" && guid == guidOf(b)
}

// guidOf returns the GUID in the address of an InfiniBand network device, or an empty
// string for any other address.
func guidOf(address string) string {
	hw, err := net.ParseMAC(address)
	if err != nil || len(hw) != infinibandLength {
		return ""
	}
	return hw[guidOffset:].String()
}

// identity returns the part of the network device's address that belongs to its
// function, and the name of that part.
func (d NetDev) identity() (field, value string) {
	if guid := guidOf(d.MAC); guid != "" {
		return "GUID", guid
	}
	return "MAC", d.MAC
}

// toSet returns the address to set on a network device with the address is so that it
// gets the MAC to. It returns nil if the device has that MAC already, or if to is not
// an address. For InfiniBand, the kernel lets only the GUID be set: it refuses an
// address whose other bytes differ from the device's.
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

// takenGUID is the GUID that takes a VF's GUID away.
const takenGUID = "ff:ff:ff:ff:ff:ff:ff:ff"

// unsetGUID reports whether guid, as a PF reports it, means that the PF was never set
// to a GUID for the VF: all zeros. The VF then has its own GUID.
func unsetGUID(guid string) bool { return guid != "" && noMAC(guid) }

// sameGUID reports whether the PF gives the VF the same InfiniBand GUID as in s. An
// unknown GUID in s counts as the same. If the PF gave none in s, it may now give the
// GUID to which the VF is restored. If the VF was to have none in s, a PF that was
// never set to a GUID counts as the same.
func (s *Snapshot) sameGUID(was, is string) bool {
	switch {
	case was == "" || was == is:
		return true
	case unsetGUID(was):
		return is == s.restoredGUID(was)
	}
	return was == takenGUID && unsetGUID(is)
}

// restoredGUID returns the GUID to set on the PF if it reported guid in s. Once a PF
// was set to a GUID, it cannot be set back to none: its driver reports what was set and
// never what the VF has by itself, and treats all zeros as just another GUID, which no
// VF can use. So the VF is given its own GUID. If that is unknown, as for a VF that is
// bound to VFIO and has no network device to read it from, the VF gets takenGUID: the
// next user must not inherit the last user's GUID, and has to ask for one.
func (s *Snapshot) restoredGUID(guid string) string {
	if unsetGUID(guid) {
		return cmp.Or(s.ownGUID(), takenGUID)
	}
	return guid
}

// ownGUID returns the GUID of the only network device of s. It is empty if there is no
// such device or its GUID is all zeros.
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

// keptGUID reports whether the only network device of s must have its GUID back now:
// the PF reports the same GUID as in s, so somebody with administrative rights over the
// device changed the device's GUID. The exception is a device that has the GUID set on
// the PF, which reaches the device when the VF's driver is next bound.
func (s *Snapshot) keptGUID(now *Snapshot) bool {
	if s.VF == nil || now.VF == nil || s.VF.PortGUID == "" {
		return false
	}
	return s.VF.PortGUID == now.VF.PortGUID && guidOf(now.NetDevs[0].MAC) != now.VF.PortGUID
}
