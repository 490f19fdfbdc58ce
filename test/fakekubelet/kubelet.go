// Package fakekubelet is a kubelet as far as a node's programs can tell. It
// serves the real gRPC APIs on unix sockets and writes real checkpoint files,
// below a directory laid out like /var/lib/kubelet:
//
//	pod-resources/kubelet.sock                 PodResources v1
//	pods-api/pods-api.sock                     Pods v1alpha1
//	device-plugins/kubelet.sock                DevicePlugin v1beta1, registration
//	device-plugins/kubelet_internal_checkpoint the device manager's checkpoint
//	dra_manager_state                          the checkpoint of resource claims
//	plugins/<driver>/dra-device-metadata       what DRA drivers say of claims' devices
//
// It holds state and follows the rules of a kubelet 1.37 (its device manager and
// its API servers), not a script of answers:
//
//   - A pod is admitted container by container, init containers first. What an
//     ordinary init container got is used again by later containers; what a
//     restartable one got is not. The checkpoint is on disk before the pod shows.
//   - A resource that nobody has advertised is passed over: such a pod runs
//     without the device.
//   - Entries of pods that are gone stay, in the checkpoint too, until the next
//     allocation purges them.
//   - PodResources answers by namespace and name, the Pods API and the checkpoint
//     by UID. Unary calls are limited to 100 a second with a burst of 10, for all
//     clients of an API together; rejected ones answer ResourceExhausted.
//   - A claim is prepared for the first pod that has it and given back after the
//     last one is deleted; the checkpoint names pods by UID, PodResources lists all
//     of a claim's devices for each container that uses any. The Pods API serves no
//     status of claims: another writes it.
//   - No order means anything: pods, devices and checkpoint entries are shuffled
//     anew each time, by a seed.
//
// Devices come from [Kubelet.SetDevices], as if a device plugin inside the
// kubelet advertised them, or from real device plugins that register on the
// socket and are then called back. Free devices are given out in the order in
// which they are advertised; a test that cares says which with pins. Claims come
// from [Kubelet.SetClaim], allocated already, as the scheduler does it.
//
// What a kubelet does not do on demand can be asked for: the window of its
// restart, phase by phase ([Kubelet.SetPhase]); calls that hang or fail; an older
// pod of the same name still answered for; a damaged checkpoint. Nothing depends
// on time except the rate limit.
package fakekubelet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// The limit of a kubelet's PodResources and Pods APIs, each for itself.
const (
	realRate  = 100 // requests per second
	realBurst = 10
)

// realWatchBuffer is how many events a watcher of the Pods API may be behind.
const realWatchBuffer = 100

// The directories below the kubelet's own.
const (
	podResourcesDir  = "pod-resources"
	podsAPIDir       = "pods-api"
	devicePluginsDir = "device-plugins"
)

// ErrDown says that an operation needs a running kubelet.
var ErrDown = errors.New("the kubelet is down")

// Kubelet is a fake kubelet. It is safe for concurrent use.
type Kubelet struct {
	dir  string
	opts options

	life      sync.Mutex // one change of phase at a time
	admission sync.Mutex // one admission at a time, as in a kubelet

	mu        sync.Mutex // guards what follows
	run       *run       // nil while down
	phase     Phase
	rng       *rand.Rand
	calls     map[string]int
	hangs     map[string]chan struct{} // by method; closed to let calls go
	failures  map[string]error         // by method
	resources map[string]*resource
	entries   []*entry
	claims    map[types.NamespacedName]Claim // allocated
	prepared  []*prepared
	pods      map[types.UID]*corev1.Pod
	byName    map[types.NamespacedName]types.UID
	shadows   map[types.NamespacedName]*shadow
	admitting types.UID // counts as a pod although it does not show yet
	watchers  map[*watcher]struct{}
	uids      int
}

// options are what an Option sets.
type options struct {
	rate         float64
	burst        int
	seed         int64
	watchBuffer  int
	noCheckpoint bool
	noPodsAPI    bool
}

// Option changes a kubelet that starts.
type Option func(*options)

// WithRateLimit replaces the limit of unary calls, in requests per second: 100
// with a burst of 10 unless said otherwise.
func WithRateLimit(perSecond float64, burst int) Option {
	return func(o *options) { o.rate, o.burst = perSecond, burst }
}

// WithSeed chooses the orders that mean nothing. The same seed and the same
// calls one after the other give the same orders.
func WithSeed(seed int64) Option { return func(o *options) { o.seed = seed } }

