// Command probe tells what is on a node, as JSON: the containers that run, with
// their environment and the interfaces in their network namespace, as the
// container runtime's files and the kernel have it, not as the API server says.
//
// The labs run it on the node, which may be another machine than the test's.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/containernetworking/plugins/pkg/ns"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/cluster/nodestate"
)

func main() {
	containers, err := containers()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(containers)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

// tasks is where containerd keeps the bundles of what runs.
const tasks = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"

func containers() ([]nodestate.Container, error) {
	bundles, err := os.ReadDir(tasks)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	out := []nodestate.Container{}
	for _, b := range bundles {
		c, err := container(filepath.Join(tasks, b.Name()))
		if errors.Is(err, os.ErrNotExist) { // it ends, or has not begun
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", b.Name(), err)
		}
		c.ID = b.Name()
		out = append(out, *c)
	}
	return out, nil
}

// container reads a bundle.
func container(bundle string) (*nodestate.Container, error) {
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
		Process     struct {
			Env []string `json:"env"`
		} `json:"process"`
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, err
	}
	const prefix = "io.kubernetes.cri."
	c := &nodestate.Container{
		Kind: spec.Annotations[prefix+"container-type"], Sandbox: spec.Annotations[prefix+"sandbox-id"], Name: spec.Annotations[prefix+"container-name"],
		Pod: spec.Annotations[prefix+"sandbox-namespace"] + "/" + spec.Annotations[prefix+"sandbox-name"], UID: spec.Annotations[prefix+"sandbox-uid"],
		Env: map[string]string{},
	}
	for _, kv := range spec.Process.Env {
		key, value, _ := strings.Cut(kv, "=")
		c.Env[key] = value
	}
	pid, err := os.ReadFile(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return nil, err
	}
	if c.PID, err = strconv.Atoi(strings.TrimSpace(string(pid))); err != nil {
		return nil, err
	}
	c.Links, err = links(fmt.Sprintf("/proc/%d/ns/net", c.PID))
	return c, err
}

// links lists the interfaces of a network namespace but loopback.
func links(netns string) (out []nodestate.Link, err error) {
	err = ns.WithNetNSPath(netns, func(ns.NetNS) error {
		all, err := netlinksafe.LinkList()
		if err != nil {
			return err
		}
		for _, l := range all {
			a := l.Attrs()
			if a.Name == "lo" {
				continue
			}
			link := nodestate.Link{Name: a.Name, Kind: l.Type(), MAC: a.HardwareAddr.String(), Alias: a.Alias, Parent: a.ParentDev}
			addrs, err := netlinksafe.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			for _, addr := range addrs {
				link.Addresses = append(link.Addresses, addr.IP.String())
			}
			out = append(out, link)
		}
		return nil
	})
	var gone ns.NSPathNotExistErr
	if errors.As(err, &gone) {
		return nil, os.ErrNotExist
	}
	return out, err
}
