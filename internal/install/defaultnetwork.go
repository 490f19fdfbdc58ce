package install

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/planner"
)

// Times of an installation that waits for the cluster default network. waitPause is the
// pause between two looks at the disk. askPause is the pause between two requests to
// the API server, because all nodes of a new cluster wait at the same time. askTime
// bounds one request, during which the disk is not looked at either.
const (
	waitPause = 500 * time.Millisecond
	askPause  = 10 * time.Second
	askTime   = 10 * time.Second
)

// awaitConfig returns the configuration that the runtime is to read. While the cluster
// default network is missing, it tries again until Wait is over: on a new node the
// network's plugin may come later, and a runtime that finds a configuration before that
// would report the node as ready.
func (i *Installer) awaitConfig(ctx context.Context, out io.Writer) ([]byte, error) {
	definition, done := i.definition(ctx)
	defer done()
	for end, said := time.Now().Add(i.Wait), false; ; said = true {
		conf, err := i.pluginConfig()
		if err == nil {
			err = i.checkDefault(conf, definition)
			if i.Wait == 0 && cnierr.Is(err, cnierr.NotReady) { // the administrator who named it is trusted
				err = nil
			}
		}
		if !cnierr.Is(err, cnierr.NotReady) || !time.Now().Before(end) {
			return conf, err
		}
		if !said {
			fmt.Fprintln(out, "waiting:", err)
		}
		select {
		case <-ctx.Done():
			return nil, cnierr.New("install", cnierr.NotReady, "stopped while waiting: %w", err)
		case <-time.After(waitPause):
		}
	}
}

// checkDefault returns why the cluster default network that a configuration names is
// missing or would refuse every pod. It does not check the network in place again: an
// upgrade does not wait.
func (i *Installer) checkDefault(raw []byte, definition netconf.Definition) error {
	conf, _, err := configfile.Plugin(i.confFile(), raw)
	if err != nil {
		return err
	}
	if had := i.inPlace(); had.Type != "" && had.ClusterNetwork == conf.ClusterNetwork {
		return nil
	}
	if filepath.Clean(conf.ClusterNetwork) == i.confFile() {
		return cnierr.New("find cluster default network", cnierr.InvalidConfig, "%s is Manifold's own configuration", conf.ClusterNetwork).
			WithFix("name another network")
	}
	network, err := conf.ClusterDefault(definition)
	if err != nil {
		return err
	}
	return (*planner.Parsed)(nil).Check(network, conf.Type)
}

// definition returns a function that looks up a definition which may be the cluster
// default network. It asks at most once per askPause. done frees its connections.
func (i *Installer) definition(ctx context.Context) (_ netconf.Definition, done func()) {
	c, err := i.agentConfig()
	if err != nil { // Install reports the error later; until then there are no definitions
		c = &configfile.Agent{}
	}
	look, done := agent.DefaultNetwork(c)
	pause, limit := cmp.Or(i.askPause, askPause), cmp.Or(i.askTime, askTime)
	var asked time.Time
	var config json.RawMessage
	return func(namespace, name string) (json.RawMessage, error) {
		if time.Since(asked) >= pause {
			asking, stop := context.WithTimeout(ctx, limit)
			config, err = look(asking, namespace, name)
			stop()
			asked = time.Now()
		}
		return config, err
	}, done
}
