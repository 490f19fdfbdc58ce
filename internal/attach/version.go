package attach

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// oldest is the version of a configuration that names none (CNI specification).
const oldest = "0.1.0"

// versioned gives a network without a CNI version the highest that the runtime and all
// its programs support. libcni would use the oldest, and lose what its results cannot
// express: interfaces, MACs, CHECK, STATUS and GC. The plan records the version, so
// that DEL and CHECK use the same. When a program does not answer in time, versioned
// returns the list unchanged with the error.
func (r *run) versioned(ctx context.Context, list *libcni.NetworkConfigList) (*libcni.NetworkConfigList, error) {
	if list.CNIVersion != "" {
		return list, nil
	}
	const op = "read network configuration"
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &keys); err != nil {
		return list, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
	}
	speaks, err := r.spoken(ctx, list)
	if err != nil {
		return list, err
	}
	chosen, err1 := json.Marshal(speaks)
	keys["cniVersion"] = chosen
	raw, err2 := json.Marshal(keys)
	out, err3 := chain.List(raw)
	for _, err := range []error{err1, err2, err3} {
		if err != nil {
			return list, cnierr.New(op, cnierr.InvalidConfig, "%w", err)
		}
	}
	return out, nil
}

// spoken returns the highest version that the runtime and all programs of a chain
// support, IPAM plugins included. It is the oldest when a program does not tell its
// versions, or when they have none in common. A program that hangs is an error, since
// it may answer differently another time.
func (r *run) spoken(ctx context.Context, list *libcni.NetworkConfigList) (string, error) {
	asking, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
	defer cancel()
	defer func(step string) { r.exec.step = step }(r.exec.step)
	r.exec.step = plan.StepVersion
	common := version.All.SupportedVersions()
	common = slices.DeleteFunc(slices.Clone(common), func(v string) bool {
		newer, err := version.GreaterThan(v, r.inv.Conf.CNIVersion)
		return err != nil || newer
	})
	for _, program := range chain.Programs(list) {
		info, err := r.cni.GetVersionInfo(asking, program)
		if err != nil && asking.Err() != nil {
			return "", err
		}
		if err != nil {
			r.warn("network %s has no cniVersion, and its plugin %s does not tell which versions it supports; %s is used: %v", list.Name, program, oldest, err)
			return oldest, nil
		}
		common = slices.DeleteFunc(common, func(v string) bool { return !slices.Contains(info.SupportedVersions(), v) })
	}
	if len(common) == 0 {
		return oldest, nil
	}
	return common[len(common)-1], nil // sorted, oldest first
}
