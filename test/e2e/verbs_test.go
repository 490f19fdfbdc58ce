package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/test/harness"
)

// withConf changes keys of the configuration with which the node's runtime calls
// the plugin.
func (n *node) withConf(keys map[string]any) {
	n.t.Helper()
	var conf map[string]any
	n.must(json.Unmarshal(n.rt.Conf, &conf))
	for k, v := range keys {
		conf[k] = v
	}
	raw, err := json.Marshal(conf)
	n.must(err)
	n.rt.Conf = raw
}

func TestFailedDelegateDelIsKeptAndRetried(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	fail := n.path("calls")
	n.define("stubborn", "", `{"cniVersion":"1.0.0","type":"scripted","log":"`+fail+`","script":{"DEL":{"error":{"code":77,"msg":"switch is busy"}}}}`)
	p := n.addPod("pod", "stubborn,plain")
	before := n.state()
	n.succeed("ADD", p)
	n.refuse("DEL", p, 77, "switch is busy", "network default/stubborn", "default/pod", "journal")
	if link, err := p.ns.Link("net2"); err != nil || link != nil {
		t.Errorf("the other attachments were not released: %v %v", link, err)
	}
	n.refuse("DEL", p, 77, "switch is busy")
	// DEL runs what was recorded, whatever the definition says now.
	n.define("stubborn", "", n.bridge("other", "10.99.0.0/16"))
	n.refuse("DEL", p, 77, "switch is busy")
	n.patchJournal(p, `\"DEL\":{\"error\":{\"code\":77,\"msg\":\"switch is busy\"}}`, ``)
	n.patchJournal(p, `"DEL":{"error":{"code":77,"msg":"switch is busy"}}`, ``)
	n.succeed("DEL", p)
	n.unchanged(before)
}

// patchJournal replaces text of the plan in a journal's first record, as if the
// world had changed, and fixes the checksum.
func (n *node) patchJournal(p *pod, from, to string) {
	n.t.Helper()
	path := n.path("state/" + p.ID + "@eth0.journal")
	text, err := os.ReadFile(path)
	n.must(err)
	first, rest, _ := strings.Cut(string(text), "\n")
	_, body, _ := strings.Cut(first, " ")
	body = strings.ReplaceAll(body, from, to)
	sum := crc32.Checksum([]byte(body), crc32.MakeTable(crc32.Castagnoli))
	n.must(os.WriteFile(path, fmt.Appendf(nil, "%08x %s\n%s", sum, body, rest), 0o600))
}

func TestJournalOfANewerVersionIsLeftAlone(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	p := n.addPod("pod", "")
	n.succeed("ADD", p)
	n.patchJournal(p, `{"version":1,"boot"`, `{"version":9,"boot"`)
	n.refuse("DEL", p, 113, "version 9", "newer")
	n.refuse("CHECK", p, 113, "version 9")
	n.patchJournal(p, `{"version":9,"boot"`, `{"version":1,"boot"`)
	n.succeed("DEL", p)
}

