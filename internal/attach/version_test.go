package attach

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// Asking a plugin for its versions is a step of its own: it is no ADD, and a plugin
// that does not tell them refuses no pod.
func TestAskingForVersionsIsNoRunOfTheVerb(t *testing.T) {
	for body, want := range map[string]string{`echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","0.3.1"]}'`: "0.4.0", "exit 1": oldest} {
		h := newHardware(t, body)
		h.Times = NewTimes("ADD")
		r, err := h.Engine.begin(t.Context(), h.invocation("asks"))
		h.must(err)
		p := h.plan("asks")
		p.Attachments[0].Config = []byte(`{"name":"fast","plugins":[{"type":"mover"}]}`)
		h.must(r.preflight(t.Context(), p))
		if got := r.lists[0].CNIVersion; got != want {
			t.Errorf("version %q, want %q", got, want)
		}
		var steps []plan.Step
		for _, s := range h.Times.op.Steps {
			if s.Plugin != "" {
				steps = append(steps, s)
			}
		}
		if len(steps) != 1 || steps[0].Name != plan.StepVersion || steps[0].Failed != (want == oldest) || r.exec.step != plan.StepDelegate {
			t.Errorf("steps %+v, and then %s", steps, r.exec.step)
		}
		h.must(r.end(true, nil))
	}
}

// STATUS names a plugin of the default network that hangs when asked for its versions.
// DEL and GC still call it.
func TestPluginThatNeverSaysWhatItSpeaks(t *testing.T) {
	h := newHardware(t, "exec sleep 1000")
	h.must(os.WriteFile(h.path("default.conf"), []byte(`{"name":"cluster-net","type":"mover"}`), 0o600))
	h.conf["clusterNetwork"] = h.path("default.conf")
	inv := h.invocation("asks")
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Engine.Status(late, inv); !cnierr.Is(err, cnierr.NotReady) || !strings.Contains(err.Error(), "run delegate mover: killed after its deadline") {
		t.Errorf("STATUS: %v, want the plugin", err)
	}
	h.conf["delegateTimeout"] = "1s"
	if err := h.Engine.Status(t.Context(), h.invocation("asks again")); !cnierr.Is(err, cnierr.NotReady) || !strings.Contains(err.Error(), "run delegate mover: killed after its deadline") {
		t.Errorf("STATUS: %v, want the plugin and no older version", err)
	}
	if list, err := h.Engine.knownDefault(late, inv); err != nil || list.Name != "cluster-net" || list.CNIVersion != "" {
		t.Errorf("DEL: %+v, %v", list, err)
	}
}
