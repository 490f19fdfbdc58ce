package podresources

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"time"
)

// shared is a read-through cache over Live with one call in flight. The kubelet
// allows 100 calls a second with bursts of 10, to all clients of the node
// together; a node that starts 250 pods at once must not run into that.
type shared struct {
	live Live

	mu     sync.Mutex
	pods   map[PodKey][]ContainerDevice // the last answers; nothing is ever inferred from absence
	flight *flight
}

// maxKept bounds the answers that are kept between two Lists: more pods than a
// node runs.
const maxKept = 1024

// flight is a List under way and those who wait for it.
type flight struct {
	done chan struct{}
	pods map[PodKey][]ContainerDevice
	err  error
}

func newShared(live Live) *shared { return &shared{live: live, pods: map[PodKey][]ContainerDevice{}} }

// devices returns the live devices of a pod: from the last answer when good says
// that it serves and fresh does not forbid it, else from the kubelet.
func (s *shared) devices(ctx context.Context, pod PodKey, fresh bool, good func([]ContainerDevice) bool) ([]ContainerDevice, error) {
	s.mu.Lock()
	if d := s.pods[pod]; !fresh && good(d) {
		s.mu.Unlock()
		return d, nil
	}
	f := s.flight
	if f == nil {
		f = &flight{done: make(chan struct{})}
		s.flight = f
		s.mu.Unlock()
		return s.lead(ctx, f, pod)
	}
	s.mu.Unlock()
	// The call under way may have begun before the kubelet allocated this pod's
	// devices; its answer serves only if it is good, else it is asked once more.
	d, err := f.wait(ctx, pod)
	if err == nil && good(d) || ctx.Err() != nil {
		return d, err
	}
	return s.after(ctx, f, pod, good)
}

// after asks with, or as, the call that follows flight old.
func (s *shared) after(ctx context.Context, old *flight, pod PodKey, good func([]ContainerDevice) bool) ([]ContainerDevice, error) {
	s.mu.Lock()
	if d := s.pods[pod]; good(d) {
		s.mu.Unlock()
		return d, nil
	}
	f := s.flight
	if f == nil || f == old {
		f = &flight{done: make(chan struct{})}
		s.flight = f
		s.mu.Unlock()
		// Others are likely to come: one List for all of them.
		s.list(ctx, f)
		return f.of(pod)
	}
	s.mu.Unlock()
	return f.wait(ctx, pod)
}

// wait returns what the flight found of a pod.
func (f *flight) wait(ctx context.Context, pod PodKey) ([]ContainerDevice, error) {
	select {
	case <-f.done:
		return f.of(pod)
	case <-ctx.Done():
		return nil, errors.Join(ErrUnavailable, context.Cause(ctx))
	}
}

func (f *flight) of(pod PodKey) ([]ContainerDevice, error) {
	if f.err != nil {
		return nil, f.err
	}
	d, ok := f.pods[pod]
	if !ok {
		return nil, ErrPodNotFound
	}
	return d, nil
}

// lead makes the call that others may wait for: Get for the one pod while nobody
// waits is cheaper for the kubelet, but a List serves everybody who joins.
func (s *shared) lead(ctx context.Context, f *flight, pod PodKey) ([]ContainerDevice, error) {
	var got []ContainerDevice
	err := patiently(ctx, func() (err error) {
		got, err = s.live.Get(ctx, pod)
		return err
	})
	if errors.Is(err, errUnimplemented) {
		s.list(ctx, f)
		return f.of(pod)
	}
	f.err, f.pods = err, map[PodKey][]ContainerDevice{}
	if err == nil {
		f.pods[pod] = got
	}
	s.land(f, false)
	return got, err
}

// list fills the flight with a List.
func (s *shared) list(ctx context.Context, f *flight) {
	f.err = patiently(ctx, func() (err error) {
		f.pods, err = s.live.List(ctx)
		return err
	})
	s.land(f, true)
}

// land ends a flight and keeps its answer; a List replaces all that was kept.
func (s *shared) land(f *flight, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flight == f {
		s.flight = nil
	}
	if whole && f.err == nil || len(s.pods) > maxKept {
		s.pods = map[PodKey][]ContainerDevice{}
	}
	if f.err == nil {
		maps.Copy(s.pods, f.pods) // the flight's own map is still read by those who waited
	}
	close(f.done)
}

// patiently calls again, with a growing and jittered pause, while the kubelet's
// rate limit is reached.
func patiently(ctx context.Context, call func() error) error {
	pause := 20 * time.Millisecond
	for {
		err := call()
		if !errors.Is(err, errRateLimited) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ErrUnavailable, err, context.Cause(ctx))
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, time.Second)
	}
}
