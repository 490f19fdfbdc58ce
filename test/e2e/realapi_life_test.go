//go:build apiserver

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/apiserver"
)

func TestRealAPIDefinitions(t *testing.T) {
	n := newRealNode(t)
	for name, tc := range map[string]struct {
		spec map[string]any
		ok   bool
	}{
		"with-config": {map[string]any{"config": `{"type":"ptp"}`}, true}, "without": {map[string]any{}, true}, "not-json": {map[string]any{"config": "{"}, true},
		"number": {map[string]any{"config": int64(7)}, false}, "object": {map[string]any{"config": map[string]any{"type": "ptp"}}, false},
		"more":      {map[string]any{"config": "{}", "vendor": map[string]any{"x": int64(1)}}, true},
		"too-large": {map[string]any{"config": strings.Repeat("x", 256<<10+1)}, false},
	} {
		if err := n.defineReal(name, tc.spec); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// withoutSchema makes the API server accept any definition, like one whose CRD has
// no schema.
func (n *realNode) withoutSchema() {
	n.t.Helper()
	dyn, err := dynamic.NewForConfig(n.server.Config())
	n.must(err)
	crds := dyn.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	const loose = `[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]`
	_, err = crds.Patch(context.Background(), netattach.Resource+"."+netattach.GroupVersion.Group, types.JSONPatchType, []byte(loose), metav1.PatchOptions{})
	n.must(err)
	n.eventually("the API server to accept any definition", func() bool { return n.defineReal("number", map[string]any{"config": int64(7)}) == nil })
}

// TestRealAPIBrokenDefinitions proves that broken definitions of any form fail only
// the pods that select them.
func TestRealAPIBrokenDefinitions(t *testing.T) {
	n := newRealNode(t)
	n.withoutSchema()
	n.plain()
	n.must(n.defineReal("object", map[string]any{"config": map[string]any{"plugins": []any{nil}}}))
	n.must(n.defineReal("list", map[string]any{"config": []any{nil}}))
	n.must(n.defineReal("huge", map[string]any{"config": strings.Repeat("[", 300<<10)}))
	for _, name := range []string{"agent", "one-shot"} {
		if name == "agent" {
			n.serve()
			n.eventually("the snapshot", func() bool { return exists(n.path("state/snapshot")) })
		} else {
			n.must(os.Remove(n.path("agent.sock")))
		}
		p := n.create("fine-"+name, "plain")
		n.eventuallyAdds(p)
		n.succeed("DEL", p)
		for _, broken := range []string{"number", "object", "list", "huge"} {
			n.refusedWithoutTrace(n.create(broken+"-"+name, "plain,"+broken), 103, "network default/"+broken)
		}
	}
}

// TestRealAPIPodsLife proves from the audit log what a pod costs, and that only one
// annotation of the pod changes.
func TestRealAPIPodsLife(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	p := n.create("app", "plain")
	status := corev1.PodStatus{
		Phase: corev1.PodPending, ResourceClaimStatuses: []corev1.PodResourceClaimStatus{{Name: "claim"}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}},
	}
	patch, err := json.Marshal(map[string]any{"status": status})
	n.must(err)
	_, err = n.client.CoreV1().Pods("default").Patch(context.Background(), "app", types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	n.must(err)
	before := n.get("app")
	// The agent asks once more for a pod that its watch has not delivered yet.
	n.serve()
	n.ready()
	n.succeed("ADD", p)
	after := n.get("app")
	var list []netattach.Status
	n.must(json.Unmarshal([]byte(after.Annotations[netattach.StatusAnnotation]), &list))
	if len(list) != 2 || list[1].Name != "default/plain" || list[1].Interface != "net1" {
		t.Errorf("network-status %+v", list)
	}
	delete(after.Annotations, netattach.StatusAnnotation)
	for _, meta := range []*metav1.ObjectMeta{&before.ObjectMeta, &after.ObjectMeta} {
		meta.ResourceVersion, meta.ManagedFields = "", nil
	}
	if !reflect.DeepEqual(before, after) {
		t.Errorf("more than the annotation has changed:\nbefore %+v\nafter  %+v", before, after)
	}
	n.succeed("CHECK", p)
	n.succeed("DEL", p)
	n.eventually("the event", func() bool { return len(n.cost("app")) > 1 })
	if cost := n.cost("app"); !slices.Equal(cost, []string{"create events", "patch pods app"}) && !slices.Equal(cost, []string{"patch pods app", "create events"}) {
		t.Errorf("a pod's life costs %q", cost)
	}
	known := len(n.asked())
	for range 10 {
		n.succeed("STATUS", &pod{})
	}
	if got := n.asked()[known:]; len(got) != 0 {
		t.Errorf("STATUS asked the API server: %q", got)
	}
}

// TestRealAPIRepeatedRefusals proves that a pod that the kubelet retries again and
// again has a single Event with a count.
func TestRealAPIRepeatedRefusals(t *testing.T) {
	n := newRealNode(t)
	p := n.create("lost", "nowhere")
	n.serve()
	n.ready()
	for range 20 {
		n.refuse("ADD", p, 102)
	}
	patch := []byte(`{"metadata":{"annotations":{"` + netattach.NetworksAnnotation + `":"elsewhere"}}}`)
	_, err := n.client.CoreV1().Pods("default").Patch(context.Background(), "lost", types.MergePatchType, patch, metav1.PatchOptions{})
	n.must(err)
	var events []corev1.Event
	n.eventually("the Event to have the new message", func() bool {
		n.refuse("ADD", p, 102)
		list, err := n.client.CoreV1().Events("default").List(context.Background(), metav1.ListOptions{FieldSelector: "involvedObject.name=lost"})
		n.must(err)
		events = list.Items
		return len(events) != 1 || strings.Contains(events[0].Message, "default/elsewhere")
	})
	if len(events) != 1 || events[0].Reason != "NetworkNotFound" || events[0].Type != corev1.EventTypeWarning || events[0].Count < 20 {
		t.Errorf("Events %+v", events)
	}
	var written []string
	n.eventually("the audit log to have the patch", func() bool {
		written = slices.DeleteFunc(n.cost("lost"), func(r string) bool { return !strings.HasSuffix(r, " events") })
		return len(written) > 1
	})
	// One patch for the new message, and one more for each minute that the test took.
	if len(written) > 5 || !slices.Equal(slices.Compact(written), []string{"create events", "patch events"}) {
		t.Errorf("the refusals cost %q", written)
	}
}

// ready waits until the agent knows pods and definitions.
func (n *realNode) ready() {
	n.t.Helper()
	url := n.url() + "/readyz"
	n.eventually("the agent to be ready", func() bool {
		resp, err := http.Get(url)
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// asked returns the agent's requests to the API server, except watches, which are
// only logged when they end.
func (n *realNode) asked() []apiserver.Request {
	n.t.Helper()
	requests, err := n.server.Requests(n.agent.Account())
	n.must(err)
	return slices.DeleteFunc(requests, func(r apiserver.Request) bool { return r.Verb == "watch" })
}

// cost returns the agent's requests to the API server, except those to list and
// watch pods and definitions.
func (n *realNode) cost(pod string) []string {
	n.t.Helper()
	var out []string
	for _, r := range n.asked() {
		switch {
		case r.Verb == "list":
		case r.Resource == "events":
			out = append(out, r.Verb+" events")
		default:
			out = append(out, r.String())
		}
	}
	return out
}

// eventuallyAdds retries ADD of a pod as the kubelet does, until it succeeds.
func (n *realNode) eventuallyAdds(p *pod) {
	n.t.Helper()
	var last []byte
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
		res := n.call("ADD", p)
		if res.Status == 0 {
			return
		}
		last = res.Stdout
	}
	n.t.Fatalf("ADD %s does not succeed: %s", p.Name, last)
}

// TestRealAPIConcurrentWriters proves that concurrent writes to the pod's metadata
// are not lost.
func TestRealAPIConcurrentWriters(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	n.serve()
	p := n.create("app", "plain")
	var stop atomic.Bool
	done := make(chan int)
	go func() {
		writes := 0
		for ; !stop.Load(); writes++ {
			patch := fmt.Appendf(nil, `{"metadata":{"annotations":{"writer-%d":"x"}}}`, writes)
			if _, err := n.client.CoreV1().Pods("default").Patch(context.Background(), "app", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Error(err)
				break
			}
		}
		done <- writes
	}()
	n.succeed("ADD", p)
	stop.Store(true)
	writes := <-done
	annotations := n.get("app").Annotations
	if annotations[netattach.StatusAnnotation] == "" || annotations["keep"] != "this" {
		t.Errorf("annotations %v", annotations)
	}
	for i := range writes {
		if annotations[fmt.Sprintf("writer-%d", i)] == "" {
			t.Errorf("write %d of %d was lost", i, writes)
		}
	}
	n.succeed("DEL", p)
}

func TestRealAPIKilled(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	n.serve()
	p, late := n.create("app", "plain"), n.create("late", "plain")
	n.eventually("the snapshot", func() bool { return exists(n.path("state/snapshot")) })
	n.succeed("ADD", p)
	n.must(n.server.Kill())
	n.succeed("ADD", late) // known from the watch; its status is published later
	n.succeed("DEL", p)
	n.succeed("DEL", late)
	n.must(n.server.Restart())
	again := n.create("again", "plain")
	n.succeed("ADD", again)
	n.eventually("the status", func() bool { return n.get("again").Annotations[netattach.StatusAnnotation] != "" })
	n.succeed("DEL", again)
}

// TestRealAPIUnwell proves that slow, overloaded and failing servers cause delays
// but no loss.
func TestRealAPIUnwell(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	n.serve()
	for name, tc := range map[string]struct {
		delay time.Duration
		code  int
	}{"slow": {delay: 2 * time.Second}, "429": {code: http.StatusTooManyRequests}, "500": {code: http.StatusInternalServerError}, "503": {code: http.StatusServiceUnavailable}} {
		t.Run(name, func(t *testing.T) {
			p := n.create("pod-"+name, "plain")
			var patches atomic.Int32
			n.proxy.behave(tc.delay, func(r *http.Request) int {
				if tc.code != 0 && r.Method == http.MethodPatch && patches.Add(1) <= 2 {
					return tc.code
				}
				return 0
			})
			n.succeed("ADD", p)
			if n.get("pod-" + name).Annotations[netattach.StatusAnnotation] == "" {
				t.Error("network-status is not published")
			}
			n.succeed("DEL", p)
			n.proxy.behave(0, nil)
		})
	}
}

// TestRealAPISlow proves that a pod that cannot be planned without the API server
// waits for it no longer than planTimeout.
func TestRealAPISlow(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	p := n.create("app", "plain") // there is no agent: every object is requested
	n.proxy.behave(2*time.Second, nil)
	n.succeed("ADD", p)
	n.succeed("DEL", p)
	n.proxy.behave(time.Hour, nil)
	defer n.proxy.behave(0, nil)
	defer n.proxy.cut()
	n.must(os.RemoveAll(n.path("state/snapshot")))
	n.withConf(map[string]any{"planTimeout": "3s"})
	n.refusedWithoutTrace(n.create("late", "plain"), 11, "deadline")
}

func TestRealAPIWatchesAreTakenUpAgain(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	n.serve()
	first := n.create("first", "plain")
	n.succeed("ADD", first)
	for i := range 3 {
		n.proxy.cut()
		name := fmt.Sprintf("net-%d", i)
		n.must(n.defineReal(name, map[string]any{"config": n.bridge(name, fmt.Sprintf("10.9%d.0.0/16", i))}))
		p := n.create("pod-"+name, "plain,"+name)
		n.eventuallyAdds(p)
		n.succeed("DEL", p)
	}
	n.succeed("DEL", first)
}

func TestRealAPICredentialsRotated(t *testing.T) {
	n := newRealNode(t)
	n.plain()
	n.serve()
	first := n.create("first", "plain")
	n.succeed("ADD", first)
	n.must(n.agent.Rotate()) // from now on the old token is rejected
	n.proxy.cut()
	second := n.create("second", "plain")
	n.eventuallyAdds(second)
	n.eventually("the status", func() bool { return n.get("second").Annotations[netattach.StatusAnnotation] != "" })
	n.succeed("DEL", second)
	n.succeed("DEL", first)
}
