package fakekubelet_test

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// Resources of the captures in testdata: answers and files of a real kubelet 1.37.2
// with the pods below.
const (
	igb  = "rig.example/igb_vfs"
	igbB = "rig.example/igb_vfs_b"
)

// captured is a pod of the captured kubelet, with the devices it got.
type captured struct {
	name, uid string
	pins      fakekubelet.Pins
}

var nodes = map[string][]captured{
	"one-pf": {
		{"vf1", "7370adb5-3470-41ab-8e42-be63abb6d110", fakekubelet.Pins{"c1": {igb: {"0000:01:11.4"}}}},
		{"vf2", "5f7836c4-77c0-442e-a736-d01d3009eb6c", fakekubelet.Pins{"c1": {igb: {"0000:01:10.6", "0000:01:10.4"}}}},
		{"vfcc", "f95fdf22-c2e2-4361-a239-4f395d4d1d0d", fakekubelet.Pins{"c1": {igb: {"0000:01:11.0"}}, "c2": {igb: {"0000:01:10.0"}}}},
	},
	"two-numa": {
		{"vf1", "f0d3eb39-1cdd-45b3-a0d3-85b03af37a29", fakekubelet.Pins{"c1": {igb: {"0000:21:11.4"}}}},
		{"vf2", "77e9faa3-7bea-4ed6-ab72-19fcefc568b8", fakekubelet.Pins{"c1": {igb: {"0000:21:10.6", "0000:21:11.0"}}}},
		{"vfcc", "fda9741f-df60-4a11-9d85-54a35bd7eb94", fakekubelet.Pins{"c1": {igb: {"0000:21:10.4"}}, "c2": {igb: {"0000:21:10.0"}}}},
		{"vfab", "523a1b5c-2ca8-4428-9c61-64dc081d398c", fakekubelet.Pins{"c1": {igb: {"0000:21:11.2"}, igbB: {"0000:41:10.0"}}}},
	},
}

// advertiseCaptured advertises the VFs of a captured node.
func advertiseCaptured(k *kubelet, node string) {
	k.t.Helper()
	vfsAt := func(bus string, numa int64) (out []fakekubelet.Device) {
		for _, fn := range []string{"10.0", "10.2", "10.4", "10.6", "11.0", "11.2", "11.4"} {
			out = append(out, fakekubelet.Device{ID: "0000:" + bus + ":" + fn, NUMA: numa})
		}
		return out
	}
	if node == "one-pf" {
		k.must(k.SetDevices(igb, vfsAt("01", checkpoint.NoNUMA)...))
		return
	}
	k.must(k.SetDevices(igb, vfsAt("21", 0)...))
	k.must(k.SetDevices(igbB, vfsAt("41", 1)...))
}

// addCaptured adds the pods of a captured node.
func addCaptured(k *kubelet, node string) {
	k.t.Helper()
	for _, c := range nodes[node] {
		pod := podOf(c.name)
		pod.UID = types.UID(c.uid)
		for _, name := range []string{"c1", "c2"} {
			limits := map[string]int{}
			for resource, ids := range c.pins[name] {
				limits[resource] = len(ids)
			}
			if len(limits) > 0 {
				pod.Spec.Containers = append(pod.Spec.Containers, asking(name, limits))
			}
		}
		k.add(pod, c.pins)
	}
}

// message reads a captured answer.
func message[M proto.Message](t *testing.T, m M, elem ...string) M {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, elem...)...))
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(raw, m); err != nil {
		t.Fatal(err)
	}
	return m
}

// sorted sorts the parts of an answer that have no order of their own.
func sorted(pods []*resv1.PodResources) []*resv1.PodResources {
	slices.SortFunc(pods, func(a, b *resv1.PodResources) int { return cmp.Compare(a.GetName(), b.GetName()) })
	for _, p := range pods {
		for _, c := range p.GetContainers() {
			sortDevices(c.GetDevices())
		}
	}
	return pods
}

func sortDevices(list []*resv1.ContainerDevices) {
	slices.SortFunc(list, func(a, b *resv1.ContainerDevices) int {
		return cmp.Compare(a.GetDeviceIds()[0], b.GetDeviceIds()[0])
	})
}

