package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// node is a directory with an agent's sources in it, and an API server.
type node struct {
	harness.Place
	api  *kubetest.Server
	conf configfile.Agent
	once bool // one-shot mode
}

// newNode has an API server, and a network configuration in confDir for each name in
// onDisk. It has no snapshot, and nothing that needs the kubelet.
func newNode(t *testing.T, onDisk ...string) *node {
	t.Helper()
	n := &node{Place: harness.NewPlace(t), api: kubetest.Start()}
	t.Cleanup(n.api.Stop)
	kubeconfig, err := n.api.Kubeconfig(n.Dir)
	n.Must(err)
	n.conf = configfile.Agent{Node: "node1", APIServer: kubeconfig, Snapshot: n.Path("snapshot"), PodManifests: n.Path("pods")}
	for _, d := range []string{"net.d", "pods", "definitions"} {
		n.Must(os.Mkdir(n.Path(d), 0o700))
	}
	for _, name := range onDisk {
		n.File("net.d/"+name+".conflist", config(name, "from-file"))
	}
	return n
}

// config returns a network configuration whose plugin type tells where it comes from.
func config(name, cniType string) string {
	return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":%q}]}`, name, cniType)
}

// define adds a definition to the API server, in the default network's namespace.
func (n *node) define(name, config string) {
	n.api.AddDefinition(&netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: name}, Spec: netattach.DefinitionSpec{Config: config},
	})
}

// manifest writes a definition of that namespace as a manifest.
func (n *node) manifest(name, config string) {
	n.T.Helper()
	n.conf.DefinitionManifests = n.Path("definitions")
	n.File("definitions/"+name+".json", fmt.Sprintf(
		`{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinition","metadata":{"name":%q,"namespace":"kube-system"},"spec":{"config":%q}}`, name, config))
}

// agent returns an agent whose informers have not been started, like an agent before it
// has synced.
func (n *node) agent() *Agent {
	n.T.Helper()
	a, err := Assemble(&n.conf, n.once, slog.New(slog.DiscardHandler))
	n.Must(err)
	n.T.Cleanup(func() { n.Must(a.Close()) })
	return New(a.Sources, slog.New(slog.DiscardHandler), nil)
}

// request asks for the plan of a sandbox that gets clusterNetwork.
func (n *node) request(clusterNetwork string) plan.Request {
	n.T.Helper()
	conf, err := json.Marshal(map[string]string{
		"cniVersion": "1.1.0", "name": "manifold", "type": "manifold", "clusterNetwork": clusterNetwork, "confDir": n.Path("net.d"),
	})
	n.Must(err)
	return plan.Request{Version: plan.Version, ContainerID: "c1", NetNS: "/run/netns/c1", IfName: "eth0", Config: conf}
}

// wantPlan plans a sandbox that gets clusterNetwork. want is part of the error's text,
// or the plugin type of the plan's only attachment.
func (n *node) wantPlan(clusterNetwork, want string, kind cnierr.Kind) {
	n.T.Helper()
	p, err := n.agent().Plan(context.Background(), n.request(clusterNetwork))
	switch {
	case err != nil && (kind == cnierr.Other || cnierr.KindOf(err) != kind || !strings.Contains(err.Error(), want)):
		n.T.Errorf("%v (%v), want %s (%v)", err, cnierr.KindOf(err), want, kind)
	case err == nil && (kind != cnierr.Other || len(p.Attachments) != 1 || !strings.Contains(string(p.Attachments[0].Config), `"`+want+`"`)):
		n.T.Errorf("%d attachments, the first %s, want %s (%v)", len(p.Attachments), p.Attachments[0].Config, want, kind)
	}
}

