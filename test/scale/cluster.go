package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/manifold-cni/manifold/internal/agent"
	"github.com/manifold-cni/manifold/internal/configfile"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/apiserver"
	"github.com/manifold-cni/manifold/test/fakekubelet"
	"github.com/manifold-cni/manifold/test/harness"
)

// namespace is that of everything here.
const namespace = metav1.NamespaceDefault

// cluster is one API server and the nodes' agents.
type cluster struct {
	dir        string
	server     *apiserver.Server
	client     kubernetes.Interface
	user       *apiserver.User
	agents     []*node
	empty      int64   // live heap without any node, in bytes
	kubeletKiB float64 // of one kubelet
	watched    float64 // watches without any node: the API server's own
	spreads    int
	published  int
}

// node is one node's kubelet and agent.
type node struct {
	kubelet  *fakekubelet.Kubelet
	assembly *agent.Assembly
	agent    *agent.Agent
	end      func() // ends the agent
}

func newCluster(dir string, definitions int) (*cluster, error) {
	c := &cluster{dir: dir}
	if err := os.Mkdir(c.path("api"), 0o700); err != nil {
		return nil, err
	}
	var err error
	if c.server, err = apiserver.Start(c.path("api")); err != nil {
		return nil, err
	}
	if c.client, err = c.server.Client(); err != nil {
		return nil, err
	}
	if err := c.server.InstallDefinitions(); err != nil {
		return nil, err
	}
	c.user, err = c.server.User(dir, "manifold", apiserver.URL(), []rbacv1.PolicyRule{
		{APIGroups: []string{netattach.GroupVersion.Group}, Resources: []string{netattach.Resource}, Verbs: []string{"get", "list", "watch"}},
		{APIGroups: []string{""}, Resources: []string{"pods"}, Verbs: []string{"get", "patch"}},
		{APIGroups: []string{""}, Resources: []string{"events"}, Verbs: []string{"create", "patch"}},
	})
	if err != nil {
		return nil, err
	}
	for i := range definitions {
		if err := c.define(fmt.Sprintf("definition-%d", i)); err != nil {
			return nil, err
		}
	}
	if c.watched, err = c.watches(); err != nil {
		return nil, err
	}
	return c, c.weighKubelet()
}

// define creates a definition of a usual size.
func (c *cluster) define(name string) error {
	return c.server.Define(&netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{netattach.ResourceNameAnnotation: "vendor.example/vfs"}},
		Spec: netattach.DefinitionSpec{Config: `{"cniVersion":"1.0.0","plugins":[{"type":"host-device","capabilities":{"deviceID":true},
			"ipam":{"type":"host-local","ranges":[[{"subnet":"10.56.0.0/16","rangeStart":"10.56.1.1","rangeEnd":"10.56.200.254"}]]}},{"type":"tuning","mtu":9000}]}`},
	})
}

// weighKubelet finds what a fake kubelet takes of this process's memory.
func (c *cluster) weighKubelet() error {
	const some = 10
	c.empty = heapBytes()
	var kubelets []*fakekubelet.Kubelet
	for i := range some {
		k, err := fakekubelet.Start(c.path(fmt.Sprintf("scales-%d", i)))
		if err != nil {
			return err
		}
		kubelets = append(kubelets, k)
	}
	c.kubeletKiB = float64(heapBytes()-c.empty) / 1024 / some
	for _, k := range kubelets {
		k.Stop()
	}
	c.empty = heapBytes()
	return nil
}

// grow starts agents until there are n, and waits until all know the definitions.
func (c *cluster) grow(n int) error {
	for i := len(c.agents); i < n; i++ {
		a, err := c.start(i)
		if err != nil {
			return err
		}
		c.agents = append(c.agents, a)
	}
	for _, a := range c.agents {
		a.awaitDefinition("definition-0")
	}
	return nil
}

