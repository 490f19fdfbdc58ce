package agent

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
)

// An agent publishes later what the one-shot mode reports on the host, which has no
// credential: once, when the API server answers, and only for sandboxes that are still
// attached.
func TestReportsWaitForAnAgent(t *testing.T) {
	n := newNode(t, "cl")
	n.conf.CNIDir = n.Path("state")
	n.conf.Listen = "127.0.0.1:0"
	serving := n.agent()
	n.conf.APIServer, n.once = configfile.InCluster, true
	for _, name := range []string{"web", "gone"} {
		n.addPod(name, apiUID, nil)
		n.File("pods/"+name+".json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"`+name+`","namespace":"shop"}}`)
		req := n.request("cl")
		req.ContainerID = "sandbox-" + name
		oneShot := n.agent()
		p, err := oneShot.Plan(context.Background(), req)
		n.Must(err)
		p.Pod = plan.Pod{Namespace: "shop", Name: name, UID: apiUID}
		if name == "web" {
			_, err = journal.Dir{Path: n.conf.CNIDir}.Begin(context.Background(), journal.Key{ContainerID: p.ContainerID, IfName: "eth0"}, p)
			n.Must(err)
		}
		n.Must(oneShot.Report(context.Background(), plan.Report{Version: plan.Version, Plan: p, Verb: "ADD", Later: true, Outcomes: []plan.Outcome{{
			Name: "cl", IfName: "eth0", Result: json.RawMessage(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/run/netns/c1"}]}`),
		}}}))
	}
	box := outboxOf(n.conf.CNIDir)
	n.Must(os.WriteFile(string(box)+"/0-damaged.json", []byte("{"), 0o600))
	deliver := func() error {
		return serving.deliver(context.Background(), box)
	}
	publisher := serving.src.Publisher
	serving.src.Publisher = noStatus{publisher} // an Event would be written
	if err := deliver(); err == nil {
		t.Error("not delivered")
	}
	serving.src.Publisher = publisher
	if events := n.api.Events(); len(events) > 0 {
		t.Errorf("Events of reports that wait: %+v", events)
	}
	if err := deliver(); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]bool{"web": true, "gone": false} {
		if status := n.api.Pod("shop", name).Annotations[netattach.StatusAnnotation]; (status != "") != want {
			t.Errorf("pod %s: status %q", name, status)
		}
	}
	if events := n.api.Events(); len(events) != 1 || events[0].Count > 1 {
		t.Errorf("Events %+v, want one of the one report", events)
	}
	// Each report is counted once, although the API server refused one at first.
	w := httptest.NewRecorder()
	serving.src.Metrics.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if want := `manifold_operation_duration_seconds_count{outcome="success",verb="ADD"} 2`; !strings.Contains(w.Body.String(), want) {
		t.Errorf("no line %s", want)
	}
	if left, err := box.list(); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// noStatus is an API server that answers, but not about a pod's status.
type noStatus struct{ Publisher }

func (noStatus) PublishStatus(context.Context, string, string, string, string) error {
	return kube.ErrUnavailable
}

// The outbox finds its reports in a directory of any name, in the order in which they
// came.
func TestOutboxInADirectoryOfAnyName(t *testing.T) {
	for _, name := range []string{"plain", "[open", "a[b]c", "star*", `back\slash`} {
		t.Run(name, func(t *testing.T) {
			box := outboxOf(filepath.Join(t.TempDir(), name))
			if files, err := box.list(); err != nil || len(files) > 0 {
				t.Errorf("before the first report: %v, %v", files, err)
			}
			for _, id := range []string{"first", "second"} {
				if err := box.put(&plan.Report{Version: plan.Version, Plan: &plan.Plan{ContainerID: id}}); err != nil {
					t.Fatal(err)
				}
			}
			files, err := box.list()
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, file := range files {
				r, err := box.take(file)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, r.Plan.ContainerID)
			}
			if want := []string{"first", "second"}; !slices.Equal(ids, want) {
				t.Errorf("reports of %v, want %v", ids, want)
			}
		})
	}
}

// A report that comes while the agent serves is published at once.
func TestReportsAreHeardOf(t *testing.T) {
	n := newNode(t, "cl")
	n.conf.CNIDir = n.Path("state")
	n.conf.Listen = "127.0.0.1:0"
	serving := n.agent()
	n.addPod("web", apiUID, nil)
	p := &plan.Plan{Version: plan.Version, Pod: plan.Pod{Namespace: "shop", Name: "web", UID: apiUID}, ContainerID: "c1", Attachments: []plan.Attachment{{IfName: "eth0"}}}
	_, err := journal.Dir{Path: n.conf.CNIDir}.Begin(context.Background(), journal.Key{ContainerID: p.ContainerID, IfName: "eth0"}, p)
	n.Must(err)
	stop := n.start(func(ctx context.Context) error {
		serving.Deliver(ctx)
		return nil
	})
	t.Cleanup(stop)
	box := outboxOf(n.conf.CNIDir)
	for { // until Deliver has looked once, so that only its watch can notice
		if _, err := os.Stat(string(box)); err == nil {
			break
		}
	}
	n.Must(box.put(&plan.Report{Version: plan.Version, Plan: p, Verb: "ADD", Outcomes: []plan.Outcome{{Name: "cl", IfName: "eth0"}}}))
	for end := time.Now().Add(time.Minute); n.api.Pod("shop", "web").Annotations[netattach.StatusAnnotation] == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the report is not published")
		}
	}
}

