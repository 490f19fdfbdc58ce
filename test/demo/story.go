package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/containernetworking/plugins/pkg/netlinksafe"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// admitPod creates the pod at the API server and has the kubelet admit it.
func (n *node) admitPod() error {
	one := corev1.ResourceRequirements{Limits: corev1.ResourceList{resourceName: *resource.NewQuantity(1, resource.DecimalSI)}}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "packet-gateway", UID: "7370adb5-3470-41ab-8e42-be63abb6d110",
			Annotations: map[string]string{netattach.NetworksAnnotation: "storage, fast, fast"},
		},
		Spec: corev1.PodSpec{NodeName: "demo", Containers: []corev1.Container{{Name: "rx", Resources: one}, {Name: "tx", Resources: one}}},
	}
	n.api.AddPod(pod)
	// The first container gets the device with the higher ID, as happens on real
	// nodes: sorting the pod's devices would swap the two containers' devices.
	admitted, err := n.kubelet.AddPod(pod, map[string]map[string][]string{"rx": {resourceName: {n.ids["nic1"]}}, "tx": {resourceName: {n.ids["nic0"]}}})
	if err != nil {
		return err
	}
	n.pod = admitted
	fmt.Printf("pod %s/%s  networks: %s\n", pod.Namespace, pod.Name, pod.Annotations[netattach.NetworksAnnotation])
	for _, a := range n.kubelet.Allocations(admitted.UID) {
		fmt.Printf("kubelet: container %s has %s of %s\n", a.Container, strings.Join(a.IDs, ", "), a.Resource)
	}
	if err := n.warm(); err != nil {
		return err
	}
	return n.newSandbox("c0ffee01")
}

// warm runs a plain pod once: the bridge plugin leaves its bridge behind on
// purpose, which is not something that a pod must give back.
func (n *node) warm() error {
	if err := n.newSandbox("c0ffee00"); err != nil {
		return err
	}
	n.sandbox.Name = ""
	for _, verb := range []string{"ADD", "DEL"} {
		if _, err := n.call(verb); err != nil {
			return err
		}
	}
	return n.netns.Delete()
}

func (n *node) newSandbox(id string) (err error) {
	if n.netns, err = harness.NewNetNS(id); err != nil {
		return err
	}
	n.sandbox = harness.Sandbox{ID: id, NetNS: n.netns.Path, Namespace: n.pod.Namespace, Name: n.pod.Name, UID: string(n.pod.UID)}
	n.before, err = harness.Capture(n.path("state"), n.path("ipam"))
	return err
}

// showPlan asks the agent for the plan as the plugin does.
func (n *node) showPlan() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	p, err := plan.Client{Socket: n.path("agent.sock")}.Plan(ctx, plan.Request{
		Version: plan.Version, PodNamespace: n.sandbox.Namespace, PodName: n.sandbox.Name, PodUID: n.sandbox.UID,
		ContainerID: n.sandbox.ID, NetNS: n.sandbox.NetNS, IfName: "eth0", Config: n.rt.Conf,
	})
	if err != nil {
		return err
	}
	for _, a := range p.Attachments {
		fmt.Printf("  %-5s %-16s %s\n", a.IfName, a.Name, a.Reason)
	}
	return nil
}

// call runs a verb that must succeed.
func (n *node) call(verb string) (*harness.Result, error) {
	res, err := n.rt.Call(verb, n.sandbox)
	if err != nil {
		return nil, err
	}
	if res.Status != 0 {
		return nil, fmt.Errorf("%s failed: %s\n%s", verb, res.Stdout, res.Stderr)
	}
	return res, nil
}

// attach runs ADD and shows the sandbox's interfaces and what was verified.
func (n *node) attach() error {
	res, err := n.call("ADD")
	if err != nil {
		return err
	}
	var result struct {
		IPs []struct{ Address string } `json:"ips"`
	}
	if err := json.Unmarshal(res.Stdout, &result); err != nil {
		return err
	}
	fmt.Printf("result for the runtime: %s\n", result.IPs[0].Address)
	if err := n.showInterfaces(); err != nil {
		return err
	}
	return n.showVerified()
}

