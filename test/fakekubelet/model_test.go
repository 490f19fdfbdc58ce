package fakekubelet_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// FuzzLife runs arbitrary sequences of events in the life of a kubelet and checks
// its invariants after each. Each byte is a step: three bits choose the event, the
// others its argument.
func FuzzLife(f *testing.F) {
	f.Add([]byte("\x08\x10\x09\x03\x18"))
	f.Fuzz(func(t *testing.T, steps []byte) {
		k := start(t)
		k.advertise(vfs, "a", "b", "c", "d")
		live := []types.UID{}
		for i, step := range steps[:min(len(steps), 40)] {
			live = k.step(t, live, fmt.Sprintf("p%d", i), int(step&7), int(step>>3))
			k.consistent(live)
		}
	})
}

// step performs one step and returns the pods that are alive after it.
func (k *kubelet) step(t *testing.T, live []types.UID, name string, what, arg int) []types.UID {
	t.Helper()
	switch what {
	case 0, 1: // a pod is added, with up to two init containers
		pod := withInit(podOf(name, container("c1", arg&3), container("c2", arg>>3&1)), container("i1", arg>>2&1))
		if arg>>4&1 == 1 {
			pod.Spec.InitContainers = append(pod.Spec.InitContainers, sidecar(container("s1", 1)))
		}
		pod, err := k.AddPod(pod, nil)
		if err == nil {
			return append(live, pod.UID)
		}
		if !errors.Is(err, fakekubelet.ErrNoDevices) {
			t.Errorf("step %s: %v", name, err)
		}
	case 2, 3: // a pod is deleted or ends
		if len(live) == 0 {
			return live
		}
		uid := live[arg%len(live)]
		if what == 2 {
			k.must(k.DeletePod(uid))
		} else {
			i := slices.IndexFunc(k.Pods(), func(p *corev1.Pod) bool { return p.UID == uid })
			pod := k.Pods()[i]
			pod.Status.Phase = corev1.PodFailed
			k.must(k.UpdatePod(pod))
		}
		return slices.DeleteFunc(live, func(u types.UID) bool { return u == uid })
	case 4: // the kubelet restarts
		k.must(k.SetPhase(fakekubelet.Down))
		k.must(k.SetPhase(fakekubelet.Normal))
	case 5: // devices change health
		k.must(k.SetDevices(vfs, fakekubelet.Device{ID: "a", Unhealthy: arg&1 == 1}, fakekubelet.Device{ID: "b", NUMA: 1},
			fakekubelet.Device{ID: "c", Unhealthy: arg&2 == 2}, fakekubelet.Device{ID: "d"}))
	case 6: // a client lists
		k.listed()
	case 7: // a pod is admitted again
		if pods := k.Pods(); len(pods) > 0 {
			_, _ = k.AddPod(pods[arg%len(pods)], nil) // refused if one of its devices is unhealthy
		}
	}
	return live
}

// consistent checks that no device belongs to two live pods, that each live pod has
// what it asks for, and that the checkpoint agrees.
func (k *kubelet) consistent(live []types.UID) {
	k.t.Helper()
	owner := map[string]types.UID{}
	onDisk := k.decoded()
	pods := map[types.UID]*corev1.Pod{}
	for _, p := range k.Pods() {
		pods[p.UID] = p
	}
	for _, uid := range live {
		held := k.held(uid)
		for _, c := range slices.Concat(pods[uid].Spec.InitContainers, pods[uid].Spec.Containers) {
			if quantity := c.Resources.Limits[vfs]; len(held[c.Name]) != int(quantity.Value()) {
				k.t.Fatalf("pod %s: container %s asks for %d devices and holds %q", uid, c.Name, quantity.Value(), held[c.Name])
			}
			for _, id := range held[c.Name] {
				if o, taken := owner[id]; taken && o != uid {
					k.t.Fatalf("device %s belongs to pods %s and %s", id, o, uid)
				}
				owner[id] = uid
			}
		}
		stored := map[string][]string{}
		for _, e := range onDisk.Pod(string(uid)) {
			stored[e.Container] = unique(e.IDs())
		}
		if !sameHeld(stored, held) {
			k.t.Fatalf("pod %s holds %v, the checkpoint says %v", uid, held, stored)
		}
	}
}

// BenchmarkList measures List on a full node: 250 pods with two devices each.
func BenchmarkList(b *testing.B) {
	k := full(b, 250)
	conn, err := grpc.NewClient("unix:"+k.PodResourcesSocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	k.must(err)
	defer conn.Close()
	client := resv1.NewPodResourcesListerClient(conn)
	for b.Loop() {
		resp, err := client.List(b.Context(), &resv1.ListPodResourcesRequest{}, grpc.MaxCallRecvMsgSize(1<<24))
		if err != nil || len(resp.GetPodResources()) != 250 {
			b.Fatal(resp, err)
		}
	}
}

// BenchmarkAddPod measures an admission on a full node, including the checkpoint.
func BenchmarkAddPod(b *testing.B) {
	k := full(b, 249)
	for b.Loop() {
		pod, err := k.AddPod(podOf("last", container("c1", 2)), nil)
		k.must(err)
		k.must(k.DeletePod(pod.UID))
	}
}

// full returns a kubelet with 500 devices and n pods of two.
func full(b *testing.B, n int) *kubelet {
	b.Helper()
	k := start(b)
	var ids []string
	for i := range 500 {
		ids = append(ids, fmt.Sprintf("dev%03d", i))
	}
	k.advertise(vfs, ids...)
	for i := range n {
		_, err := k.AddPod(podOf(fmt.Sprintf("pod-%d", i), container("c1", 2)), nil)
		k.must(err)
	}
	return k
}