// An ADD that ends after the pod's next sandbox was planned does not replace the status
// of that one.
func TestReportOfASupersededSandbox(t *testing.T) {
	n := newNode(t, "cl")
	serving := n.agent()
	n.addPod("web", apiUID, nil)
	add := func(sandbox string) func(ip string) {
		req := n.request("cl")
		req.ContainerID, req.PodNamespace, req.PodName, req.PodUID = sandbox, "shop", "web", apiUID
		p, err := serving.Plan(context.Background(), req)
		n.Must(err)
		return func(ip string) {
			n.Must(serving.Report(context.Background(), plan.Report{Version: plan.Version, Plan: p, Verb: "ADD", Outcomes: []plan.Outcome{{
				Name: "cl", IfName: "eth0", Result: json.RawMessage(`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"` + ip + `/24","interface":0}]}`),
			}}}))
		}
	}
	orphan, next := add("orphan"), add("next")
	for _, c := range []struct {
		report func(ip string)
		ip     string
		want   bool
	}{{orphan, "10.0.0.1", false}, {next, "10.0.0.2", true}, {orphan, "10.0.0.3", false}} {
		c.report(c.ip)
		if status := n.api.Pod("shop", "web").Annotations[netattach.StatusAnnotation]; strings.Contains(status, c.ip) != c.want {
			t.Errorf("after the report of %s the status is %q", c.ip, status)
		}
	}
}

// A report that is read late is not published for a sandbox that is gone by then.
func TestReportsThatAreReadLate(t *testing.T) {
	n := newNode(t, "cl")
	n.conf.CNIDir = n.Path("state")
	serving := n.agent()
	for name, c := range map[string]struct {
		made      time.Time
		attached  bool
		published bool
	}{
		"soon":         {time.Now().Add(time.Hour), false, true}, // however long this test takes
		"by-a-plugin":  {time.Time{}, false, true},               // which does not say when
		"late":         {time.Now().Add(-time.Hour), true, true},
		"late-and-old": {time.Now().Add(-time.Hour), false, false},
	} {
		n.addPod(name, apiUID, nil)
		p := &plan.Plan{Version: plan.Version, Pod: plan.Pod{Namespace: "shop", Name: name, UID: apiUID}, ContainerID: "sandbox-" + name, Attachments: []plan.Attachment{{IfName: "eth0"}}}
		if c.attached {
			_, err := journal.Dir{Path: n.conf.CNIDir}.Begin(context.Background(), journal.Key{ContainerID: p.ContainerID, IfName: "eth0"}, p)
			n.Must(err)
		}
		n.Must(serving.Report(context.Background(), plan.Report{Version: plan.Version, Plan: p, Verb: "ADD", Made: c.made, Outcomes: []plan.Outcome{{Name: "cl", IfName: "eth0"}}}))
		if status := n.api.Pod("shop", name).Annotations[netattach.StatusAnnotation]; (status != "") != c.published {
			t.Errorf("%s: status %q", name, status)
		}
	}
}
