package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/planner"
)

// DefaultNetwork returns a function that looks up the configuration in the definition
// that is the cluster default network. It looks where an agent of this configuration
// would, with the credential of this process's pod if there is one. done frees its
// connections.
func DefaultNetwork(c *configfile.Agent) (look func(ctx context.Context, namespace, name string) (json.RawMessage, error), done func()) {
	source, done := definitionsOf(c)
	return func(ctx context.Context, namespace, name string) (json.RawMessage, error) {
		return configOf(ctx, source, namespace, name)
	}, done
}

// definitionsOf returns the source of definitions. If none can be connected, the source
// answers nothing.
func definitionsOf(c *configfile.Agent) (_ kube.Definitions, done func()) {
	a, err := &Assembly{}, error(nil)
	if c.APIServer == configfile.InCluster {
		_, a.Sources.Definitions, err = a.apiServer(c, true)
	}
	if c.APIServer != configfile.InCluster || err != nil { // on the host, without a pod's credential
		a, err = Assemble(c, true, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		return kube.FirstDefinitions(), func() {}
	}
	return a.Sources.Definitions, func() { _ = a.Close() } // all questions are answered
}

// configOf returns the configuration in the definition that is the cluster default
// network. It is nil for a definition that leaves the configuration to a file.
func configOf(ctx context.Context, source kube.Definitions, namespace, name string) (json.RawMessage, error) {
	def, err := source.Definition(ctx, namespace, name)
	kind, fix := cnierr.NotReady, "wait until the default network's plugin has written its configuration, or correct clusterNetwork"
	var config json.RawMessage
	switch {
	case errors.Is(err, kube.ErrInvalid) && !errors.Is(err, kube.ErrName):
		kind, fix = cnierr.InvalidDefinition, "correct the definition"
	case err != nil:
		err = fmt.Errorf("the cluster default network is not a definition: %w", err)
	default:
		config = json.RawMessage(strings.TrimSpace(def.Spec.Config))
		if len(config) > 0 && !json.Valid(config) { // nor could it be sent as JSON
			kind, fix, err = cnierr.InvalidDefinition, "correct the definition's spec.config", errors.New("spec.config is not JSON")
		}
	}
	if err != nil {
		return nil, cnierr.New("find cluster default network", kind, "%w", err).
			About(cnierr.Subject{Network: planner.Ref{Namespace: namespace, Name: name}.String()}).WithFix("%s", fix)
	}
	return config, nil
}

// defaultNetworkReady reports whether the cluster default network that the plugin's
// configuration names exists, as a definition or on disk.
func defaultNetworkReady(ctx context.Context, file string, definitions kube.Definitions) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	conf, _, err := configfile.Plugin(file, raw)
	if err != nil {
		return err
	}
	_, err = conf.ClusterDefault(func(namespace, name string) (json.RawMessage, error) {
		return configOf(ctx, definitions, namespace, name)
	})
	return err
}