func TestFullAndReadOnlyJournalDirectory(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.must(unix.Mount("tmpfs", n.path("state"), "tmpfs", 0, "size=16k"))
	t.Cleanup(func() { _ = unix.Unmount(n.path("state"), unix.MNT_DETACH) })
	p := n.addPod("pod", "plain")
	n.succeed("ADD", p)
	fill := n.path("state/fill")
	f, err := os.Create(fill)
	n.must(err)
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	n.must(f.Close())
	late := n.addPod("late", "plain")
	n.refuse("ADD", late, 5, "no space left", "cniDir")
	n.emptySandbox(late)
	n.succeed("DEL", late)
	n.succeed("DEL", p) // steps cannot be recorded, but everything is released
	n.emptySandbox(p)
	n.must(os.Remove(fill))
	n.must(unix.Mount("", n.path("state"), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	n.refuse("ADD", late, 5, "read-only", "cniDir")
	n.emptySandbox(late)
	n.succeed("DEL", late)
}

func TestCheckFindsWhatChanged(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.define("scr", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.93.0.2/24"]}`)
	p := n.addPod("pod", "scr")
	n.refuse("CHECK", p, 3, "not attached", "default/pod")
	n.succeed("ADD", p)
	n.succeed("CHECK", p)
	n.must(p.ns.Do(func() error {
		l, err := netlinksafe.LinkByName("net1")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.93.0.2/24")
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, addr)
	}))
	n.refuse("CHECK", p, 111, "10.93.0.2/24", "network default/scr")
	n.succeed("DEL", p)
}

func TestVerifyModes(t *testing.T) {
	lie := `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.94.0.2/24"],"script":{"ADD":{"lie":"mac"}}}`
	for mode, warned := range map[string]bool{"warn": true, "off": false} {
		t.Run(mode, func(t *testing.T) {
			n := newNode(t, map[string]any{"verify": mode})
			n.warm()
			n.define("liar", "", lie)
			p := n.addPod("pod", "liar")
			res := n.succeed("ADD", p)
			if got := strings.Contains(string(res.Stderr), "02:00:00:00:00:99"); got != warned {
				t.Errorf("warned: %v, want %v: %s", got, warned, res.Stderr)
			}
			n.succeed("DEL", p)
		})
	}
}

func TestGCReleasesWhatIsNotValid(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	keep, stale := n.addPod("keep", "plain"), n.addPod("stale", "plain")
	n.succeed("ADD", keep)
	between := n.state()
	n.succeed("ADD", stale)
	n.must(stale.ns.Delete())
	valid := []map[string]string{{"containerID": keep.ID, "ifname": "eth0"}}
	rt := n.rt
	n.withConf(map[string]any{"cni.dev/valid-attachments": valid})
	n.succeed("GC", keep)
	n.rt = rt
	n.settles(func() string { return withoutGone(between.Diff(n.state())) })
	n.succeed("CHECK", keep)
	n.succeed("DEL", keep)
}

func TestStatus(t *testing.T) {
	n := newNode(t, nil)
	none := &pod{}
	n.succeed("STATUS", none) // no agent, a working fallback
	n.serve()
	n.succeed("STATUS", none)
	n.must(os.Remove(n.path("bin/bridge")))
	n.refuse("STATUS", none, 50, "bridge")
	n.must(os.Remove(n.path("net.d/10-default.conflist")))
	n.refuse("STATUS", none, 50, "cluster-net", "is not a definition", "no such network configuration on disk")
	n.withConf(map[string]any{"multusNamespace": "default"})
	n.define("cluster-net", "", `{"cniVersion":"1.1.0","type":"scripted","script":{"STATUS":{"error":{"code":51,"msg":"uplink is down"}}}}`)
	n.refuse("STATUS", none, 51, "uplink is down")
	n.define("cluster-net", "", `{"cniVersion":"1.1.0","type":"scripted"}`)
	n.succeed("STATUS", none)
	n.must(os.Remove(n.path("bin/scripted")))
	n.refuse("STATUS", none, 50, "scripted")
	n.must(os.Remove(n.path("bin/manifold-agent")))
	n.withConf(map[string]any{"agentSocket": n.path("nobody.sock")})
	n.refuse("STATUS", none, 50, "nobody.sock", "fallback")
}

// TestStatusOfADefaultNetworkThatEveryPodIsRefusedFor proves that STATUS reports in
// advance, with a code of its own, what would make ADD refuse every pod.
func TestStatusOfADefaultNetworkThatEveryPodIsRefusedFor(t *testing.T) {
	const head = `{"name":"cluster-net","cniVersion":"1.0.0","plugins":`
	for name, tc := range map[string]struct{ config, part string }{
		"itself":            {head + `[{"type":"manifold"}]}`, "delegates to manifold itself"},
		"itself for IPAM":   {head + `[{"type":"bridge","ipam":{"type":"manifold"}}]}`, "delegates to manifold itself"},
		"a value":           {head + `[{"type":"bridge","mtu":"abc"}]}`, "mtu"},
		"no plugin":         {head + `[]}`, "plugin"},
		"a program by path": {head + `[{"type":"../../bin/sh"}]}`, "type"},
		"version":           {`{"name":"cluster-net","cniVersion":"9.9.9","plugins":[{"type":"bridge"}]}`, "9.9.9"},
		"a code of its own": {`{"name":"cluster-net","cniVersion":"1.1.0","plugins":[{"type":"scripted","script":{
			"ADD":{"error":{"code":11,"msg":"not yet"}},"STATUS":{"error":{"code":11,"msg":"not yet"}}}}]}`, "not yet"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.file("net.d/10-default.conflist", tc.config)
			none := &pod{}
			n.refuse("STATUS", none, 50, tc.part) // from the fallback
			n.serve()
			n.refuse("STATUS", none, 50, tc.part)
			n.must(os.Rename(n.path("net.d/10-default.conflist"), n.path("as-definition")))
			n.withConf(map[string]any{"multusNamespace": "default"})
			n.define("cluster-net", "", tc.config)
			n.refuse("STATUS", none, 50, tc.part)
			if res := n.call("ADD", n.addPod("pod", "")); res.Status == 0 {
				t.Error("ADD succeeded")
			}
		})
	}
}

func TestResultInTheVersionAskedFor(t *testing.T) {
	for _, v := range []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		t.Run(v, func(t *testing.T) {
			n := newNode(t, map[string]any{"cniVersion": v})
			p := n.addPod("pod", "")
			res := n.succeed("ADD", p)
			var got struct {
				CNIVersion string `json:"cniVersion"`
			}
			n.must(json.Unmarshal(res.Stdout, &got))
			if got.CNIVersion != v {
				t.Errorf("result in %s, asked for %s: %s", got.CNIVersion, v, res.Stdout)
			}
			n.succeed("DEL", p)
		})
	}
}

