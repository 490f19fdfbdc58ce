package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// lines returns the lines of a JSON log.
func (n *node) lines(file string) []map[string]any {
	n.t.Helper()
	raw, err := os.ReadFile(n.path(file))
	n.must(err)
	var out []map[string]any
	for line := range strings.Lines(string(raw)) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			n.t.Errorf("%s: %v: %s", file, err, line)
		}
		out = append(out, m)
	}
	return out
}

// said returns the lines with this message about a pod.
func said(lines []map[string]any, msg string, p *pod) (out []map[string]any) {
	for _, l := range lines {
		if l["msg"] == msg && l["uid"] == p.UID && l["sandbox"] == p.ID {
			out = append(out, l)
		}
	}
	return out
}

// TestLogsOfOneCall proves that a call has the same ID in the logs of plugin and
// agent, that every line names its pod and sandbox, and that deviations from the
// plan name their network.
func TestLogsOfOneCall(t *testing.T) {
	n := newNode(t, nil)
	n.serve()
	n.withConf(map[string]any{"logFile": n.path("plugin.log"), "logLevel": "debug", "logFormat": "json", "verify": "warn"})
	n.define("lies", "", `{"cniVersion":"1.0.0","type":"scripted","script":{"ADD":{"lie":"mtu"}}}`)
	p, refused := n.addPod("pod", "lies"), n.addPod("refused", "nowhere")
	if res := n.succeed("ADD", p); strings.Contains(string(res.Stdout), "request") {
		t.Errorf("a log line is on stdout: %s", res.Stdout)
	}
	n.refuse("ADD", refused, 102)
	plugin, agent := n.lines("plugin.log"), n.lines("agent.log")
	ids := map[any]bool{}
	for _, tc := range []struct {
		p                 *pod
		ofPlugin, ofAgent string
	}{{p, "done", "planned"}, {p, "done", "report"}, {refused, "failed", "refused"}} {
		a, b := said(plugin, tc.ofPlugin, tc.p), said(agent, tc.ofAgent, tc.p)
		if len(a) != 1 || len(b) != 1 || a[0]["request"] != b[0]["request"] || len(a[0]["request"].(string)) != 32 {
			t.Errorf("%s and %s: %v and %v", tc.ofPlugin, tc.ofAgent, a, b)
			continue
		}
		ids[a[0]["request"]] = true
	}
	if len(ids) != 2 {
		t.Errorf("two calls have the IDs %v", ids)
	}
	if l := said(plugin, "not as planned", p); len(l) == 0 || l[0]["network"] != "default/lies" || l[0]["interface"] != "net1" {
		t.Errorf("%v", l)
	}
	if l := said(plugin, "attached", p); len(l) != 2 || l[0]["interface"] != "eth0" {
		t.Errorf("%v", l)
	}
}
