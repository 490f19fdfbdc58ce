package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// Error codes of refusals: the annotation itself is wrong, or an interface name is
// taken.
const (
	wrongAnnotation = 101
	nameTaken       = 112
)

// refusedClauses are annotations that are refused, by clause. Their networks are
// those of TestClauseSelectionRefused. The message must contain parts in addition
// to pod and network.
var refusedClauses = map[string][]struct {
	name, annotation string
	code             uint
	parts            []string
}{
	"MN-4.1.2-ips": {
		{"empty list", `[{"name":"able","ips":[]}]`, wrongAnnotation, []string{"ips", "empty"}},
		{"empty address", `[{"name":"able","ips":[""]}]`, wrongAnnotation, []string{"ips", "neither an IP address"}},
		{"one of two", `[{"name":"able","ips":["10.94.0.5","10.94.0.300"]}]`, wrongAnnotation, []string{"ips", "10.94.0.300"}},
		{"prefix too long", `[{"name":"able","ips":["10.94.0.5/33"]}]`, wrongAnnotation, []string{"ips", "10.94.0.5/33"}},
		{"zone", `[{"name":"able","ips":["fe80::1%eth0"]}]`, wrongAnnotation, []string{"ips", "fe80::1%eth0"}},
		{"name of a host", `[{"name":"able","ips":["localhost"]}]`, wrongAnnotation, []string{"ips", "localhost"}},
		{"null element", `[{"name":"able","ips":[null]}]`, wrongAnnotation, []string{"ips"}},
		{"no list", `[{"name":"able","ips":"10.94.0.5"}]`, wrongAnnotation, []string{"ips", "wrong type"}},
	},
	"MN-4.1.2-ips-capability": {
		{"not declared", `[{"name":"net","ips":["10.94.0.5"]}]`, wrongAnnotation, []string{"network default/net", `capability "ips"`}},
		{"declared false", `[{"name":"unable","ips":["10.94.0.5"]}]`, wrongAnnotation, []string{"network default/unable", `capability "ips"`}},
	},
	"MN-4.1.2-mac": {
		{"five bytes", `[{"name":"able","mac":"02:00:00:00:00"}]`, wrongAnnotation, []string{"mac", "6 bytes"}},
		{"eight bytes", `[{"name":"able","mac":"02:00:00:00:00:11:22:33"}]`, wrongAnnotation, []string{"mac", "6 bytes"}},
		{"no hexadecimal", `[{"name":"able","mac":"02:00:00:00:00:gg"}]`, wrongAnnotation, []string{"mac", "02:00:00:00:00:gg"}},
		{"a number", `[{"name":"able","mac":2}]`, wrongAnnotation, []string{"mac", "wrong type"}},
		{"no capability", `[{"name":"net","mac":"02:00:00:00:00:11"}]`, wrongAnnotation, []string{"network default/net", `capability "mac"`}},
	},
	"MN-4.1.2-interface": {
		{"16 bytes", `[{"name":"net","interface":"a234567890123456"}]`, wrongAnnotation, []string{"interface", "15"}},
		{"slash", `[{"name":"net","interface":"../x"}]`, wrongAnnotation, []string{"interface", "../x"}},
		{"blank", `[{"name":"net","interface":"a b"}]`, wrongAnnotation, []string{"interface", "a b"}},
		{"pattern of the kernel", "net@net%d", wrongAnnotation, []string{"interface", "net%d"}},
		{"setting of the kernel", "net@all", wrongAnnotation, []string{"interface", "all"}},
		{"dot", "net@.", wrongAnnotation, []string{"interface"}},
		{"dots", "net@..", wrongAnnotation, []string{"interface"}},
		{"empty", "net@", wrongAnnotation, []string{"net@"}},
		{"twice", "net@data0,able@data0", wrongAnnotation, []string{"entry 2", "entry 1", "interface"}},
		{"of the default network", "net@eth0", nameTaken, []string{"network default/net", "interface eth0"}},
		{"loopback", "net@lo", nameTaken, []string{"network default/net", "interface lo"}},
	},
	"MN-4.1.2-cni-args": {
		{"a list", `[{"name":"net","cni-args":["rack"]}]`, wrongAnnotation, []string{"cni-args", "wrong type"}},
		{"a string", `[{"name":"net","cni-args":"rack=1"}]`, wrongAnnotation, []string{"cni-args", "wrong type"}},
	},
	"MN-4.1.2-portMappings": {
		{"port 0", `[{"name":"able","portMappings":[{"hostPort":0,"containerPort":80}]}]`, wrongAnnotation, []string{"portMappings", "port 0"}},
		{"no container port", `[{"name":"able","portMappings":[{"hostPort":80}]}]`, wrongAnnotation, []string{"portMappings", "port 0"}},
		{"port 65536", `[{"name":"able","portMappings":[{"hostPort":80,"containerPort":65536}]}]`, wrongAnnotation, []string{"portMappings", "65536"}},
		{"negative port", `[{"name":"able","portMappings":[{"hostPort":-1,"containerPort":80}]}]`, wrongAnnotation, []string{"portMappings", "-1"}},
		{"protocol", `[{"name":"able","portMappings":[{"hostPort":80,"containerPort":80,"protocol":"icmp"}]}]`, wrongAnnotation, []string{"portMappings", "icmp"}},
		{"port as text", `[{"name":"able","portMappings":[{"hostPort":"80","containerPort":80}]}]`, wrongAnnotation, []string{"portMappings", "wrong type"}},
		{"no capability", `[{"name":"net","portMappings":[{"hostPort":80,"containerPort":80}]}]`, wrongAnnotation, []string{"network default/net", `capability "portMappings"`}},
	},
	"MN-4.1.2-bandwidth": {
		{"ingress burst alone", `[{"name":"able","bandwidth":{"ingressBurst":1,"egressRate":8}}]`, wrongAnnotation, []string{"bandwidth", "burst"}},
		{"egress burst alone", `[{"name":"able","bandwidth":{"egressBurst":1,"ingressRate":8}}]`, wrongAnnotation, []string{"bandwidth", "burst"}},
		{"negative", `[{"name":"able","bandwidth":{"ingressRate":-8}}]`, wrongAnnotation, []string{"bandwidth", "negative"}},
		{"rate as text", `[{"name":"able","bandwidth":{"ingressRate":"8M"}}]`, wrongAnnotation, []string{"bandwidth", "wrong type"}},
		{"no capability", `[{"name":"net","bandwidth":{"ingressRate":8}}]`, wrongAnnotation, []string{"network default/net", `capability "bandwidth"`}},
	},
	"MN-4.1.2-default-route": {
		{"prefix", `[{"name":"net","default-route":["10.95.0.1/24"]}]`, wrongAnnotation, []string{"default-route", "10.95.0.1/24"}},
		{"no address", `[{"name":"net","default-route":["0.0.0.0"]}]`, wrongAnnotation, []string{"default-route", "0.0.0.0"}},
		{"loopback", `[{"name":"net","default-route":["127.0.0.1"]}]`, wrongAnnotation, []string{"default-route", "127.0.0.1"}},
		{"empty gateway", `[{"name":"net","default-route":[""]}]`, wrongAnnotation, []string{"default-route"}},
		{"no list", `[{"name":"net","default-route":"10.95.0.1"}]`, wrongAnnotation, []string{"default-route", "wrong type"}},
	},
	"MN-4.1.2-default-route-twice": {
		{"two networks", `[{"name":"net","default-route":["10.95.0.1"]},{"name":"able","default-route":["10.95.0.1"]}]`, wrongAnnotation, []string{`entry 2 ("default/able")`, "default-route", "entry 1"}},
		{"an empty one", `[{"name":"able","default-route":[]},{"name":"able"},{"name":"net","default-route":["10.95.0.1"]}]`, wrongAnnotation, []string{`entry 3 ("default/net")`, "default-route", "entry 1"}},
	},
	"MN-4.1.2-infiniband-guid": {
		{"six bytes", `[{"name":"able","infiniband-guid":"02:00:00:00:00:01"}]`, wrongAnnotation, []string{"infiniband-guid", "8 bytes"}},
		{"no hexadecimal", `[{"name":"able","infiniband-guid":"c2:11:22:33:44:55:66:zz"}]`, wrongAnnotation, []string{"infiniband-guid"}},
		{"no capability", `[{"name":"net","infiniband-guid":"c2:11:22:33:44:55:66:77"}]`, wrongAnnotation, []string{"network default/net", `capability "infinibandGUID"`}},
	},
	"MN-4.1.2-ipam-claim": {
		{"beside ips", `[{"name":"able","ips":["10.94.0.5"],"ipam-claim-reference":"claim-1"}]`, wrongAnnotation, []string{"ips", "ipam-claim-reference"}},
		{"no string", `[{"name":"able","ipam-claim-reference":{"name":"claim-1"}}]`, wrongAnnotation, []string{"ipam-claim-reference", "wrong type"}},
	},
}