// TestAnswersAreThoseOfARealKubelet gives the fake the pods of a real node and
// compares all of its answers with those of the kubelet there.
func TestAnswersAreThoseOfARealKubelet(t *testing.T) {
	for node := range nodes {
		t.Run(node, func(t *testing.T) {
			k := start(t)
			advertiseCaptured(k, node)
			addCaptured(k, node)
			list, err := k.resources.List(t.Context(), &resv1.ListPodResourcesRequest{})
			k.must(err)
			want := message(t, &resv1.ListPodResourcesResponse{}, node, "podresources-list.json")
			sorted(list.PodResources)
			sorted(want.PodResources)
			compareMessages(t, "List", list, want)
			for _, c := range nodes[node] {
				get, err := k.resources.Get(t.Context(), &resv1.GetPodResourcesRequest{PodNamespace: "default", PodName: c.name})
				k.must(err)
				want := message(t, &resv1.GetPodResourcesResponse{}, node, "podresources-get-"+c.name+".json")
				sorted([]*resv1.PodResources{get.GetPodResources(), want.GetPodResources()})
				compareMessages(t, "Get "+c.name, get, want)
			}
			all, err := k.resources.GetAllocatableResources(t.Context(), &resv1.AllocatableResourcesRequest{})
			k.must(err)
			wantAll := message(t, &resv1.AllocatableResourcesResponse{}, node, "podresources-allocatable.json")
			sortDevices(all.GetDevices())
			sortDevices(wantAll.GetDevices())
			compareMessages(t, "GetAllocatableResources", all, wantAll)
		})
	}
}

func compareMessages(t *testing.T, what string, got, want proto.Message) {
	t.Helper()
	if !proto.Equal(got, want) {
		t.Errorf("%s answers\n%s\na real kubelet\n%s", what, protojson.Format(got), protojson.Format(want))
	}
}

// TestCheckpointIsThatOfARealKubelet compares the checkpoints, ignoring order.
func TestCheckpointIsThatOfARealKubelet(t *testing.T) {
	for node := range nodes {
		t.Run(node, func(t *testing.T) {
			k := start(t)
			advertiseCaptured(k, node)
			addCaptured(k, node)
			raw, err := os.ReadFile(filepath.Join("testdata", node, "kubelet_internal_checkpoint"))
			k.must(err)
			want, err := checkpoint.Decode(raw)
			k.must(err)
			if got, want := describe(t, k.decoded()), describe(t, want); got != want {
				t.Errorf("the checkpoint says\n%s\na real kubelet's\n%s", got, want)
			}
		})
	}
}

