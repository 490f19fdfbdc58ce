package sriov

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
)

// Host is a node's PCI functions with the means to change them: a sysfs tree, and the
// network devices that it names. The zero value is the running kernel's, in the network
// namespace of the calling thread; the sysfs mount must belong to the same namespace.
type Host struct {
	FS
	Links Links // nil: [Kernel]
}

func (h Host) links() Links {
	if h.Links == nil {
		return Kernel{}
	}
	return h.Links
}

// Events reports changes of the host's devices, see [Links].
func (h Host) Events(ctx context.Context) (<-chan struct{}, error) { return h.links().Events(ctx) }

// Snapshot is the state of a device on the host, in a form that can be stored.
type Snapshot struct {
	NetDevs []NetDev `json:"netDevs,omitempty"`
	Driver  string   `json:"driver,omitempty"`
	// IOMMUGroup is the IOMMU group of a PCI function, see [Function].
	IOMMUGroup string `json:"iommuGroup,omitempty"`
	// PF is the PF's network device, through which a VF is configured. It is empty
	// unless the device is a VF whose PF has a network device.
	PF      string   `json:"pf,omitempty"`
	VFIndex int      `json:"vfIndex,omitempty"` // -1 unless the device is a VF
	VF      *VFState `json:"vf,omitempty"`      // what the PF keeps for the VF; nil if the PF does not tell
	// Instance identifies a PCI function, see [Snapshot.SameFunction]; 0 if unknown.
	Instance uint64 `json:"instance,omitempty"`
}

// SameFunction reports whether s and now are of the same PCI function, and not of two
// that had the same address one after the other in the same boot: the state of the
// first says nothing about the second. If either instance is unknown, they count as the
// same.
func (s *Snapshot) SameFunction(now *Snapshot) bool {
	return s.Instance == 0 || now.Instance == 0 || s.Instance == now.Instance
}

// Snapshot records the state of a device. id is the address of a PCI function, the name
// of an auxiliary device, or the name of a network device. The error satisfies
// errors.Is(err, [io/fs.ErrNotExist]) if there is no such device. It wraps [ErrOmitted]
// if the device is a VF and its PF, asked repeatedly for a short time, does not report
// its state.
func (h Host) Snapshot(id string) (*Snapshot, error) {
	switch {
	case IsAddress(id):
		return h.patiently(id)
	case IsAuxiliary(id):
		aux, err := h.Auxiliary(id)
		if err != nil {
			return nil, err
		}
		s := &Snapshot{VFIndex: -1, Driver: aux.Driver}
		return s, h.addNetDevs(s, aux.NetDevs)
	}
	link, err := h.links().Link(id)
	if errors.Is(err, ErrNoLink) {
		return nil, fmt.Errorf("sriov: %s is neither a PCI function nor an auxiliary device: %w: %w", quote(id), fs.ErrNotExist, err)
	}
	if err != nil {
		return nil, fmt.Errorf("sriov: %w", err)
	}
	return &Snapshot{VFIndex: -1, NetDevs: []NetDev{link.NetDev}}, nil
}

// ErrOmitted is wrapped by errors about a VF that its PF omits although it reports
// other VFs, as drivers do while they reset the VF. It does not mean that the PF keeps
// nothing for the VF.
var ErrOmitted = errors.New("its PF does not report this VF")

// errMute replaces ErrOmitted if the PF omits every VF: either all are being reset, or
// another host controls the card's switch and this host's driver never knows.
var errMute = errors.New("its PF does not report any VF")

// Limits on asking a PF that omits a VF. A driver takes a fraction of a second for a
// reset. An answer that may never come is given fewer tries. Some drivers, such as ice,
// wait for the reset inside each request, and block all changes of network devices on
// the node meanwhile: for those the limit is answerTime.
const (
	omittedTries = 40
	muteTries    = 5
	answerPause  = 25 * time.Millisecond
	answerTime   = 3 * time.Second
)

// patiently records a PCI function, and asks again if its PF omits the VF.
func (h Host) patiently(addr string) (*Snapshot, error) {
	start := time.Now()
	for try := 1; ; try++ {
		f, err := h.Function(addr)
		if err != nil {
			return nil, err
		}
		s, err := h.snapshot(f, h.askPF)
		late := time.Since(start) > answerTime
		switch {
		case errors.Is(err, errMute) && (late || try == muteTries):
			return s, nil
		case errors.Is(err, errMute), errors.Is(err, ErrOmitted) && !late && try < omittedTries:
			time.Sleep(answerPause)
		case err != nil:
			return nil, err
		default:
			return s, nil
		}
	}
}

