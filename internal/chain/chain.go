// Package chain reads network configurations as libcni runs them. It is for
// configurations that libcni recorded, that Multus kept or that a file holds: no plan
// made them, and package netattach would refuse some. Releasing a sandbox and handing
// it over to Multus use the same judgement.
//
// Nothing here does I/O, and every configuration may be hostile.
package chain

import (
	"encoding/json"
	"errors"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// op is the operation that this package's errors name.
const op = "read network configuration"

// List parses a network configuration as written. A single configuration becomes a list
// of one plugin.
func List(raw json.RawMessage) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(raw)
	if err == nil && len(list.Plugins) > 0 {
		return list, nil
	}
	var single struct {
		Name       string          `json:"name"`
		CNIVersion string          `json:"cniVersion"`
		Plugins    json.RawMessage `json:"plugins"`
	}
	if e := json.Unmarshal(raw, &single); e != nil || err != nil && single.Plugins != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", errors.Join(err, e))
	}
	wrapped, err := json.Marshal(map[string]any{"name": single.Name, "cniVersion": single.CNIVersion, "plugins": []json.RawMessage{raw}})
	if err == nil {
		list, err = libcni.NetworkConfFromBytes(wrapped)
	}
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	return list, nil
}

// Programs returns the programs of a chain, including those of its IPAM.
func Programs(list *libcni.NetworkConfigList) (programs []string) {
	for _, p := range list.Plugins {
		programs = append(programs, p.Network.Type)
		if ipam := p.Network.IPAM.Type; ipam != "" {
			programs = append(programs, ipam)
		}
	}
	return programs
}

// Runnable returns the configuration of a recorded attachment, or an error if it can
// never be run and never was.
func Runnable(a *libcni.NetworkAttachment) (*libcni.NetworkConfigList, error) {
	list, err := List(a.Config)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(a.Network); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "name %.64q: %w", a.Network, err)
	}
	if _, _, _, err := version.ParseVersion(list.CNIVersion); err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "cniVersion %.64q: %w", list.CNIVersion, err)
	}
	for _, program := range Programs(list) {
		if filepath.Base(program) != program || program == "." || program == ".." {
			return nil, cnierr.New(op, cnierr.InvalidConfig, "%.64q is not the plain name of a program", program)
		}
	}
	return list, nil
}
