package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

func exposition(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body, err := io.ReadAll(w.Body)
	if err != nil || w.Code != http.StatusOK {
		t.Fatalf("%d, %v", w.Code, err)
	}
	return string(body)
}

// failed returns an ADD that touches every metric of operations.
func failed() *plan.Operation {
	return &plan.Operation{
		Verb: "ADD", Failed: true, Kind: cnierr.VerifyFailed, Took: 30_000, Differed: []string{"MTU (result)"},
		Steps: []plan.Step{
			{Name: plan.StepPlan, Took: 1000}, {Name: plan.StepVersion, Plugin: "bridge", Failed: true, Took: 3000}, {Name: plan.StepDelegate, Plugin: "bridge", Took: 20_000},
			{Name: plan.StepVerify, Failed: true, Took: 100}, {Name: plan.StepUndo, Plugin: "bridge", Took: 9000},
		},
	}
}

// used returns metrics with everything counted once.
func used() *Metrics {
	m := New("v1")
	m.Operation(failed())
	m.Operation(&plan.Operation{Verb: "STATUS", Took: 1000})
	m.Planned(time.Millisecond, nil, errors.New("no"))
	m.Planned(time.Millisecond, &plan.Plan{Attachments: []plan.Attachment{{}, {Device: &plan.Device{Source: "checkpoint"}}}}, nil)
	m.KubeletCall("Get", "rate-limited")
	m.Node(func() Node {
		return Node{
			Devices:  map[DeviceState]int{{"vendor.example/vfs", DeviceAllocated}: 3},
			Attached: []AttachedDevice{{"web", "shop", "rx", "net1", "shop/fast", "vendor.example/vfs", "0000:21:10.4"}},
			Journals: 7, Unreadable: 1, Attachments: map[string]int{"attached": 9}, Findings: map[string]int{"stranded": 2},
			Failing: map[string]time.Duration{"definitions": time.Minute},
		}
	})
	m.Repaired("leftover", false)
	m.Repaired("stranded", true)
	m.NotPublished(PublishEvent)
	m.ConnectionClosed(ListenerView)
	m.Ready(func() map[string]error { return map[string]error{"pods": nil, "kubelet": errors.New("gone")} })
	return m
}

// stuck is a client that never reads its answer.
type stuck struct {
	http.ResponseWriter
	writes chan<- struct{} // receives when the answer's body is written
	gone   <-chan struct{} // closed when the client gives up
}

// Write implements http.ResponseWriter.
func (s stuck) Write([]byte) (int, error) {
	s.writes <- struct{}{}
	<-s.gone
	return 0, io.ErrClosedPipe
}

// TestClientsThatDoNotRead proves that clients which ask for metrics and do not read them
// keep nobody else from the metrics.
func TestClientsThatDoNotRead(t *testing.T) {
	h := used().Handler()
	writes, gone := make(chan struct{}), make(chan struct{})
	var all sync.WaitGroup
	for range 2 * maxGatherings {
		all.Go(func() {
			h.ServeHTTP(stuck{httptest.NewRecorder(), writes, gone}, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		})
	}
	for range 2 * maxGatherings {
		<-writes
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "manifold_build_info") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	close(gone)
	all.Wait()
}

// TestScrapesWait proves that a scrape waits while maxGatherings others are gathered, and
// gives up when its client does.
func TestScrapesWait(t *testing.T) {
	m := New("v1")
	asked, open := make(chan struct{}), make(chan struct{})
	m.Ready(func() map[string]error { asked <- struct{}{}; <-open; return nil })
	h := m.Handler()
	scrape := func(ctx context.Context) int {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil))
		return w.Code
	}
	codes := make(chan int)
	for range maxGatherings {
		go func() { codes <- scrape(t.Context()) }()
		<-asked
	}
	left, leave := context.WithCancel(t.Context())
	leave()
	if code := scrape(left); code != http.StatusServiceUnavailable {
		t.Errorf("whose client has left: %d", code)
	}
	go func() { codes <- scrape(t.Context()) }()
	select {
	case <-asked:
		t.Error("one too many is gathered")
	case <-time.After(50 * time.Millisecond): // a slow machine waits longer, never shorter
		go func() { <-asked }()
	}
	close(open)
	for range maxGatherings + 1 {
		if code := <-codes; code != http.StatusOK {
			t.Errorf("waited: %d", code)
		}
	}
}

