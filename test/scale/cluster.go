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

// namespace is the namespace of all objects here.
const namespace = metav1.NamespaceDefault

// cluster is one API server and the agents of its nodes.
type cluster struct {
	dir        string
	server     *apiserver.Server
	client     kubernetes.Interface
	user       *apiserver.User
	agents     []*node
	empty      int64   // live heap without any node, in bytes
	kubeletKiB float64 // of one kubelet
	watched    float64 // watches without any node: the API server's own
	idle       load    // while nothing happens
	spreads    int
	published  int
}

// load is processor time per time: of API server with etcd, and of this process.
type load struct{ server, agents float64 }

// node is the kubelet and the agent of one node.
type node struct {
	kubelet  *fakekubelet.Kubelet
	assembly *agent.Assembly
	agent    *agent.Agent
	end      func() // stops agent and kubelet
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
		harness.Progress("definitions: %d of %d", i+1, definitions)
	}
	if c.watched, err = c.watches(); err != nil {
		return nil, err
	}
	return c, c.weighKubelet()
}

// define creates a definition of a typical size.
func (c *cluster) define(name string) error {
	return c.server.Define(&netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Annotations: map[string]string{netattach.ResourceNameAnnotation: "vendor.example/vfs"}},
		Spec: netattach.DefinitionSpec{Config: `{"cniVersion":"1.0.0","plugins":[{"type":"host-device","capabilities":{"deviceID":true},
			"ipam":{"type":"host-local","ranges":[[{"subnet":"10.56.0.0/16","rangeStart":"10.56.1.1","rangeEnd":"10.56.200.254"}]]}},{"type":"tuning","mtu":9000}]}`},
	})
}

// definitionBytes returns the mean size of a definition in a LIST, as JSON without
// compression.
func (c *cluster) definitionBytes(definitions int) (int, error) {
	gv := netattach.GroupVersion
	raw, err := c.client.Discovery().RESTClient().Get().AbsPath("/apis", gv.Group, gv.Version, netattach.Resource).DoRaw(context.Background())
	return len(raw) / max(definitions, 1), err
}

// weighKubelet measures how much of this process's memory a fake kubelet takes.
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
		harness.Progress("agents: %d of %d", i+1, n)
	}
	c.awaitDefinition("definition-0")
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

// awaitDefinition waits until every agent knows a definition. It polls one agent
// after the other, which keeps polling cheap: an agent that learned the definition
// in the meantime is asked only once.
func (c *cluster) awaitDefinition(name string) {
	for _, a := range c.agents {
		for {
			if _, err := a.assembly.Sources.Local.Definition(context.Background(), namespace, name); err == nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// used is processor time: of API server with etcd, and of this process, which runs
// the agents and their kubelets.
type used struct{ server, agents time.Duration }

// usage returns what has been used so far.
func (c *cluster) usage() (used, error) {
	server, err := c.server.CPU()
	agents, err2 := harness.ProcessCPU(os.Getpid())
	return used{server, agents}, errors.Join(err, err2)
}

// spend returns what f uses beyond the idle load, divided by count, the number of
// things it does.
func (c *cluster) spend(count int, f func() error) (used, error) {
	before, err := c.usage()
	if err != nil {
		return used{}, err
	}
	began := time.Now()
	if err := f(); err != nil {
		return used{}, err
	}
	took := time.Since(began)
	after, err := c.usage()
	each := func(spent time.Duration, idle float64) time.Duration {
		return (spent - time.Duration(idle*float64(took))) / time.Duration(count)
	}
	return used{each(after.server-before.server, c.idle.server), each(after.agents-before.agents, c.idle.agents)}, err
}

// rest measures the idle load.
func (c *cluster) rest(pause time.Duration) error {
	time.Sleep(time.Second) // the agents write their snapshots a moment after they have all definitions
	c.idle = load{}
	spent, err := c.spend(1, func() error { time.Sleep(pause); return nil })
	c.idle = load{float64(spent.server) / float64(pause), float64(spent.agents) / float64(pause)}
	return err
}

// publish makes all agents at once publish the status of a number of pods each. It
// returns how many were published per second until the last Event was written, and
// what each cost.
func (c *cluster) publish(pods int) (perSecond float64, each used, err error) {
	reports, err := c.reports(pods)
	if err != nil {
		return 0, used{}, err
	}
	written, err := c.events()
	if err != nil {
		return 0, used{}, err
	}
	count := len(c.agents) * pods
	began := time.Now()
	each, err = c.spend(count, func() error {
		errs := make([]error, len(c.agents))
		var wg sync.WaitGroup
		for i, a := range c.agents {
			wg.Go(func() {
				for _, r := range reports[i] {
					errs[i] = errors.Join(errs[i], a.agent.Report(context.Background(), r))
				}
			})
		}
		wg.Wait()
		return errors.Join(append(errs, c.awaitEvents(written+int64(count)))...)
	})
	return float64(count) / time.Since(began).Seconds(), each, err
}

// reports creates pods for each agent and returns the reports on them.
func (c *cluster) reports(pods int) (reports [][]plan.Report, err error) {
	for i := range c.agents {
		var own []plan.Report
		for range pods {
			c.published++
			pod, err := c.client.CoreV1().Pods(namespace).Create(context.Background(), &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("pod-%d", c.published)},
				Spec:       corev1.PodSpec{NodeName: nodeName(i), Containers: []corev1.Container{{Name: "main", Image: "none"}}},
			}, metav1.CreateOptions{})
			if err != nil {
				return nil, err
			}
			own = append(own, reportOf(pod))
		}
		reports = append(reports, own)
		harness.Progress("pods of node %d of %d", i+1, len(c.agents))
	}
	return reports, nil
}

// eventsTime is how long the agents may take to write their Events, which they do
// after they have answered a report.
const eventsTime = 5 * time.Minute

// awaitEvents waits until at least want Events were written.
func (c *cluster) awaitEvents(want int64) error {
	for end := time.Now().Add(eventsTime); ; time.Sleep(20 * time.Millisecond) {
		n, err := c.events()
		if err != nil || n >= want {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d Events after %v, want %d", n, eventsTime, want)
		}
	}
}

// events counts the Events with a list of one: etcd counts the rest.
func (c *cluster) events() (int64, error) {
	list, err := c.client.CoreV1().Events(namespace).List(context.Background(), metav1.ListOptions{Limit: 1})
	if err != nil {
		return 0, err
	}
	n := int64(len(list.Items))
	if more := list.RemainingItemCount; more != nil {
		n += *more
	}
	return n, nil
}

// reportOf returns the report on a pod with three networks.
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

// watchMetric is the API server's gauge of long-running requests.
const watchMetric = "apiserver_longrunning_requests{"

// watches returns the number of watches of definitions and pods that the API server
// serves.
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

// stop stops everything.
func (c *cluster) stop() {
	for _, a := range c.agents {
		a.end()
	}
	if err := c.server.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
	}
}
