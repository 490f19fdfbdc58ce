package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/apiserver"
)

// cluster is the API server where definitions and pods live.
type cluster interface {
	define(*netattach.Definition) error
	create(*corev1.Pod) (*corev1.Pod, error)
	get(namespace, name string) (*corev1.Pod, error)
	kubeconfig() string
	// requests counts the agent's requests, by verb and resource; nil if they are not
	// recorded.
	requests() (map[string]int, error)
	// cpu returns the processor time used so far; 0 if the API server is in this
	// process.
	cpu() (time.Duration, error)
	// publish sets a pod's network-status as the agent does, if that is measured.
	publish(p *corev1.Pod, status string) (measured bool, err error)
	stop() error
}

func startCluster(fake bool, dir string) (cluster, error) {
	if fake {
		server := kubetest.Start()
		path, err := server.Kubeconfig(dir)
		return &fakeCluster{server, path}, err
	}
	return startReal(dir)
}

// fakeCluster is an in-process API server.
type fakeCluster struct {
	server *kubetest.Server
	path   string
}

func (c *fakeCluster) define(d *netattach.Definition) error { c.server.AddDefinition(d); return nil }
func (c *fakeCluster) create(p *corev1.Pod) (*corev1.Pod, error) {
	c.server.AddPod(p)
	return c.get(p.Namespace, p.Name)
}
func (c *fakeCluster) get(namespace, name string) (*corev1.Pod, error) {
	if p := c.server.Pod(namespace, name); p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("there is no pod %s/%s", namespace, name)
}
func (c *fakeCluster) kubeconfig() string                { return c.path }
func (c *fakeCluster) requests() (map[string]int, error) { return nil, nil }
func (c *fakeCluster) cpu() (time.Duration, error)       { return 0, nil }
func (c *fakeCluster) publish(*corev1.Pod, string) (bool, error) {
	return false, nil
}
func (c *fakeCluster) stop() error { c.server.Stop(); return nil }

// realCluster is a real API server with its audit log.
type realCluster struct {
	server *apiserver.Server
	client kubernetes.Interface
	agent  *apiserver.User
}

func startReal(dir string) (*realCluster, error) {
	c := &realCluster{}
	var err error
	if c.server, err = apiserver.Start(dir); err != nil {
		return nil, err
	}
	if c.client, err = c.server.Client(); err != nil {
		return nil, errors.Join(err, c.server.Stop())
	}
	if err := c.server.InstallDefinitions(); err != nil {
		return nil, errors.Join(err, c.server.Stop())
	}
	c.agent, err = c.server.User(dir, "manifold", c.server.Config().Host, []rbacv1.PolicyRule{
		{APIGroups: []string{netattach.GroupVersion.Group}, Resources: []string{netattach.Resource}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "list", "watch", "patch"}},
		{APIGroups: []string{"", "events.k8s.io"}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	})
	if err != nil {
		return nil, errors.Join(err, c.server.Stop())
	}
	return c, nil
}

func (c *realCluster) define(d *netattach.Definition) error { return c.server.Define(d) }

func (c *realCluster) create(p *corev1.Pod) (*corev1.Pod, error) {
	return c.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{})
}

func (c *realCluster) get(namespace, name string) (*corev1.Pod, error) {
	return c.client.CoreV1().Pods(namespace).Get(context.Background(), name, metav1.GetOptions{})
}

func (c *realCluster) kubeconfig() string { return c.agent.Kubeconfig }

func (c *realCluster) requests() (map[string]int, error) {
	requests, err := c.server.Requests(c.agent.Account())
	counts := map[string]int{}
	for _, r := range requests {
		counts[r.Verb+" "+r.Resource]++
	}
	return counts, err
}

func (c *realCluster) cpu() (time.Duration, error) { return c.server.CPU() }

func (c *realCluster) publish(p *corev1.Pod, status string) (bool, error) {
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": p.UID, "annotations": map[string]string{netattach.StatusAnnotation: status}}})
	if err != nil {
		return false, err
	}
	_, err = c.client.CoreV1().Pods(p.Namespace).Patch(context.Background(), p.Name, types.MergePatchType, patch, metav1.PatchOptions{})
	return true, err
}

func (c *realCluster) stop() error { return c.server.Stop() }