// Snapshots records the state of functions that were read just now, and returns it by
// address. It asks each PF once, however many of its VFs are among the functions.
// Functions that cannot be read completely are left out, and the error has the reasons.
func (h Host) Snapshots(functions []Function) (map[string]*Snapshot, error) {
	type answer struct {
		uplink *Link
		err    error
	}
	asked := map[string]answer{}
	ask := func(pf string) (*Link, error) {
		a, known := asked[pf]
		if !known {
			a.uplink, a.err = h.askPF(pf)
			asked[pf] = a
		}
		return a.uplink, a.err
	}
	out := map[string]*Snapshot{}
	var problems []error
	for i := range functions {
		s, err := h.snapshot(&functions[i], ask)
		if err != nil && !errors.Is(err, errMute) {
			problems = append(problems, fmt.Errorf("%s: %w", functions[i].Address, err))
			continue
		}
		out[functions[i].Address] = s
	}
	return out, errors.Join(problems...)
}

// askPF returns the uplink of a PF with what it keeps for its VFs. It returns nil if
// the PF has no network device, so that nobody can be asked.
func (h Host) askPF(pf string) (*Link, error) {
	name, err := h.Uplink(pf)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	link, err := h.links().Link(name)
	if err != nil {
		return nil, fmt.Errorf("sriov: physical function %s: %w", pf, err)
	}
	return link, nil
}

// of returns what a PF's uplink keeps for one of its VFs. It returns nil if there is no
// uplink to ask, or if its driver never reports VFs.
func (l *Link) of(vfIndex int) (*VFState, error) {
	if l == nil || l.VFs == nil {
		return nil, nil
	}
	if state, ok := l.VFs[vfIndex]; ok {
		return &state, nil
	}
	err := ErrOmitted
	if len(l.VFs) == 0 {
		err = errMute
	}
	return nil, fmt.Errorf("sriov: VF %d of %s: %w", vfIndex, l.Name, err)
}

// snapshot records a PCI function, and calls ask for its PF. With errMute, too, it
// returns a snapshot, which lacks only what the PF keeps.
func (h Host) snapshot(f *Function, ask func(pf string) (*Link, error)) (*Snapshot, error) {
	s := &Snapshot{VFIndex: f.VFIndex, Driver: f.Driver, IOMMUGroup: f.IOMMUGroup, Instance: f.Instance}
	if f.IsVF() {
		uplink, err := ask(f.PF)
		if err != nil {
			return nil, err
		}
		if uplink != nil {
			s.PF = uplink.Name
		}
		if s.VF, err = uplink.of(f.VFIndex); err != nil && !errors.Is(err, errMute) {
			return nil, err
		}
		return s, cmp.Or(h.addNetDevs(s, f.NetDevs), err)
	}
	return s, h.addNetDevs(s, f.NetDevs)
}

// addNetDevs adds the named network devices to s.
func (h Host) addNetDevs(s *Snapshot, names []string) error {
	for _, name := range names {
		link, err := h.links().Link(name)
		if errors.Is(err, ErrNoLink) {
			continue // it moved away between sysfs and netlink
		}
		if err != nil {
			return fmt.Errorf("sriov: %w", err)
		}
		s.NetDevs = append(s.NetDevs, link.NetDev)
	}
	return nil
}

// Neutral returns the snapshot as it would be for an unused VF: no VLAN, no rates, link
// state auto. MAC, GUIDs, spoof check and trust stay, because an administrator may have
// set them for all VFs. The link state of an InfiniBand VF stays as well, because its
// link is down until somebody sets it.
func (s *Snapshot) Neutral() *Snapshot {
	out := *s
	if s.VF != nil {
		out.VF = &VFState{
			MAC: s.VF.MAC, SpoofChk: s.VF.SpoofChk, Trust: s.VF.Trust, VLANProto: s.VF.VLANProto, LinkState: linkStates[0],
			NodeGUID: s.VF.NodeGUID, PortGUID: s.VF.PortGUID,
		}
		if s.VF.MAC == "" {
			out.VF.LinkState = s.VF.LinkState
		}
	}
	return &out
}

// Difference is one field that is not as wanted.
type Difference struct{ Field, Want, Found string }

// String renders the difference as a sentence.
func (d Difference) String() string {
	return fmt.Sprintf("%s: wanted %s, found %s", d.Field, d.Want, d.Found)
}

// Sentences joins the differences into a text for people.
func Sentences(differences []Difference) string {
	var out []string
	for _, d := range differences {
		out = append(out, d.String())
	}
	return strings.Join(out, ", ")
}

