package agent

import (
	"cmp"
	"sync"
	"time"

	"github.com/manifold-cni/manifold/internal/plan"
)

// newestTime is how long a pod's newest sandbox is remembered. No ADD takes longer: the
// kubelet and the runtime give up on it after four minutes.
const newestTime = 10 * time.Minute

// newest remembers the newest sandbox of each pod. The kubelet creates another sandbox
// once it has given up on the one before. If the runtime was killed and its plugin was
// not, the ADD of the sandbox before is still under way then, and may end last: its
// network-status must not replace that of the sandbox that the pod runs in.
type newest struct {
	mu        sync.Mutex
	sandboxes map[string]planned // by pod UID, or by namespace and name without one
}

// planned is a sandbox that a plan was asked for.
type planned struct {
	containerID string
	at          time.Time
}

// plans notes that a plan was asked for a sandbox of the pod, and forgets old ones.
// Outside Kubernetes, where sandboxes have no pod, there is nothing to note.
func (n *newest) plans(pod plan.Pod, containerID string) {
	if pod.Name == "" {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for k, p := range n.sandboxes {
		if now.Sub(p.at) > newestTime {
			delete(n.sandboxes, k)
		}
	}
	if n.sandboxes == nil {
		n.sandboxes = map[string]planned{}
	}
	n.sandboxes[podKey(pod)] = planned{containerID, now}
}

// superseded reports whether the pod has a newer sandbox than this one.
func (n *newest) superseded(pod plan.Pod, containerID string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	p, ok := n.sandboxes[podKey(pod)]
	return ok && p.containerID != containerID
}

func podKey(pod plan.Pod) string { return cmp.Or(pod.UID, pod.String()) }
