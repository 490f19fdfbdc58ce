package fakekubelet_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

func TestAllocation(t *testing.T) {
	for name, tc := range map[string]struct {
		free int // devices a, b, c, ... advertised
		pod  *corev1.Pod
		pins fakekubelet.Pins
		want map[string][]string // by container; nil when the pod is rejected
	}{
		"in the order advertised": {4, podOf("p", container("c1", 2), container("c2", 1)), nil, map[string][]string{"c1": {"a", "b"}, "c2": {"c"}}},
		"pinned":                  {4, podOf("p", container("c1", 2), container("c2", 1)), pin("c1", "d", "b"), map[string][]string{"c1": {"b", "d"}, "c2": {"a"}}},
		"an init container's devices are used again": {1, withInit(podOf("p", container("c1", 1)), container("i1", 1)), nil,
			map[string][]string{"i1": {"a"}, "c1": {"a"}}},
		"by one container only": {2, withInit(podOf("p", container("c1", 1), container("c2", 1)), container("i1", 1)), nil,
			map[string][]string{"i1": {"a"}, "c1": {"a"}, "c2": {"b"}}},
		"by the next init container, too": {2, withInit(podOf("p", container("c1", 2)), container("i1", 1), container("i2", 2)), nil,
			map[string][]string{"i1": {"a"}, "i2": {"a", "b"}, "c1": {"a", "b"}}},
		"and where they are pinned": {3, withInit(podOf("p", container("c1", 1)), container("i1", 2)), pin("c1", "b"), map[string][]string{"i1": {"a", "b"}, "c1": {"b"}}},
		"a restartable init container keeps its devices": {2, withInit(podOf("p", container("c1", 1)), sidecar(container("s1", 1))), nil,
			map[string][]string{"s1": {"a"}, "c1": {"b"}}},
		"but takes those of an earlier one": {2, withInit(podOf("p", container("c1", 1)), container("i1", 1), sidecar(container("s1", 1))), nil,
			map[string][]string{"i1": {"a"}, "s1": {"a"}, "c1": {"b"}}},
		"a resource that nobody advertises is skipped": {1, podOf("p", asking("c1", map[string]int{"other.example/x": 3, vfs: 1})), nil, map[string][]string{"c1": {"a"}}},
		"nothing requested":                            {1, podOf("p", container("c1", 0)), nil, map[string][]string{}},
		"too few":                                      {2, podOf("p", container("c1", 2), container("c2", 1)), nil, nil},
		"none advertised":                              {0, podOf("p", container("c1", 1)), nil, nil},
		"pinned to two containers":                     {2, podOf("p", container("c1", 1), container("c2", 1)), fakekubelet.Pins{"c1": {vfs: {"a"}}, "c2": {vfs: {"a"}}}, nil},
		"pinned twice":                                 {2, podOf("p", container("c1", 2)), pin("c1", "a", "a"), nil},
		"too few pinned":                               {2, podOf("p", container("c1", 2)), pin("c1", "a"), nil},
		"an unknown one is pinned":                     {2, podOf("p", container("c1", 1)), pin("c1", "z"), nil},
		"pinned to no container":                       {2, podOf("p", container("c1", 1)), pin("c9", "a"), nil},
		"pinned without a limit":                       {2, podOf("p", corev1.Container{Name: "c1"}), pin("c1", "a"), nil},
		"a duplicate container name":                   {2, withInit(podOf("p", container("c1", 1)), container("c1", 1)), nil, nil},
		"a container without name":                     {2, podOf("p", container("", 1)), nil, nil},
		"a pod without name":                           {2, podOf("", container("c1", 1)), nil, nil},
		"sidecar's is not reusable":                    {1, withInit(podOf("p", container("c1", 1)), sidecar(container("s1", 1))), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			k := start(t)
			k.advertise(vfs, strings.Split("abcdefgh", "")[:tc.free]...)
			pod, err := k.AddPod(tc.pod, tc.pins)
			if tc.want == nil {
				if err == nil {
					t.Fatalf("admitted with %v", k.held(pod.UID))
				}
				if n := len(k.Pods()) + len(k.listed()); n != 0 {
					t.Errorf("the rejected pod shows")
				}
				return
			}
			k.must(err)
			if got := k.held(pod.UID); !sameHeld(got, tc.want) {
				t.Errorf("holds %v, want %v", got, tc.want)
			}
			k.checkpointIsTrue()
		})
	}
}

func pin(container string, ids ...string) fakekubelet.Pins {
	return fakekubelet.Pins{container: {vfs: ids}}
}

