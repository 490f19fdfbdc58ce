package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/test/harness"
)

// TestClauseOperations proves the clauses of the verbs (CNI specification 1.1),
// each under its id.
func TestClauseOperations(t *testing.T) {
	t.Run("CNI-add-result", operationAdd)
	t.Run("CNI-del-idempotent", operationDelAgain)
	t.Run("CNI-del-without-api", operationDelAlone)
	t.Run("CNI-check", operationCheck)
	t.Run("CNI-gc", operationGC)
	t.Run("CNI-status", operationStatus)
	t.Run("CNI-version", operationVersion)
	t.Run("CNI-errors", operationErrors)
	t.Run("CNI-stdout", operationStdout)
}

func operationAdd(t *testing.T) {
	n := newScriptedNode(t, nil)
	p := n.addPod("app", "one,two")
	var result types100.Result
	n.must(json.Unmarshal(n.succeed("ADD", p).Stdout, &result))
	if len(result.Interfaces) != 1 || len(result.IPs) != 1 {
		t.Fatalf("result %+v, want only the default network's", result)
	}
	iface, ip := result.Interfaces[0], result.IPs[0]
	if mac := n.interfaceOf(p, "eth0").HardwareAddr.String(); iface.Name != "eth0" || iface.Sandbox != p.NetNS || iface.Mac != mac {
		t.Errorf("interface %+v, want eth0 with %s", iface, mac)
	}
	if ip.Address.String() != "10.71.0.2/24" || ip.Interface == nil || *ip.Interface != 0 {
		t.Errorf("address %+v", ip)
	}
	n.succeed("DEL", p)
}

func operationDelAgain(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	p := n.addPod("app", "plain")
	n.succeed("DEL", p) // never added
	before := n.state()
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.succeed("DEL", p)
	n.unchanged(before)
	n.succeed("ADD", p) // and nothing prevents another ADD
	// A runtime that has lost the namespace passes no path, or the old one.
	path := p.NetNS
	n.must(p.ns.Delete())
	for _, netns := range []string{"", path, ""} {
		p.NetNS = netns
		n.succeed("DEL", p)
		n.settles(func() string { return withoutGone(before.Diff(n.state())) })
	}
	unknown := n.sandbox("unknown", "00000000-0000-4000-8000-0000000000cc")
	unknown.NetNS = ""
	n.succeed("DEL", unknown)
}

func operationDelAlone(t *testing.T) {
	n := newStatusNode(t)
	definition(n.api, "plain", "", n.bridge("plain", "10.89.0.0/16"))
	definition(n.api, "nic-a", nicA, hostDevice)
	n.devices("nic0")
	p := n.apiPod(n.api, "app", "plain,nic-a", container("c1", 1))
	n.succeed("ADD", p)
	n.gone(p)
	n.succeed("DEL", p)
	n.emptySandbox(p)
	n.onHost("nic0")
	for _, dir := range []string{"ipam/cluster-net", "ipam/plain"} {
		if left := n.leases(dir); len(left) != 0 {
			t.Errorf("addresses left in %s: %v", dir, left)
		}
	}
}

// leases returns the addresses that host-local has allocated in a directory.
func (n *node) leases(dir string) []string {
	n.t.Helper()
	entries, err := os.ReadDir(n.path(dir))
	n.must(err)
	var out []string
	for _, e := range entries {
		if name := e.Name(); name != "lock" && !strings.HasPrefix(name, "last_reserved_ip.") {
			out = append(out, name)
		}
	}
	return out
}

