package attach

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/manifold-cni/manifold/internal/plan"
)

// routesOf returns a result's routes as "destination via gateway metric".
func routesOf(t *testing.T, raw json.RawMessage) []string {
	t.Helper()
	_, r, err := decodeResult(raw)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, route := range r.Routes {
		metric, err := json.Marshal(route.Priority)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, route.Dst.String()+" via "+route.GW.String()+" metric "+string(metric))
	}
	return out
}

func TestResultSaysTheDefaultRoutesThatAreThere(t *testing.T) {
	const ips = `"ips":[{"address":"10.1.0.2/24"}]`
	gateways := func(list ...string) *[]string { return &list }
	tests := map[string]struct {
		result string
		a      plan.Attachment
		want   []string
	}{
		"dropped, the others and other tables kept": {
			`{"cniVersion":"1.1.0",` + ips + `,"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"},{"dst":"::/0"},{"dst":"10.9.0.0/16","gw":"10.1.0.1"},{"dst":"0.0.0.0/0","gw":"10.1.0.9","table":100}]}`,
			plan.Attachment{DropDefaultRoute: true},
			[]string{"10.9.0.0/16 via 10.1.0.1 metric 0", "0.0.0.0/0 via 10.1.0.9 metric 0"},
		},
		"replaced, metrics by family": {
			`{"cniVersion":"1.1.0",` + ips + `,"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"}]}`,
			plan.Attachment{DefaultRoute: gateways("10.1.0.7", "fd00::1", "10.1.0.8")},
			[]string{"0.0.0.0/0 via 10.1.0.7 metric 0", "::/0 via fd00::1 metric 1024", "0.0.0.0/0 via 10.1.0.8 metric 100"},
		},
		"removed without another": {
			`{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.0.2/24"}],"routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"}]}`,
			plan.Attachment{DefaultRoute: gateways()}, nil,
		},
		"the oldest form": {
			`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24","routes":[{"dst":"0.0.0.0/0","gw":"10.1.0.1"}]}}`,
			plan.Attachment{DefaultRoute: gateways("10.1.0.7")}, []string{"0.0.0.0/0 via 10.1.0.7 metric 0"},
		},
		"empty": {`{}`, plan.Attachment{DefaultRoute: gateways("10.1.0.7")}, nil},
	}
	for name, tc := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := withDefaultRoutes(json.RawMessage(tc.result), &tc.a)
			if err != nil {
				t.Fatal(err)
			}
			if routes := routesOf(t, got); !slices.Equal(routes, tc.want) {
				t.Errorf("routes %q, want %q", routes, tc.want)
			}
		})
	}
}

// An address belongs to the attachment's own interface if no other can be meant.
func TestAddressesThatAResultClaims(t *testing.T) {
	own, other := `{"name":"net1","sandbox":"/run/netns/x"}`, `{"name":"net2","sandbox":"/run/netns/x"}`
	for result, want := range map[string][]string{
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24"}}`:                                                               {"10.1.0.2/24"},
		`{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"}]}`:                                                        {"10.1.0.2/24"},
		`{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},` + own + `],"ips":[{"address":"10.1.0.2/24"}]}`:              {"10.1.0.2/24"},
		`{"cniVersion":"1.0.0","interfaces":[` + own + `,` + other + `],"ips":[{"address":"10.1.0.2/24"}]}`:               nil,
		`{"cniVersion":"1.0.0","interfaces":[` + other + `],"ips":[{"address":"10.1.0.2/24"}]}`:                           nil,
		`{"cniVersion":"1.0.0","interfaces":[` + own + `,` + other + `],"ips":[{"address":"10.1.0.2/24","interface":0}]}`: {"10.1.0.2/24"},
	} {
		if c, _, err := claimOf(json.RawMessage(result), "net1"); err != nil || !slices.Equal(c.Addresses, want) {
			t.Errorf("%s: %q, %v, want %q", result, c.Addresses, err, want)
		}
	}
}
