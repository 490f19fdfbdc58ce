package kube

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/podresources"
)

const slicesPath = "/apis/resource.k8s.io/v1/resourceslices"

// newResourceSlice returns a slice with one device that publishes address.
func newResourceSlice(name, node string, generation int64, device, address string) *resourcev1.ResourceSlice {
	attributes := map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{
		podresources.AttributeResourceName: {StringValue: new("vendor.example/vfs")}, "numaNode": {IntValue: new(int64(1))},
	}
	if address != "" {
		attributes[podresources.AttributeDeviceID] = resourcev1.DeviceAttribute{StringValue: &address}
	} else {
		attributes = nil
	}
	return &resourcev1.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{"large": strings.Repeat("x", 1000)}},
		Spec: resourcev1.ResourceSliceSpec{
			Driver: "vf.example", NodeName: &node, Pool: resourcev1.ResourcePool{Name: node, Generation: generation, ResourceSliceCount: 1},
			Devices: []resourcev1.Device{{Name: device, Attributes: attributes}},
		},
	}
}

func sliceDevice(pool, name string) *podresources.ClaimDevice {
	return &podresources.ClaimDevice{Namespace: "default", Claim: "nics", Driver: "vf.example", Pool: pool, Name: name}
}

// fillSlices publishes a pool of node1 in the middle of a change, and one of another
// node.
func fillSlices(srv *kubetest.Server) {
	srv.AddSlice(newResourceSlice("new", "node1", 2, "vf-1", "0000:21:10.2"))
	srv.AddSlice(newResourceSlice("old", "node1", 1, "vf-1", "0000:21:10.0"))
	srv.AddSlice(newResourceSlice("more", "node1", 1, "vf-2", "0000:21:10.4"))
	srv.AddSlice(newResourceSlice("bare", "node1", 2, "vf-3", ""))
	srv.AddSlice(newResourceSlice("theirs", "node2", 9, "vf-1", "0000:22:10.0"))
	// The counters that partitions use are in a slice without devices.
	counters := newResourceSlice("counters", "node1", 2, "", "")
	counters.Spec.Devices, counters.Spec.SharedCounters = nil, []resourcev1.CounterSet{{Name: "pf-0", Counters: map[string]resourcev1.Counter{"vfs": {}}}}
	srv.AddSlice(counters)
}

// wantSlices checks the answers for the slices of fillSlices.
func wantSlices(t *testing.T, s *Slices) {
	t.Helper()
	got := s.Attributes(t.Context(), []*podresources.ClaimDevice{
		sliceDevice("node1", "vf-1"), sliceDevice("node1", "vf-2"), sliceDevice("node1", "vf-3"), sliceDevice("node1", "vf-4"), sliceDevice("node2", "vf-1"),
	})
	for i, want := range []struct {
		id, err string
		passes  bool
	}{
		{id: "0000:21:10.2"}, {id: "0000:21:10.4"}, {err: "publishes no attribute that identifies it"}, {err: "no slice of this node has the device", passes: true},
		{err: "no slice of this node has the device", passes: true},
	} {
		a := got[i]
		if want.err == "" && (a.Err != nil || a.DeviceID != want.id || a.ResourceName != "vendor.example/vfs" || a.Source != "ResourceSlices") {
			t.Errorf("device %d: %+v, want %s", i, a, want.id)
		}
		if want.err != "" && (a.Err == nil || !strings.Contains(a.Err.Error(), want.err) || errors.Is(a.Err, podresources.ErrUnavailable) != want.passes) {
			t.Errorf("device %d: %+v, want %s", i, a, want.err)
		}
	}
}

func TestSlicesOfOneNodeAreWatched(t *testing.T) {
	srv, client := startServer(t)
	fillSlices(srv)
	s := NewSlices(client, "node1")
	run(t, s)
	eventually(t, "synced", s.HasSynced)
	before := len(srv.Requests())
	wantSlices(t, s)
	if n := len(srv.Requests()) - before; n != 0 {
		t.Errorf("%d requests for slices in memory", n)
	}
	for _, r := range srv.Requests() {
		if q, err := url.ParseQuery(r.Query); err != nil || q.Get("fieldSelector") != "spec.nodeName=node1" || r.Path != slicesPath {
			t.Errorf("a request without the node's selector: %+v", r)
		}
	}
	for _, obj := range s.informer.GetStore().List() {
		if kept, ok := obj.(*slice); !ok || kept.Annotations != nil {
			t.Errorf("kept %+v", obj)
		}
	}
	srv.AddSlice(newResourceSlice("new", "node1", 3, "vf-4", "0000:21:10.6"))
	eventually(t, "the change", func() bool {
		return s.Attributes(t.Context(), []*podresources.ClaimDevice{sliceDevice("node1", "vf-4")})[0].DeviceID == "0000:21:10.6"
	})
}

// Without a watch, one list answers one question.
func TestSlicesWithoutAWatch(t *testing.T) {
	srv, client := startServer(t)
	fillSlices(srv)
	s := NewSlices(client, "node1")
	wantSlices(t, s)
	if n := count(srv, http.MethodGet, slicesPath); n != 1 || len(srv.Requests()) != 1 {
		t.Errorf("%d lists in %d requests", n, len(srv.Requests()))
	}
	srv.FailWith(http.StatusForbidden)
	a := s.Attributes(t.Context(), []*podresources.ClaimDevice{sliceDevice("node1", "vf-1")})[0]
	if !errors.Is(a.Err, podresources.ErrUnavailable) || !errors.Is(a.Err, ErrUnavailable) || !strings.Contains(a.Err.Error(), "ResourceSlices") {
		t.Errorf("forbidden: %v", a.Err)
	}
}