// start starts one node.
func (c *cluster) start(i int) (*node, error) {
	dir := c.path(fmt.Sprintf("n%d", i))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	a := &node{}
	var err error
	if a.kubelet, err = fakekubelet.Start(dir + "/kubelet"); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(map[string]any{
		"node": nodeName(i), "socket": dir + "/agent.sock", "kubeletDir": a.kubelet.Dir(), "apiServer": c.user.Kubeconfig,
		"snapshot": dir + "/snapshot", "cniDir": dir + "/state", "cniConfig": "-", "reconcile": configfile.ReconcileOff,
	})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(dir+"/agent.json", raw, 0o600); err != nil {
		return nil, err
	}
	conf, err := configfile.ReadAgent(dir + "/agent.json")
	if err != nil {
		return nil, err
	}
	log := slog.New(slog.DiscardHandler)
	if a.assembly, err = agent.Assemble(conf, false, log); err != nil {
		return nil, err
	}
	a.agent = agent.New(a.assembly.Sources, log, nil)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { a.assembly.Run(ctx); close(done) }()
	a.end = func() { cancel(); <-done; a.kubelet.Stop() }
	return a, nil
}

func nodeName(i int) string { return fmt.Sprintf("node-%d", i) }

// awaitDefinition waits until the agent knows a definition.
func (a *node) awaitDefinition(name string) {
	for {
		if _, err := a.assembly.Sources.Local.Definition(context.Background(), namespace, name); err == nil {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// publish lets every agent publish the status of a number of pods, all agents at
// once, and returns how many there were per second and the API server's CPU time
// for each, Events included.
func (c *cluster) publish(pods int) (perSecond float64, cpu time.Duration, err error) {
	var reports [][]plan.Report
	for i := range c.agents {
		var own []plan.Report
		for range pods {
			c.published++
			pod, err := c.client.CoreV1().Pods(namespace).Create(context.Background(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", c.published)},
				Spec:       corev1.PodSpec{NodeName: nodeName(i), Containers: []corev1.Container{{Name: "main", Image: "none"}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return 0, 0, err
			}
			own = append(own, reportOf(pod))
		}
		reports = append(reports, own)
	}
	before, err := harness.ProcessCPU(c.server.PID())
	if err != nil {
		return 0, 0, err
	}
	errs := make([]error, len(c.agents))
	var wg sync.WaitGroup
	began := time.Now()
	for i, a := range c.agents {
		wg.Go(func() {
			for _, r := range reports[i] {
				errs[i] = errors.Join(errs[i], a.agent.Report(context.Background(), r))
			}
		})
	}
	wg.Wait()
	took := time.Since(began)
	after, err := harness.ProcessCPU(c.server.PID())
	count := len(c.agents) * pods
	return float64(count) / took.Seconds(), (after - before) / time.Duration(count), errors.Join(append(errs, err)...)
}

// reportOf is the report of a pod with three networks.
func reportOf(pod *corev1.Pod) plan.Report {
	r := plan.Report{Version: plan.Version, Verb: "ADD", Plan: &plan.Plan{Version: plan.Version, Pod: plan.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID)}}}
	for i, name := range []string{"cluster-net", namespace + "/definition-1", namespace + "/definition-2"} {
		at := plan.Attachment{Name: name, IfName: fmt.Sprintf("net%d", i), Default: i == 0}
		r.Plan.Attachments = append(r.Plan.Attachments, at)
		r.Outcomes = append(r.Outcomes, plan.Outcome{
			Name: at.Name, IfName: at.IfName, MTU: 1500,
			Result: json.RawMessage(fmt.Sprintf(`{"cniVersion":"1.0.0","interfaces":[{"name":%q,"sandbox":"/run/netns/x"}],"ips":[{"interface":0,"address":"10.56.1.%d/16"}]}`, at.IfName, i+1)),
		})
	}
	return r
}

// watchMetric is the API server's gauge of requests that stay open.
const watchMetric = "apiserver_longrunning_requests{"

// watches returns how many watches of definitions and pods the API server serves.
func (c *cluster) watches() (float64, error) {
	raw, err := c.client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(context.Background())
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(string(raw)) {
		labels, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
		ours := strings.Contains(labels, `resource="`+netattach.Resource+`"`) || strings.Contains(labels, `resource="pods"`)
		if !strings.HasPrefix(labels, watchMetric) || !ours || !strings.Contains(labels, `verb="WATCH"`) {
			continue
		}
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// stop ends everything.
func (c *cluster) stop() {
	for _, a := range c.agents {
		a.end()
	}
	if err := c.server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
	}
}
