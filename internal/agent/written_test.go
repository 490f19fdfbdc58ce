package agent

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
)

// A VF that the kubelet has allocated to a pod does not become another pod's because a
// definition names it.
func TestVFThatADefinitionNamesIsAnotherPods(t *testing.T) {
	n := newVFNode(t)
	n.admit("owner", leftoverVF)
	k := newKubelet(&n.conf, nil)
	t.Cleanup(func() { n.Must(k.close()) })
	a := New(Sources{Holders: k.holders}, slog.New(slog.DiscardHandler), nil)
	for name, tc := range map[string]struct{ pod, written, want string }{
		"by address":        {"thief", leftoverVF, "shop/owner"},
		"by its directory":  {"thief", "/sys/devices/pci0000:00/" + leftoverVF, "shop/owner"},
		"the owner itself":  {"owner", leftoverVF, ""},
		"nobody's":          {"thief", "0000:21:10.0", ""},
		"none of this node": {"thief", "0000:99:00.1", ""},
	} {
		p := &plan.Plan{Pod: plan.Pod{Namespace: "shop", Name: tc.pod, UID: tc.pod}, Attachments: []plan.Attachment{{Name: "shop/static", Written: []string{tc.written}}}}
		err := a.notAnothers(t.Context(), p, n.tree.Host())
		if tc.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		for _, part := range []string{tc.want, "network shop/static", leftoverVF, "resourceName to example.com/vfs"} {
			if !cnierr.Is(err, cnierr.DeviceConflict) || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", name, err, part)
			}
		}
	}
}
