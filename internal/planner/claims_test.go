package planner

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/podresources"
)

// claimed returns a device of the pod's claim nics, in container rx.
func claimed(name, id, request string) podresources.Device {
	d := dev("rx", id)
	d.Claim = &podresources.ClaimDevice{Namespace: "shop", Claim: "nics-object", PodClaim: "nics", Driver: "vf.example", Pool: "node1", Name: name, Attributes: podresources.Attributes{Source: "device metadata"}}
	if request != "" {
		d.Claim.Requests = []string{request}
	}
	return d
}

// with returns a changed copy of a claim's device.
func with(d podresources.Device, change func(*podresources.Device)) podresources.Device {
	claim := *d.Claim
	d.Claim = &claim
	change(&d)
	return d
}

func unnamed(d *podresources.Device) {
	d.Resource, d.Claim.Gap = "", errors.New("no resource name is known")
}

func unknown(d *podresources.Device) {
	d.Resource, d.ID, d.Claim.Gap = "", "", errors.New("no attribute is known")
}

func unavailable(d *podresources.Device) {
	unknown(d)
	d.Claim.Gap = fmt.Errorf("slices: %w", podresources.ErrUnavailable)
}

// nics are the claims of a pod.
var nics = []podresources.PodClaim{{Name: "nics", Claim: "nics-object"}, {Name: "gpus", Template: true}}

// ofNics selects a network with a device of the claim, and of a request if given.
func ofNics(network, request string) string {
	if request != "" {
		request = `,"manifold.dev/request":"` + request + `"`
	}
	return `{"name":"` + network + `","manifold.dev/claim":"nics"` + request + `}`
}