// A file serves only if no definition has the name, even before the agent has synced.
// If no source can tell, the node comes up with the file.
func TestDefinitionGoesBeforeAFileOfItsName(t *testing.T) {
	fromDefinition := func(n *node) { n.define("cl", config("cl", "from-definition")) }
	damaged := func(n *node) { n.File("snapshot", "garbage") }
	tests := map[string]struct {
		prepare []func(*node)
		network string // cl by default
		want    string // plugin type, or part of the error
		kind    cnierr.Kind
	}{
		"no snapshot":          {prepare: []func(*node){fromDefinition}, want: "from-definition"},
		"snapshot left out":    {prepare: []func(*node){fromDefinition, func(n *node) { n.conf.Snapshot = "" }}, want: "from-definition"},
		"damaged snapshot":     {prepare: []func(*node){fromDefinition, damaged}, want: "from-definition"},
		"no definition":        {want: "from-file"},
		"nobody can tell":      {prepare: []func(*node){fromDefinition, damaged, func(n *node) { n.api.Stop() }}, want: "from-file"},
		"a manifest":           {prepare: []func(*node){func(n *node) { n.manifest("cl", config("cl", "from-manifest")) }}, want: "from-manifest"},
		"the API and manifest": {prepare: []func(*node){fromDefinition, func(n *node) { n.manifest("cl", config("cl", "from-manifest")) }}, want: "from-definition"},
		"a manifest alone": {prepare: []func(*node){damaged, func(n *node) {
			n.manifest("cl", config("cl", "from-manifest"))
			n.conf.APIServer = ""
		}}, want: "from-manifest"},
		"damaged snapshot alone": {prepare: []func(*node){damaged, func(n *node) { n.conf.APIServer = "" }}, want: "from-file"},
		"no DNS name":            {network: "my_net", want: "from-file"},
		"no DNS name, manifests": {prepare: []func(*node){func(n *node) {
			n.manifest("other", config("other", "from-manifest"))
			n.conf.APIServer = ""
		}}, network: "my_net", want: "from-file"},
		"no DNS name, no file": {network: "your_net", want: "your_net", kind: cnierr.TryAgain},
		"oversized": {prepare: []func(*node){func(n *node) {
			n.define("cl", config("cl", strings.Repeat("x", netattach.MaxConfig)))
		}}, want: "kube-system/cl", kind: cnierr.InvalidDefinition},
	}
	for name, tc := range tests {
		for mode, once := range map[string]bool{"not synced": false, "one-shot": true} {
			t.Run(name+", "+mode, func(t *testing.T) {
				n := newNode(t, "cl", "my_net")
				n.once = once
				for _, f := range tc.prepare {
					f(n)
				}
				if tc.network == "" {
					tc.network = "cl"
				}
				n.wantPlan(tc.network, tc.want, tc.kind)
			})
		}
	}
}

// Whoever asks for the definition of the default network learns whether it exists,
// whether it leaves its configuration to a file, and whether it is broken. Only in the
// first two cases does a file serve.
func TestDefinitionOfTheDefaultNetwork(t *testing.T) {
	n := newNode(t)
	n.conf.APIServer = ""
	for name, config := range map[string]string{"cl": config("cl", "from-definition"), "blank": " \n", "broken": "{"} {
		n.manifest(name, config)
	}
	a := n.agent()
	for name, want := range map[string]cnierr.Kind{
		"cl": cnierr.Other, "blank": cnierr.Other, "broken": cnierr.InvalidDefinition, "missing": cnierr.NotReady, "my_net": cnierr.NotReady,
	} {
		raw, err := a.Status(context.Background(), plan.StatusQuery{Namespace: "kube-system", Name: name})
		switch {
		case want != cnierr.Other && (cnierr.KindOf(err) != want || !strings.Contains(err.Error(), "kube-system/"+name)):
			t.Errorf("%s: %s, %v, want %v", name, raw, err, want)
		case want == cnierr.Other && (err != nil || strings.Contains(string(raw), "from-definition") != (name == "cl")):
			t.Errorf("%s: %s, %v", name, raw, err)
		}
	}
}

// The one-shot mode runs on the host, without the credential of the agent's pod. It
// reads the snapshot alone; a definition that is not in there fails with TryAgain.
func TestOneShotWithoutTheAgentsCredential(t *testing.T) {
	n := newNode(t, "cl")
	n.conf.APIServer, n.once = configfile.InCluster, true
	n.wantPlan("cl", "from-file", cnierr.Other)
	n.wantPlan("elsewhere", "snapshot", cnierr.TryAgain)
}

