package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scraper is a node whose agent serves metrics.
type scraper struct {
	*node
	url string
}

// newScraper starts a node's agent on a free port.
func newScraper(t *testing.T, conf map[string]any) *scraper {
	t.Helper()
	n := newNode(t, conf)
	keys := n.agentKeys()
	keys["listen"], keys["cniConfig"], keys["cniDir"] = "127.0.0.1:0", "-", n.path("state")
	n.agentConfig(keys)
	n.serve()
	return &scraper{node: n, url: n.url()}
}

// agentKeys returns the agent's current configuration.
func (n *node) agentKeys() (keys map[string]any) {
	n.t.Helper()
	raw, err := os.ReadFile(n.path("agent.json"))
	n.must(err)
	n.must(json.Unmarshal(raw, &keys))
	return keys
}

// url waits until the agent logs its HTTP address, and returns its URL.
func (n *node) url() string {
	n.t.Helper()
	var url string
	n.eventually("the agent's address", func() bool {
		log, err := os.ReadFile(n.path("agent.log"))
		n.must(err)
		for line := range strings.Lines(string(log)) {
			var said struct {
				Msg, Address string
			}
			if json.Unmarshal([]byte(line), &said) == nil && said.Msg == "serving HTTP" {
				url = "http://" + said.Address
			}
		}
		return url != ""
	})
	return url
}

// TestSecondAgentLeavesTheFirstItsSocket proves that an agent that finds its port
// taken does not touch the socket either: the old pod may still run after a forced
// deletion when its successor starts.
func TestSecondAgentLeavesTheFirstItsSocket(t *testing.T) {
	n := newNode(t, nil)
	keys := n.agentKeys()
	keys["listen"], keys["cniConfig"], keys["cniDir"] = "127.0.0.1:0", "-", n.path("state")
	n.agentConfig(keys)
	n.serve()
	url := n.url()
	keys["listen"] = strings.TrimPrefix(url, "http://")
	n.agentConfig(keys)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // a second agent that does serve is killed
	defer cancel()
	if out, err := exec.CommandContext(ctx, filepath.Join(n.bin, "manifold-agent"), "serve", "--config", n.path("agent.json")).CombinedOutput(); err == nil || !strings.Contains(string(out), keys["listen"].(string)) {
		t.Errorf("the second agent: %v\n%s", err, out)
	}
	resp, err := http.Get(url + "/healthz")
	n.must(err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the first agent answers %s", resp.Status)
	}
}

// scrape returns the exposed samples by name and labels.
func (s *scraper) scrape() map[string]string {
	s.t.Helper()
	resp, err := http.Get(s.url + "/metrics")
	s.must(err)
	defer resp.Body.Close()
	out := map[string]string{}
	lines := bufio.NewScanner(resp.Body)
	for lines.Scan() {
		if i := strings.LastIndexByte(lines.Text(), ' '); i > 0 && lines.Text()[0] != '#' {
			out[lines.Text()[:i]] = lines.Text()[i+1:]
		}
	}
	s.must(lines.Err())
	return out
}

// askStatus makes one STATUS succeed and another fail on something that the agent
// does not check: the default network's program.
func (s *scraper) askStatus() {
	s.t.Helper()
	s.succeed("STATUS", &pod{})
	s.must(os.Rename(s.path("bin/bridge"), s.path("bin/gone")))
	if res := s.call("STATUS", &pod{}); res.Status == 0 {
		s.t.Error("STATUS succeeds without the default network's program")
	}
	s.must(os.Rename(s.path("bin/gone"), s.path("bin/bridge")))
}

