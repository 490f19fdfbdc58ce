package attach

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/test/harness"
)

// An interface that the pod put in the place of its VF is hidden from the delegate,
// which would move it to the host. An interface that the delegate created is not.
func TestDecoyIsNotTheDelegatesToMove(t *testing.T) {
	if !harness.Alone(t) {
		return
	}
	for checked, netns := range map[string]string{verify.ParentDevice: "none", "stacked on network device": "live"} {
		t.Run(checked, func(t *testing.T) {
			pod, err := harness.NewNetNS("pod")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = pod.Delete() }()
			h := newHardware(t, `if test -n "$CNI_NETNS"; then echo live; else echo none; fi >"$dir/netns"`)
			h.ns = pod.Path
			before := h.attach("old")
			entry, err := h.Journal.Open(key("old"))
			h.must(err)
			h.must(entry.Append(journal.Step{Phase: journal.Verified, Checked: []string{checked}}))
			h.must(pod.Do(func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "net1"}, PeerName: "peer"})
			}))
			err = h.del("old")
			if got, _ := os.ReadFile(h.path("netns")); strings.TrimSpace(string(got)) != netns {
				t.Errorf("the delegate's network namespace: %s, want %s", got, netns)
			}
			if netns == "live" { // the delegate has not deleted its interface
				if !cnierr.Is(err, cnierr.TeardownIncomplete) {
					t.Errorf("%v, want an error that the interface is left", err)
				}
				return
			}
			h.must(err)
			h.stands(before)
			if own, err := pod.Link("net1"); own == nil || err != nil {
				t.Errorf("the pod's own net1: %v, %v", own, err)
			}
		})
	}
}