// invalidAnnotations are annotations that are wrong as a whole.
var invalidAnnotations = map[string]struct {
	annotation string
	parts      []string
}{
	"not JSON":        {`[{"name":`, []string{"JSON"}},
	"an object":       {`{"name":"net"}`, []string{"JSON list"}},
	"null entry":      {`[{"name":"net"},null]`, []string{"entry 2", "not an object"}},
	"entry is text":   {`["net"]`, []string{"entry 1", "not an object"}},
	"empty entry":     {`net,,net`, []string{"entry 2", "empty"}},
	"trailing comma":  {`net,`, []string{"entry 2", "empty"}},
	"one bad of many": {`net,net,Not_A_Name`, []string{"entry 3", "Not_A_Name"}},
	"nested":          {`[{"name":"net","x.y":` + strings.Repeat("[", 500) + strings.Repeat("]", 500) + `}]`, []string{"nested"}},
	"too many":        {strings.Repeat("net,", 5000) + "net", []string{"5001 entries"}},
}

// TestClauseSelectionRefused proves section 4 of the multi-network specification
// for wrong annotations: the pod is refused with name, network and cause, no
// delegate of a selected network runs, and nothing is left behind.
func TestClauseSelectionRefused(t *testing.T) {
	w := newWitness(t)
	w.network("net", nil)
	w.network("able", able("ips", "mac", "portMappings", "bandwidth", "infinibandGUID"))
	w.network("unable", map[string]any{"capabilities": map[string]bool{"ips": false}})
	for id, rows := range refusedClauses {
		t.Run(id, func(t *testing.T) {
			for i, row := range rows {
				t.Run(row.name, func(t *testing.T) {
					w := w.in(t)
					w.refusedUntouched(w.addPod(podName(id, i), row.annotation), row.code, append(row.parts, networkOf(row.annotation))...)
				})
			}
		})
	}
	t.Run("MN-4.1-invalid", func(t *testing.T) {
		for value, conf := range map[string]map[string]any{"by default": {}, "fail": {"invalidAnnotation": "fail"}} {
			for name, row := range invalidAnnotations {
				t.Run(value+"/"+name, func(t *testing.T) {
					w := w.in(t)
					w.withConf(conf)
					p := w.addPod(podName(value+"-"+name, 0), row.annotation)
					w.refusedUntouched(p, wrongAnnotation, append(row.parts, "k8s.v1.cni.cncf.io/networks")...)
				})
			}
		}
	})
	t.Run("MN-4.1.2-interface/taken in the sandbox", func(t *testing.T) { w.in(t).takenInSandbox() })
	t.Run("MN-4.2-same-twice/names of one only", func(t *testing.T) {
		w := w.in(t)
		w.refusedUntouched(w.addPod("same-twice", "net@data0,net@data0"), wrongAnnotation, "entry 2", "entry 1", "interface")
	})
}