func operationCheck(t *testing.T) {
	n := newScriptedNode(t, map[string]any{"cniVersion": "1.0.0"}) // the default network's version, so that its result needs no conversion
	n.define("old", "", strings.Replace(n.scripted(""), "1.0.0", "0.3.1", 1))
	p := n.addPod("app", "one,old@old5")
	n.refuse("CHECK", p, 3, "pod default/app", "not attached")
	added := n.succeed("ADD", p)
	given := n.calls("ADD")
	n.must(os.Remove(n.path("calls")))
	n.define("one", "", n.bridge("other", "10.99.0.0/16")) // only the recorded configuration counts
	n.succeed("CHECK", p)
	checks := n.calls("CHECK")
	if got, want := n.sequence(), "CHECK eth0, CHECK net1"; got != want { // CHECK exists since 0.4.0
		t.Fatalf("calls %q, want %q", got, want)
	}
	if !sameJSON(string(checks[0].Stdin.PrevResult), string(added.Stdout)) {
		t.Errorf("CHECK of the default network was given %s, ADD's result was %s", checks[0].Stdin.PrevResult, added.Stdout)
	}
	for i, c := range checks {
		if got, want := c.withoutResult(n), given[i].withoutResult(n); got != want {
			t.Errorf("CHECK was given\n%s\nADD\n%s", got, want)
		}
	}
	n.must(p.ns.Do(func() error {
		l, err := netlinksafe.LinkByName("net1")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(l, 1400)
	}))
	n.succeed("CHECK", p) // nobody claimed an MTU
	n.must(p.ns.Do(func() error {
		l, err := netlinksafe.LinkByName("net1")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.72.0.2/24")
		if err != nil {
			return err
		}
		return netlink.AddrDel(l, addr)
	}))
	n.refuse("CHECK", p, 111, "pod default/app", "network default/one", "10.72.0.2/24")
	n.succeed("DEL", p)
	n.define("bad", "", n.scripted(`,"script":{"CHECK":{"error":{"code":118,"msg":"port is down"}}}`))
	q := n.addPod("failing", "bad")
	n.succeed("ADD", q)
	n.refuse("CHECK", q, 118, "pod default/failing", "network default/bad", "port is down")
	n.succeed("DEL", q)
}

// withoutResult returns a call's configuration without the previous result, which
// only CHECK has.
func (c *delegateCall) withoutResult(n *node) string {
	n.t.Helper()
	var call struct {
		ContainerID string         `json:"containerID"`
		NetNS       string         `json:"netns"`
		IfName      string         `json:"ifName"`
		Args        string         `json:"args"`
		Stdin       map[string]any `json:"stdin"`
	}
	n.must(json.Unmarshal([]byte(c.raw), &call))
	delete(call.Stdin, "prevResult")
	out, err := json.Marshal(call)
	n.must(err)
	return string(out)
}

func operationStatus(t *testing.T) {
	none := &pod{}
	n := newNode(t, nil)
	n.serve()
	n.succeed("STATUS", none)
	t.Run("passed on", func(t *testing.T) {
		n := newScriptedNode(t, nil)
		n.setDefault("1.1.0", strings.Replace(n.scripted(`,"script":{"STATUS":{"error":{"code":51,"msg":"no more addresses"}}}`), "1.0.0", "1.1.0", 1))
		n.refuse("STATUS", none, 51, "no more addresses")
		n.setDefault("1.1.0", strings.Replace(n.scripted(""), "1.0.0", "1.1.0", 1))
		n.succeed("STATUS", none)
		if got := n.calls("STATUS"); len(got) != 2 || got[0].Stdin.Name != "cluster-net" {
			t.Errorf("STATUS was passed on as %+v", got)
		}
	})
	t.Run("programs", func(t *testing.T) {
		for _, program := range []string{"bridge", "host-local"} {
			n := newNode(t, nil)
			n.serve()
			n.must(os.Remove(n.path("bin/" + program)))
			n.refuse("STATUS", none, 50, program, n.bin)
		}
	})
	t.Run("programs of further networks", statusOfFurther)
	t.Run("sources", func(t *testing.T) {
		n, api := newAPINode(t)
		api.Stop()
		n.serve()
		n.refuse("STATUS", none, 50, "definitions are not synced")
	})
	t.Run("no request", statusIsLocal)
	t.Run("agent", func(t *testing.T) {
		n := newNode(t, nil) // without an agent, but with a working fallback
		n.succeed("STATUS", none)
		n.must(os.Remove(n.path("bin/manifold-agent")))
		n.refuse("STATUS", none, 50, n.path("agent.sock"), "fallback")
	})
	t.Run("cniDir", func(t *testing.T) {
		n := newNode(t, nil)
		n.serve()
		n.must(os.RemoveAll(n.path("state")))
		n.succeed("STATUS", none) // the first ADD creates it
		n.must(os.RemoveAll(n.path("state")))
		n.file("state", "")
		n.refuse("STATUS", none, 50, n.path("state"), "cniDir")
		n.refuse("ADD", n.addPod("pod", ""), 5, n.path("state"), "cniDir")
	})
	t.Run("hangs", statusOfWhatHangs)
}

