package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
)

// refusedWithoutTrace expects ADD of a pod to be refused, and checks that host and
// sandbox are unchanged, before and after the runtime's DEL.
func (n *node) refusedWithoutTrace(p *pod, code uint, parts ...string) {
	n.t.Helper()
	before := n.state()
	n.refuse("ADD", p, code, append(parts, "default/"+p.Name)...)
	n.emptySandbox(p)
	n.settles(func() string { return before.Diff(n.state()) })
	n.succeed("DEL", p)
	n.unchanged(before)
}

// emptySandbox fails if the sandbox has any interface but loopback.
func (n *node) emptySandbox(p *pod) {
	n.t.Helper()
	n.must(p.ns.Do(func() error {
		links, err := netlinksafe.LinkList()
		for _, l := range links {
			if l.Attrs().Name != "lo" {
				n.t.Errorf("left behind in the sandbox: %s", l.Attrs().Name)
			}
		}
		return err
	}))
}

func TestBadAnnotation(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	many := strings.TrimSuffix(strings.Repeat("plain,", 10_000), ",")
	for name, tc := range map[string]struct {
		annotation string
		parts      []string
	}{
		"not JSON":            {`[{"name":`, []string{"JSON"}},
		"1 MB":                {strings.Repeat("a", 1_000_000), []string{"1000000 bytes"}},
		"10,000 entries":      {many, []string{"10000 entries"}},
		"invalid name":        {"Plain_Net", []string{"Plain_Net"}},
		"invalid namespace":   {"../etc/plain", []string{"entry 1"}},
		"null entry":          {"[null]", []string{"entry 1", "not an object"}},
		"duplicate interface": {"plain@net7,plain@net7", []string{"entry 2", "same interface"}},
		"interface path":      {`[{"name":"plain","interface":"../x"}]`, []string{"interface", "../x"}},
		"interface too long":  {`[{"name":"plain","interface":"a123456789012345"}]`, []string{"15"}},
		"two default routes":  {`[{"name":"plain","default-route":["10.0.0.1"]},{"name":"plain","default-route":["10.0.0.2"]}]`, []string{"default-route", "entry 1"}},
		"wrong type":          {`[{"name":"plain","ips":"10.0.0.1"}]`, []string{"ips", "wrong type"}},
		"missing capability":  {`[{"name":"plain","mac":"02:00:00:00:00:01"}]`, []string{"mac", "capability"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := n.addPod(strings.NewReplacer(" ", "-", ",", "").Replace(strings.ToLower(name)), tc.annotation)
			n.refusedWithoutTrace(p, 101, tc.parts...)
		})
	}
	t.Run("interface of the default network", func(t *testing.T) {
		n.refusedWithoutTrace(n.addPod("taken", "plain@eth0"), 112, "eth0")
	})
}

func TestBadDefinition(t *testing.T) {
	n := newNode(t, map[string]any{"delegateTimeout": "4s"})
	n.serve()
	n.warm()
	n.must(os.WriteFile(n.path("bin/readme"), []byte("not a program"), 0o600))
	n.must(os.WriteFile(n.path("bin/text"), []byte("not a program"), 0o700))
	n.must(os.Symlink("manifold", n.path("bin/innocent"))) // Manifold under a name that no reader of configurations can know
	script := func(verb, s string) string {
		return `{"cniVersion":"1.0.0","type":"scripted","addresses":["10.92.0.2/24"],"script":{"` + verb + `":` + s + `}}`
	}
	for name, tc := range map[string]struct {
		config string
		code   uint
		parts  []string
	}{
		"not-json":       {`{"type":`, 103, []string{"JSON"}},
		"null":           {`null`, 103, []string{"not a JSON object"}},
		"no-plugins":     {`{"cniVersion":"1.0.0","plugins":[]}`, 103, []string{"0 plugins"}},
		"null-plugin":    {`{"cniVersion":"1.0.0","plugins":[null]}`, 103, []string{"plugin 1"}},
		"path":           {`{"cniVersion":"1.0.0","type":"../../bin/sh"}`, 103, []string{"../../bin/sh", "plain name"}},
		"self":           {`{"cniVersion":"1.0.0","type":"manifold"}`, 103, []string{"itself"}},
		"self-by-ipam":   {`{"cniVersion":"1.0.0","type":"bridge","ipam":{"type":"manifold"},"IPAM":{"type":"host-local"}}`, 103, []string{"ipam", "other spellings"}},
		"self-in-ipam":   {`{"cniVersion":"1.0.0","type":"bridge","ipam":{"type":"host-local","Type":"manifold"}}`, 103, []string{"ipam", "other spellings"}},
		"two-types":      {`{"cniVersion":"1.0.0","type":"bridge","Type":"manifold"}`, 103, []string{"type", "other spellings"}},
		"nested":         {`{"cniVersion":"1.0.0","type":"innocent"}`, 103, []string{"a delegate called manifold"}},
		"nested-in-ipam": {`{"cniVersion":"1.0.0","type":"bridge","bridge":"br-plain","ipam":{"type":"innocent"}}`, 103, []string{"a delegate called manifold"}},
		"no-program":     {`{"cniVersion":"1.0.0","type":"absent"}`, 108, []string{"absent", n.bin}},
		"not-executable": {`{"cniVersion":"1.0.0","type":"readme"}`, 108, []string{"readme"}},
		"no-binary":      {`{"cniVersion":"1.0.0","type":"text"}`, 108, []string{"text"}},
		"garbage":        {script("ADD", `{"stdout":"hello"}`), 109, []string{"scripted", "hello"}},
		"exit":           {script("ADD", `{"exit":3,"stdout":"oops"}`), 109, []string{"exit status 3", "oops"}},
		"own-code":       {script("ADD", `{"error":{"code":117,"msg":"no room"}}`), 117, []string{"no room"}},
		"signal":         {script("ADD", `{"signal":9}`), 109, []string{"killed"}},
		"hang":           {script("ADD", `{"hang":true}`), 110, []string{"deadline", "delegateTimeout"}},
		"lie-missing":    {script("ADD", `{"lie":"missing"}`), 111, []string{"interface ghost0", "absent"}},
		"lie-mac":        {script("ADD", `{"lie":"mac"}`), 111, []string{"MAC", "02:00:00:00:00:99"}},
		"lie-mtu":        {script("ADD", `{"lie":"mtu"}`), 111, []string{"MTU", "9000"}},
		"lie-address":    {script("ADD", `{"lie":"address"}`), 111, []string{"192.0.2.99/24", "10.92.0.2/24"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := *n
			n.t = t
			n.define(name, "", tc.config)
			n.refusedWithoutTrace(n.addPod(name+"-pod", "plain,"+name), tc.code, append(tc.parts, "network default/"+name)...)
		})
	}
	t.Run("missing", func(t *testing.T) {
		n.refusedWithoutTrace(n.addPod("missing-pod", "nowhere"), 102, "default/nowhere")
	})
	t.Run("broken but not selected", func(t *testing.T) {
		p := n.addPod("fine", "plain")
		n.succeed("ADD", p)
		n.succeed("DEL", p)
	})
}