// in returns the same node for a subtest. A subtest's changes to the runtime's
// configuration do not outlive it.
func (w *witness) in(t *testing.T) *witness {
	n := *w.node
	n.t = t
	return &witness{node: &n, before: w.before}
}

// networkOf returns the network that the refusal of an annotation must name: the
// last one in the annotation.
func networkOf(annotation string) string {
	last, name := -1, ""
	for _, network := range []string{"net", "able", "unable"} {
		if i := max(strings.LastIndex(annotation, `"`+network+`"`), strings.LastIndex(annotation, network+"@")); i > last {
			last, name = i, network
		}
	}
	return "default/" + name
}

// podName builds a pod name from a clause or case.
func podName(text string, i int) string {
	return fmt.Sprintf("%s-%d", strings.ToLower(strings.NewReplacer(" ", "-", ".", "-").Replace(text)), i)
}

// refusedUntouched expects ADD to be refused without a trace and before any
// delegate of a selected network runs.
func (w *witness) refusedUntouched(p *pod, code uint, parts ...string) {
	w.t.Helper()
	w.must(os.RemoveAll(w.path("told")))
	w.refusedWithoutTrace(p, code, parts...)
	if calls := w.calls("ADD"); len(calls) > 0 {
		w.t.Errorf("a delegate ran: %+v", calls)
	}
	w.must(p.ns.Delete())
}

// takenInSandbox checks that the attachment is refused if its interface name exists
// in the sandbox already, and that the undo leaves the existing interface alone.
func (w *witness) takenInSandbox() {
	p := w.addPod("taken", "able,net@data0")
	w.must(p.ns.Do(func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "data0"
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
	}))
	before := w.state()
	w.refuse("ADD", p, nameTaken, "default/taken", "network default/net", "interface data0", "already")
	for _, verb := range []string{"ADD", "DEL"} {
		if kept, err := p.ns.Link("data0"); err != nil || kept == nil {
			w.t.Fatalf("after %s the sandbox has lost its own data0: %v", verb, err)
		}
		for _, gone := range []string{"eth0", "net1"} {
			if link, err := p.ns.Link(gone); err != nil || link != nil {
				w.t.Errorf("after %s %s is still attached: %v", verb, gone, err)
			}
		}
		w.succeed("DEL", p)
	}
	w.unchanged(before)
}