// describe prints a checkpoint with its unordered parts sorted. A plugin's response
// keeps the plugin's order of devices.
func describe(t *testing.T, c *checkpoint.Checkpoint) string {
	t.Helper()
	var lines []string
	for _, e := range c.Entries {
		resp := &dpv1.ContainerAllocateResponse{}
		if err := proto.Unmarshal(e.AllocResp, resp); err != nil {
			t.Fatal(err)
		}
		for _, n := range e.Devices {
			slices.Sort(n.IDs)
		}
		lines = append(lines, fmt.Sprint(e.PodUID, e.Container, e.Resource, e.Devices, resp.GetEnvs()))
	}
	for resource, ids := range c.Registered {
		slices.Sort(ids)
		lines = append(lines, fmt.Sprint(resource, ids))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// TestRestartWindowIsThatOfARealKubelet steps through the phases and compares the
// answers with the recorded ones of a real kubelet during its restart.
func TestRestartWindowIsThatOfARealKubelet(t *testing.T) {
	raw, err := os.ReadFile("testdata/two-numa/podresources-across-kubelet-restart.txt")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, line := range regexp.MustCompile(`(?m)^ *[0-9.]+s (.*\n)`).FindAllStringSubmatch(string(raw), -1) {
		want.WriteString(line[1])
	}
	k := start(t)
	advertiseCaptured(k, "two-numa")
	addCaptured(k, "two-numa")
	var got strings.Builder
	for _, p := range []fakekubelet.Phase{
		fakekubelet.Normal, fakekubelet.Down, fakekubelet.Empty, fakekubelet.Registered, fakekubelet.GetOnly, fakekubelet.Normal,
	} {
		k.must(k.SetPhase(p))
		got.WriteString(record(k, "vf1") + "\n")
		k.checkpointIsTrue()
	}
	if got.String() != want.String() {
		t.Errorf("across a restart\n%swhile a real kubelet\n%s", got.String(), want.String())
	}
}

// TestStaticPodIsListedBeforeItsDevices does the same for a pod that appears after
// the start, as on a kubelet without an API server.
func TestStaticPodIsListedBeforeItsDevices(t *testing.T) {
	raw, err := os.ReadFile("testdata/two-numa/podresources-standalone-kubelet-static-pod.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := regexp.MustCompile(`(?m)^ *[0-9.]+s .* 14 entries; (.*\n)`).FindAllStringSubmatch(string(raw), -1)
	k := start(t)
	advertiseCaptured(k, "two-numa")
	pod, err := k.AnnouncePod(podOf("vf1-rig-node", asking("c1", map[string]int{igb: 1})))
	k.must(err)
	got := []string{record(k, pod.Name)}
	k.add(pod, nil)
	got = append(got, record(k, pod.Name))
	for i, line := range want[len(want)-2:] {
		if !strings.HasSuffix(got[i]+"\n", line[1]) || !strings.HasPrefix(got[i], fmt.Sprintf("list: 1 pods %d devices", i)) {
			t.Errorf("step %d: %s, a real kubelet: %s", i, got[i], line[0])
		}
	}
}

// record asks the three questions and describes the answers.
func record(k *kubelet, pod string) string {
	k.t.Helper()
	ctx := k.t.Context()
	list, err := k.resources.List(ctx, &resv1.ListPodResourcesRequest{})
	all, err2 := k.resources.GetAllocatableResources(ctx, &resv1.AllocatableResourcesRequest{})
	get, err3 := k.resources.Get(ctx, &resv1.GetPodResourcesRequest{PodNamespace: "default", PodName: pod})
	if status.Code(err) == codes.Unavailable {
		return fmt.Sprintf("list: %s; allocatable: %s; get: %s", status.Code(err), status.Code(err2), status.Code(err3))
	}
	k.must(err)
	k.must(err2)
	devices := 0
	for _, p := range list.GetPodResources() {
		for _, c := range p.GetContainers() {
			devices += len(c.GetDevices())
		}
	}
	line := fmt.Sprintf("list: %d pods %d devices; allocatable: %d entries; get: ", len(list.GetPodResources()), devices, len(all.GetDevices()))
	if err3 != nil {
		return line + fmt.Sprintf("%s %s", status.Code(err3), err3)
	}
	containers := get.GetPodResources().GetContainers()
	return line + fmt.Sprintf("%d containers %s=%d", len(containers), containers[0].GetName(), len(containers[0].GetDevices()))
}

// TestCheckpointFollowsADeletion proves that the file keeps the entries of deleted
// pods until the next allocation, even when List no longer knows them.
func TestCheckpointFollowsADeletion(t *testing.T) {
	k := start(t)
	k.advertise(vfs, "a", "b")
	first := k.add(podOf("first", container("c1", 1)), nil)
	k.must(k.DeletePod(first.UID))
	k.checkpointIsTrue()
	if n := len(k.decoded().Pod(string(first.UID))); n != 1 {
		t.Fatalf("%d entries of the deleted pod, want 1", n)
	}
	if _, err := k.AddPod(podOf("plain", corev1.Container{Name: "c1"}), nil); err != nil {
		t.Fatal(err)
	}
	if len(k.Allocations(first.UID)) != 1 {
		t.Error("a pod without devices purged")
	}
	if got := k.listed(); len(got) != 1 || got["plain"] == nil {
		t.Errorf("List = %v", got)
	}
	if len(k.Allocations(first.UID)) != 0 || len(k.decoded().Pod(string(first.UID))) != 1 {
		t.Error("List did not purge in memory only")
	}
	second := k.add(podOf("second", container("c1", 2)), nil)
	if n := len(k.decoded().Pod(string(first.UID))); n != 0 {
		t.Errorf("%d entries of the deleted pod after an allocation", n)
	}
	k.must(k.DeletePod(second.UID))
	k.listed()
	if len(k.Allocations(second.UID)) != 0 {
		t.Error("List keeps the pod that was admitted last")
	}
}
