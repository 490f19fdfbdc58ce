package fakekubelet_test

import (
	"fmt"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

// A pod gets two of three devices. The kubelet's checkpoint shows them, also while
// the kubelet is down and after the pod is deleted.
func Example() {
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	k, err := fakekubelet.Start(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer k.Stop()
	err = k.SetDevices("vendor.example/vfs", fakekubelet.Device{ID: "0000:01:10.0"}, fakekubelet.Device{ID: "0000:01:10.2"}, fakekubelet.Device{ID: "0000:01:10.4"})
	if err != nil {
		log.Fatal(err)
	}
	limits := corev1.ResourceList{"vendor.example/vfs": resource.MustParse("2")}
	pod, err := k.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "router"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "dpdk", Resources: corev1.ResourceRequirements{Limits: limits}}}},
	}, fakekubelet.Pins{"dpdk": {"vendor.example/vfs": {"0000:01:10.4", "0000:01:10.0"}}})
	if err != nil {
		log.Fatal(err)
	}
	if err := k.DeletePod(pod.UID); err != nil {
		log.Fatal(err)
	}
	if err := k.SetPhase(fakekubelet.Down); err != nil {
		log.Fatal(err)
	}
	raw, err := os.ReadFile(k.CheckpointPath())
	if err != nil {
		log.Fatal(err)
	}
	c, err := checkpoint.Decode(raw)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range c.Pod(string(pod.UID)) {
		fmt.Println(e.Container, e.Resource, e.ResponseOrder())
	}
	// Output: dpdk vendor.example/vfs [0000:01:10.4 0000:01:10.0]
}