// TestResultThatTheVersionAskedForCannotSay covers a result without addresses,
// which versions before 0.3.0 cannot express.
func TestResultThatTheVersionAskedForCannotSay(t *testing.T) {
	n := newNode(t, map[string]any{"cniVersion": "0.2.0"})
	n.serve()
	n.warm()
	n.file("net.d/10-default.conflist", `{"name":"cluster-net","cniVersion":"1.0.0","plugins":[{"type":"scripted","addresses":[]}]}`)
	p := n.addPod("pod", "")
	before := n.state()
	n.refuse("ADD", p, 1, "pod default/pod", "network cluster-net", "interface eth0", "0.2.0", "no valid IP addresses")
	n.succeed("DEL", p)
	n.unchanged(before)
}

func TestDefaultRouteMoves(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	n.define("scr", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.95.0.2/24"]}`)
	n.define("six", "", `{"cniVersion":"1.0.0","type":"bridge","bridge":"br-six","isGateway":true,"ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`",
		"ranges":[[{"subnet":"fd00:96::/64"}]],"routes":[{"dst":"::/0"}]}}`)
	both := n.addPod("both", `six`)
	n.succeed("ADD", both)
	n.wantDefaults(both, netlink.FAMILY_V6, "[fd00:96::1]") // otherwise the rest proves nothing
	n.succeed("DEL", both)
	p := n.addPod("pod", `[{"name":"six"},{"name":"scr","default-route":["10.95.0.1"]}]`)
	if res := n.succeed("ADD", p); strings.Contains(string(res.Stdout), "0.0.0.0/0") {
		t.Errorf("the result has a default route that is gone: %s", res.Stdout)
	}
	n.succeed("CHECK", p) // the delegates' CHECK compares routes with the recorded result
	n.wantDefaults(p, netlink.FAMILY_V4, "[10.95.0.1]")
	n.wantDefaults(p, netlink.FAMILY_V6, "[]")
	n.succeed("DEL", p)
	far := n.addPod("far", `[{"name":"scr","default-route":["10.99.0.1"]}]`)
	n.refuse("ADD", far, 5, "network default/scr", "interface net1", "gateway 10.99.0.1", "name a gateway in a subnet")
	n.emptySandbox(far)
}

// TestDefaultRoutesOfSeveralHopsGo covers default routes that the kernel has merged
// from gateways of the default network and of an interface that is not Manifold's:
// they lose the former hops and keep the latter.
func TestDefaultRoutesOfSeveralHopsGo(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.file("net.d/10-default.conflist", `{"cniVersion":"1.0.0","name":"cluster-net","plugins":[{"type":"bridge","bridge":"cni0",
		"ipam":{"type":"host-local","dataDir":"`+n.path("ipam")+`","ranges":[[{"subnet":"fd00:88::/64"}],[{"subnet":"10.88.0.0/16"}]],
		"routes":[{"dst":"::/0","gw":"fd00:88::1"},{"dst":"::/0","gw":"fd00:88::3"},{"dst":"0.0.0.0/0","gw":"10.88.0.1"}]}}]}`)
	gate := n.path("gate")
	n.define("scr", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.95.0.2/24"],"script":{"ADD":{"gate":"`+gate+`"}}}`)
	p := n.addPod("pod", `[{"name":"scr","default-route":[]}]`)
	added := make(chan *harness.Result)
	go func() { added <- n.call("ADD", p) }()
	n.eventually("the delegate", func() bool { return exists(gate + ".reached") })
	n.must(p.ns.Do(func() error { return foreignHops("eth0") }))
	n.wantDefaults(p, netlink.FAMILY_V4, "[10.88.0.3+192.0.2.1]") // otherwise the rest proves nothing
	n.wantDefaults(p, netlink.FAMILY_V6, "[fd00:88::1+fd00:88::3+fd00:2::1]")
	n.file("gate", "")
	if res := <-added; res.Status != 0 || strings.Contains(string(res.Stdout), "::/0") {
		t.Fatalf("ADD: %s", res.Stdout)
	}
	n.wantDefaults(p, netlink.FAMILY_V4, "[192.0.2.1]")
	n.wantDefaults(p, netlink.FAMILY_V6, "[fd00:2::1]")
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
}