func TestInitContainersInTheAPIs(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b", "c")
	pod := k.add(withInit(podOf("p", container("c1", 1)), container("i1", 1), sidecar(container("s1", 2))), nil)
	want := map[string][]string{"s1": {"a", "b"}, "c1": {"c"}}
	if got := k.listed()["p"]; !sameHeld(got, want) {
		t.Errorf("List = %v, want %v", got, want)
	}
	if got, err := k.got("p"); err != nil || !sameHeld(got, want) {
		t.Errorf("Get = %v, %v, want %v", got, err, want)
	}
	// The checkpoint also has the ordinary init container.
	if n := len(k.decoded().Pod(string(pod.UID))); n != 3 {
		t.Errorf("%d entries, want 3", n)
	}
}

func TestRejectedPodLeavesItsDevicesToThePurge(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b")
	if _, err := k.AddPod(podOf("big", container("c1", 2), container("c2", 1)), nil); !errors.Is(err, fakekubelet.ErrNoDevices) {
		t.Fatalf("error %v, want %v", err, fakekubelet.ErrNoDevices)
	}
	if n := len(k.decoded().Entries); n != 1 {
		t.Errorf("%d entries, want only that of the first container", n)
	}
	pod := k.add(podOf("fits", container("c1", 2)), nil)
	if got := k.held(pod.UID); !sameHeld(got, map[string][]string{"c1": {"a", "b"}}) {
		t.Errorf("holds %v", got)
	}
}

func TestPodsThatEndedLoseTheirDevices(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a")
	done := k.add(podOf("done", container("c1", 1)), nil)
	done.Status.Phase = corev1.PodSucceeded
	k.must(k.UpdatePod(done))
	if got := k.listed(); len(got) != 0 {
		t.Errorf("List = %v", got)
	}
	if got, err := k.got("done"); err == nil {
		t.Errorf("Get = %v", got)
	}
	k.add(podOf("next", container("c1", 1)), nil)
}

func TestUnhealthyDevices(t *testing.T) {
	k := start(t)
	k.must(k.SetDevices(vfs, fakekubelet.Device{ID: "a", Unhealthy: true}, fakekubelet.Device{ID: "b"}))
	if got := k.decoded().Registered[vfs]; len(got) != 1 || got[0] != "b" {
		t.Errorf("registered %q, want b", got)
	}
	all, err := k.resources.GetAllocatableResources(t.Context(), &resv1.AllocatableResourcesRequest{})
	if err != nil || len(all.GetDevices()) != 1 {
		t.Errorf("allocatable %v, %v", all, err)
	}
	pod := k.add(podOf("p", container("c1", 1)), nil)
	if got := k.held(pod.UID)["c1"]; got[0] != "b" {
		t.Errorf("holds %v", got)
	}
	// Its device turns unhealthy: the pod keeps it, but cannot be admitted again.
	k.must(k.SetDevices(vfs, fakekubelet.Device{ID: "a"}, fakekubelet.Device{ID: "b", Unhealthy: true}))
	if _, err := k.AddPod(pod, nil); err == nil {
		t.Error("admitted with an unhealthy device")
	}
	if got := k.listed()["p"]["c1"]; len(got) != 1 || got[0] != "b" {
		t.Errorf("List = %v", got)
	}
}

func TestAdmittedAgain(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b", "c")
	pod := k.add(podOf("p", container("c1", 1)), pin("c1", "b"))
	k.add(pod, nil)
	if got := k.held(pod.UID)["c1"]; len(got) != 1 || got[0] != "b" {
		t.Errorf("holds %v after a second admission", got)
	}
	pod.Spec.Containers[0] = container("c1", 2)
	if _, err := k.AddPod(pod, nil); err == nil {
		t.Error("admitted with another number of devices")
	}
}

// TestReboot proves that a fake that starts with a real kubelet's checkpoint gives
// the same devices to the same pods when they return.
func TestReboot(t *testing.T) {
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	raw, err := os.ReadFile("testdata/two-numa/checkpoint-after-kubelet-restart")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "device-plugins"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "device-plugins", "kubelet_internal_checkpoint"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	k := startIn(t, dir)
	want, err := checkpoint.Decode(raw)
	k.must(err)
	// Devices of the file are known, but none is free before it is advertised.
	if _, err := k.AddPod(podOf("new", asking("c1", map[string]int{igb: 1})), nil); !errors.Is(err, fakekubelet.ErrNoDevices) {
		t.Errorf("error %v, want %v", err, fakekubelet.ErrNoDevices)
	}
	k.must(k.SetPhase(fakekubelet.Registered)) // purges nothing
	advertiseCaptured(k, "two-numa")
	for _, c := range nodes["two-numa"] {
		pod := podOf(c.name)
		pod.UID = types.UID(c.uid)
		for name, resources := range c.pins {
			limits := map[string]int{}
			for resource, ids := range resources {
				limits[resource] = len(ids)
			}
			pod.Spec.Containers = append(pod.Spec.Containers, asking(name, limits))
		}
		k.add(pod, nil)
	}
	k.must(k.SetPhase(fakekubelet.Normal))
	if got, want := describe(t, k.decoded()), describe(t, want); got != want {
		t.Errorf("after the reboot\n%s\nbefore\n%s", got, want)
	}
}

