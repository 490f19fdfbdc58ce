package main

import (
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/test/harness"
)

// soakAtOnce is the number of pods attached and released at a time while the
// agent's memory is measured.
const soakAtOnce = 10

// agentMemory measures the agent's memory with all pods and definitions of the node,
// then with many pods of other nodes, and then after many ADDs and DELs.
func (n *node) agentMemory(r *report) error {
	fmt.Fprintln(r.out)
	resident := func() float64 {
		return float64(harness.ProcessMemory(n.agent.Process.Pid, "VmRSS:")) / 1024
	}
	r.addFigure(fmt.Sprintf("agent, resident, %d pods, %d definitions", len(n.kubelet.Pods()), n.definitions), resident(), "MiB")
	if err := n.addPodsElsewhere(); err != nil {
		return err
	}
	r.addFigure(fmt.Sprintf("agent, resident, with %d pods of other nodes", n.elsewhere), resident(), "MiB")
	const parts = 4
	for part := range parts {
		if err := n.churn(n.soak / parts); err != nil {
			return err
		}
		name := fmt.Sprintf("agent, resident, after %d ADDs and DELs", (part+1)*n.soak/parts)
		if part == parts-1 {
			name = agentResident
		}
		progress("")
		r.addFigure(name, resident(), "MiB")
	}
	return nil
}

// addPodsElsewhere creates pods of other nodes, which an agent must not notice.
func (n *node) addPodsElsewhere() error {
	for i := range n.elsewhere {
		_, err := n.cluster.create(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("elsewhere-%d", i)},
			Spec:       corev1.PodSpec{NodeName: "elsewhere", Containers: []corev1.Container{{Name: "main", Image: "none"}}},
		})
		if err != nil {
			return err
		}
		progress(fmt.Sprintf("pods of other nodes: %d of %d", i+1, n.elsewhere))
	}
	progress("")
	return nil
}

// churn attaches and releases pods times times in total, several pods at a time,
// but never the same pod twice at once.
func (n *node) churn(times int) error {
	who := n.manifold(n.sets[0], statusSync)
	pods := len(n.podsOf[noopName])
	workers := min(soakAtOnce, pods)
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for worker := range workers {
		wg.Go(func() {
			pod := worker
			for i := worker; i < times && errs[worker] == nil; i += workers {
				if worker == 0 {
					progress(fmt.Sprintf("memory: %d of %d ADDs and DELs", i, times))
				}
				box := n.sandbox(n.podsOf[noopName][pod], worker)
				if errs[worker] = who.add(box); errs[worker] == nil {
					errs[worker] = who.del(box)
				}
				if pod += workers; pod >= pods {
					pod = worker
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// attachHeld attaches all pods with a device at once and counts the agent's calls to
// the kubelet, which limits them per second.
func (n *node) attachHeld(r *report) error {
	pods, who := n.podsOf[n.held.name], n.manifold(n.held, statusSync)
	calls := func() int {
		c := n.kubelet.Calls()
		return c["Get"] + c["List"]
	}
	before := calls()
	for i, verb := range []func(harness.Sandbox) error{who.add, who.del} {
		errs := make([]error, len(pods))
		var wg sync.WaitGroup
		for i, pod := range pods {
			wg.Go(func() { errs[i] = verb(n.sandbox(pod, i)) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if i == 0 {
			r.addFigure(podResourcesCalls, float64(calls()-before), fmt.Sprintf("for %d pods", len(pods)))
		}
	}
	return nil
}