// showVerified prints the checks that the journal records.
func (n *node) showVerified() error {
	entry, err := journal.Dir{Path: n.path("state")}.Open(journal.Key{ContainerID: n.sandbox.ID, IfName: "eth0"})
	if err != nil {
		return err
	}
	for _, s := range entry.Steps {
		if s.Phase == journal.Verified {
			fmt.Printf("  verified %s: %s\n", entry.Plan.Attachments[s.Attachment].IfName, strings.Join(s.Checked, ", "))
		}
	}
	return nil
}

// showInterfaces prints the sandbox's interfaces and checks which devices the last
// two are.
func (n *node) showInterfaces() error {
	want := map[string]string{"net2": "nic1", "net3": "nic0"}
	return n.netns.Do(func() error {
		links, err := netlinksafe.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			if a.Name == "lo" {
				continue
			}
			addrs, err := netlinksafe.AddrList(l, netlink.FAMILY_V4)
			if err != nil {
				return err
			}
			fmt.Printf("  %-5s %-8s %s mtu %d", a.Name, l.Type(), a.HardwareAddr, a.MTU)
			for _, addr := range addrs {
				fmt.Printf(" %s", addr.IPNet)
			}
			if dev := want[a.Name]; dev != "" {
				fmt.Printf("  is %s, device %s", a.Alias, n.ids[a.Alias])
				if a.Alias != dev {
					return fmt.Errorf("%s is %s, want %s", a.Name, a.Alias, dev)
				}
				delete(want, a.Name)
			}
			fmt.Println()
		}
		if len(want) > 0 {
			return fmt.Errorf("interfaces are missing: %v", want)
		}
		return nil
	})
}

// showStatus prints the annotation as stored at the API server.
func (n *node) showStatus() error {
	pod := n.api.Pod("default", n.pod.Name)
	status := pod.Annotations[netattach.StatusAnnotation]
	var list []netattach.Status
	if err := json.Unmarshal([]byte(status), &list); err != nil {
		return fmt.Errorf("network-status: %w", err)
	}
	if len(list) != 4 {
		return fmt.Errorf("network-status has %d entries, want 4", len(list))
	}
	fmt.Println(status)
	return nil
}

// detach runs DEL twice and compares the host with its state before ADD.
func (n *node) detach() error {
	for range 2 {
		if _, err := n.call("DEL"); err != nil {
			return err
		}
	}
	return n.unchanged()
}

func (n *node) unchanged() error {
	after, err := harness.Capture(n.path("state"), n.path("ipam"))
	if err != nil {
		return err
	}
	if diff := n.before.Diff(after); diff != "" {
		return fmt.Errorf("the host has changed:\n%s", diff)
	}
	fmt.Println("links, addresses, routes, IPAM files and journal are as before ADD; a second DEL succeeded too")
	return nil
}

// killed kills an ADD halfway, then runs DEL.
func (n *node) killed() error {
	rt := n.rt
	const afterSecondDelegate = 9 // a kill point of ADD, counted from its start
	rt.Env = []string{fmt.Sprintf("MANIFOLD_KILL_AT=%d", afterSecondDelegate), "MANIFOLD_KILL_LOG=" + n.path("points")}
	res, err := rt.Call("ADD", n.sandbox)
	if err != nil {
		return err
	}
	if res.Status != -1 {
		return fmt.Errorf("the ADD was not killed: %s %s", res.Stdout, res.Stderr)
	}
	points, err := os.ReadFile(n.path("points"))
	if err != nil {
		return err
	}
	fmt.Printf("killed after: %s\n", strings.ReplaceAll(strings.TrimSpace(string(points)), "\n", ", "))
	middle, err := harness.Capture(n.path("state"), n.path("ipam"))
	if err != nil {
		return err
	}
	fmt.Printf("left behind by the killed ADD:\n%s\n", shorten(n.before.Diff(middle)))
	return n.detach()
}

// shorten cuts lines to the width of a screen.
func shorten(diff string) string {
	var out []string
	for _, line := range strings.Split(diff, "\n") {
		if len(line) > 110 {
			line = line[:110] + "…"
		}
		out = append(out, "  "+line)
	}
	return strings.Join(out, "\n")
}

// withoutAgent attaches and detaches once more with the agent stopped.
func (n *node) withoutAgent() error {
	if err := n.stopAgent(); err != nil {
		return err
	}
	if err := n.attach(); err != nil {
		return err
	}
	return n.detach()
}