// TestResourceOfTheCheckpointIsKnown proves that after a start a resource that was
// advertised before is not skipped, although no device of it is allocated.
func TestResourceOfTheCheckpointIsKnown(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a")
	k.Stop()
	again := startIn(t, k.Dir())
	if _, err := again.AddPod(podOf("p", container("c1", 1)), nil); !errors.Is(err, fakekubelet.ErrNoDevices) {
		t.Errorf("error %v, want %v", err, fakekubelet.ErrNoDevices)
	}
}

func TestNUMANodesInTheCheckpoint(t *testing.T) {
	k := start(t)
	k.must(k.SetDevices(vfs, fakekubelet.Device{ID: "a", NUMA: 1}, fakekubelet.Device{ID: "b"}, fakekubelet.Device{ID: "c", NUMA: checkpoint.NoNUMA}))
	pod := k.add(podOf("p", container("c1", 3)), nil)
	entries := k.decoded().Pod(string(pod.UID))
	want := []checkpoint.NUMADevices{{Node: -1, IDs: []string{"c"}}, {Node: 0, IDs: []string{"b"}}, {Node: 1, IDs: []string{"a"}}}
	if len(entries) != 1 || len(entries[0].Devices) != 3 {
		t.Fatalf("entries %+v", entries)
	}
	for i, n := range entries[0].Devices {
		if n.Node != want[i].Node || n.IDs[0] != want[i].IDs[0] {
			t.Errorf("devices %v, want %v", entries[0].Devices, want)
		}
	}
}

// TestPluginsOrder proves that the plugin's response has its own order, which the
// application sees; with pins it is the order of the pins.
func TestPluginsOrder(t *testing.T) {
	k := start(t)
	k.advertise("a-b.example/x.y", "a", "b", "c")
	pod := k.add(podOf("p", asking("c1", map[string]int{"a-b.example/x.y": 3})), fakekubelet.Pins{"c1": {"a-b.example/x.y": {"b", "c", "a"}}})
	if got := k.Allocations(pod.UID)[0].Response.GetEnvs()["PCIDEVICE_A_B_EXAMPLE_X_Y"]; got != "b,c,a" {
		t.Errorf("environment %q", got)
	}
	if got := k.decoded().Entries[0].ResponseOrder(); strings.Join(got, ",") != "b,c,a" {
		t.Errorf("the checkpoint's order %q", got)
	}
}

// TestOrdersDifferButRepeat proves that two answers differ in order, while two
// kubelets with the same seed agree.
func TestOrdersDifferButRepeat(t *testing.T) {
	orders := func(seed int64) string {
		k := start(t, fakekubelet.WithSeed(seed))
		k.advertise(vfs, strings.Split("abcdefgh", "")...)
		pod := k.add(podOf("p", container("c1", 8)), nil)
		out := []string{k.Allocations(pod.UID)[0].Response.GetEnvs()["PCIDEVICE_VENDOR_EXAMPLE_VFS"]}
		if out[0] == "a,b,c,d,e,f,g,h" {
			t.Error("the plugin is asked in a sorted order")
		}
		for range 3 {
			resp, err := k.resources.Get(t.Context(), &resv1.GetPodResourcesRequest{PodNamespace: "default", PodName: "p"})
			k.must(err)
			var ids string
			for _, d := range resp.GetPodResources().GetContainers()[0].GetDevices() {
				ids += d.GetDeviceIds()[0]
			}
			out = append(out, ids)
		}
		if out[1] == out[2] && out[2] == out[3] {
			t.Errorf("three answers in one order, %s", out[1])
		}
		return strings.Join(out, " ")
	}
	if a, b := orders(1), orders(1); a != b {
		t.Errorf("the same seed gives %s and %s", a, b)
	}
	if a, b := orders(1), orders(2); a == b {
		t.Errorf("another seed gives %s, too", a)
	}
}

func TestSetDevicesRefuses(t *testing.T) {
	k := start(t)
	for _, name := range []string{"", "cpu", "hugepages-2Mi", "kubernetes.io/x", "a.kubernetes.io/x", "requests.example/x", "vendor.example/", "vendor.example/a b"} {
		if err := k.SetDevices(name, fakekubelet.Device{ID: "a"}); err == nil {
			t.Errorf("resource name %q is accepted", name)
		}
	}
	for _, list := range [][]fakekubelet.Device{{{}}, {{ID: "a"}, {ID: "a"}}, {{ID: "a", NUMA: -2}}} {
		if err := k.SetDevices(vfs, list...); err == nil {
			t.Errorf("devices %v are accepted", list)
		}
	}
}
