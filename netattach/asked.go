package netattach

import (
	"encoding/json"
	"fmt"
)

// Asked is what a configuration asks of its interface, to be compared with the outcome.
// Zero and nil fields ask for nothing.
type Asked struct {
	MTU int
	MAC string
	// VFMAC is the MAC that the PF is to keep for a VF. SetsVFMAC reports that a plugin
	// which sets that MAC takes it by the capability "mac".
	VFMAC     string
	SetsVFMAC bool
	// The PF-side state of a VF, by the SR-IOV CNI's keys.
	VLAN, VLANQoS, MinTxRate, MaxTxRate   *int // rates in Mbit/s
	VLANProto, SpoofChk, Trust, LinkState string
}

// settles are the plugins whose "mtu" is the interface's own MTU. The plugin dummy has no
// such key, and ignores one that is there.
var settles = map[string]bool{
	"bridge": true, "macvlan": true, "ipvlan": true, "ptp": true, "vlan": true, "tuning": true,
}

// sriovTypes are the plugins that set VF properties by the SR-IOV CNI's keys. In other
// plugins "vlan" and "trust" mean other things, such as the bridge's port VLAN.
var sriovTypes = map[string]bool{"sriov": true, "ib-sriov": true, "accelerated-bridge": true, "vfprops": true}

// Asked returns what the chain asks of its interface. A later plugin overrides an
// earlier one. cniArgs are the selection's arguments, nil for none; tuning prefers
// them, and those of the definition, to its own keys. A key of the wrong type is an
// error, because the plugin could not honor it either.
func (c *Config) Asked(cniArgs map[string]json.RawMessage) (Asked, error) {
	var a Asked
	for i := range c.plugins {
		p := &c.plugins[i]
		if err := p.ask(&a, cniArgs); err != nil {
			return Asked{}, &Error{Entry: fmt.Sprintf("plugin %d (%s)", i+1, p.Type), Err: err}
		}
	}
	return a, nil
}

func (p *plugin) ask(a *Asked, cniArgs map[string]json.RawMessage) error {
	var mtu *int
	if settles[p.Type] {
		if err := p.read("mtu", &mtu); err != nil {
			return err
		}
	}
	if mtu != nil && *mtu > 0 {
		a.MTU = *mtu
	}
	if p.Type == "tuning" {
		if err := p.read("mac", &a.MAC); err != nil {
			return err
		}
		return p.askByArgs(a, cniArgs)
	}
	if !sriovTypes[p.Type] {
		return nil
	}
	fields := []struct {
		key  string
		into any
	}{
		{"mac", &a.VFMAC}, {"vlan", &a.VLAN}, {"vlanQoS", &a.VLANQoS}, {"vlanProto", &a.VLANProto}, {"spoofchk", &a.SpoofChk},
		{"trust", &a.Trust}, {"link_state", &a.LinkState}, {"min_tx_rate", &a.MinTxRate}, {"max_tx_rate", &a.MaxTxRate},
	}
	if p.Type == "accelerated-bridge" {
		fields = fields[:1] // its VLAN is that of the representor, a port of the bridge
	}
	for _, f := range fields {
		if err := p.read(f.key, f.into); err != nil {
			return err
		}
	}
	if a.VFMAC != "" {
		a.MAC = a.VFMAC
	}
	a.SetsVFMAC = a.SetsVFMAC || p.Capabilities["mac"]
	return nil
}

// askByArgs reads what the arguments ask of tuning. Those of the selection override the
// definition's.
func (p *plugin) askByArgs(a *Asked, cniArgs map[string]json.RawMessage) error {
	merged := map[string]json.RawMessage{"args": p.keys["args"]}
	if merged["args"] == nil {
		delete(merged, "args")
	}
	if err := mergeArgs(merged, RenderOptions{CNIArgs: cniArgs}); err != nil || merged["args"] == nil {
		return err
	}
	var args struct {
		CNI struct {
			MAC *string `json:"mac"`
			MTU *int    `json:"mtu"`
		} `json:"cni"`
	}
	if err := json.Unmarshal(merged["args"], &args); err != nil {
		return &Error{Field: "args", Text: clip(string(merged["args"])) + " is of the wrong type", Err: err}
	}
	if args.CNI.MAC != nil {
		a.MAC = *args.CNI.MAC
	}
	if args.CNI.MTU != nil {
		a.MTU = max(0, *args.CNI.MTU)
	}
	return nil
}

// read decodes a key if it is present.
func (p *plugin) read(key string, into any) error {
	raw, ok := p.keys[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return &Error{Field: key, Text: clip(string(raw)) + " is of the wrong type", Err: err}
	}
	return nil
}
