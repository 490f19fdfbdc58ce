//go:build clusterlab || nodelab

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/cluster/nodestate"
)

// namespace is the namespace of the tests' pods and definitions.
const namespace = "default"

// option changes a pod before it is created.
type option func(*corev1.Pod)

func annotation(key, value string) option {
	return func(p *corev1.Pod) { p.Annotations[key] = value }
}

// networks selects networks, in either form of the annotation.
func networks(selection string) option { return annotation(netattach.NetworksAnnotation, selection) }

// container adds a container that requests one device per resource given; a resource
// given twice means two devices.
func container(name string, resources ...corev1.ResourceName) option {
	return func(p *corev1.Pod) { p.Spec.Containers = append(p.Spec.Containers, box(name, resources...)) }
}

// initContainer adds an init container. A restartable one (a sidecar) keeps running
// beside the others.
func initContainer(name string, restartable bool, resources ...corev1.ResourceName) option {
	return func(p *corev1.Pod) {
		c := box(name, resources...)
		if restartable {
			c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		} else {
			c.Args = []string{"done"}
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
}

// box returns a container of the lab's image.
func box(name string, resources ...corev1.ResourceName) corev1.Container {
	c := corev1.Container{Name: name, Image: BoxImage, ImagePullPolicy: corev1.PullNever}
	for _, r := range resources {
		if c.Resources.Limits == nil {
			c.Resources.Limits = corev1.ResourceList{}
		}
		n := c.Resources.Limits[r]
		n.Add(*resource.NewQuantity(1, resource.DecimalSI))
		c.Resources.Limits[r] = n
	}
	return c
}

// template returns a pod with options; if they add no container, it gets one.
func template(name string, options ...option) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}, Labels: map[string]string{"app": name}}}
	for _, o := range options {
		o(p)
	}
	if len(p.Spec.Containers) == 0 {
		container("main")(p)
	}
	p.Spec.TerminationGracePeriodSeconds = new(int64(5))
	p.Spec.AutomountServiceAccountToken = new(false)
	p.Spec.DNSPolicy = corev1.DNSDefault
	return p
}

// create creates a pod. The test's cleanup removes all its pods at once.
func (f *fixture) create(name string, options ...option) {
	f.Helper()
	_, err := lab.Client.CoreV1().Pods(namespace).Create(f.ctx, template(name, options...), metav1.CreateOptions{})
	f.must(err)
	f.pods = append(f.pods, name)
	f.Cleanup(func() { f.remove(slices.Clone(f.pods)...) })
}

// run creates a pod and returns it once it runs.
func (f *fixture) run(name string, options ...option) *corev1.Pod {
	f.Helper()
	f.create(name, options...)
	return f.running(name)
}

// running waits until a pod runs with all its containers ready and its status
// published, and returns it.
func (f *fixture) running(name string) (pod *corev1.Pod) {
	f.Helper()
	f.eventually("pod "+name+" to run", func() (err error) {
		if pod, err = f.get(name); err != nil {
			return err
		}
		if !ready(pod) || !published(pod) {
			return fmt.Errorf("its phase is %s: %s", pod.Status.Phase, f.events(name))
		}
		return nil
	})
	return pod
}

func (f *fixture) get(name string) (*corev1.Pod, error) {
	return lab.Client.CoreV1().Pods(namespace).Get(f.ctx, name, metav1.GetOptions{})
}

// ready tells whether a pod is ready and is not being deleted.
func ready(pod *corev1.Pod) bool {
	isReady := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
	return isReady && pod.DeletionTimestamp == nil
}

// published tells whether a pod has its network-status.
func published(pod *corev1.Pod) bool { return pod.Annotations[netattach.StatusAnnotation] != "" }

