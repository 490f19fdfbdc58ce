package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/podresources"
)

// Check is one part of readiness. Checks are cheap, and ask no API server.
type Check struct {
	Name  string
	Ready func(context.Context) error // nil, or why not
}

// checks puts together what must hold for plans to be made.
func (a *Assembly) checks(c *Config, pods func() error) {
	a.Checks = append(a.Checks, Check{"pods", func(context.Context) error { return pods() }})
	if ready := a.Sources.Ready; ready != nil {
		a.Checks = append(a.Checks, Check{"definitions", func(context.Context) error { return ready() }})
	}
	if c.PodResources != "" || c.Checkpoint != "" {
		a.Checks = append(a.Checks, Check{"kubelet", c.kubeletReady})
	}
	if a.slices != nil {
		a.Checks = append(a.Checks, Check{"resource slices", func(context.Context) error { return slicesReady(a.slices) }})
	}
	if c.CNIConfig != "" {
		local := a.Sources.Local
		if local == nil {
			local = a.Sources.Definitions
		}
		a.Checks = append(a.Checks, Check{"default network", func(ctx context.Context) error { return defaultNetworkReady(ctx, c.CNIConfig, local) }})
	}
}

// podsReady returns why no source knows the node's pods at present. watched is
// the API server's pods where they are followed, nil where they are not.
func podsReady(c *Config, kubelet *podresources.Pods, watched *kube.PodInformer) func() error {
	return func() error {
		problems := []error{errors.New("no source of pods answers")}
		if kubelet != nil {
			if kubelet.HasSynced() {
				return nil
			}
			problems = append(problems, fmt.Errorf("the kubelet's Pods API at %s is not heard from", c.PodsAPI))
		}
		if watched != nil {
			if watched.HasSynced() || watched.Forbidden() != nil { // then each is asked for
				return nil
			}
			_, err := watched.Failing()
			problems = append(problems, errors.New("pods are not synced from the API server"), err)
		}
		if c.PodManifests != "" {
			_, err := os.ReadDir(c.PodManifests)
			if err == nil {
				return nil
			}
			problems = append(problems, err)
		}
		return errors.Join(problems...)
	}
}

// slicesReady returns why what claims' devices are cannot be looked up.
func slicesReady(s *kube.Slices) error {
	if s.HasSynced() {
		return nil
	}
	_, err := s.Failing()
	return errors.Join(errors.New("ResourceSlices are not synced from the API server"), err)
}

// dialTime bounds connecting to the kubelet: its socket is local.
const dialTime = 2 * time.Second

// kubeletReady reports whether allocations can be read: a connection is made to
// the PodResources API, and no call, of which the kubelet serves few per second.
// Where only the checkpoint is configured, a kubelet that has allocated nothing
// yet has none.
func (c *Config) kubeletReady(ctx context.Context) error {
	if c.PodResources == "" {
		_, err := os.Stat(c.Checkpoint)
		if errors.Is(err, fs.ErrNotExist) {
			_, err = os.Stat(filepath.Dir(c.Checkpoint))
		}
		return err
	}
	conn, err := (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "unix", c.PodResources)
	if err != nil {
		return err
	}
	return conn.Close()
}

// defaultNetworkReady reports whether the cluster default network that the
// plugin's configuration names is there: as a definition, or on disk.
func defaultNetworkReady(ctx context.Context, file string, definitions kube.Definitions) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	conf, _, err := pluginConf(file, raw)
	if err != nil {
		return err
	}
	_, err = conf.ClusterDefault(func(namespace, name string) (json.RawMessage, error) {
		return configOf(ctx, definitions, namespace, name)
	})
	return err
}

// pluginConf returns the configuration of the plugin in a file of the runtime's
// directory, single or list: decoded, and as the runtime gives it to the plugin.
func pluginConf(file string, raw []byte) (*netconf.Conf, json.RawMessage, error) {
	op := "read " + file
	doc, err := parseDocument(op, raw)
	if err != nil {
		return nil, nil, err
	}
	for _, p := range doc.plugins {
		if stringValue(p["type"]) != "manifold" {
			continue
		}
		for _, key := range []string{"name", "cniVersion"} { // as libcni passes them on
			if v, ok := doc.list[key]; ok {
				p[key] = v
			}
		}
		raw, err := json.Marshal(p)
		if err != nil {
			return nil, nil, cnierr.New(op, cnierr.Decode, "%w", err)
		}
		inv, err := netconf.FromRequest(plan.Request{Config: raw})
		if err != nil {
			return nil, nil, err
		}
		return &inv.Conf, raw, nil
	}
	return nil, nil, cnierr.New(op, cnierr.InvalidConfig, `it has no plugin of type "manifold"`)
}

// ReadPluginConfig reads the plugin's configuration in a file of the runtime's
// directory, and returns it with what is wrong in it and harms nothing.
func ReadPluginConfig(file string) (*netconf.Conf, []Finding, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, cnierr.New("read "+file, cnierr.IO, "%w", err)
	}
	conf, _, err := pluginConf(file, raw)
	if err != nil {
		return nil, nil, err
	}
	return conf, ValidateConfig(raw), nil
}