func TestPlansWithClaims(t *testing.T) {
	networks := map[string]string{"fast": hostDevice, "free": hostDevice}
	res := map[string]string{"fast": vfs} // "free" has no resource
	low, high := claimed("vf-0", "0000:21:10.0", "a"), claimed("vf-1", "0000:21:10.4", "b/fast")
	for name, tc := range map[string]struct {
		networks   string
		containers []string
		devices    []podresources.Device
		want       string
	}{
		"a resource's devices of claims and of a plugin, in one order": {
			"fast,fast,fast", []string{"tx", "rx"}, []podresources.Device{high, dev("rx", "0000:21:10.2"), dev("tx", "0000:21:11.0")},
			"net1=shop/fast:0000:21:11.0 net2=shop/fast:0000:21:10.2 net3=shop/fast:0000:21:10.4"},
		"the claim named": {
			"[" + ofNics("fast", "") + "]", nil, []podresources.Device{dev("rx", "0000:21:00.2"), high},
			"net1=shop/fast:0000:21:10.4"},
		"the request named chooses before the claim": {
			"[" + ofNics("fast", "") + "," + ofNics("fast", "a") + "]", nil, []podresources.Device{low, high},
			"net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"a request with the chosen alternative": {
			"[" + ofNics("fast", "b") + "," + ofNics("fast", "a") + "]", nil, []podresources.Device{low, high},
			"net1=shop/fast:0000:21:10.4 net2=shop/fast:0000:21:10.0"},
		"the claim named, of a network without resource": {
			"[" + ofNics("free", "b/fast") + "]", nil, []podresources.Device{low, high}, "net1=shop/free:0000:21:10.4"},
		"the claim named, of a device without resource": {
			"[" + ofNics("fast", "") + "]", nil, []podresources.Device{with(high, unnamed)}, "net1=shop/fast:0000:21:10.4"},
		"shares of one device": {
			"fast,fast", nil, []podresources.Device{
				with(claimed("pf", "0000:21:00.0", "a"), func(d *podresources.Device) { d.Claim.ShareID = "s1" }),
				with(claimed("pf", "0000:21:00.0", "b"), func(d *podresources.Device) { d.Claim.ShareID = "s2" })},
			"net1=shop/fast:0000:21:00.0 net2=shop/fast:0000:21:00.0"},
		"a claim's device pinned": {
			`[{"name":"fast","deviceID":"0000:21:10.4"}]`, nil, []podresources.Device{low, high}, "net1=shop/fast:0000:21:10.4"},
		"another claim's device is not known, and not needed": {
			"fast", nil, []podresources.Device{with(claimed("gpu", "", "g"), unknown), high}, "net1=shop/fast:0000:21:10.4"},
	} {
		t.Run(name, func(t *testing.T) {
			w := world{networks: tc.networks, containers: tc.containers, definitions: networks, resources: res, devices: tc.devices, claims: nics}
			p, err := w.plan(t)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := summary(p), "eth0=cluster "+tc.want; got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestPlanTellsOfTheClaim(t *testing.T) {
	w := world{networks: "[" + ofNics("fast", "b") + "]", definitions: map[string]string{"fast": hostDevice}, resources: map[string]string{"fast": vfs},
		devices: []podresources.Device{claimed("vf-1", "0000:21:10.4", "b/fast")}, claims: nics}
	p, err := w.plan(t)
	if err != nil {
		t.Fatal(err)
	}
	a := p.Attachments[1]
	if got, want := fmt.Sprintf("%+v", *a.Device.Claim), "{Name:nics-object PodClaim:nics Requests:[b/fast] Driver:vf.example Pool:node1 Device:vf-1 ShareID:}"; got != want {
		t.Errorf("claim %s, want %s", got, want)
	}
	for _, part := range []string{"claim shop/nics-object request b/fast, according to device metadata", "of the request that the selection names", "driver vf.example"} {
		if !strings.Contains(a.Reason, part) {
			t.Errorf("reason lacks %q: %s", part, a.Reason)
		}
	}
}

func TestRefusalsWithClaims(t *testing.T) {
	named, twice := "["+ofNics("fast", "")+"]", "["+ofNics("fast", "")+","+ofNics("fast", "")+"]"
	vf := claimed("vf-1", "0000:21:10.4", "b")
	list := func(d ...podresources.Device) []podresources.Device { return d }
	for name, tc := range map[string]struct {
		networks string
		devices  []podresources.Device
		err      error // why claims are not known
		kind     cnierr.Kind
		parts    []string
	}{
		"no claim of the name": {strings.ReplaceAll(named, "nics", "other"), list(vf), nil, cnierr.InvalidAnnotation,
			[]string{"no resource claim other", "it has: gpus, nics", "spec.resourceClaims"}},
		"not prepared":                    {named, nil, nil, cnierr.TryAgain, []string{"no device of claim nics (ResourceClaim nics-object)", "status.allocation"}},
		"not prepared, of a template":     {strings.ReplaceAll(named, "nics", "gpus"), list(vf), nil, cnierr.TryAgain, []string{"claim gpus (created from a template)"}},
		"no source, the claim named":      {named, nil, podresources.ErrUnavailable, cnierr.TryAgain, []string{"sources are not available", "dra_manager_state"}},
		"no source, the resource named":   {"fast", nil, podresources.ErrOtherPod, cnierr.TryAgain, []string{"another pod of the same name"}},
		"serves another network":          {twice, list(vf), nil, cnierr.DeviceConflict, []string{"device vf-1 of pool node1", "already serves network shop/fast", vfs}},
		"no such request":                 {"[" + ofNics("fast", "c") + "]", list(vf), nil, cnierr.InvalidAnnotation, []string{"serves request c", "the requests are: b"}},
		"requests not known":              {"[" + ofNics("fast", "c") + "]", list(claimed("vf-1", "0000:21:10.4", "")), nil, cnierr.TryAgain, []string{"request c of claim nics", "dra_manager_state"}},
		"another resource":                {named, list(with(vf, func(d *podresources.Device) { d.Resource = "another.example/vfs" })), nil, cnierr.NoDevice, []string{"not of this resource", "another.example/vfs", vfs}},
		"no attribute":                    {named, list(with(vf, unknown)), nil, cnierr.NoDevice, []string{"claim shop/nics-object request b", "no attribute is known", "resourceSlices"}},
		"no attribute yet":                {named, list(with(vf, unavailable)), nil, cnierr.TryAgain, []string{"slices"}},
		"no attribute, not named":         {"fast", list(with(vf, unknown)), nil, cnierr.NoDevice, []string{"1 attachment asks", "allocated 0", "it is not known whether this device is one", "device vf-1", "names its claim"}},
		"one of them yet, not named":      {"fast", list(with(vf, unknown), with(claimed("vf-2", "", "b"), unavailable)), nil, cnierr.TryAgain, []string{"device vf-2"}},
		"a device plugin has it as well":  {"fast,fast", list(vf, dev("rx", "0000:21:10.4")), nil, cnierr.NoDevice, []string{"2 attachments", "allocated 1"}},
		"another resource has it as well": {"fast,other", list(ofB("rx", "0000:21:10.4"), vf), nil, cnierr.DeviceConflict, []string{"another.example/vfs", vfs, "0000:21:10.4"}},
		"two addresses": {"fast", list(with(vf, func(d *podresources.Device) { d.Claim.Attributes.PCIBusID = "0000:21:10.5" })), nil, cnierr.DeviceConflict,
			[]string{podresources.AttributePCIBusID + " says 0000:21:10.5", podresources.AttributeDeviceID + " says 0000:21:10.4"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := world{networks: tc.networks, definitions: map[string]string{"fast": hostDevice, "other": hostDevice},
				resources: map[string]string{"fast": vfs, "other": "another.example/vfs"}, devices: tc.devices, claims: nics, claimsErr: tc.err}
			p, err := w.plan(t)
			if err == nil {
				t.Fatalf("planned %s", summary(p))
			}
			if got := cnierr.KindOf(err); got != tc.kind {
				t.Errorf("kind %s, want %s", got, tc.kind)
			}
			for _, part := range append(tc.parts, "shop/app", "network shop/") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("lacks %q: %v", part, err)
				}
			}
		})
	}
}