// events returns the reasons and messages of a pod's Events.
func (f *fixture) events(pod string) string {
	list, err := lab.Client.CoreV1().Events(namespace).List(f.ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=" + pod})
	if err != nil {
		return err.Error()
	}
	var out []string
	for _, e := range list.Items {
		out = append(out, e.Reason+": "+e.Message)
	}
	return strings.Join(out, "\n")
}

// remove deletes pods and waits until they are gone.
func (f *fixture) remove(names ...string) {
	f.Helper()
	for _, name := range names {
		err := lab.Client.CoreV1().Pods(namespace).Delete(f.ctx, name, metav1.DeleteOptions{})
		if !apierrors.IsNotFound(err) {
			f.must(err)
		}
	}
	for _, name := range names {
		f.eventually("pod "+name+" to be gone", func() error {
			_, err := f.get(name)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(errors.New("it still exists"), err)
		})
	}
	f.pods = slices.DeleteFunc(f.pods, func(name string) bool { return slices.Contains(names, name) })
}

// onNode is a pod as found on the node.
type onNode struct {
	pod        string                         // namespace/name
	links      map[string]nodestate.Link      // by name in the sandbox
	containers map[string]nodestate.Container // by name
}

// ask runs program probe on the node and decodes its answer.
func (f *fixture) ask(answer any, args ...string) {
	f.Helper()
	raw, err := lab.Node.run(f.ctx, append([]string{lab.Node.path("bin/probe")}, args...)...)
	f.must(err)
	f.must(json.Unmarshal(raw, answer))
}

// probe returns the pods on the node by UID.
func (f *fixture) probe() map[string]*onNode {
	f.Helper()
	var all []nodestate.Container
	f.ask(&all, "containers")
	out := map[string]*onNode{}
	for _, c := range all {
		p := out[c.UID]
		if p == nil {
			p = &onNode{pod: c.Pod, links: map[string]nodestate.Link{}, containers: map[string]nodestate.Container{}}
			out[c.UID] = p
		}
		if c.Kind != "sandbox" {
			p.containers[c.Name] = c
			continue
		}
		for _, l := range c.Links {
			p.links[l.Name] = l
		}
	}
	return out
}

// check fails unless a running pod has exactly the interfaces of want, which maps
// interfaces to networks, and its network-status lists exactly these, each with the
// addresses and MAC that the interface has.
func (f *fixture) check(pod *corev1.Pod, want map[string]string) *onNode {
	f.Helper()
	here := f.interfaces(pod, want)
	status := f.status(pod)
	if got := networksOf(status); !maps.Equal(got, want) {
		f.Errorf("pod %s: status has %v, want %v", pod.Name, got, want)
	}
	for _, s := range status {
		link := here.links[s.Interface]
		if link.MAC != s.MAC || !slices.Equal(link.Addresses, s.IPs) {
			f.Errorf("pod %s: %s is %+v, but its network-status says %+v", pod.Name, s.Interface, link, s)
		}
	}
	return here
}

// networksOf returns the networks of a network-status, by interface.
func networksOf(status []netattach.Status) map[string]string {
	out := map[string]string{}
	for _, s := range status {
		out[s.Interface] = strings.TrimPrefix(s.Name, namespace+"/")
	}
	return out
}

// interfaces fails unless a running pod has exactly the interfaces of want.
func (f *fixture) interfaces(pod *corev1.Pod, want map[string]string) *onNode {
	f.Helper()
	here := f.probe()[string(pod.UID)]
	if here == nil {
		f.Fatalf("pod %s is not on the node", pod.Name)
	}
	if names := slices.Sorted(maps.Keys(here.links)); !slices.Equal(names, slices.Sorted(maps.Keys(want))) {
		f.Errorf("pod %s has interfaces %v, want %v", pod.Name, names, want)
	}
	return here
}

// status returns a pod's network-status.
func (f *fixture) status(pod *corev1.Pod) []netattach.Status {
	f.Helper()
	status, err := statusOf(pod)
	f.must(err)
	return status
}

// statusOf decodes a pod's network-status.
func statusOf(pod *corev1.Pod) (status []netattach.Status, err error) {
	if err := json.Unmarshal([]byte(pod.Annotations[netattach.StatusAnnotation]), &status); err != nil {
		return nil, fmt.Errorf("pod %s: network-status: %w", pod.Name, err)
	}
	return status, nil
}

// devices returns the devices of a resource that the device plugin gave a container, as
// its environment says.
func (f *fixture) devices(here *onNode, container string, resource corev1.ResourceName) []string {
	f.Helper()
	variable := "PCIDEVICE_" + strings.ToUpper(strings.NewReplacer(".", "_", "/", "_").Replace(string(resource)))
	ids := strings.Split(here.containers[container].Env[variable], ",")
	for _, id := range ids {
		if _, ok := lab.Node.NetDevs[id]; !ok {
			f.Errorf("container %s has %s=%v, but %q is no device", container, variable, ids, id)
		}
	}
	return ids
}

// device returns the one device of a resource that a container has.
func (f *fixture) device(here *onNode, container string, resource corev1.ResourceName) string {
	f.Helper()
	ids := f.devices(here, container, resource)
	if len(ids) != 1 {
		f.Errorf("container %s has devices %v, want one", container, ids)
	}
	return ids[0]
}

// isDevice fails unless an interface is the network device of device id.
func (f *fixture) isDevice(here *onNode, ifName, id string) {
	f.Helper()
	// host-device keeps the name that the device has on the host as its alias.
	if got := here.links[ifName].Alias; got != lab.Node.NetDevs[id] {
		f.Errorf("%s is network device %q, want %q of device %s", ifName, got, lab.Node.NetDevs[id], id)
	}
}