// TestMetricsOfVerbs proves that the metrics count every verb with its steps,
// failures by kind, and deviations from the plan by field. Operations that nobody
// waits for are counted a little later.
func TestMetricsOfVerbs(t *testing.T) {
	s := newScraper(t, nil)
	s.define("second", "", s.bridge("second", "10.99.0.0/16"))
	s.define("lies", "", `{"cniVersion":"1.0.0","type":"scripted","script":{"ADD":{"lie":"mtu"}}}`)
	s.define("fails", "", `{"cniVersion":"1.0.0","type":"scripted","script":{"ADD":{"error":{"code":77,"msg":"no"}}}}`)
	s.define("absent", "", `{"cniVersion":"1.0.0","type":"no-such-program"}`)
	p := s.addPod("pod", "second")
	s.succeed("ADD", p)
	s.succeed("CHECK", p)
	s.succeed("DEL", p)
	s.askStatus()
	s.collect()
	for _, name := range []string{"lies", "fails", "absent", "nowhere"} {
		if res := s.call("ADD", s.addPod("pod-"+name, name)); res.Status == 0 {
			t.Errorf("%s: ADD succeeded", name)
		}
	}
	want := map[string]string{
		`manifold_operation_duration_seconds_count{outcome="success",verb="ADD"}`:                  "1",
		`manifold_operation_duration_seconds_count{outcome="failure",verb="ADD"}`:                  "4",
		`manifold_operation_duration_seconds_count{outcome="success",verb="CHECK"}`:                "1",
		`manifold_operation_duration_seconds_count{outcome="success",verb="DEL"}`:                  "1",
		`manifold_operation_duration_seconds_count{outcome="success",verb="GC"}`:                   "1",
		`manifold_operation_duration_seconds_count{outcome="success",verb="STATUS"}`:               "1",
		`manifold_operation_duration_seconds_count{outcome="failure",verb="STATUS"}`:               "1",
		`manifold_operation_failures_total{kind="verify-failed",verb="ADD"}`:                       "1",
		`manifold_operation_failures_total{kind="delegate-failed",verb="ADD"}`:                     "1",
		`manifold_operation_failures_total{kind="delegate-missing",verb="ADD"}`:                    "1",
		`manifold_operation_failures_total{kind="definition-missing",verb="ADD"}`:                  "1",
		`manifold_verification_failures_total{field="MTU (result)",verb="ADD"}`:                    "1",
		`manifold_step_duration_seconds_count{step="lock",verb="ADD"}`:                             "5",
		`manifold_step_duration_seconds_count{step="plan",verb="ADD"}`:                             "5",
		`manifold_step_duration_seconds_count{step="journal",verb="ADD"}`:                          "3",
		`manifold_step_duration_seconds_count{step="verify",verb="ADD"}`:                           "5",
		`manifold_step_duration_seconds_count{step="verify",verb="CHECK"}`:                         "2",
		`manifold_step_duration_seconds_count{step="delegate",verb="DEL"}`:                         "2",
		`manifold_delegate_duration_seconds_count{outcome="success",plugin="bridge",verb="ADD"}`:   "4",
		`manifold_delegate_duration_seconds_count{outcome="failure",plugin="scripted",verb="ADD"}`: "1",
		`manifold_delegate_duration_seconds_count{outcome="success",plugin="bridge",verb="DEL"}`:   "4",
		`manifold_plan_duration_seconds_count{outcome="success"}`:                                  "4",
		`manifold_plan_duration_seconds_count{outcome="failure"}`:                                  "1",
		`manifold_publish_failures_total{what="event"}`:                                            "0",
	}
	var wrong []string
	defer func() {
		if t.Failed() {
			t.Log(strings.Join(wrong, "\n"))
		}
	}()
	s.eventually("all operations to be counted", func() bool {
		have := s.scrape()
		wrong = nil
		for name, value := range want {
			if have[name] != value {
				wrong = append(wrong, fmt.Sprintf("%s is %q, want %s", name, have[name], value))
			}
		}
		return len(wrong) == 0
	})
}

// TestMetricsOfDevices proves that the metrics show a device with its pod while the
// pod has it, the number of journals, and the kubelet's allocations.
func TestMetricsOfDevices(t *testing.T) {
	s := newScraper(t, nil)
	id := s.device("nic0")
	s.define("fast", nicA, hostDevice)
	p := s.addPod("pod", "fast", "c1")
	s.allocate(p, "c1", nicA, id)
	const info, attached = "manifold_attached_device_info{", `manifold_attachments{state="attached"}`
	infos := func(have map[string]string) (out []string) {
		for name := range have {
			if strings.HasPrefix(name, info) {
				out = append(out, name)
			}
		}
		return out
	}
	if have := s.scrape(); len(infos(have)) != 0 || have["manifold_journals"] != "0" || have[attached] != "0" {
		t.Errorf("before ADD: %v", have)
	}
	s.succeed("ADD", p)
	have := s.scrape()
	got := infos(have)
	if len(got) != 1 {
		t.Fatalf("attached: %v", got)
	}
	for _, label := range []string{`pod="pod"`, `namespace="default"`, `container="c1"`, `interface="net1"`, `network="default/fast"`, `resource="` + nicA + `"`} {
		if !strings.Contains(got[0], label) {
			t.Errorf("%s lacks %s", got[0], label)
		}
	}
	for name, value := range map[string]string{
		"manifold_journals": "1", "manifold_journals_unreadable": "0", attached: "2",
		`manifold_devices{resource="` + nicA + `",state="attached"}`:  "1",
		`manifold_devices{resource="` + nicA + `",state="allocated"}`: "1",
		`manifold_planned_devices_total{source="checkpoint"}`:         "1",
		`manifold_device_findings{kind="stranded"}`:                   "0",
	} {
		if have[name] != value {
			t.Errorf("%s is %q, want %s", name, have[name], value)
		}
	}
	s.succeed("DEL", p)
	if have := s.scrape(); len(infos(have)) != 0 || have["manifold_journals"] != "0" {
		t.Errorf("after DEL: %v", infos(have))
	}
}
