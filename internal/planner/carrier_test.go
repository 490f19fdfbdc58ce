package planner

import (
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/podresources"
	"github.com/manifold-cni/manifold/sriov"
)

func TestCarrierPolicyOfAnAttachment(t *testing.T) {
	const plain, enable, disable = `{"type":"sriov"}`, `{"type":"sriov","link_state":"enable"}`, `{"type":"sriov","link_state":"disable"}`
	for name, tc := range map[string]struct {
		conf, config, annotation, driver string
		want                             string
	}{
		"default":                           {"", plain, "", "igbvf", plan.CarrierWarn},
		"configured":                        {"require", plain, "", "igbvf", plan.CarrierRequire},
		"the definition's word":             {"require", plain, "ignore", "igbvf", plan.CarrierIgnore},
		"the link must be up":               {"", enable, "", "igbvf", plan.CarrierRequire},
		"the link must be up, not looked":   {"ignore", enable, "", "igbvf", plan.CarrierIgnore},
		"the link must be down":             {"require", disable, "", "igbvf", ""},
		"the definition's word comes first": {"", enable, "warn", "igbvf", plan.CarrierWarn},
		"no interface":                      {"require", plain, "require", "vfio-pci", ""},
		"unknown word":                      {"", plain, "Require", "igbvf", `annotation manifold.dev/carrier: "Require" is unknown`},
	} {
		t.Run(name, func(t *testing.T) {
			const id = "0000:21:10.4"
			w := world{
				networks: "fast", containers: []string{"rx"}, devices: []podresources.Device{dev("rx", id)},
				definitions: map[string]string{"fast": tc.config}, resources: map[string]string{"fast": vfs},
			}
			if tc.conf != "" {
				w.conf = map[string]any{"carrier": tc.conf}
			}
			src := w.sources()
			src.Definitions[Ref{"shop", "fast"}].Annotations[netattach.CarrierAnnotation] = tc.annotation
			src.Functions[id] = &sriov.Function{Address: id, PF: "0000:21:00.0", Driver: tc.driver, IOMMUGroup: "15"}
			p, err := w.planWith(t, src)
			if err != nil {
				if !cnierr.Is(err, cnierr.InvalidDefinition) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), "warn require ignore") {
					t.Errorf("%v, want %q", err, tc.want)
				}
				return
			}
			if got := p.Attachments[1].Want.Carrier; got != tc.want {
				t.Errorf("policy %q, want %q", got, tc.want)
			}
			if d := p.Attachments[1].Device; d.Driver != tc.driver || d.IOMMUGroup != "15" {
				t.Errorf("device %+v, want driver %s of group 15", d, tc.driver)
			}
			if got := p.Attachments[0].Want.Carrier; got != "" {
				t.Errorf("the default network has no device, and policy %q", got)
			}
		})
	}
}
