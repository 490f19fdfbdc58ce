//go:build clusterlab

package cluster

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/test/harness"
)

// agentAccount is the agent's user name in the audit log.
const agentAccount = "system:serviceaccount:kube-system:manifold"

// TestRequestsOfAPodsLife proves what a pod costs: two requests of ours to the API
// server, the status and an Event, and one PodResources request to the kubelet for a
// pod with devices, none for a pod without.
func TestRequestsOfAPodsLife(t *testing.T) {
	const pods = 8
	for name, c := range map[string]struct {
		options []option
		devices int // PodResources requests per pod, at most
	}{
		"networks": {[]option{networks("storage, plain")}, 0},
		"device":   {[]option{networks("red, storage"), container("main", Red)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := begin(t)
			asked := f.podResourcesCalls()
			var names []string
			for i := range pods {
				names = append(names, fmt.Sprintf("cost-%s-%d", name, i))
				f.create(names[i], c.options...)
			}
			for _, pod := range names {
				f.running(pod)
			}
			f.remove(names...)
			f.eventually("the last Event", func() error { // no pod waits for its Event
				if count := f.requests("cost-" + name); count["create events"] < pods {
					return fmt.Errorf("requests so far: %v", count)
				}
				return nil
			})
			f.agentRests() // an unwanted request may come after the last expected one
			want, count := map[string]int{"patch pods": pods, "create events": pods}, f.requests("cost-"+name)
			questions := f.podResourcesCalls() - asked
			t.Logf("%d pods cost the API server %v and PodResources %d calls", pods, count, questions)
			if !maps.Equal(count, want) {
				t.Errorf("want %v", want)
			}
			if questions > c.devices*pods {
				t.Errorf("PodResources was called %d times, want at most %d", questions, c.devices*pods)
			}
		})
	}
}

// The agent is at rest when it uses almost no processor time in successive spans. The
// kubelet's probes use less.
const (
	restSpan   = 100 * time.Millisecond
	restAtMost = restSpan / 20
	restSpans  = 20
)

// agentRests waits until the agent is at rest.
func (f *fixture) agentRests() {
	f.Helper()
	pid, err := f.agentPID()
	f.must(err)
	f.eventually("the agent to be at rest", func() error {
		for range restSpans {
			before, err := harness.ProcessCPU(pid)
			f.must(err)
			time.Sleep(restSpan)
			after, err := harness.ProcessCPU(pid)
			f.must(err)
			if used := after - before; used > restAtMost {
				return fmt.Errorf("it used %v of processor time in %v", used, restSpan)
			}
		}
		return nil
	})
}

// requests counts the agent's requests to the API server for pods with this name
// prefix, by verb and resource.
func (f *fixture) requests(prefix string) map[string]int {
	f.Helper()
	all, err := lab.API.Requests(agentAccount)
	f.must(err)
	count := map[string]int{}
	for _, r := range all {
		if strings.HasPrefix(r.Name, prefix) {
			count[r.Verb+" "+r.Resource]++
		}
	}
	return count
}

// podResourcesCalls returns the kubelet's own count of calls to its PodResources API.
func (f *fixture) podResourcesCalls() int {
	f.Helper()
	return f.kubeletCounts("kubelet_pod_resources_endpoint_requests_total{")
}

// kubeletCounts returns the sum of the kubelet's counters whose name and labels begin
// with prefix.
func (f *fixture) kubeletCounts(prefix string) (sum int) {
	f.Helper()
	raw, err := lab.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", NodeName, "proxy/metrics").DoRaw(f.ctx)
	f.must(err)
	for lines := bufio.NewScanner(bytes.NewReader(raw)); lines.Scan(); {
		name, value, ok := strings.Cut(lines.Text(), " ")
		if ok && strings.HasPrefix(name, prefix) {
			n, err := strconv.ParseFloat(value, 64)
			f.must(err)
			sum += int(n)
		}
	}
	return sum
}
