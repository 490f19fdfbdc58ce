package podresources

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/manifold-cni/manifold/checkpoint"
)

// Live is the API as a Reader needs it, implemented by *Client. Its errors wrap those
// of this package.
type Live interface {
	Get(ctx context.Context, pod PodKey) ([]ContainerDevice, error)
	List(ctx context.Context) (map[PodKey][]ContainerDevice, error)
}

// Memory is the checkpoint as a Reader needs it, implemented by *checkpoint.File.
type Memory interface {
	Load() (*checkpoint.Checkpoint, error)
}

// ClaimMemory is the checkpoint of resource claims as a Reader needs it, implemented by
// *checkpoint.ClaimFile.
type ClaimMemory interface {
	Load() (*checkpoint.Claims, error)
}

// Reader joins the sources as the package comment describes. It is safe for concurrent
// use.
type Reader struct {
	live   *shared     // nil without the API
	memory Memory      // nil without the checkpoint
	claims ClaimMemory // nil without the checkpoint of claims
	retry  time.Duration

	attributes []AttributeSource
}

// Options configure a Reader; the zero value suits a node.
type Options struct {
	// Retry limits how long the Reader asks again while the sources disagree; 0 means
	// 600 ms. After a kubelet restart the API knows no pods for some seconds, but the
	// checkpoint answers then, so a longer wait gains nothing.
	Retry time.Duration
	// Claims is the checkpoint of resource claims, or nil.
	Claims ClaimMemory
	// Attributes are asked for the attributes of claims' devices, in order of
	// precedence.
	Attributes []AttributeSource
}

// NewReader returns a Reader of the API and the checkpoint. Either may be nil: one
// suffices.
func NewReader(live Live, memory Memory, o Options) *Reader {
	r := &Reader{memory: memory, claims: o.Claims, retry: o.Retry, attributes: o.Attributes}
	if live != nil {
		r.live = newShared(live)
	}
	if r.retry == 0 {
		r.retry = 600 * time.Millisecond
	}
	return r
}

// retryStep is the pause between two looks at sources that disagree.
const retryStep = 100 * time.Millisecond

// Devices returns all devices allocated to the pod, by the tables of the package
// comment. The caller lists in resources those of which it needs devices: a cached
// answer that lacks one of them is not used. However many callers ask at once, the
// kubelet gets no more calls than its rate limit allows. The errors are those of this
// package, wrapped.
func (r *Reader) Devices(ctx context.Context, pod Pod, resources []string) (*Allocation, error) {
	deadline := time.Now().Add(r.retry)
	for looks := 1; ; looks++ {
		v := r.look(ctx, pod, resources)
		d := v.decideAll()
		if d.again == never || d.again == once && looks > 1 || ctx.Err() != nil || time.Now().After(deadline) {
			if d.alloc != nil {
				identify(ctx, d.alloc.Devices, r.attributes, pod.learned)
			}
			return d.alloc, d.err
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryStep):
		}
	}
}

// view is one look at both sources.
type view struct {
	pod     Pod
	live    []ContainerDevice
	liveErr error // why there is no live answer, or nil
	mem     *checkpoint.Checkpoint
	memErr  error
	own     []checkpoint.Entry // the entries with the pod's UID

	liveClaims []ContainerDevice // live devices that belong to claims
	ownClaims  []checkpoint.Claim
	claimsErr  error // why there is no checkpoint of claims, or nil
}

// errNoSource stands for a source that is not configured.
var errNoSource = errors.New("not configured")

// Limits on waiting for the API, including its rate limit. The wait is short if the
// checkpoint has an answer of its own, because another client can keep the kubelet at
// its limit forever.
const (
	shortWait = 3 * time.Second
	longWait  = 30 * time.Second
)

// look reads the checkpoint first, then the API. The kubelet writes the checkpoint
// before it starts a pod, so the later reading shows the present.
func (r *Reader) look(ctx context.Context, pod Pod, resources []string) *view {
	v := &view{pod: pod, memErr: errNoSource, liveErr: errNoSource, claimsErr: errNoSource}
	if r.memory != nil {
		v.mem, v.memErr = r.memory.Load()
	}
	if v.memErr == nil && pod.UID != "" {
		v.own = v.mem.Pod(pod.UID)
	}
	if r.claims != nil {
		var all *checkpoint.Claims
		if all, v.claimsErr = r.claims.Load(); v.claimsErr == nil {
			v.ownClaims = all.Pod(pod.UID)
		}
	}
	if r.live != nil {
		wait := longWait
		if len(v.own) > 0 || len(v.ownClaims) > 0 {
			wait = shortWait
		}
		ctx, cancel := context.WithTimeout(ctx, wait)
		defer cancel()
		v.live, v.liveErr = r.live.devices(ctx, PodKey{pod.Namespace, pod.Name}, func(d []ContainerDevice) bool { return v.trusts(d, resources) })
		v.live, v.liveClaims = split(v.live)
	}
	return v
}

// split separates the device plugins' devices from the claims' devices.
func split(all []ContainerDevice) (plugins, claims []ContainerDevice) {
	for _, d := range all {
		if d.Claim == nil {
			plugins = append(plugins, d)
		} else {
			claims = append(claims, d)
		}
	}
	return plugins, claims
}

// trusts reports whether a cached answer is good for this pod: it has a device of every
// wanted resource, the checkpoint confirms by UID that the devices are this pod's, and
// the pod's claims are in the answer or in their own checkpoint.
func (v *view) trusts(d []ContainerDevice, resources []string) bool {
	plugins, claims := split(d)
	for _, want := range resources {
		if !slices.ContainsFunc(plugins, func(c ContainerDevice) bool { return c.Resource == want }) {
			return false
		}
	}
	known := len(v.pod.Claims) == 0 || len(claims) > 0 || v.claimsErr == nil
	return known && len(plugins) > 0 && v.agree(plugins)
}

// holding is a device in a container.
type holding struct{ container, resource, id string }

// agree reports whether the live devices are those that the checkpoint has for this
// pod. Ordinary init containers do not count, because the API omits them.
func (v *view) agree(live []ContainerDevice) bool {
	confirmed := make(map[holding]bool, len(live))
	for _, d := range live {
		confirmed[holding{d.Container, d.Resource, d.ID}] = false
	}
	for i := range v.own {
		e := &v.own[i]
		optional := v.plainInit(e.Container)
		for _, n := range e.Devices {
			for _, id := range n.IDs {
				h := holding{e.Container, e.Resource, id}
				if _, ok := confirmed[h]; ok {
					confirmed[h] = true
				} else if !optional {
					return false
				}
			}
		}
	}
	for _, ok := range confirmed {
		if !ok {
			return false
		}
	}
	return len(v.own) > 0
}

// plainInit reports whether a container is an ordinary init container.
func (v *view) plainInit(name string) bool {
	return slices.ContainsFunc(v.pod.Containers, func(c Container) bool { return c.Name == name && c.Init && !c.Restartable })
}
