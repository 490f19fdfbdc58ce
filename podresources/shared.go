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

// shared is a read-through cache over Live with one call in flight. The kubelet
// allows 100 calls a second with bursts of 10, to all clients of the node
// together; a node that starts 250 pods at once must not run into that.
//
// Who asks while nobody else does gets a call of its own. Who asks while a call
// is under way waits for the one that follows it, together with all others that
// asked meanwhile: the call under way may have begun before the kubelet
// allocated their devices.
type shared struct {
	live Live

	mu      sync.Mutex
	kept    map[PodKey][]ContainerDevice // the last answers; nothing is inferred from absence
	running *flight                      // the call under way; nil for none
	next    *flight                      // the call that follows it; nil while nobody waits for one
}

// maxKept bounds the answers that are kept between two Lists: more pods than a
// node runs.
const maxKept = 1024

// flight is a call and those who wait for it. The fields above done are guarded
// by shared.mu; those below are written before done is closed.
type flight struct {
	ctx     context.Context // ends when nobody waits any more
	cancel  context.CancelFunc
	first   PodKey // who asked first
	many    bool   // others asked for other pods: a List serves all
	waiting int

	done chan struct{}
	pods map[PodKey][]ContainerDevice
	err  error
}

func newShared(live Live) *shared { return &shared{live: live, kept: map[PodKey][]ContainerDevice{}} }

// devices returns the live devices of a pod: from the last answer when good says
// that it serves, else from a call that begins after this one did. A pod that the
// kubelet does not list is ErrPodNotFound.
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

// board joins the flight that serves who asks now, and starts it when nothing is
// under way. The caller holds mu.
func (s *shared) board(ctx context.Context, pod PodKey) *flight {
	f := s.next
	if f == nil {
		f = &flight{first: pod, done: make(chan struct{})}
		// Its values are the first asker's; its end is that of all who wait.
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

// start makes next the call under way, if anybody waits for one. The caller
// holds mu.
func (s *shared) start() {
	s.running, s.next = s.next, nil
	if s.running != nil {
		go s.fly(s.running)
	}
}

// leave takes one who does not wait any more off a flight; the last one ends it.
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

// get asks for the one pod, which is cheaper for the kubelet than a List. It
// reports whether a List must tell instead: this kubelet has no Get, or does not
// find the pod. A kubelet whose Get is switched off (a feature gate, off by
// default before Kubernetes 1.34) answers in the same way as one that does not
// find the pod, so that only List can tell the two apart.
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

// keep takes a flight's answer over; a List replaces all that was kept. The
// caller holds mu.
func (s *shared) keep(f *flight, whole bool) {
	if f.err != nil {
		return
	}
	if whole || len(s.kept) >= maxKept {
		s.kept = map[PodKey][]ContainerDevice{}
	}
	maps.Copy(s.kept, f.pods) // those who waited still read the flight's own map
}

// of returns what a flight that has landed found of a pod.
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

// patiently calls again, with a growing and jittered pause, while the kubelet's
// rate limit is reached.
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