func TestLiesAboutDevices(t *testing.T) {
	for name, want := range map[string]string{"device": "network device nic0 of the allocated device", "left": "found on the host"} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, nil)
			n.serve()
			n.warm()
			id := n.device("nic0")
			n.device("nic1")
			n.define("liar", nicA, `{"cniVersion":"1.0.0","type":"scripted","device":"nic0","other":"nic1","script":{"ADD":{"lie":"`+name+`"}}}`)
			p := n.addPod("pod", "liar", "c1")
			n.allocate(p, "c1", nicA, id)
			n.refusedWithoutTrace(p, 111, want, "resource "+nicA, "device "+id)
		})
	}
}

func TestDevicesAreRefusedNotGuessed(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	id := n.device("nic0")
	n.define("nic-a", nicA, hostDevice)
	n.define("nic-b", nicB, hostDevice)
	none := n.addPod("none", "nic-b", "c1")
	n.allocate(none, "c1", nicA, id)
	n.refusedWithoutTrace(none, 105, "resource "+nicB, "1 attachment asks", "allocated 0", "it has 1 of "+nicA, "resource limits")
	few := n.addPod("few", "nic-a,nic-a", "c1")
	n.allocate(few, "c1", nicA, id)
	n.refusedWithoutTrace(few, 105, "resource "+nicA, "2 attachments ask", "allocated 1")
	pinned := n.addPod("pinned", `[{"name":"nic-a","deviceID":"0000:21:00.1"}]`, "c1")
	n.allocate(pinned, "c1", nicA, id)
	n.refusedWithoutTrace(pinned, 106, "0000:21:00.1", id)
	gone := n.addPod("gone", "nic-a", "c1")
	n.allocate(gone, "c1", nicA, "0000:77:00.1")
	n.refusedWithoutTrace(gone, 107, "0000:77:00.1", "no such device")
}

func TestDamagedCheckpoint(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	id := n.device("nic0")
	n.define("nic-a", nicA, hostDevice)
	p := n.addPod("pod", "nic-a", "c1")
	n.allocate(p, "c1", nicA, id)
	path := n.path("kubelet/device-plugins/kubelet_internal_checkpoint")
	good, err := os.ReadFile(path)
	n.must(err)
	for name, content := range map[string]string{
		"truncated": string(good[:len(good)/2]), "wrong checksum": strings.Replace(string(good), id, "mlx5_core.sf.9", 1),
		"50 MB": strings.Repeat(" ", 50<<20), "too large": strings.Repeat(" ", 65<<20),
	} {
		n.must(os.WriteFile(path, []byte(content), 0o600))
		n.refusedWithoutTrace(p, 11, "checkpoint", nicA)
		t.Log(name)
	}
	n.must(os.Remove(path))
	n.refusedWithoutTrace(p, 11, "checkpoint")
	n.must(os.WriteFile(path, []byte(strings.Replace(string(good), `{"PodUID"`, `{"Newer":[1],"PodUID"`, 1)), 0o600))
	n.succeed("ADD", p)
	n.succeed("DEL", p)
}

