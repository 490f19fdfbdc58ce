package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/podresources"
)

// Check is one part of readiness. Checks are cheap and do not ask the API server.
type Check struct {
	Name  string
	Ready func(context.Context) error // returns nil, or why the part is not ready
}

// checks adds the checks that must hold before plans can be made.
func (a *Assembly) checks(c *configfile.Agent, pods func() error) {
	a.Checks = append(a.Checks, Check{"pods", func(context.Context) error { return pods() }})
	if ready := a.Sources.Ready; ready != nil {
		a.Checks = append(a.Checks, Check{"definitions", func(context.Context) error { return ready() }})
	}
	if c.PodResources != "" || c.Checkpoint != "" {
		a.Checks = append(a.Checks, Check{"kubelet", func(ctx context.Context) error { return kubeletReady(ctx, c) }})
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

// podsReady returns a check that at least one source knows the node's pods. watched is
// the watch of pods at the API server; nil if there is none.
func podsReady(c *configfile.Agent, kubelet *podresources.Pods, watched *kube.PodInformer) func() error {
	return func() error {
		problems := []error{errors.New("no source of pods answers")}
		if kubelet != nil {
			if kubelet.HasSynced() {
				return nil
			}
			problems = append(problems, fmt.Errorf("the kubelet's Pods API at %s does not answer", c.PodsAPI))
		}
		if watched != nil {
			if watched.HasSynced() || watched.Forbidden() != nil { // where forbidden, each pod is asked for
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

// slicesReady returns why the devices of claims cannot be looked up, or nil.
func slicesReady(s *kube.Slices) error {
	if s.HasSynced() {
		return nil
	}
	_, err := s.Failing()
	return errors.Join(errors.New("ResourceSlices are not synced from the API server"), err)
}

// dialTime bounds connecting to the kubelet: its socket is local.
const dialTime = 2 * time.Second

// kubeletReady reports whether allocations can be read. It connects to the PodResources
// API but makes no call, since the kubelet serves only a few per second. Where only the
// checkpoint is configured, the file may be missing: a kubelet that has allocated
// nothing yet has none.
func kubeletReady(ctx context.Context, c *configfile.Agent) error {
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