// After the informer has synced, the manifests still count, and neither they nor the
// file cost the API server a request.
func TestDefinitionsOnceSynced(t *testing.T) {
	n := newNode(t, "cl", "other", "third")
	n.define("cl", config("cl", "from-definition"))
	n.manifest("cl", config("cl", "from-manifest"))
	n.manifest("other", config("other", "from-manifest"))
	assembly, err := Assemble(&n.conf, false, slog.New(slog.DiscardHandler))
	n.Must(err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); assembly.Run(ctx) }()
	defer func() { stop(); <-done; n.Must(assembly.Close()) }()
	for end := time.Now().Add(time.Minute); assembly.Sources.Ready() != nil; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never synced")
		}
	}
	n.api.ForgetRequests()
	a := New(assembly.Sources, slog.New(slog.DiscardHandler), nil)
	for network, want := range map[string]string{"cl": "from-definition", "other": "from-manifest", "third": "from-file"} {
		p, err := a.Plan(context.Background(), n.request(network))
		if err != nil || !strings.Contains(string(p.Attachments[0].Config), want) {
			t.Errorf("%s: %+v, %v, want %s", network, p, err, want)
		}
	}
	for _, r := range n.api.Requests() {
		if !strings.Contains(r.Query, "watch") {
			t.Errorf("request %+v", r)
		}
	}
}

// A definition that needs a device is not skipped: without an allocation the pod is
// refused instead of getting the file's network.
func TestDefinitionWithADeviceIsNotPassedOver(t *testing.T) {
	n := newNode(t, "cl")
	n.api.AddDefinition(&netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "kube-system", Name: "cl",
			Annotations: map[string]string{netattach.ResourceNameAnnotation: "vendor.example/vfs"},
		},
		Spec: netattach.DefinitionSpec{Config: config("cl", "from-definition")},
	})
	n.wantPlan("cl", "vendor.example/vfs", cnierr.NoDevice)
}

const (
	apiUID     = "aaaaaaaa-0000-4000-8000-000000000001" // as the API server assigns them
	newUID     = "bbbbbbbb-0000-4000-8000-000000000002"
	kubeletUID = "0123456789abcdef0123456789abcdef" // as the kubelet computes them
)

// addPod adds a pod of namespace shop to the API server.
func (n *node) addPod(name, uid string, annotations map[string]string) {
	n.api.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID(uid), Annotations: annotations},
		Spec:       corev1.PodSpec{NodeName: "node1"},
	})
}

// planPod plans the pod, as the kubelet names it, with the file's network.
func (n *node) planPod(a *Agent, name, uid string) (*plan.Plan, error) {
	n.T.Helper()
	req := n.request("cl")
	req.PodNamespace, req.PodName, req.PodUID = "shop", name, uid
	return a.Plan(context.Background(), req)
}

// The source of a pod decides under which UID the status is written. An ordinary pod's
// UID protects the name's next owner; a static pod's UID is not the API's.
func TestStatusOfStaticAndOrdinaryPods(t *testing.T) {
	mirror := map[string]string{"kubernetes.io/config.mirror": kubeletUID, "kubernetes.io/config.source": "file"}
	posing := map[string]string{"kubernetes.io/config.source": "file"}
	static := func(n *node) {
		n.File("pods/web.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop"}}`)
	}
	tests := map[string]struct {
		before    func(*node)
		uid       string // the runtime's
		after     func(*node)
		static    bool
		published bool
	}{
		"manifest, mirrored later": {
			static, kubeletUID, func(n *node) { n.addPod("web-node1", apiUID, mirror) }, true, true,
		},
		"mirror": {func(n *node) { n.addPod("web-node1", apiUID, mirror) }, kubeletUID, func(*node) {}, true, true},
		"ordinary pod": {
			func(n *node) { n.addPod("web-node1", apiUID, nil) }, apiUID, func(*node) {}, false, true,
		},
		"ordinary pod posing, replaced": {
			func(n *node) { n.addPod("web-node1", apiUID, posing) }, apiUID, func(n *node) { n.addPod("web-node1", newUID, nil) }, false, false,
		},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			n := newNode(t, "cl")
			tc.before(n)
			a := n.agent()
			p, err := n.planPod(a, "web-node1", tc.uid)
			n.Must(err)
			if p.Pod.Static != tc.static || p.Pod.UID != tc.uid {
				t.Errorf("planned for %+v", p.Pod)
			}
			tc.after(n)
			err = a.Report(context.Background(), plan.Report{Version: plan.Version, Plan: p, Verb: "ADD", Outcomes: []plan.Outcome{{
				Name: "cl", IfName: "eth0", Result: json.RawMessage(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/c1"}]}`),
			}}})
			if (err == nil) != tc.published {
				t.Errorf("report: %v", err)
			}
			if status := n.api.Pod("shop", "web-node1").Annotations[netattach.StatusAnnotation]; (status != "") != tc.published {
				t.Errorf("status %q", status)
			}
		})
	}
}