// foreignHops creates an interface with addresses of both families, and merges its
// gateways with those of another interface into one default route per family.
func foreignHops(other string) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "mine"
	mine := &netlink.Bridge{LinkAttrs: attrs}
	err := errors.Join(netlink.LinkAdd(mine), netlink.LinkSetUp(mine))
	for _, text := range []string{"192.0.2.2/24", "fd00:2::2/64"} {
		addr, parsed := netlink.ParseAddr(text)
		err = errors.Join(err, parsed, netlink.AddrAdd(mine, addr))
	}
	theirs, found := netlinksafe.LinkByName(other)
	if err := errors.Join(err, found); err != nil {
		return err
	}
	all4, all6 := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	return errors.Join(
		netlink.RouteReplace(&netlink.Route{Dst: all4, MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: theirs.Attrs().Index, Gw: net.IPv4(10, 88, 0, 3)}, {LinkIndex: mine.Index, Gw: net.IPv4(192, 0, 2, 1)},
		}}),
		netlink.RouteAppend(&netlink.Route{LinkIndex: mine.Index, Dst: all6, Gw: net.ParseIP("fd00:2::1")}),
	)
}

// wantDefaults compares the gateways of a pod's default routes, with "a+b" for a
// route of several hops.
func (n *node) wantDefaults(p *pod, family int, want string) {
	n.t.Helper()
	n.must(p.ns.Do(func() error {
		routes, err := netlinksafe.RouteList(nil, family)
		defaults := []string{}
		for _, r := range routes {
			if r.Dst == nil || r.Dst.String() == "0.0.0.0/0" || r.Dst.String() == "::/0" {
				hops := []string{r.Gw.String()}
				for i, h := range r.MultiPath {
					hops = append(hops[:i], h.Gw.String())
				}
				defaults = append(defaults, strings.Join(hops, "+"))
			}
		}
		if fmt.Sprint(defaults) != want {
			n.t.Errorf("default routes %v, want %s", defaults, want)
		}
		return err
	}))
}

