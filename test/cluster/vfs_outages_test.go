//go:build nodelab

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/reconcile"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/cluster/nodestate"
)

// allocated returns the devices that the kubelet has allocated to these pods.
func (f *fixture) allocated(pods ...string) (ids []string) {
	f.Helper()
	var all []nodestate.Allocation
	f.ask(&all, "devices")
	for _, a := range all {
		if name, ok := strings.CutPrefix(a.Pod, namespace+"/"); ok && slices.Contains(pods, name) {
			ids = append(ids, a.IDs...)
		}
	}
	slices.Sort(ids)
	return ids
}

// TestPowerFailure proves what happens to VFs when the node loses its power. After the
// boot the old journals are recognized as those of dead sandboxes, the pod that is
// still wanted comes back with its devices, and nothing is left of the deleted pod. The
// kubelet stops the deleted pod's sandbox in its garbage collection, once a minute: by
// then, unless this machine is slow, the VF belongs to another pod, which must keep it.
func TestPowerFailure(t *testing.T) {
	f := begin(t)
	both := []string{red, blue}
	places := []place{{"main", Red}, {"main", Blue}}
	f.create("stays", networks(strings.Join(both, ",")), container("main", Red, Blue))
	f.create("goes", networks(red), container("main", Red))
	stays, goes := f.running("stays"), f.running("goes")
	f.stands(stays, both, places...)
	f.stands(goes, []string{red}, place{"main", Red})
	had, gone, stranded := f.allocated("stays"), f.allocated("goes"), map[string]string{}
	for pod, ids := range map[string][]string{"stays": had, "goes": gone} {
		for _, id := range ids {
			stranded[id] = namespace + "/" + pod
		}
	}
	old := []string{f.sandboxOf(stays), f.sandboxOf(goes)}
	_, err := lab.Node.run(f.ctx, "/bin/sync") // so the power failure does not lose their files
	f.must(err)
	f.must(lab.Node.powerOff())
	f.must(lab.Client.CoreV1().Pods(namespace).Delete(f.ctx, "goes", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	f.must(lab.Node.powerOn(f.ctx))
	f.areStranded(stranded)
	f.startKubeletWithDevices()
	f.attachedAgain(stays)
	f.stands(f.running("stays"), both, places...)
	if has := f.allocated("stays"); !slices.Equal(has, had) {
		t.Errorf("the pod has devices %v, want %v as before", has, had)
	}
	f.createVFPods()
	if given := f.allocated(vfPodNames()...); !slices.Contains(given, gone[0]) {
		t.Errorf("the new pods have %v but not %s of the deleted pod, so this test proves less", given, gone[0])
	}
	f.trafficOverVLANs()
	f.eventually("nothing to be left of the old sandboxes", func() error { return f.released(old...) })
	f.inOrder()
	f.stands(f.running("stays"), both, places...)
	f.standVFPods()
}

// attachedAgain waits until a pod that ran before an outage runs again, with a
// network-status of after it.
func (f *fixture) attachedAgain(before *corev1.Pod) {
	f.Helper()
	f.eventually("the pod to be attached again", func() error {
		now, err := f.get(before.Name)
		if err == nil && now.Status.Phase == corev1.PodFailed {
			f.Fatalf("the kubelet has given the pod up: %+v", now.Status)
		}
		if err == nil && (!ready(now) || now.Status.ContainerStatuses[0].RestartCount == 0 || now.Annotations[netattach.StatusAnnotation] == before.Annotations[netattach.StatusAnnotation]) {
			err = fmt.Errorf("its phase is %s: %s", now.Status.Phase, f.events(before.Name))
		}
		return err
	})
}

// sandboxOf returns the ID of a running pod's sandbox.
func (f *fixture) sandboxOf(pod *corev1.Pod) string {
	f.Helper()
	return f.probe()[string(pod.UID)].containers["main"].Sandbox
}

// released returns nil when nothing of the sandboxes is left on the node: their DELs
// have come.
func (f *fixture) released(sandboxes ...string) error {
	f.Helper()
	for _, line := range f.hostState() {
		if slices.ContainsFunc(sandboxes, func(id string) bool { return strings.Contains(line, id) }) {
			return fmt.Errorf("left: %s", line)
		}
	}
	return nil
}

// startKubeletWithDevices starts the kubelet with the API server paused, so that the
// kubelet knows its devices before it hears of pods.
func (f *fixture) startKubeletWithDevices() {
	f.Helper()
	f.must(lab.API.Pause())
	resume := sync.OnceFunc(func() { f.must(lab.API.Resume()) })
	f.Cleanup(resume)
	f.must(lab.Node.startKubelet())
	f.knowsDevices()
	resume()
}

// knowsDevices waits until the kubelet knows every VF. The device plugin registers some
// time after the kubelet starts, and the kubelet refuses for good a pod that comes
// before.
func (f *fixture) knowsDevices() {
	f.Helper()
	f.eventually("the kubelet to know the devices", func() error {
		raw, err := lab.Node.run(f.ctx, lab.Node.path("bin/probe"), "allocatable")
		if err != nil {
			return err
		}
		var all []nodestate.Allocation
		f.must(json.Unmarshal(raw, &all))
		missing := len(lab.Node.NetDevs)
		for _, a := range all {
			missing -= len(a.IDs)
		}
		if missing > 0 {
			return fmt.Errorf("it does not know %d of them", missing)
		}
		return nil
	})
}

// areStranded fails unless `manifold-agent reconcile` finds exactly these VFs, each
// left by a dead sandbox of the given pod. It empties pods.
func (f *fixture) areStranded(pods map[string]string) {
	f.Helper()
	out, _ := lab.Node.run(f.ctx, pluginDir+"/manifold-agent", "reconcile") // exits non-zero because it finds some
	for line := range strings.Lines(string(out)) {
		var found reconcile.Finding
		f.must(json.Unmarshal([]byte(line), &found))
		if found.Kind != reconcile.Stranded || pods[found.Device] == "" || !strings.Contains(found.String(), pods[found.Device]) {
			f.Errorf("unexpected finding: %s", found)
		}
		delete(pods, found.Device)
	}
	if len(pods) > 0 {
		f.Errorf("missing findings: %v", pods)
	}
}

// TestKubeletThatKnowsNoPods proves that no device changes hands while the kubelet does
// not know its pods. A kubelet that has just started lists no devices for pods that
// hold some until it hears of them; here the API server is away, so that lasts as long
// as the test likes. Meanwhile no device counts as free; the ADDs of a static pod,
// which the kubelet runs but lists nowhere, are refused and leave nothing; a DEL gives
// back what its sandbox had. Once the kubelet knows its pods, the pod of that DEL is
// attached again.
func TestKubeletThatKnowsNoPods(t *testing.T) {
	f := begin(t)
	for _, name := range []string{"holds", "ends"} {
		f.create(name, networks(red), container("main", Red))
	}
	holds, ends := f.running("holds"), f.running("ends")
	for _, pod := range []*corev1.Pod{holds, ends} {
		f.stands(pod, []string{red}, place{"main", Red})
	}
	others := append(f.allocated("holds"), f.allocated("ends")...)
	f.must(lab.API.Kill())
	restart := sync.OnceFunc(func() { f.must(lab.API.Restart()) })
	f.Cleanup(restart)
	f.restart(Kubelet)
	f.knowsDevices()
	if ids := f.allocated("holds", "ends"); len(ids) > 0 {
		t.Fatalf("the kubelet lists devices %v, so this test proves nothing", ids)
	}
	f.inOrder()
	f.manifest("early", networks(red), container("main", Red))
	f.refused("early", 2)
	own := f.allocated("early-" + NodeName)
	if len(own) != 1 || slices.Contains(others, own[0]) {
		t.Fatalf("the kubelet has allocated %v to the new pod, want one device other than %v", own, others)
	}
	f.inOrder()
	f.end(ends, others[1])
	f.inOrder()
	restart()
	here := f.attached("early")
	f.isVF(f.running("early-"+NodeName), here, "net1", own[0])
	f.stands(f.running("holds"), []string{red}, place{"main", Red})
	f.eventually("the pod whose sandbox was stopped to be attached again", func() error {
		if here := f.probe()[string(ends.UID)]; here == nil || here.links["net1"].Parent != others[1] {
			return fmt.Errorf("found %+v", here)
		}
		return nil
	})
	// net1 exists before the ADD ends: until then the API server may still have the pod's
	// old status.
	f.attachedAgain(ends)
	f.stands(f.running("ends"), []string{red}, place{"main", Red})
	f.inOrder()
}

// end stops a pod's sandbox and fails unless its VF is back on the host under its own
// name.
func (f *fixture) end(pod *corev1.Pod, vf string) {
	f.Helper()
	_, err := lab.Node.run(f.ctx, lab.Node.path("bin/probe"), "end", f.sandboxOf(pod))
	f.must(err)
	name, err := lab.Node.run(f.ctx, "/bin/ls", "/sys/bus/pci/devices/"+vf+"/net")
	if got := strings.TrimSpace(string(name)); err != nil || got != lab.Node.NetDevs[vf] {
		f.Errorf("VF %s is network device %q on the host, want %q: %v", vf, got, lab.Node.NetDevs[vf], err)
	}
}

// refused waits until the runtime's log shows this many refused ADDs of a static pod.
func (f *fixture) refused(static string, times int) {
	f.Helper()
	f.eventually("ADDs to be refused", func() error {
		log, err := os.ReadFile(filepath.Join(lab.Node.logs, Containerd+".log"))
		if n := strings.Count(string(log), "failed (add): pod "+namespace+"/"+static+"-"+NodeName); err == nil && n < times {
			err = fmt.Errorf("%d were refused", n)
		}
		return err
	})
}

// manifest creates a static pod, which remove or the test's cleanup removes.
func (f *fixture) manifest(name string, options ...option) (remove func()) {
	f.Helper()
	pod := template(name, options...)
	pod.APIVersion, pod.Kind, pod.Namespace = "v1", "Pod", namespace
	raw, err := json.Marshal(pod)
	f.must(err)
	file := manifestDir + "/" + name + ".json"
	f.must(lab.Node.write(f.ctx, file, raw))
	remove = sync.OnceFunc(func() {
		_, err := lab.Node.run(f.ctx, "/bin/rm", file)
		f.must(err)
		f.eventually("static pod "+name+" to be gone", func() error {
			if f.sandbox(name) != nil {
				return errors.New("it still exists")
			}
			return nil
		})
	})
	f.Cleanup(remove)
	return remove
}

// sandbox returns a static pod as found on the node, or nil.
func (f *fixture) sandbox(static string) *onNode {
	f.Helper()
	for _, p := range f.probe() {
		if p.pod == namespace+"/"+static+"-"+NodeName {
			return p
		}
	}
	return nil
}

// attached waits until a static pod has net1, and returns it.
func (f *fixture) attached(static string) (here *onNode) {
	f.Helper()
	f.eventually("static pod "+static+" to be attached", func() error {
		if here = f.sandbox(static); here == nil || here.links["net1"].Name == "" {
			return errors.New("it has no net1")
		}
		return nil
	})
	return here
}

// TestRuntimeKilledDuringADD proves that a pod starts with its VF although containerd
// is killed in the middle of its ADD, alone or together with the plugin it runs, and
// that the first sandbox leaves nothing.
func TestRuntimeKilledDuringADD(t *testing.T) {
	for name, kill := range map[string]func(f *fixture){
		"alone": func(f *fixture) {
			_, err := lab.Node.run(f.ctx, "/bin/sh", "-c", "kill -9 $(pidof containerd)")
			f.must(err)
			f.must(lab.Node.KillService(Containerd))
		},
		"with the plugin": func(f *fixture) { f.must(lab.Node.KillService(Containerd)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := begin(t)
			const gate = "/run/gate"
			f.network("slow", "", `{"cniVersion": "1.0.0", "type": "scripted", "script": {"ADD": {"gate": "`+gate+`"}}}`)
			f.create("caught", networks("red, slow"), container("main", Red))
			f.Cleanup(func() {
				_, err := lab.Node.run(f.ctx, "/bin/rm", "-f", gate, gate+".reached")
				f.must(err)
			})
			f.eventually("its ADD to be under way", func() error {
				_, err := lab.Node.run(f.ctx, "/bin/ls", gate+".reached")
				return err
			})
			kill(f)
			f.must(lab.Node.startRuntime(f.ctx))
			_, err := lab.Node.run(f.ctx, "/bin/touch", gate)
			f.must(err)
			f.stands(f.running("caught"), []string{red, "slow"}, place{"main", Red})
			f.eventually("nothing to be left of the first sandbox", f.isInOrder)
		})
	}
}