// Without a UID from the runtime, as when a pod is explained, a static pod is planned
// under the UID in its mirror, by which the checkpoint knows its devices.
func TestStaticPodWithoutTheRuntimesUID(t *testing.T) {
	n := newNode(t, "cl")
	n.addPod("web-node1", apiUID, map[string]string{"kubernetes.io/config.mirror": kubeletUID})
	n.addPod("db", newUID, nil)
	a := n.agent()
	for name, want := range map[string]string{"web-node1": kubeletUID, "db": newUID} {
		pod, err := a.pod(context.Background(), plan.Pod{Namespace: "shop", Name: name})
		n.Must(err)
		if pod.UID != want {
			t.Errorf("%s: UID %q, want %q", name, pod.UID, want)
		}
	}
}

// A pod of the API server is not mistaken for the static pod of a manifest of that
// name, not even while nobody else answers.
func TestOrdinaryPodIsNotAnsweredByAManifest(t *testing.T) {
	n := newNode(t, "cl")
	n.File("pods/web.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"shop"}}`)
	n.api.Stop()
	a := n.agent()
	for _, uid := range []string{apiUID, ""} {
		if p, err := n.planPod(a, "web", uid); !cnierr.Is(err, cnierr.TryAgain) {
			t.Errorf("UID %q: %+v, %v", uid, p, err)
		}
	}
	if _, err := n.planPod(a, "web-node1", kubeletUID); err != nil {
		t.Error(err)
	}
}

// late is sources on a slow API server: the first question after a pod, and every one
// after a definition, outlasts a request's timeout.
type late struct {
	kube.Pods
	asked map[string]int
}

func (l late) answer(name string) error {
	l.asked[name]++
	return fmt.Errorf("%w: %w", kube.ErrUnavailable, context.DeadlineExceeded)
}

func (l late) Pod(ctx context.Context, namespace, name, uid string) (*corev1.Pod, error) {
	if err := l.answer(name); l.asked[name] == 1 {
		return nil, err
	}
	return l.Pods.Pod(ctx, namespace, name, uid)
}

func (l late) Definition(_ context.Context, _, name string) (*netattach.Definition, error) {
	return nil, l.answer(name)
}

// When a plan's pod took longer than a request's timeout, its definitions get all the
// time at once.
func TestPlanKeepsItsPatience(t *testing.T) {
	n := newNode(t, "cl")
	n.addPod("web", apiUID, map[string]string{"k8s.v1.cni.cncf.io/networks": "net"})
	a := n.agent()
	l := late{a.src.Pods, map[string]int{}}
	a.src.Publisher, a.src.Pods, a.src.Definitions = nil, kube.FirstPods(l), kube.FirstDefinitions(l)
	if _, err := n.planPod(a, "web", apiUID); err == nil || l.asked["web"] != 2 || l.asked["net"] != 1 {
		t.Errorf("%v; asked %v, want twice after the pod and once after the definition", err, l.asked)
	}
}

// The one-shot reads the snapshot once for all definitions of a plan. An agent without
// an API server reads it for each lookup, since the file may change.
func TestSnapshotIsReadOncePerPlan(t *testing.T) {
	n := newNode(t)
	n.define("a", "{}")
	n.define("b", "{}")
	writer, err := Assemble(&n.conf, false, slog.New(slog.DiscardHandler))
	n.Must(err)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan struct{})
	go func() { writer.Run(ctx); close(ended) }()
	for end := time.Now().Add(time.Minute); !files.Exists(n.conf.Snapshot) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	stop()
	<-ended
	n.Must(writer.Close())

	n.conf.APIServer = ""
	every := n.agent()
	n.conf.APIServer, n.once = configfile.InCluster, true
	once := n.agent()
	for _, a := range []*Agent{every, once} {
		_, err := a.src.Definitions.Definition(t.Context(), "kube-system", "a")
		n.Must(err)
	}
	n.Must(os.Remove(n.conf.Snapshot))
	if _, err := once.src.Definitions.Definition(t.Context(), "kube-system", "b"); err != nil {
		t.Errorf("read again: %v", err)
	}
	if _, err := once.src.Local.Definition(t.Context(), "kube-system", "b"); err != nil {
		t.Errorf("read again: %v", err)
	}
	if _, err := every.src.Definitions.Definition(t.Context(), "kube-system", "b"); err == nil {
		t.Error("not read again")
	}
}
