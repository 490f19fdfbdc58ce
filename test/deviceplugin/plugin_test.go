package main

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

const red = "lab.example/red"

// start starts a kubelet in a directory and stops it with the test.
func start(t *testing.T, dir string) *fakekubelet.Kubelet {
	t.Helper()
	k, err := fakekubelet.Start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Stop)
	return k
}

// admit lets the kubelet admit a pod that wants one device, as soon as a device is
// available.
func admit(t *testing.T, k *fakekubelet.Kubelet, name string) *corev1.Pod {
	t.Helper()
	one := corev1.ResourceRequirements{Limits: corev1.ResourceList{red: *resource.NewQuantity(1, resource.DecimalSI)}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Resources: one}}}}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		admitted, err := k.AddPod(pod, nil)
		if err == nil && len(k.Allocations(admitted.UID)) == 1 {
			return admitted
		}
		if time.Now().After(end) {
			t.Fatalf("no device for pod %s: %v", name, err)
		}
	}
}

// TestServesDevicesAcrossTheKubeletsRestart proves that the plugin registers again with
// a restarted kubelet, and that allocation writes device information and sets the
// environment.
func TestServesDevicesAcrossTheKubeletsRestart(t *testing.T) {
	dir, err := os.MkdirTemp("", "dp-") // short, because it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := filepath.Join(dir, "config.json")
	if err := os.WriteFile(config, []byte(`{"lab.example/red":[{"id":"a","numa":0,"info":{"type":"pci"}}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	plugins, err := readConfig(config, filepath.Join(dir, "info"))
	if err != nil {
		t.Fatal(err)
	}
	k := start(t, filepath.Join(dir, "kubelet"))
	ctx, cancel := context.WithCancel(t.Context())
	var served sync.WaitGroup
	served.Go(func() { keepRegistered(ctx, k.DevicePluginDir(), plugins, slog.New(slog.DiscardHandler)) })
	t.Cleanup(func() { cancel(); served.Wait() })
	admit(t, k, "one")
	k.Stop()
	k = start(t, filepath.Join(dir, "kubelet")) // the new kubelet knows no pods
	admit(t, k, "two")
	info, err := os.ReadFile(filepath.Join(dir, "info", "lab.example-red-a-device.json"))
	if err != nil || string(info) != `{"type":"pci"}` {
		t.Errorf("device information: %q, %v", info, err)
	}
	entries, err := checkpoint.NewFile(k.CheckpointPath()).Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries.Entries {
		var resp dpv1.ContainerAllocateResponse
		if err := proto.Unmarshal(e.AllocResp, &resp); err != nil {
			t.Fatal(err)
		}
		if got := resp.GetEnvs()["PCIDEVICE_LAB_EXAMPLE_RED"]; got != e.IDs()[0] {
			t.Errorf("container with %v has %q in its environment", e.IDs(), got)
		}
	}
}
