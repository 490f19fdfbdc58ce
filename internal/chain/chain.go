// Package chain reads network configurations as libcni runs them: those that libcni
// recorded, Multus kept or a file has, which no plan made and package netattach would
// refuse in part. What releases a sandbox and what hands it over to Multus judge by it
// alike.
//
// Nothing here does I/O, and every configuration is hostile.
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

// op is what an error of this package was made in.
const op = "read network configuration"

// List parses a network configuration as written, and returns a single one as a list
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

// Programs returns the programs of a chain, those of its IPAM included.
func Programs(list *libcni.NetworkConfigList) (programs []string) {
	for _, p := range list.Plugins {
		programs = append(programs, p.Network.Type)
		if ipam := p.Network.IPAM.Type; ipam != "" {
			programs = append(programs, ipam)
		}
	}
	return programs
}

// Runnable returns the configuration of what is known of an attachment, or why it can
// never be run, nor ever was.
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
