// Package fakekubelet is a fake kubelet that programs on a node cannot tell from a
// real one. It serves the real gRPC APIs on unix sockets and writes real checkpoint
// files, below a directory laid out like /var/lib/kubelet:
//
//	pod-resources/kubelet.sock                 PodResources v1
//	pods-api/pods-api.sock                     Pods v1alpha1
//	device-plugins/kubelet.sock                DevicePlugin v1beta1, registration
//	device-plugins/kubelet_internal_checkpoint the device manager's checkpoint
//	dra_manager_state                          the checkpoint of resource claims
//	plugins/<driver>/dra-device-metadata       metadata that DRA drivers write for claims' devices
//
// It keeps state and follows the rules of a kubelet 1.37 (its device manager and
// its API servers) instead of replaying canned answers:
//
//   - A pod is admitted container by container, init containers first. Later
//     containers reuse the devices of an ordinary init container, but not those of
//     a restartable one. The checkpoint is on disk before the pod shows.
//   - A resource that nobody has advertised is skipped: such a pod runs without the
//     device.
//   - Entries of deleted pods stay, also in the checkpoint, until the next
//     allocation purges them.
//   - PodResources answers by namespace and name, the Pods API and the checkpoint
//     by UID. Unary calls are limited to 100 a second with a burst of 10, for all
//     clients of an API together; rejected calls return ResourceExhausted.
//   - A claim is prepared for its first pod and unprepared after its last pod is
//     deleted. The checkpoint names pods by UID. PodResources lists all devices of
//     a claim for each container that uses any of them. The Pods API serves no
//     claim statuses, since a controller writes them and not the kubelet.
//   - No order is guaranteed: pods, devices and checkpoint entries are shuffled
//     anew each time, from a seed.
//
// Devices come from [Kubelet.SetDevices], as if a device plugin inside the kubelet
// advertised them, or from real device plugins that register on the socket and are
// then called back. Free devices are handed out in the order in which they are
// advertised; a test that needs particular devices pins them. Claims come from
// [Kubelet.SetClaim], already allocated, as the scheduler leaves them.
//
// A test can also force what a real kubelet does not do on demand: the phases of
// its restart, one by one ([Kubelet.SetPhase]); calls that hang or fail; answers
// for an older pod of the same name; a damaged checkpoint. Only the rate limit
// depends on time.
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

// The rate limit of the PodResources and Pods APIs of a kubelet; each API has its
// own.
const (
	realRate  = 100 // requests per second
	realBurst = 10
)

// realWatchBuffer is the number of events that a watcher of the Pods API may lag
// behind.
const realWatchBuffer = 100

// Directories below the kubelet's root directory.
const (
	podResourcesDir  = "pod-resources"
	podsAPIDir       = "pods-api"
	devicePluginsDir = "device-plugins"
)

// ErrDown means that an operation needs a running kubelet.
var ErrDown = errors.New("the kubelet is down")

// Kubelet is a fake kubelet. It is safe for concurrent use.
type Kubelet struct {
	dir  string
	opts options

	life      sync.Mutex // serializes changes of phase
	admission sync.Mutex // serializes admissions, as in a kubelet

	mu        sync.Mutex // guards the fields below
	run       *run       // nil while down
	phase     Phase
	rng       *rand.Rand
	calls     map[string]int
	hangs     map[string]chan struct{} // by method; closed to release the calls
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

// options is what the Options set.
type options struct {
	rate         float64
	burst        int
	seed         int64
	watchBuffer  int
	noCheckpoint bool
	noPodsAPI    bool
}

// Option configures a kubelet before it starts.
type Option func(*options)

// WithRateLimit replaces the limit on unary calls, in requests per second. The
// default is 100 with a burst of 10.
func WithRateLimit(perSecond float64, burst int) Option {
	return func(o *options) { o.rate, o.burst = perSecond, burst }
}

// WithSeed seeds the random orders. The same seed and the same sequence of calls
// give the same orders.
func WithSeed(seed int64) Option { return func(o *options) { o.seed = seed } }

// WithWatchBuffer lets a watcher of the Pods API lag n events behind before it is
// dropped. The default is 100.
func WithWatchBuffer(n int) Option { return func(o *options) { o.watchBuffer = n } }

// WithoutCheckpoint disables the checkpoint. Allocations then survive a restart in
// memory.
func WithoutCheckpoint() Option { return func(o *options) { o.noCheckpoint = true } }

// WithoutPodsAPI disables the Pods API, as in kubelets before 1.36.
func WithoutPodsAPI() Option { return func(o *options) { o.noPodsAPI = true } }

// Start starts a kubelet on dir and creates dir if needed. It reads a checkpoint
// that it finds there, as after a reboot. Like a kubelet it ignores a damaged
// checkpoint of the device manager and replaces it at the next change; a damaged
// checkpoint of claims is an error. Every socket path must fit the system's limit
// of 107 bytes.
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

// Stop takes the kubelet down and waits for everything it started. Its checkpoint
// stays, as on a node that is powered off. Stop may be called twice.
func (k *Kubelet) Stop() {
	k.life.Lock()
	defer k.life.Unlock()
	k.down()
}

// Dir returns the kubelet's root directory, absolute.
func (k *Kubelet) Dir() string { return k.dir }

// PodResourcesSocket returns the path of the PodResources API's socket.
func (k *Kubelet) PodResourcesSocket() string {
	return filepath.Join(k.dir, podResourcesDir, "kubelet.sock")
}

// PodsSocket returns the path of the Pods API's socket.
func (k *Kubelet) PodsSocket() string { return filepath.Join(k.dir, podsAPIDir, "pods-api.sock") }

// DevicePluginDir returns the directory where device plugins put their sockets.
func (k *Kubelet) DevicePluginDir() string { return filepath.Join(k.dir, devicePluginsDir) }

// RegistrationSocket returns the path of the socket on which device plugins
// register.
func (k *Kubelet) RegistrationSocket() string {
	return filepath.Join(k.DevicePluginDir(), "kubelet.sock")
}

// CheckpointPath returns the path of the device manager's checkpoint.
func (k *Kubelet) CheckpointPath() string {
	return filepath.Join(k.DevicePluginDir(), "kubelet_internal_checkpoint")
}

// Calls returns how often each method was called since Start, keyed by bare method
// name (List, Get, GetAllocatableResources, ListPods, GetPod, WatchPods, Register).
// Rejected and hanging calls count.
func (k *Kubelet) Calls() map[string]int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return maps.Clone(k.calls)
}

// podResourcesMethods is what SetHang and SetError act on when no method is named.
var podResourcesMethods = []string{"List", "Get", "GetAllocatableResources"}

// SetHang makes calls of the named methods hang until SetHang(false) for the same
// method or the end of the call's context. Without names it acts on all methods of
// PodResources. A released call is answered.
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

// SetError makes calls of the named methods fail with err until SetError(nil): a
// gRPC status, or any other error (code Unknown). Without names it acts on all
// methods of PodResources.
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

// context returns the context of the running kubelet, or ErrDown.
func (k *Kubelet) context() (context.Context, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.run == nil {
		return nil, ErrDown
	}
	return k.run.ctx, nil
}

// shuffled returns a shuffled copy of list; mu is held.
func shuffled[T any](k *Kubelet, list []T) []T {
	out := slices.Clone(list)
	k.rng.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out
}