func TestAForeignInterfaceIsNotTouched(t *testing.T) {
	n := newNode(t, nil)
	n.warm()
	p := n.addPod("pod", "plain@mine")
	n.must(p.ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "mine"
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}))
	n.refuse("ADD", p, 112, "interface mine", "default/plain")
	n.interfaceOf(p, "mine")
	n.succeed("DEL", p)
	n.interfaceOf(p, "mine")
}

// TestUndoingTouchesNothingForeign proves that an ADD that fails when everything is
// attached and the default route has moved restores the sandbox.
func TestUndoingTouchesNothingForeign(t *testing.T) {
	n := newNode(t, map[string]any{"carrier": "require", "carrierTimeout": "50ms"})
	n.serve()
	n.warm()
	n.define("scr", "", `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.95.0.2/24"]}`)
	n.define("nic-a", nicA, hostDevice)
	id := n.device("nic0")
	n.wire("nic0", false)
	p := n.addPod("pod", `[{"name":"plain"},{"name":"scr","default-route":["10.95.0.1"]},{"name":"nic-a"}]`, "c1")
	n.allocate(p, "c1", nicA, id)
	n.must(p.ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "mine"
		link := &netlink.Bridge{LinkAttrs: attrs}
		own, gateway := net.IPNet{IP: net.IPv4(192, 0, 2, 2), Mask: net.CIDRMask(24, 32)}, net.IPv4(192, 0, 2, 1)
		err := errors.Join(netlink.LinkAdd(link), netlink.LinkSetUp(link), netlink.AddrAdd(link, &netlink.Addr{IPNet: &own}))
		for metric, dst := range []string{"0.0.0.0/0", "198.51.100.0/24"} {
			_, to, parsed := net.ParseCIDR(dst)
			err = errors.Join(err, parsed, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Dst: to, Gw: gateway, Priority: 500 + metric}))
		}
		return err
	}))
	inside := func() (state harness.HostState) {
		n.must(p.ns.Do(func() (err error) { state, err = harness.Capture(); return err }))
		return state
	}
	before, host := inside(), n.state()
	n.refuse("ADD", p, 111, "carrier", "network default/nic-a")
	for range 2 {
		if diff := before.Diff(inside()); diff != "" {
			t.Errorf("the sandbox has changed:\n%s", diff)
		}
		n.succeed("DEL", p)
	}
	n.unchanged(host)
}

// DEL of an interface that the runtime never asked for succeeds, and releases nothing of
// what the same container has by another interface.
func TestDELOfAnotherInterfaceOfTheContainer(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	p := n.addPod("pod", "plain")
	n.succeed("ADD", p)
	n.rt.Env = append(n.rt.Env, "CNI_IFNAME=eth1")
	n.succeed("DEL", p)
	n.rt.Env = n.rt.Env[:len(n.rt.Env)-1]
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
	n.emptySandbox(p)
}

// A sandbox with a container ID so long that its journal can have no name is refused,
// and its DEL succeeds: nothing was attached.
func TestContainerIDThatIsTooLongForAFile(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	before := n.state()
	p := n.addPod("pod", "plain")
	for _, length := range []int{240, 243, 246, 250, 255, 256, 5000} { // of the names of lock, journal and unfinished journal, more and more are too long
		p.ID = strings.Repeat("a", length)
		if res := n.call("ADD", p); res.Error == nil || !strings.Contains(res.Error.Msg, "too long") {
			t.Errorf("ADD with a container ID of %d bytes: %s", length, res.Stdout)
		}
		n.emptySandbox(p)
		n.succeed("DEL", p)
	}
	n.must(p.ns.Delete())
	n.unchanged(before)
}

