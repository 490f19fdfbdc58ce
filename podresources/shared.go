package podresources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

// shared is a read-through cache in front of Live that keeps at most one call in
// flight. The kubelet allows 100 calls a second with bursts of 10, for all clients on
// the node together, and a node that starts 250 pods at once must stay below that.
//
// A caller that finds no call in flight gets a call of its own. All callers that arrive
// during a call share the next one: the call in flight may have begun before the
// kubelet allocated their devices.
type shared struct {
	live Live

	mu      sync.Mutex
	kept    map[PodKey][]ContainerDevice // the last answers; a missing pod proves nothing
	running *flight                      // the call in flight, or nil
	next    *flight                      // the call after it; nil while nobody waits for one
}

// maxKept limits the answers that are kept between two Lists. A node runs fewer pods.
const maxKept = 1024

// flight is a call and its waiting callers. shared.mu guards the fields above done; the
// fields below it are written before done is closed.
type flight struct {
	ctx     context.Context // ends when nobody waits any longer
	cancel  context.CancelFunc
	first   PodKey // the first caller's pod
	many    bool   // callers want different pods, so a List serves all
	waiting int

	done chan struct{}
	pods map[PodKey][]ContainerDevice
	err  error
}

func newShared(live Live) *shared { return &shared{live: live, kept: map[PodKey][]ContainerDevice{}} }

// devices returns the live devices of a pod: from the last answer if good accepts it,
// else from a call that begins after this one did. It returns ErrPodNotFound for a pod
// that the kubelet does not list.
func (s *shared) devices(ctx context.Context, pod PodKey, good func([]ContainerDevice) bool) ([]ContainerDevice, error) {
	s.mu.Lock()
	if d, ok := s.kept[pod]; ok && good(d) {
		s.mu.Unlock()
		return d, nil
	}
	f := s.board(ctx, pod)
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.of(pod)
	case <-ctx.Done():
		s.leave(f)
		return nil, &failure{ErrUnavailable, context.Cause(ctx)}
	}
}

// board joins the flight that will serve a caller that asks now, and starts it if no
// call is in flight. The caller holds mu.
func (s *shared) board(ctx context.Context, pod PodKey) *flight {
	f := s.next
	if f == nil {
		f = &flight{first: pod, done: make(chan struct{})}
		// The call has the first caller's context values, and is canceled once all
		// callers left.
		f.ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
		s.next = f
	}
	f.waiting++
	f.many = f.many || f.first != pod
	if s.running == nil {
		s.start()
	}
	return f
}

// start makes the next flight the running one, if anybody waits for it. The caller
// holds mu.
func (s *shared) start() {
	s.running, s.next = s.next, nil
	if s.running != nil {
		go s.fly(s.running)
	}
}

// leave removes one waiting caller from a flight. When the last one leaves, the call is
// canceled.
func (s *shared) leave(f *flight) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.waiting--; f.waiting > 0 {
		return
	}
	f.cancel()
	if s.next == f {
		s.next = nil
	}
}

// fly makes a flight's call, keeps its answer, and starts the next flight.
func (s *shared) fly(f *flight) {
	defer f.cancel()
	whole := f.many
	if !whole {
		whole = s.get(f)
	}
	if whole {
		f.err = patiently(f.ctx, func() (err error) {
			f.pods, err = s.live.List(f.ctx)
			return err
		})
	}
	s.mu.Lock()
	s.keep(f, whole)
	s.start()
	s.mu.Unlock()
	close(f.done)
}

// get asks for a single pod, which costs the kubelet less than a List. It reports
// whether a List is needed: this kubelet has no Get, or does not find the pod. A
// kubelet whose Get is disabled (a feature gate, off by default before Kubernetes 1.34)
// answers as if it did not find the pod; only List tells the two cases apart.
func (s *shared) get(f *flight) (needList bool) {
	var d []ContainerDevice
	f.err = patiently(f.ctx, func() (err error) {
		d, err = s.live.Get(f.ctx, f.first)
		return err
	})
	if f.err == nil {
		f.pods = map[PodKey][]ContainerDevice{f.first: d}
	}
	return errors.Is(f.err, ErrUnimplemented) || errors.Is(f.err, ErrPodNotFound)
}

// keep stores a flight's answer. A List replaces everything stored before. The caller
// holds mu.
func (s *shared) keep(f *flight, whole bool) {
	if f.err != nil {
		return
	}
	if whole || len(s.kept) >= maxKept {
		s.kept = map[PodKey][]ContainerDevice{}
	}
	maps.Copy(s.kept, f.pods) // a copy, because callers of this flight still read its map
}

// of returns what a completed flight found for a pod.
func (f *flight) of(pod PodKey) ([]ContainerDevice, error) {
	if f.err != nil {
		return nil, f.err
	}
	d, ok := f.pods[pod]
	if !ok {
		return nil, fmt.Errorf("%w: it is not listed", ErrPodNotFound)
	}
	return d, nil
}

// patiently repeats a call, with growing and jittered pauses, while the kubelet's rate
// limit is reached.
func patiently(ctx context.Context, call func() error) error {
	pause := 20 * time.Millisecond
	for {
		err := call()
		if !errors.Is(err, ErrRateLimited) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, time.Second)
	}
}