// statusOfFurther checks that STATUS looks for the programs of networks that every
// pod gets in addition to the default network, and names these networks as ADD
// does.
func statusOfFurther(t *testing.T) {
	none := &pod{}
	n := newNode(t, map[string]any{"clusterNetwork": ""})
	n.serve()
	n.rawKey("delegates", `[`+n.scripted("")+`,`+n.scripted(`,"name":"second","ipam":{"type":"later"}`)+`]`)
	n.refuse("STATUS", none, 50, "network second", "later", n.bin)
	p := n.addPod("pod", "")
	n.refuse("ADD", p, 108, "network second", "later")
	n.must(os.Symlink(n.path("bin/scripted"), n.path("bin/later")))
	n.succeed("STATUS", none)
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.rawKey("delegates", `[`+n.scripted("")+`,{"cniVersion":"1.0.0","plugins":[`+n.scripted("")+`]}]`)
	n.succeed("STATUS", none) // a list needs no name
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.rawKey("delegates", `[`+n.scripted("")+`,{"cniVersion":"1.0.0","plugins":[{"type":"absent"}]}]`)
	n.refuse("STATUS", none, 50, "network manifold", "absent", n.bin)
}

// statusOfWhatHangs checks that neither a hanging agent nor a hanging delegate
// makes STATUS wait as long as ADD waits for a plan, which is longer than this test
// may run.
func statusOfWhatHangs(t *testing.T) {
	n := newNode(t, map[string]any{"planTimeout": "1h"})
	cmd := n.serve()
	n.must(cmd.Process.Signal(syscall.SIGSTOP))
	goOn := func() { n.must(cmd.Process.Signal(syscall.SIGCONT)) }
	t.Cleanup(goOn)
	n.succeed("STATUS", &pod{}) // from the fallback
	goOn()
	n.setDefault("1.1.0", `{"type":"scripted","script":{"STATUS":{"hang":true}}}`)
	n.refuse("STATUS", &pod{}, 50, "scripted", "deadline")
}

// statusIsLocal checks that STATUS sends no request to the API server, whatever the
// default network is and whatever the API server does.
func statusIsLocal(t *testing.T) {
	n := newStatusNode(t)
	n.withConf(map[string]any{"multusNamespace": "default", "clusterNetwork": "primary"})
	none := &pod{}
	asked := func() (out []string) {
		for _, r := range n.api.Requests() {
			if !strings.Contains(r.Query, "watch=true") { // the agent's own, restarted
				out = append(out, r.Method+" "+r.Path)
			}
		}
		return out
	}
	definition(n.api, "primary", "", strings.Replace(n.scripted(""), "1.0.0", "1.1.0", 1))
	n.eventually("the definition to be known", func() bool { return n.call("STATUS", none).Status == 0 })
	n.api.ForgetRequests()
	for range 5 {
		n.succeed("STATUS", none)
	}
	n.withConf(map[string]any{"clusterNetwork": "nowhere"})
	n.refuse("STATUS", none, 50, "nowhere")
	if got := asked(); len(got) != 0 {
		t.Errorf("STATUS asked the API server: %v", got)
	}
	n.withConf(map[string]any{"clusterNetwork": "primary"})
	n.api.Stop()
	n.succeed("STATUS", none)
}

func operationVersion(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	res, err := n.rt.Call("VERSION", harness.Sandbox{})
	n.must(err)
	var got struct {
		CNIVersion string   `json:"cniVersion"`
		Supported  []string `json:"supportedVersions"`
	}
	n.must(json.Unmarshal(res.Stdout, &got))
	if res.Status != 0 || got.CNIVersion != "1.1.0" || !slices.Equal(got.Supported, cniVersions) {
		t.Errorf("VERSION: status %d, %s", res.Status, res.Stdout)
	}
	p := n.addPod("app", "")
	for _, version := range []string{"0.9.0", "1.2.0", "2.0.0"} {
		n.withConf(map[string]any{"cniVersion": version})
		for _, verb := range []string{"ADD", "CHECK", "DEL"} {
			n.refuse(verb, p, 1)
		}
		if res := n.call("ADD", p); !strings.Contains(res.Error.Details, version) {
			t.Errorf("version %s: %s", version, res.Stdout)
		}
	}
	n.emptySandbox(p)
}

