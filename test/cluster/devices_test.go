//go:build clusterlab

package cluster

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestContainersDevices proves that each interface gets the device of the container it
// names, however often pods are created and in whatever order they are given the
// devices.
func TestContainersDevices(t *testing.T) {
	const rounds, atOnce = 7, DevicesPerResource / 2 // each pod takes two devices of one resource
	f := begin(t)
	options := []option{
		networks(`[{"name":"red","manifold.dev/container":"tx"},{"name":"red","manifold.dev/container":"rx"},{"name":"blue"}]`),
		initContainer("setup", false, Red), initContainer("side", true, Blue), container("rx", Red), container("tx", Red),
	}
	for round := range rounds {
		var names []string
		for i := range atOnce {
			name := fmt.Sprintf("devices-%d-%d", round, i)
			f.create(name, options...)
			names = append(names, name)
		}
		for _, name := range names {
			here := f.check(f.running(name), map[string]string{"eth0": "cluster-net", "net1": red, "net2": red, "net3": blue})
			f.isDevice(here, "net1", f.device(here, "tx", Red))
			f.isDevice(here, "net2", f.device(here, "rx", Red))
			f.isDevice(here, "net3", f.device(here, "side", Blue))
		}
		f.remove(names...)
		if f.Failed() {
			f.Fatalf("round %d", round)
		}
	}
}

// TestResourceThatNoContainerRequests proves that a pod waits if no container requests
// a definition's resource, that its Event says what is missing and how to fix it, and
// that the same pod starts once the definition is corrected.
func TestResourceThatNoContainerRequests(t *testing.T) {
	f := begin(t)
	f.must(lab.Define("mistaken", Red, `{"cniVersion": "1.0.0", "type": "host-device", "capabilities": {"deviceID": true}}`))
	definitions, err := lab.API.Definitions(namespace)
	f.must(err)
	f.Cleanup(func() { f.must(definitions.Delete(f.ctx, "mistaken", metav1.DeleteOptions{})) })
	f.create("waits", networks("mistaken"))
	f.eventually("an Event that says what is wrong", func() error {
		events := f.events("waits")
		for _, part := range []string{"default/mistaken", Red, "limits"} {
			if !strings.Contains(events, part) {
				return fmt.Errorf("no %q in %s", part, events)
			}
		}
		return nil
	})
	var pod *corev1.Pod
	f.eventually("the kubelet to report that its container waits", func() (err error) {
		if pod, err = f.get("waits"); err != nil {
			return err
		}
		if s := pod.Status.ContainerStatuses; len(s) != 1 || s[0].State.Waiting == nil || s[0].State.Waiting.Reason != "ContainerCreating" {
			return fmt.Errorf("container statuses are %+v", s)
		}
		return nil
	})
	mistaken, err := definitions.Get(f.ctx, "mistaken", metav1.GetOptions{})
	f.must(err)
	mistaken.SetAnnotations(nil)
	mistaken.Object["spec"] = map[string]any{"config": `{"cniVersion": "1.0.0", "type": "bridge", "bridge": "br-plain", "ipam": {"type": "host-local", "subnet": "10.32.0.0/16"}}`}
	_, err = definitions.Update(f.ctx, mistaken, metav1.UpdateOptions{})
	f.must(err)
	mended := f.running("waits")
	f.check(mended, map[string]string{"eth0": "cluster-net", "net1": "mistaken"})
	if mended.UID != pod.UID {
		t.Errorf("pod %s was replaced by %s", pod.UID, mended.UID)
	}
}

// TestPodOfTheSameName proves that a pod gets devices of its own while a pod of the
// same name is still terminating.
func TestPodOfTheSameName(t *testing.T) {
	f := begin(t)
	pod := template("same", networks(red), container("main", Red))
	pod.Spec.Containers[0].Args = []string{"stubborn"} // the old pod stays until it is killed
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "same"}, Spec: appsv1.StatefulSetSpec{
		Replicas: new(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec},
	}}
	set.Spec.Template.Name = ""
	sets := lab.Client.AppsV1().StatefulSets(namespace)
	_, err := sets.Create(f.ctx, set, metav1.CreateOptions{})
	f.must(err)
	f.Cleanup(func() {
		f.must(sets.Delete(f.ctx, "same", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}))
		f.gone("app=same")
	})
	for range 3 {
		old := f.running("same-0")
		oldDevice := f.device(f.probe()[string(old.UID)], "main", Red)
		// A forced deletion frees the name while the old pod still terminates on the
		// node.
		f.must(lab.Client.CoreV1().Pods(namespace).Delete(f.ctx, "same-0", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
		f.eventually("the next pod to be ready", func() error {
			now, err := f.get("same-0")
			if err != nil {
				return err
			}
			if now.UID == old.UID || !ready(now) {
				return errors.New(f.events("same-0"))
			}
			return nil
		})
		before := f.probe()
		here := f.check(f.running("same-0"), map[string]string{"eth0": "cluster-net", "net1": red})
		id := f.device(here, "main", Red)
		f.isDevice(here, "net1", id)
		if before[string(old.UID)] != nil && id == oldDevice {
			t.Errorf("the pod has %s, which the previous pod still has", id)
		}
	}
}

// gone waits until no pod with a label is left.
func (f *fixture) gone(selector string) {
	f.Helper()
	f.eventually("pods "+selector+" to be gone", func() error {
		pods, err := f.list(selector)
		if len(pods) > 0 {
			err = fmt.Errorf("%d are left", len(pods))
		}
		return err
	})
}

// list returns the pods with a label.
func (f *fixture) list(selector string) ([]corev1.Pod, error) {
	list, err := lab.Client.CoreV1().Pods(namespace).List(f.ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, err
	}
	return list.Items, nil
}

// TestDeployment proves that 20 pods that start together all get their networks, each
// with addresses of its own.
func TestDeployment(t *testing.T) {
	const replicas = 20
	f := begin(t)
	pod := template("many", networks("storage, plain"))
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "many"}, Spec: appsv1.DeploymentSpec{
		Replicas: new(int32(replicas)), Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: pod.ObjectMeta, Spec: pod.Spec},
	}}
	deployment.Spec.Template.Name = ""
	deployments := lab.Client.AppsV1().Deployments(namespace)
	_, err := deployments.Create(f.ctx, deployment, metav1.CreateOptions{})
	f.must(err)
	f.Cleanup(func() {
		f.must(deployments.Delete(f.ctx, "many", metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationForeground)}))
		f.gone("app=many")
	})
	var pods []corev1.Pod
	f.eventually("all replicas to be ready", func() (err error) {
		if pods, err = f.list("app=many"); err != nil {
			return err
		}
		if waiting := slices.IndexFunc(pods, func(p corev1.Pod) bool { return !ready(&p) }); waiting >= 0 {
			return fmt.Errorf("%d pods, one is not ready: %s", len(pods), f.events(pods[waiting].Name))
		}
		if len(pods) < replicas {
			return fmt.Errorf("%d of %d pods exist", len(pods), replicas)
		}
		return nil
	})
	addresses := map[string]string{}
	for _, p := range pods {
		here := f.check(&p, map[string]string{"eth0": "cluster-net", "net1": storage, "net2": plain})
		for ifName, link := range here.links {
			for _, a := range link.Addresses {
				if other := addresses[a]; other != "" {
					t.Errorf("%s of pod %s has %s, and so has pod %s", ifName, p.Name, a, other)
				}
				addresses[a] = p.Name
			}
		}
	}
}
