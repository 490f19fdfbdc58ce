// Command vfprops is a CNI plugin that sets the properties of a VF that its PF
// keeps, with the keys of the SR-IOV CNI plugin: vlan, vlanQoS, vlanProto, mac,
// spoofchk, trust, link_state, min_tx_rate, max_tx_rate. In a chain it comes before
// a plugin that moves the VF. The VF is the injected "deviceID".
//
// Its DEL restores the properties of an unused VF: no VLAN, no rate, spoof check
// on, trust off, and the link state of the PF. It does not know the earlier values.
//
// "lie" lists keys that it silently leaves unset; if DEL is among them, its DEL
// does nothing. While the file "refuse" exists, its DEL fails.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

type config struct {
	types.NetConf
	DeviceID  string   `json:"deviceID"`
	VLAN      *int     `json:"vlan"`
	VLANQoS   int      `json:"vlanQoS"`
	VLANProto string   `json:"vlanProto"`
	MAC       string   `json:"mac"`
	SpoofChk  string   `json:"spoofchk"`
	Trust     string   `json:"trust"`
	LinkState string   `json:"link_state"`
	MinTxRate *int     `json:"min_tx_rate"`
	MaxTxRate *int     `json:"max_tx_rate"`
	Lie       []string `json:"lie"`
	Refuse    string   `json:"refuse"`
}

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: func(*skel.CmdArgs) error { return nil }}, version.All, "VF properties test delegate")
}

// vf is a VF as its PF knows it.
type vf struct {
	addr  string
	pf    netlink.Link
	index int
}

// find finds a VF by its PCI address. The error satisfies errors.Is(err,
// os.ErrNotExist) if the VF is not on this node.
func find(addr string) (*vf, error) {
	pf := filepath.Join("/sys/bus/pci/devices", addr, "physfn")
	names, err := os.ReadDir(filepath.Join(pf, "net"))
	if err != nil {
		return nil, err
	}
	if len(names) != 1 {
		return nil, fmt.Errorf("the PF of %s has %d network devices", addr, len(names))
	}
	link, err := netlinksafe.LinkByName(names[0].Name())
	if err != nil {
		return nil, err
	}
	functions, err := filepath.Glob(filepath.Join(pf, "virtfn*"))
	if err != nil {
		return nil, err
	}
	for _, file := range functions {
		target, err := os.Readlink(file)
		if err != nil || filepath.Base(target) != addr {
			continue
		}
		v := &vf{addr: addr, pf: link}
		_, err = fmt.Sscanf(filepath.Base(file), "virtfn%d", &v.index)
		return v, err
	}
	return nil, fmt.Errorf("%s is not a VF of its PF: %w", addr, os.ErrNotExist)
}

func add(a *skel.CmdArgs) error {
	var c config
	if err := json.Unmarshal(a.StdinData, &c); err != nil {
		return err
	}
	v, err := find(c.DeviceID)
	if err != nil {
		return err
	}
	if err := v.set(&c); err != nil {
		return err
	}
	if c.RawPrevResult == nil {
		return types.PrintResult(&types100.Result{CNIVersion: types100.ImplementedSpecVersion}, c.CNIVersion)
	}
	if err := version.ParsePrevResult(&c.NetConf); err != nil {
		return err
	}
	return types.PrintResult(c.PrevResult, c.CNIVersion)
}

// set sets what the configuration asks for, except for the lies.
func (v *vf) set(c *config) error {
	var problems []error
	do := func(key string, asked bool, set func() error) {
		if !asked || slices.Contains(c.Lie, key) {
			return
		}
		if err := set(); err != nil {
			problems = append(problems, fmt.Errorf("%s of VF %d: %w", key, v.index, err))
		}
	}
	qos, proto := c.VLANQoS, unix.ETH_P_8021Q
	if slices.Contains(c.Lie, "vlanQoS") {
		qos = 0
	}
	if strings.EqualFold(c.VLANProto, "802.1ad") && !slices.Contains(c.Lie, "vlanProto") {
		proto = unix.ETH_P_8021AD
	}
	do("vlan", c.VLAN != nil, func() error { return netlink.LinkSetVfVlanQosProto(v.pf, v.index, *c.VLAN, qos, proto) })
	// Set before trust: igb takes the MAC of a trusted VF from the VF's driver, and
	// the PF's MAC is lost.
	do("mac", c.MAC != "", func() error {
		mac, err := net.ParseMAC(c.MAC)
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetVfHardwareAddr(v.pf, v.index, mac), v.cycle())
	})
	do("spoofchk", c.SpoofChk != "", func() error { return netlink.LinkSetVfSpoofchk(v.pf, v.index, c.SpoofChk == "on") })
	do("trust", c.Trust != "", func() error { return netlink.LinkSetVfTrust(v.pf, v.index, c.Trust == "on") })
	do("link_state", c.LinkState != "", func() error { return v.setLinkState(c.LinkState) })
	do("min_tx_rate", c.MinTxRate != nil, func() error { return netlink.LinkSetVfRate(v.pf, v.index, *c.MinTxRate, 0) })
	do("max_tx_rate", c.MaxTxRate != nil, func() error {
		least := 0
		if c.MinTxRate != nil {
			least = *c.MinTxRate
		}
		return netlink.LinkSetVfRate(v.pf, v.index, least, *c.MaxTxRate)
	})
	return errors.Join(problems...)
}

// cycle sets the VF's network device up and down if it is on the host: only then
// does its driver adopt the PF's MAC.
func (v *vf) cycle() error {
	names, err := os.ReadDir(filepath.Join("/sys/bus/pci/devices", v.addr, "net"))
	if err != nil || len(names) != 1 {
		return nil // it has no network device, or the device is in a pod
	}
	link, err := netlinksafe.LinkByName(names[0].Name())
	if err != nil {
		return err
	}
	return errors.Join(netlink.LinkSetUp(link), netlink.LinkSetDown(link))
}

func (v *vf) setLinkState(name string) error {
	state := slices.Index([]string{"auto", "enable", "disable"}, name)
	if state < 0 {
		return fmt.Errorf("link state %q is unknown", name)
	}
	return netlink.LinkSetVfState(v.pf, v.index, uint32(state))
}

// del resets what the configuration had set. A VF that left the node needs nothing.
func del(a *skel.CmdArgs) error {
	var c config
	if err := json.Unmarshal(a.StdinData, &c); err != nil {
		return err
	}
	if _, err := os.Stat(c.Refuse); err == nil {
		return fmt.Errorf("refused while %s exists", c.Refuse)
	}
	v, err := find(c.DeviceID)
	if errors.Is(err, os.ErrNotExist) || slices.Contains(c.Lie, "DEL") {
		return nil
	}
	if err != nil {
		return err
	}
	none := 0
	neutral := config{MinTxRate: c.MinTxRate, MaxTxRate: c.MaxTxRate}
	if c.VLAN != nil {
		neutral.VLAN = &none
	}
	if c.SpoofChk != "" {
		neutral.SpoofChk = "on"
	}
	if c.Trust != "" {
		neutral.Trust = "off"
	}
	if c.LinkState != "" {
		neutral.LinkState = "auto"
	}
	for _, rate := range []**int{&neutral.MinTxRate, &neutral.MaxTxRate} {
		if *rate != nil {
			*rate = &none
		}
	}
	return v.set(&neutral)
}