// WithWatchBuffer lets a watcher of the Pods API be n events behind, not 100,
// before it is dropped.
func WithWatchBuffer(n int) Option { return func(o *options) { o.watchBuffer = n } }

// WithoutCheckpoint leaves the checkpoint unwritten. Allocations then outlive a
// restart in memory.
func WithoutCheckpoint() Option { return func(o *options) { o.noCheckpoint = true } }

// WithoutPodsAPI leaves out the Pods API, as kubelets before 1.36 do.
func WithoutPodsAPI() Option { return func(o *options) { o.noPodsAPI = true } }

// Start starts a kubelet on dir, which is made where it is missing. A checkpoint
// found there is read, as after a reboot; damaged ones are passed over and
// replaced at the next change, as a kubelet does. Every socket path must fit the
// 107 bytes that the system allows.
func Start(dir string, opts ...Option) (*Kubelet, error) {
	o := options{rate: realRate, burst: realBurst, watchBuffer: realWatchBuffer}
	for _, set := range opts {
		set(&o)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("kubelet directory %s: %w", dir, err)
	}
	k := &Kubelet{
		dir: abs, opts: o, rng: rand.New(rand.NewPCG(uint64(o.seed), 0)),
		calls: map[string]int{}, hangs: map[string]chan struct{}{}, failures: map[string]error{},
		resources: map[string]*resource{}, claims: map[types.NamespacedName]Claim{}, pods: map[types.UID]*corev1.Pod{}, byName: map[types.NamespacedName]types.UID{},
		shadows: map[types.NamespacedName]*shadow{}, watchers: map[*watcher]struct{}{},
	}
	if err := k.SetPhase(Normal); err != nil {
		return nil, err
	}
	return k, nil
}

// Stop takes the kubelet down and waits for all that it began. Its checkpoint
// stays, as on a node that is switched off. Stopping twice is no mistake.
func (k *Kubelet) Stop() {
	k.life.Lock()
	defer k.life.Unlock()
	k.down()
}

// Dir is the kubelet's root directory, absolute.
func (k *Kubelet) Dir() string { return k.dir }

// PodResourcesSocket is the socket of the PodResources API.
func (k *Kubelet) PodResourcesSocket() string {
	return filepath.Join(k.dir, podResourcesDir, "kubelet.sock")
}

// PodsSocket is the socket of the Pods API.
func (k *Kubelet) PodsSocket() string { return filepath.Join(k.dir, podsAPIDir, "pods-api.sock") }

// DevicePluginDir is where device plugins put their sockets.
func (k *Kubelet) DevicePluginDir() string { return filepath.Join(k.dir, devicePluginsDir) }

// RegistrationSocket is the socket on which device plugins register.
func (k *Kubelet) RegistrationSocket() string {
	return filepath.Join(k.DevicePluginDir(), "kubelet.sock")
}

// CheckpointPath is the device manager's checkpoint.
func (k *Kubelet) CheckpointPath() string {
	return filepath.Join(k.DevicePluginDir(), "kubelet_internal_checkpoint")
}

// Calls returns how often each method was called since Start, by its name alone
// (List, Get, GetAllocatableResources, ListPods, GetPod, WatchPods, Register):
// calls that were rejected or still hang included.
func (k *Kubelet) Calls() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.calls)
}

// podResourcesMethods are those that SetHang and SetError mean without names.
var podResourcesMethods = []string{"List", "Get", "GetAllocatableResources"}

// SetHang makes calls of the named methods hang until SetHang(false) of the same
// method or the end of the call's context; no names mean all of PodResources.
// A call that is let go is answered.
func (k *Kubelet) SetHang(on bool, methods ...string) {
	if len(methods) == 0 {
		methods = podResourcesMethods
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range methods {
		switch gate := k.hangs[m]; {
		case on && gate == nil:
			k.hangs[m] = make(chan struct{})
		case !on && gate != nil:
			close(gate)
			delete(k.hangs, m)
		}
	}
}

// SetError makes calls of the named methods fail with err, a gRPC status or any
// other error (code Unknown), until SetError(nil); no names mean all of
// PodResources.
func (k *Kubelet) SetError(err error, methods ...string) {
	if len(methods) == 0 {
		methods = podResourcesMethods
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range methods {
		k.failures[m] = err
	}
}

// context returns the context of the running kubelet.
func (k *Kubelet) context() (context.Context, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.run == nil {
		return nil, ErrDown
	}
	return k.run.ctx, nil
}

// shuffled returns list in an order that means nothing; mu is held.
func shuffled[T any](k *Kubelet, list []T) []T {
	out := slices.Clone(list)
	k.rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
