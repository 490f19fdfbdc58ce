package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/netattach"
)

// defaultRoutes returns the pod's default routes of an address family, preferred
// ones first, each as "gateway interface".
func (w *witness) defaultRoutes(p *pod, family int) []string {
	w.t.Helper()
	var routes []netlink.Route
	names := map[int]string{}
	w.must(p.ns.Do(func() error {
		links, err := netlinksafe.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		routes, err = netlinksafe.RouteList(nil, family)
		return err
	}))
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool {
		if r.Dst == nil {
			return false
		}
		ones, _ := r.Dst.Mask.Size()
		return ones != 0
	})
	sort.SliceStable(routes, func(i, j int) bool { return routes[i].Priority < routes[j].Priority })
	var out []string
	for _, r := range routes {
		out = append(out, fmt.Sprintf("%s %s", r.Gw, names[r.LinkIndex]))
	}
	return out
}

// defaultRoute checks that the gateways of the attachment that asks for it are the
// pod's only default routes, in order. An empty list leaves no default route.
func (w *witness) defaultRoute() {
	w.network("net", map[string]any{"addresses": []string{"10.95.0.2/24", "fd00:95::2/64"}})
	w.define("routed", "", strings.Replace(w.bridge("plain", "10.89.0.0/16"), `"ipam":{`, `"ipam":{"routes":[{"dst":"0.0.0.0/0","gw":"10.89.0.1"}],`, 1))
	for name, tc := range map[string]struct {
		annotation string
		v4, v6     []string
	}{
		"not requested": {`[{"name":"net"},{"name":"routed"}]`, []string{"10.88.0.1 eth0", "10.89.0.1 net2"}, nil},
		"gateways": {
			`[{"name":"net","default-route":["10.95.0.254","fd00:95::fe","10.95.0.1","fd00:95::1"]},{"name":"routed"}]`,
			[]string{"10.95.0.254 net1", "10.95.0.1 net1"}, []string{"fd00:95::fe net1", "fd00:95::1 net1"},
		},
		"instead of its own": {`[{"name":"net"},{"name":"routed","default-route":["10.89.0.7"]}]`, []string{"10.89.0.7 net2"}, nil},
		"empty list":         {`[{"name":"net","default-route":[]},{"name":"routed"}]`, nil, nil},
	} {
		p := w.addPod("app-"+strings.ReplaceAll(name, " ", "-"), tc.annotation)
		w.succeed("ADD", p)
		v4, v6 := w.defaultRoutes(p, netlink.FAMILY_V4), w.defaultRoutes(p, netlink.FAMILY_V6)
		if tc.v6 == nil {
			slices.Sort(v4) // routes with the same metric have no guaranteed order
		}
		if !slices.Equal(v4, tc.v4) || !slices.Equal(v6, tc.v6) {
			w.t.Errorf("%s: default routes %q %q, want %q %q", name, v4, v6, tc.v4, tc.v6)
		}
		w.succeed("CHECK", p)
		w.detach(p)
	}
}

// invalidIgnored checks that with "ignore", which follows the letter of the
// specification, a pod with an invalid annotation gets only the default network,
// and a Warning event says so. TestClauseSelectionRefused covers the default,
// "fail".
func (w *witness) invalidIgnored() {
	n, api := newAPINode(w.t)
	n.withConf(map[string]any{"invalidAnnotation": "ignore"})
	definition(api, "net", "", w.json(w.plugin(map[string]any{"cniVersion": "1.0.0"})))
	n.serve()
	p := n.apiPod(api, "app", `[{"name":"net"},{"name":"Not_A_Name"}]`)
	n.succeed("ADD", p)
	n.interfaceOf(p, "eth0")
	if link, err := p.ns.Link("net1"); err != nil || link != nil || len(w.calls("ADD")) > 0 {
		w.t.Errorf("a part of an invalid annotation took effect: %v %v", link, err)
	}
	n.succeed("CHECK", p)
	said := func(e corev1.Event) bool {
		return e.Type == corev1.EventTypeWarning && strings.Contains(e.Message, "Not_A_Name") && strings.Contains(e.Message, "default network")
	}
	n.eventually("the event of the ADD", func() bool { return len(api.Events()) > 0 })
	if events := api.Events(); !slices.ContainsFunc(events, said) {
		w.t.Errorf("no Warning event says that the annotation is ignored, but %s: %s", events[0].Type, events[0].Message)
	}
	n.succeed("DEL", p)
}

// sameTwice checks that a network selected twice gives two attachments, interfaces,
// status entries and devices.
func (w *witness) sameTwice() {
	w.network("net", nil)
	p, calls := w.attach("net,net", 2)
	if calls[0].IfName != "net1" || calls[1].IfName != "net2" {
		w.t.Errorf("interfaces %s and %s", calls[0].IfName, calls[1].IfName)
	}
	w.detach(p)

	n, api := newAPINode(w.t)
	definition(api, "nic-a", nicA, hostDevice)
	n.serve()
	n.devices("nic0", "nic1")
	p = n.apiPod(api, "app", "nic-a,nic-a", container("c1", 2))
	n.succeed("ADD", p)
	var list []netattach.Status
	n.must(json.Unmarshal([]byte(api.Pod("default", "app").Annotations[netattach.StatusAnnotation]), &list))
	var got []string
	for _, s := range list[1:] {
		dev := n.interfaceOf(p, s.Interface)
		got = append(got, fmt.Sprintf("%s %s %s", s.Name, s.Interface, dev.Alias))
		if s.MAC != dev.HardwareAddr.String() {
			w.t.Errorf("entry of %s has MAC %s, the interface %s", s.Interface, s.MAC, dev.HardwareAddr)
		}
	}
	if want := []string{"default/nic-a net1 nic0", "default/nic-a net2 nic1"}; !slices.Equal(got, want) {
		w.t.Errorf("status and devices %q, want %q", got, want)
	}
	n.succeed("DEL", p)
}
