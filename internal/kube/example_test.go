package kube_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
)

// connect starts an API server that has one pod and returns a client for it.
func connect(dir string) (*kubetest.Server, *kube.Client, error) {
	srv := kubetest.Start()
	srv.AddPod(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "uid-1"},
		Spec:       corev1.PodSpec{NodeName: "node1"},
	})
	kubeconfig, err := srv.Kubeconfig(dir)
	if err != nil {
		return nil, nil, err
	}
	cfg, err := kube.Config(kubeconfig)
	if err != nil {
		return nil, nil, err
	}
	client, err := kube.NewClient(cfg)
	return srv, client, err
}

// A node with an API server, and with a directory of static pods.
func ExampleFirstPods() {
	dir, err := os.MkdirTemp("", "manifests")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: proxy}\n"
	if err := os.WriteFile(filepath.Join(dir, "proxy.yaml"), []byte(manifest), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	srv, client, err := connect(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop()
	defer client.Close()

	informer := kube.NewPodInformer(client, "node1") // the agent also runs it
	pods := kube.FirstPods(informer, kube.NewManifestPods(dir, "node1"))
	for _, name := range []string{"web", "proxy-node1", "absent"} {
		pod, err := pods.Pod(context.Background(), "default", name, "")
		switch {
		case errors.Is(err, kube.ErrNotFound):
			fmt.Println(name, "does not exist")
		case err != nil:
			fmt.Println(err)
		default:
			fmt.Println(pod.Name, "found")
		}
	}
	// Output:
	// web found
	// proxy-node1 found
	// absent does not exist
}

func ExampleWriter_PublishStatus() {
	dir, err := os.MkdirTemp("", "kubeconfig")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = os.RemoveAll(dir) }()
	srv, client, err := connect(dir)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer srv.Stop()
	defer client.Close()

	writer := kube.NewWriter(client, "manifold-agent", "node1")
	if err := writer.PublishStatus(context.Background(), "default", "web", "uid-1", `[{"name":"net1"}]`); err != nil {
		fmt.Println(err)
	}
	fmt.Println(srv.Pod("default", "web").Annotations[netattach.StatusAnnotation])
	// Output: [{"name":"net1"}]
}
