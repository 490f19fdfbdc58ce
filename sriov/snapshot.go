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

// Host is a node's functions as they are and as they can be set: a sysfs tree,
// and the network devices that it names. The zero value is the running kernel's,
// in the network namespace of the calling thread; both must be of one namespace.
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

// Events tells of changes of the host's devices, see [Links].
func (h Host) Events(ctx context.Context) (<-chan struct{}, error) { return h.links().Events(ctx) }

// Snapshot is a device as it stands on the host, in a form that can be kept.
type Snapshot struct {
	NetDevs []NetDev `json:"netDevs,omitempty"`
	Driver  string   `json:"driver,omitempty"`
	// IOMMUGroup is that of a PCI function, see [Function].
	IOMMUGroup string `json:"iommuGroup,omitempty"`
	// PF is the PF's network device, through which a VF is set; empty unless the
	// device is a VF whose PF has one.
	PF      string   `json:"pf,omitempty"`
	VFIndex int      `json:"vfIndex,omitempty"` // -1 unless the device is a VF
	VF      *VFState `json:"vf,omitempty"`      // what the PF keeps for it; nil where the PF says nothing
	// Instance is that of a PCI function, see [Snapshot.SameFunction]; 0 where it
	// is not known.
	Instance uint64 `json:"instance,omitempty"`
}

// SameFunction reports whether now is of the PCI function that s is of, and not of
// one that got its address later in the same boot: what was so of the first one
// says nothing of the second. Where one of them does not know, it is the same.
func (s *Snapshot) SameFunction(now *Snapshot) bool {
	return s.Instance == 0 || now.Instance == 0 || s.Instance == now.Instance
}

// Snapshot takes down how a device stands. id is the address of a PCI function,
// the name of an auxiliary device, or that of a network device itself. The error
// satisfies errors.Is(err, [io/fs.ErrNotExist]) when there is no such device, and
// wraps [ErrOmitted] when its PF, asked again for moments, does not say how it keeps
// this VF.
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
	if err != nil {
		return nil, fmt.Errorf("sriov: %s is neither a PCI function nor an auxiliary device: %w: %w", quote(id), fs.ErrNotExist, err)
	}
	return &Snapshot{VFIndex: -1, NetDevs: []NetDev{link.NetDev}}, nil
}

// ErrOmitted is wrapped by errors about a VF that its PF leaves out of an answer which
// it gives for others, as drivers do while they reset it. It is no VF of which nothing
// is kept.
var ErrOmitted = errors.New("its PF does not say how it keeps this VF")

// errMute is ErrOmitted where the PF leaves out every VF: they are all being reset, or
// another host has the card's switch and this one's driver never knows.
var errMute = errors.New("its PF does not say how it keeps any VF")

// How often a PF is asked that leaves a VF out, and how long it is given in between;
// a reset takes a driver a part of a second. What may never come is not waited for as
// long. Some drivers, ice for one, wait for the reset themselves in each answer, and
// nobody can change a network device of the node meanwhile: then it is the time that counts.
const (
	omittedTries = 40
	muteTries    = 5
	answerPause  = 25 * time.Millisecond
	answerTime   = 3 * time.Second
)

// patiently takes down a PCI function, and asks a PF again that leaves the VF out.
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

// Snapshots takes down how functions stand that were read just now, by address.
// Each PF is asked once, however many of its VFs are among them: it answers for
// all of them. Functions of which something cannot be read are left out, with the
// reasons in the error.
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

// askPF returns the uplink of a PF with what it keeps for its VFs; nil where the
// PF has no network device, so that nobody can be asked.
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

// of returns what a PF's uplink keeps for one of its VFs; nil where there is none to
// ask, and where its driver has no answers about VFs at all.
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

// snapshot takes down a PCI function, whose PF is asked by ask. It is complete but for
// what the PF keeps also where the error is errMute.
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

// addNetDevs adds a device's network devices.
func (h Host) addNetDevs(s *Snapshot, names []string) error {
	for _, name := range names {
		link, err := h.links().Link(name)
		if errors.Is(err, ErrNoLink) {
			continue // it left between sysfs and netlink
		}
		if err != nil {
			return fmt.Errorf("sriov: %w", err)
		}
		s.NetDevs = append(s.NetDevs, link.NetDev)
	}
	return nil
}

// Neutral returns the snapshot as it would be of a VF that nobody uses: the PF
// keeps no VLAN and no rates for it, and leaves it its link state. MAC, GUIDs, spoof
// check and trust stay, since an administrator may have set them for all VFs; so does the
// link state of an InfiniBand VF, whose link is down until somebody sets it.
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

// Difference is one thing that is not as wanted.
type Difference struct{ Field, Want, Found string }

// String renders the difference as a sentence.
func (d Difference) String() string {
	return fmt.Sprintf("%s: wanted %s, found %s", d.Field, d.Want, d.Found)
}

// Sentences joins the differences for people.
func Sentences(differences []Difference) string {
	var out []string
	for _, d := range differences {
		out = append(out, d.String())
	}
	return strings.Join(out, ", ")
}

// Compare names what now is not as in s, in a fixed order: what the PF keeps for a
// VF, where s knows it, the driver, then the network device: that it is there, its
// name, alias, MTU, settings and MAC, or GUID. That the PF cannot be asked now, or has no answer, is a difference:
// nothing that was set is gone for that. The network device is compared while the driver is the same, and where there
// are not several; its index, which is another after each move, is not, nor is its
// MAC where the PF gives the VF another.
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

// fieldPF is the difference that what a PF keeps for a VF cannot be compared.
const fieldPF = "what the PF keeps for the VF"

// silence says why it is not known what the PF keeps for the VF.
func (s *Snapshot) silence() string {
	if s.PF == "" {
		return "unknown, since the PF has no network device here"
	}
	return "unknown, since " + s.PF + " does not say it"
}

// text words a value for people.
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

// sameMAC reports whether the PF gives the VF the MAC that it gave in s. A VF to
// which it gave none draws its own, and tells the PF when it is first up. An InfiniBand
// VF has none, which a snapshot of before that was known of does not say.
func (s *Snapshot) sameMAC(now *Snapshot) bool {
	b, n := s.VF.MAC, now.VF.MAC
	if b == "" || n == "" {
		return true
	}
	drawn := noMAC(b) && len(s.NetDevs) == 1 && n == s.NetDevs[0].MAC
	return b == n || drawn
}

// noMAC reports whether a PF that keeps mac for a VF gives it none: all zeros.
func noMAC(mac string) bool { return strings.Trim(mac, "0:") == "" }

// ownMAC reports whether the one network device of s must have its MAC now: the PF
// had given it that one, or has given it no other, neither in s nor now. A VF that
// was given another may not choose its own.
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

// single returns the one network device that a device has, in s and now; nil
// where there is none or, with subfunctions, more than one.
func (s *Snapshot) single(now *Snapshot) (was, is *NetDev) {
	if len(s.NetDevs) != 1 || len(now.NetDevs) != 1 || s.Driver != now.Driver {
		return nil, nil
	}
	return &s.NetDevs[0], &now.NetDevs[0]
}