// A sandbox whose delegate cannot be started leaves no device-information file behind.
func TestDeviceInformationOfADelegateThatCannotBeStarted(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.must(os.WriteFile(n.path("bin/foreign"), []byte("a program for another machine"), 0o755))
	n.define("foreign", nicA, `{"cniVersion":"1.0.0","type":"foreign","capabilities":{"CNIDeviceInfoFile":true}}`)
	id := n.device("nic0")
	n.file("devinfo/dp/"+strings.ReplaceAll(nicA, "/", "-")+"-"+id+"-device.json", `{"type":"pci","version":"1.1.0","pci":{"pci-address":"0000:21:10.4"}}`)
	before := n.state()
	p := n.addPod("pod", "foreign", "c1")
	n.allocate(p, "c1", nicA, id)
	n.refuse("ADD", p, 108, "foreign")
	n.succeed("DEL", p)
	n.must(p.ns.Delete())
	n.unchanged(before)
}

// linksOfAnother are names of the sandbox's interfaces in a namespace that is another's.
var linksOfAnother = []string{"eth0", "net1"}

// addLinks creates links of these names in the thread's network namespace.
func addLinks() error {
	for _, name := range linksOfAnother {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
	}
	return nil
}

// removeLinks removes them again. One that is missing is an error.
func removeLinks() error {
	for _, name := range linksOfAnother {
		l, err := netlinksafe.LinkByName(name)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// The path of a sandbox's network namespace may lead to another namespace by the time of
// DEL or GC, as /proc/PID/ns/net does once the process ID serves another process: the
// namespace of another sandbox, or the host's. Nothing is released there.
func TestNothingIsReleasedInAnotherNetworkNamespace(t *testing.T) {
	other := map[string]func(n *node, p *pod) (in func(func() error) error){
		"another sandbox's": func(n *node, p *pod) func(func() error) error {
			next, err := harness.NewNetNS(p.ID)
			n.must(err)
			return next.Do
		},
		"the host's": func(n *node, p *pod) func(func() error) error {
			n.must(os.WriteFile(p.NetNS, nil, 0o444))
			n.must(unix.Mount("/proc/self/ns/net", p.NetNS, "", unix.MS_BIND, ""))
			return func(f func() error) error { return f() }
		},
	}
	release := map[string]func(n *node, p *pod){
		"DEL without namespace": func(n *node, p *pod) { p.NetNS = ""; n.succeed("DEL", p) },
		"DEL":                   func(n *node, p *pod) { n.succeed("DEL", p) },
		"GC":                    func(n *node, p *pod) { n.collect() },
	}
	for whose, enter := range other {
		for verb, do := range release {
			if whose == "the host's" && verb == "DEL" {
				continue // a runtime that passes the host's is refused
			}
			t.Run(whose+"/"+verb, func(t *testing.T) {
				n := newNode(t, nil)
				n.serve()
				n.warm()
				p := n.addPod("pod", "plain")
				n.succeed("ADD", p)
				n.must(p.ns.Delete())
				in := enter(n, p)
				defer func() { n.must(p.ns.Delete()) }()
				n.must(in(addLinks))
				do(n, p)
				n.must(in(removeLinks)) // all are still there
				if keys, err := (journal.Dir{Path: n.path("state")}).List(); err != nil || len(keys) > 0 {
					t.Errorf("the sandbox is not released: %v %v", keys, err)
				}
				if exists(n.path("ipam/cluster-net/10.88.0.2")) {
					t.Error("its address is not released")
				}
			})
		}
	}
}

// A runtime that passes the host's network namespace is refused before anything is
// attached there.
func TestTheHostsNetworkNamespaceIsRefused(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	before := n.state()
	p := n.addPod("pod", "plain")
	n.must(p.ns.Delete())
	p.NetNS = "/proc/self/ns/net"
	n.refuse("ADD", p, 4, "host's network namespace")
	n.unchanged(before)
	p.NetNS = ""
	n.succeed("DEL", p)
}