func operationErrors(t *testing.T) {
	page, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		code    uint
		part    string
		prepare func(n *node, p *pod)
	}{
		"version":     {1, "incompatible", func(n *node, _ *pod) { n.withConf(map[string]any{"cniVersion": "2.0.0"}) }},
		"environment": {4, "CNI_CONTAINERID", func(n *node, _ *pod) { n.rt.Env = []string{"CNI_CONTAINERID="} }},
		"arguments":   {4, "nonsense", func(n *node, _ *pod) { n.rt.Args = "nonsense" }},
		"disk":        {5, "cniDir", func(n *node, _ *pod) { n.must(os.RemoveAll(n.path("state"))); n.file("state", "") }},
		"not JSON":    {6, "", func(n *node, _ *pod) { n.rt.Conf = []byte("{") }},
		"wrong type":  {6, "runtimeConfig", func(n *node, _ *pod) { n.withConf(map[string]any{"runtimeConfig": 7}) }},
		"key":         {7, "verify", func(n *node, _ *pod) { n.withConf(map[string]any{"verify": "perhaps"}) }},
		"unknown pod": {11, "default/nobody", func(_ *node, p *pod) { p.Name = "nobody" }},
		"our own":     {102, "default/nowhere", func(n *node, p *pod) { *p = *n.addPod("lost", "nowhere") }},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.serve()
			p := n.addPod("app", "")
			tc.prepare(n, p)
			n.refuse("ADD", p, tc.code, tc.part)
			n.emptySandbox(p)
			if !strings.Contains(string(page), fmt.Sprintf("\n| %d | ", tc.code)) {
				t.Errorf("code %d is not in docs/errors.md", tc.code)
			}
		})
	}
}

func operationStdout(t *testing.T) {
	noise := func(verb string) string {
		return fmt.Sprintf(`,"script":{%q:{"stdout":"hello\n{\"code\":7}\n"}}`, verb)
	}
	for _, verb := range []string{"CHECK", "DEL", "STATUS", "GC"} {
		t.Run(verb, func(t *testing.T) {
			n := newScriptedNode(t, map[string]any{"cni.dev/valid-attachments": []string{}})
			loud := strings.Replace(n.scripted(noise(verb)), "1.0.0", "1.1.0", 1)
			n.setDefault("1.1.0", loud)
			n.define("loud", "", loud)
			p := n.addPod("app", "loud")
			n.succeed("ADD", p)
			for _, v := range []string{"STATUS", "CHECK", "GC", "DEL"} {
				if res := n.succeed(v, p); len(res.Stdout) != 0 {
					t.Errorf("%s printed %q", v, res.Stdout)
				}
			}
			if len(n.calls(verb)) == 0 {
				t.Errorf("no delegate was called for %s", verb)
			}
		})
	}
	for name, stdout := range map[string]string{"before": `hello {"cniVersion":"1.0.0"}`, "after": `{"cniVersion":"1.0.0"} hello`, "instead": "hello", "list": `[{"cniVersion":"1.0.0"}]`} {
		t.Run("ADD, noise "+name, func(t *testing.T) {
			n := newScriptedNode(t, nil)
			n.define("loud", "", n.scripted(fmt.Sprintf(`,"script":{"ADD":{"stdout":%q}}`, stdout)))
			p := n.addPod("app", "loud")
			n.refuse("ADD", p, 109, "pod default/app", "network default/loud") // call has checked that stdout is one document
			n.emptySandbox(p)
		})
	}
}

func operationGC(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.define("modern", "", strings.Replace(n.scripted(`,"name":"modern-net"`), "1.0.0", "1.1.0", 1))
	n.define("older", "", n.scripted(`,"name":"older-net"`)) // GC exists since 1.1.0
	keep, stale := n.addPod("keep", "plain,modern,older@x4"), n.addPod("stale", "plain,modern,older@x5")
	n.succeed("ADD", keep)
	between := n.state()
	n.succeed("ADD", stale)
	n.must(os.Remove(n.path("calls")))
	n.must(stale.ns.Delete())
	n.collect(keep)
	n.settles(func() string { return withoutGone(between.Diff(n.state())) })
	var released []string
	for _, c := range n.calls("DEL") {
		if c.ContainerID != stale.ID {
			t.Errorf("%s of %s was released", c.IfName, c.ContainerID)
		}
		released = append(released, c.IfName)
	}
	if !slices.Equal(released, []string{"x5", "net2"}) {
		t.Errorf("released %v, want both scripted attachments, once each", released)
	}
	var told []string
	for _, c := range n.gcs(n.path("calls")) {
		told = append(told, fmt.Sprint(c.Name, c.Valid))
	}
	if want := fmt.Sprint("modern-net", []map[string]string{attachment(keep, "net2")}); !slices.Equal(told, []string{want}) {
		t.Errorf("GC was passed on as %v, want %s", told, want)
	}
	n.succeed("CHECK", keep)
	n.collect() // an empty list: no sandbox is valid
	n.emptySandbox(keep)
	n.refuse("CHECK", keep, 3, "not attached")
}