// Compare lists what differs in now from s, in a fixed order: what the PF keeps for a
// VF, if s has it; the driver; then the network device's presence, name, alias, MTU,
// settings, and MAC or GUID. If the PF cannot be asked now, or gives no answer, that is
// a difference too, because what was set is still in force.
//
// The network device is compared only if the driver is the same and there is at most
// one. Its index does not count, because it changes with each move, nor does its MAC if
// the PF gives the VF another.
func (s *Snapshot) Compare(now *Snapshot) []Difference {
	var out []Difference
	expect := func(field string, want, found any) {
		if want != found {
			out = append(out, Difference{field, text(want), text(found)})
		}
	}
	switch {
	case s.VF == nil:
	case now.VF == nil:
		out = append(out, Difference{fieldPF, "known", now.silence()})
	default:
		b, n := s.VF, now.VF
		if !s.sameMAC(now) {
			expect("MAC of the VF", b.MAC, n.MAC)
		}
		expect("VLAN of the VF", b.VLAN, n.VLAN)
		expect("VLAN QoS of the VF", b.VLANQoS, n.VLANQoS)
		if b.VLAN != 0 {
			expect("VLAN protocol of the VF", b.VLANProto, n.VLANProto)
		}
		expect("spoof check of the VF", b.SpoofChk, n.SpoofChk)
		expect("trust of the VF", b.Trust, n.Trust)
		expect("link state of the VF", b.LinkState, n.LinkState)
		expect("minimum rate of the VF", b.MinTxRate, n.MinTxRate)
		expect("maximum rate of the VF", b.MaxTxRate, n.MaxTxRate)
		if !s.sameGUID(b.NodeGUID, n.NodeGUID) {
			expect("node GUID of the VF", b.NodeGUID, n.NodeGUID)
		}
		if !s.sameGUID(b.PortGUID, n.PortGUID) {
			expect("port GUID of the VF", b.PortGUID, n.PortGUID)
		}
	}
	expect("driver", s.Driver, now.Driver)
	if len(s.NetDevs) == 1 && len(now.NetDevs) == 0 && s.Driver == now.Driver {
		expect("network device", s.NetDevs[0].Name, "")
	}
	if was, is := s.single(now); was != nil {
		expect("network device", was.Name, is.Name)
		expect("alias of "+was.Name, was.Alias, is.Alias)
		expect("MTU of "+was.Name, was.MTU, is.MTU)
		out = append(out, was.Settings.differences(was.Name, is.Settings)...)
		if s.ownMAC(now) {
			field, want := was.identity()
			_, found := is.identity()
			expect(field+" of "+was.Name, want, found)
		}
	}
	return out
}

// fieldPF is the field of the difference that the PF's state for a VF cannot be
// compared.
const fieldPF = "state of the VF on its PF"

// silence tells why the PF's state for the VF is unknown.
func (s *Snapshot) silence() string {
	if s.PF == "" {
		return "unknown, because the PF has no network device here"
	}
	return "unknown, because " + s.PF + " does not report it"
}

// text formats a value for people.
func text(v any) string {
	switch v {
	case true:
		return "on"
	case false:
		return "off"
	case "":
		return "none"
	}
	return fmt.Sprint(v)
}

// sameMAC reports whether the PF gives the VF the same MAC as in s. A VF that was given
// none chooses its own, and tells the PF when it is first set up. An InfiniBand VF has
// none, but snapshots of older versions may have recorded one.
func (s *Snapshot) sameMAC(now *Snapshot) bool {
	b, n := s.VF.MAC, now.VF.MAC
	if b == "" || n == "" {
		return true
	}
	drawn := noMAC(b) && len(s.NetDevs) == 1 && n == s.NetDevs[0].MAC
	return b == n || drawn
}

// noMAC reports whether mac, as a PF keeps it for a VF, means none: all zeros.
func noMAC(mac string) bool { return strings.Trim(mac, "0:") == "" }

// ownMAC reports whether the only network device of s must have its own MAC now: either
// the PF gave it that MAC in s, or the PF gives it no other, neither in s nor now. A VF
// that was given another may not choose its own.
func (s *Snapshot) ownMAC(now *Snapshot) bool {
	own := s.NetDevs[0].MAC
	if guidOf(own) != "" {
		return s.keptGUID(now)
	}
	if s.VF != nil && s.VF.MAC == own {
		return true
	}
	free := func(v *VFState) bool { return v == nil || noMAC(v.MAC) || v.MAC == own }
	return free(s.VF) && free(now.VF)
}

// single returns the only network device of a device, in s and in now. It returns nil
// if there is none or, as with subfunctions, more than one, or if the driver changed.
func (s *Snapshot) single(now *Snapshot) (was, is *NetDev) {
	if len(s.NetDevs) != 1 || len(now.NetDevs) != 1 || s.Driver != now.Driver {
		return nil, nil
	}
	return &s.NetDevs[0], &now.NetDevs[0]
}