func TestCounted(t *testing.T) {
	body := exposition(t, used())
	for _, line := range []string{
		`manifold_operation_duration_seconds_sum{outcome="failure",verb="ADD"} 0.03`,
		`manifold_operation_duration_seconds_count{outcome="success",verb="STATUS"} 1`,
		`manifold_operation_failures_total{kind="verify-failed",verb="ADD"} 1`,
		`manifold_step_duration_seconds_count{step="plan",verb="ADD"} 1`,
		`manifold_delegate_duration_seconds_sum{outcome="success",plugin="bridge",verb="ADD"} 0.02`,
		`manifold_delegate_duration_seconds_sum{outcome="success",plugin="bridge",verb="DEL"} 0.009`,
		`manifold_delegate_duration_seconds_sum{outcome="failure",plugin="bridge",verb="VERSION"} 0.003`,
		`manifold_plan_duration_seconds_count{outcome="failure"} 1`,
		`manifold_verification_failures_total{field="MTU (result)",verb="ADD"} 1`,
		`manifold_publish_failures_total{what="event"} 1`,
		`manifold_publish_failures_total{what="network-status"} 0`,
		`manifold_connections_closed_total{listener="http"} 0`,
		`manifold_connections_closed_total{listener="view"} 1`,
		`manifold_planned_devices_total{source="checkpoint"} 1`,
		`manifold_podresources_calls_total{method="Get",outcome="rate-limited"} 1`,
		`manifold_devices{resource="vendor.example/vfs",state="allocated"} 3`,
		`manifold_attached_device_info{container="rx",interface="net1",namespace="shop",network="shop/fast",pciAddr="0000:21:10.4",pod="web",resource="vendor.example/vfs"} 1`,
		`manifold_journals 7`, `manifold_journals_unreadable 1`, `manifold_attachments{state="attached"} 9`,
		`manifold_device_repairs_total{kind="leftover",outcome="success"} 1`, `manifold_device_repairs_total{kind="stranded",outcome="failure"} 1`,
		`manifold_device_findings{kind="stranded"} 2`, `manifold_source_failing_seconds{source="definitions"} 60`,
		`manifold_ready{check="kubelet"} 0`, `manifold_ready{check="pods"} 1`, `manifold_build_info{release="v1"} 1`,
	} {
		if !strings.Contains(body, "\n"+line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil {
		t.Error(err)
	}
	for _, p := range problems {
		// The label that joins the counters of VFs has the name that their exporters
		// use.
		if p.Metric != attachedDevice.Name || !strings.Contains(p.Text, "camelCase") {
			t.Errorf("%+v", p)
		}
	}
}

// If the journals cannot be listed, their metrics are left out and the rest is shown.
func TestJournalsThatCannotBeListed(t *testing.T) {
	m := New("v1")
	m.Node(func() Node {
		return Node{Err: errors.New("no directory"), Devices: map[DeviceState]int{{"vendor.example/vfs", DeviceRegistered}: 4}}
	})
	body := exposition(t, m)
	if strings.Contains(body, "manifold_journals ") || !strings.Contains(body, `manifold_devices{resource="vendor.example/vfs",state="registered"} 4`) {
		t.Error(body)
	}
}

// The reference page has every metric, with its type and its labels.
func TestDefinitionsAreWhatIsExposed(t *testing.T) {
	body := exposition(t, used())
	for _, d := range Definitions() {
		if !strings.Contains(body, fmt.Sprintf("# HELP %s %s\n# TYPE %s %s\n", d.Name, d.Help, d.Name, d.Type)) {
			t.Errorf("%s is not exposed as documented", d.Name)
		}
	}
	if have, want := strings.Count(body, "# TYPE manifold_"), len(Definitions()); have != want {
		t.Errorf("%d metrics are exposed, %d are documented", have, want)
	}
}

// A plugin of another release, or a broken one, cannot fill the agent's memory.
func TestLabelsAreBounded(t *testing.T) {
	m := New("v1")
	for i := range 1000 {
		op := failed()
		op.Verb, op.Kind, op.Differed = fmt.Sprint("VERB", i), cnierr.Kind(i), []string{strings.Repeat("x", 100+i)}
		op.Steps[0].Name, op.Steps[1].Plugin = fmt.Sprint("step", i), fmt.Sprint("plugin", i)
		m.Operation(op)
	}
	body := exposition(t, m)
	for _, label := range []string{`verb="VERB`, `step="step`, `plugin="plugin`} {
		seen := map[string]bool{}
		for _, part := range strings.Split(body, label)[1:] {
			seen[part[:strings.IndexByte(part, '"')]] = true
		}
		if len(seen) == 0 || len(seen) > maxValues {
			t.Errorf("%s has %d values", label, len(seen))
		}
	}
	if !strings.Contains(body, `field="other"`) || strings.Contains(body, "xxx") {
		t.Error("a long value was kept")
	}
}

// An agent that serves no metrics counts none.
func TestNilCountsNothing(*testing.T) {
	var m *Metrics
	m.Operation(failed())
	m.Planned(time.Second, nil, nil)
	m.KubeletCall("List", "success")
	m.NotPublished(PublishStatus)
}