func TestBadConfigurationAndEnvironment(t *testing.T) {
	n := newNode(t, map[string]any{"colour": "blue"})
	n.warm()
	p := n.addPod("pod", "")
	if res := n.succeed("ADD", p); !strings.Contains(string(res.Stderr), "colour") {
		t.Errorf("no warning about an unknown key: %s", res.Stderr)
	}
	n.succeed("DEL", p)
	good := n.rt
	change := func(key string, value any) {
		var conf map[string]any
		n.must(json.Unmarshal(good.Conf, &conf))
		conf[key] = value
		raw, err := json.Marshal(conf)
		n.must(err)
		n.rt = good
		n.rt.Conf = raw
	}
	n.succeed("ADD", p)
	change("clusterNetwork", 7)
	n.refuse("ADD", p, 7, "clusterNetwork", "string")
	n.succeed("DEL", p) // a mistake in the file makes no pod undeletable
	n.emptySandbox(p)
	change("namespaceIsolation", "yes")
	n.refuse("ADD", p, 7, "namespaceIsolation", "boolean")
	change("verify", "perhaps")
	n.refuse("ADD", p, 7, "verify", "enforce warn off")
	change("delegates", []any{map[string]any{"type": "manifold", "cniVersion": "1.0.0"}})
	var conf map[string]any
	n.must(json.Unmarshal(n.rt.Conf, &conf))
	delete(conf, "clusterNetwork")
	n.rt.Conf, _ = json.Marshal(conf)
	n.refuse("ADD", p, 103, "itself")
	n.rt = good
	n.refuse("GC", p, 7, "does not name the valid attachments")
	change("cni.dev/valid-attachments", []any{map[string]any{}})
	n.refuse("GC", p, 7, "containerID")
	n.rt = good
	for _, missing := range []string{"CNI_COMMAND=", "CNI_CONTAINERID=", "CNI_NETNS=", "CNI_IFNAME="} {
		n.rt.Env = []string{missing}
		n.refuse("ADD", p, 4, strings.TrimSuffix(missing, "="))
	}
	n.rt = good
	n.rt.Args = "nonsense"
	n.refuse("ADD", p, 4, "nonsense", "KEY=VALUE")
	n.rt = good
	n.rt.Conf = []byte("{")
	n.refuse("ADD", p, 6)
}

// attachedWithJournal attaches a pod and returns it with the path and the content of its
// journal.
func (n *node) attachedWithJournal() (p *pod, path string, content []byte) {
	n.t.Helper()
	p = n.addPod("pod", "plain")
	n.succeed("ADD", p)
	path = n.path("state/" + p.ID + "@eth0.journal")
	content, err := os.ReadFile(path)
	n.must(err)
	return p, path, content
}

// wasSetAside fails the test unless a damaged journal was kept once, and removes it.
func (n *node) wasSetAside(path string) {
	n.t.Helper()
	aside, err := filepath.Glob(path + ".corrupt-*")
	n.must(err)
	if len(aside) != 1 {
		n.t.Fatalf("the damaged journal was not kept: %v", aside)
	}
	n.must(os.Remove(aside[0]))
}

func TestBadJournal(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	before := n.state()
	p, path, good := n.attachedWithJournal()
	// Torn in the last line, as after a power failure: nothing of the plan stays
	// behind.
	n.must(os.WriteFile(path, good[:len(good)-20], 0o600))
	n.succeed("CHECK", p)
	n.must(os.WriteFile(path, []byte("00000000 {}\n"), 0o600))
	n.record("state", p, "lost", "null") // such a record keeps nothing
	n.refuse("DEL", p, 114, "checksum", "released 2 attachments", ".corrupt-")
	n.succeed("DEL", p)
	n.wasSetAside(path)
	n.must(p.ns.Delete())
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
}

// A power failure may leave a journal whose first record never reached the disk. No
// delegate has run then: DEL and GC remove the file and say nothing. If the pod was
// attached, libcni's records tell, whatever its journal looks like.
func TestJournalThatWasNeverBegun(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	before := n.state()
	p, path, good := n.attachedWithJournal()
	torn := good[:100]
	n.must(os.WriteFile(path, torn, 0o600))
	n.refuse("DEL", p, 114, "released 2 attachments", ".corrupt-")
	n.succeed("DEL", p)
	n.wasSetAside(path)
	n.must(os.WriteFile(path, torn, 0o600))
	n.succeed("DEL", p)
	n.must(os.WriteFile(path, torn, 0o600))
	n.collect()
	n.must(p.ns.Delete())
	n.settles(func() string { return withoutGone(before.Diff(n.state())) })
}

func TestUnusableJournalDirectory(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	n.must(os.RemoveAll(n.path("state")))
	n.must(os.WriteFile(n.path("state"), nil, 0o600)) // root ignores file modes
	p := n.addPod("pod", "plain")
	n.refuse("ADD", p, 5, "state", "cniDir")
	n.emptySandbox(p)
	n.succeed("DEL", p)
}

func TestUnknownPodIsRefusedRetryably(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.warm()
	p := n.sandbox("nobody", "00000000-0000-4000-8000-00000000abcd")
	n.refusedWithoutTrace(p, 11, "find pod")
}
