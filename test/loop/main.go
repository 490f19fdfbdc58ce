// Command loop is what a careful runtime would do without Manifold: a CNI plugin
// that runs a list of networks with libcni, in order, and undoes them in reverse on
// failure and on DEL, without journal, lock or verification. The kill-point test
// runs it next to Manifold to show what the reference delegates themselves leave
// behind after a kill.
//
// Its configuration has "networks", a list of configuration lists, and "cniDir",
// libcni's directory.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manifold-cni/manifold/internal/killpoint"
)

func main() {
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del}, version.All, "careful loop over libcni")
}

// loop holds libcni and the networks of one call.
type loop struct {
	cni   *libcni.CNIConfig
	lists []*libcni.NetworkConfigList
	args  *skel.CmdArgs
}

func newLoop(a *skel.CmdArgs) (*loop, error) {
	var conf struct {
		CNIDir   string            `json:"cniDir"`
		Networks []json.RawMessage `json:"networks"`
	}
	if err := json.Unmarshal(a.StdinData, &conf); err != nil {
		return nil, err
	}
	l := &loop{cni: libcni.NewCNIConfigWithCacheDir(filepath.SplitList(a.Path), conf.CNIDir, nil), args: a}
	for _, raw := range conf.Networks {
		list, err := libcni.NetworkConfFromBytes(raw)
		if err != nil {
			return nil, err
		}
		l.lists = append(l.lists, list)
	}
	return l, nil
}

func (l *loop) runtimeConf(i int) *libcni.RuntimeConf {
	ifName := l.args.IfName
	if i > 0 {
		ifName = fmt.Sprintf("net%d", i)
	}
	return &libcni.RuntimeConf{ContainerID: l.args.ContainerID, NetNS: l.args.Netns, IfName: ifName}
}

func add(a *skel.CmdArgs) error {
	l, err := newLoop(a)
	if err != nil {
		return err
	}
	var first types.Result
	for i, list := range l.lists {
		killpoint.Here("delegate next")
		res, err := l.cni.AddNetworkList(context.Background(), list, l.runtimeConf(i))
		if err != nil {
			return errors.Join(err, l.release(i))
		}
		killpoint.Here("delegate added")
		if i == 0 {
			first = res
		}
	}
	if first == nil {
		first = &types100.Result{}
	}
	return types.PrintResult(first, "1.0.0")
}

func del(a *skel.CmdArgs) error {
	l, err := newLoop(a)
	if err != nil {
		return err
	}
	return l.release(len(l.lists) - 1)
}

// release runs DEL of networks last to 0 and continues past failures.
func (l *loop) release(last int) error {
	var errs []error
	for i := last; i >= 0; i-- {
		errs = append(errs, l.cni.DelNetworkList(context.Background(), l.lists[i], l.runtimeConf(i)))
		killpoint.Here("delegate released")
	}
	return errors.Join(errs...)
}
