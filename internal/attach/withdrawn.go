package attach

import (
	"encoding/json"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
)

// When Manifold is uninstalled while sandboxes still have more than the default
// network, the plugin stays in the chain after the primary network's own plugins (the
// key releaseOnly). The runtime creates interfaces without it, and DELs still arrive
// here. No agent runs then.

// passOver is ADD of a plugin that attaches nothing. It returns the result of the
// plugins before it.
func (e *Engine) passOver(inv *netconf.Invocation) (types.Result, error) {
	const op = "pass the result on"
	var conf struct {
		PrevResult json.RawMessage `json:"prevResult"`
	}
	if err := json.Unmarshal(inv.Raw, &conf); err != nil {
		return nil, cnierr.New(op, cnierr.Decode, "%w", err)
	}
	result, err := create.Create(inv.Conf.CNIVersion, conf.PrevResult)
	if err != nil {
		return nil, cnierr.New(op, cnierr.InvalidConfig, "key %q: %w", "prevResult", err).
			WithFix("put the primary network's plugins first in a configuration with the key releaseOnly: run 'manifold-agent uninstall' again, or 'manifold-agent install'")
	}
	e.leave(inv)
	return result, nil
}

// leave removes the plugin from the runtime's configuration once no sandbox needs it
// any more. A failure does not concern the pod: the next call tries again.
func (e *Engine) leave(inv *netconf.Invocation) {
	if inv.Conf.ReleaseOnly == "" {
		return
	}
	holding, err := e.Journal.Holding()
	if err == nil && !holding {
		err = netconf.RemoveReleaseOnly(inv.Conf.ReleaseOnly)
	}
	if err != nil {
		e.Log.Warn("the configuration that only releases pods stays", "file", inv.Conf.ReleaseOnly, "err", err)
	}
}
