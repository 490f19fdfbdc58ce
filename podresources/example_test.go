package podresources_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/podresources"
)

func ExampleReader() {
	dir, err := os.MkdirTemp("", "example-")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "kubelet_internal_checkpoint")
	raw, err := checkpoint.Encode([]checkpoint.Entry{{
		PodUID: "f0d3eb39", Container: "rx", Resource: "vendor.example/vfs", Devices: []checkpoint.NUMADevices{{Node: 0, IDs: []string{"0000:21:10.4"}}},
	}}, nil)
	if err == nil {
		err = os.WriteFile(file, raw, 0o600)
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	// Without the PodResources API the checkpoint alone suffices.
	reader := podresources.NewReader(nil, checkpoint.NewFile(file), podresources.Options{})
	allocation, err := reader.Devices(context.Background(), podresources.Pod{
		Namespace: "shop", Name: "gateway", UID: "f0d3eb39", Containers: []podresources.Container{{Name: "rx"}},
	}, []string{"vendor.example/vfs"})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, d := range allocation.Devices {
		fmt.Println(d.Resource, d.ID, d.Containers, d.Source)
	}
	// Output: vendor.example/vfs 0000:21:10.4 [rx] checkpoint
}

func ExamplePods() {
	pods := podresources.NewPods("/nonexistent/pods-api/pods-api.sock")
	defer pods.Close()
	// Without Run, each question is a call; with Run in a goroutine, it is a memory
	// access.
	_, err := pods.Pod(context.Background(), "shop", "gateway", "f0d3eb39")
	fmt.Println(errors.Is(err, podresources.ErrUnavailable))
	// Output: true
}

func ExampleTrim() {
	pod := podresources.Trim(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "gateway", Labels: map[string]string{"app": "gateway"}},
		Spec:       corev1.PodSpec{NodeName: "worker-1", Containers: []corev1.Container{{Name: "rx", Image: "rx:1"}}},
	})
	fmt.Println(pod.Name, pod.Labels, pod.Spec.NodeName, pod.Spec.Containers[0].Name, pod.Spec.Containers[0].Image)
	// Output: gateway map[] worker-1 rx
}
