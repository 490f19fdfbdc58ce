package podresources

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// slow is a Live that holds pods and takes a second for each call, which a kubelet
// never does. It answers with the state at the start of the call.
type slow struct {
	mu    sync.Mutex
	pods  map[PodKey][]ContainerDevice
	fail  []error // answers to the next calls
	calls []string
	ended int // calls that ended because of their context
}

func (s *slow) set(pod string, d ...ContainerDevice) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pods[PodKey{"shop", pod}] = d
}

// call takes a second and returns the state at its start.
func (s *slow) call(ctx context.Context, method string) (map[PodKey][]ContainerDevice, error) {
	s.mu.Lock()
	s.calls = append(s.calls, method)
	pods := maps.Clone(s.pods)
	var err error
	if len(s.fail) > 0 {
		err, s.fail = s.fail[0], s.fail[1:]
	}
	s.mu.Unlock()
	select {
	case <-time.After(time.Second):
		return pods, err
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended++
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// Get implements Live.
func (s *slow) Get(ctx context.Context, pod PodKey) ([]ContainerDevice, error) {
	pods, err := s.call(ctx, "Get")
	d, ok := pods[pod]
	if err == nil && !ok {
		err = ErrPodNotFound
	}
	return d, err
}

// List implements Live.
func (s *slow) List(ctx context.Context) (map[PodKey][]ContainerDevice, error) {
	return s.call(ctx, "List")
}

// made returns the calls so far and clears them.
func (s *slow) made() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.calls = nil }()
	return fmt.Sprint(s.calls)
}

// inBubble runs a test of the shared calls with its own clock.
func inBubble(t *testing.T, test func(t *testing.T, live *slow, s *shared)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		live := &slow{pods: map[PodKey][]ContainerDevice{}}
		test(t, live, newShared(live))
	})
}

func some(d []ContainerDevice) bool { return len(d) > 0 }
func none([]ContainerDevice) bool   { return false }

// ask asks about a pod and expects one device or an error.
func ask(t *testing.T, ctx context.Context, s *shared, pod, want string, wantErr error) {
	t.Helper()
	d, err := s.devices(ctx, PodKey{"shop", pod}, some)
	if wantErr != nil {
		if !errors.Is(err, wantErr) {
			t.Errorf("pod %s: %v, %v, want %v", pod, d, err, wantErr)
		}
		return
	}
	if err != nil || len(d) != 1 || d[0].ID != want {
		t.Errorf("pod %s: %v, %v, want %s", pod, d, err, want)
	}
}

func TestManyAskersShareOneList(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		var all sync.WaitGroup
		for i := range 200 {
			pod := fmt.Sprint("p", i)
			live.set(pod, held("c1", pod))
			all.Go(func() { ask(t, t.Context(), s, pod, pod, nil) })
		}
		all.Wait()
		if got := live.made(); got != "[Get List]" {
			t.Errorf("calls %s", got)
		}
		for i := range 200 {
			ask(t, t.Context(), s, fmt.Sprint("p", i), fmt.Sprint("p", i), nil)
		}
		if got := live.made(); got != "[]" {
			t.Errorf("calls for what was listed: %s", got)
		}
	})
}

func TestACallThatBeganEarlierIsNotAccepted(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		live.set("web", held("c1", "old"))
		var all sync.WaitGroup
		all.Go(func() { ask(t, t.Context(), s, "web", "old", nil) })
		synctest.Wait()
		live.set("web", held("c1", "new")) // while the first call is in flight
		all.Go(func() { ask(t, t.Context(), s, "web", "new", nil) })
		all.Wait()
		if got := live.made(); got != "[Get Get]" {
			t.Errorf("calls %s: one pod needs no List", got)
		}
	})
}

func TestWhoGivesUpDoesNotFailOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		live.set("web", held("c1", "a"))
		live.set("db", held("c1", "b"))
		hurried, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() { ask(t, hurried, s, "web", "", context.DeadlineExceeded) })
		synctest.Wait()
		all.Go(func() { ask(t, t.Context(), s, "db", "b", nil) })
		all.Go(func() { ask(t, hurried, s, "web", "", ErrUnavailable) })
		all.Wait()
		synctest.Wait()
		// The first call ended with its only caller. The second serves the remaining
		// one.
		if got := live.made(); got != "[Get List]" || live.ended != 1 {
			t.Errorf("calls %s, %d ended early", got, live.ended)
		}
		if s.running != nil || s.next != nil {
			t.Error("something is still under way")
		}
	})
}

func TestACallNobodyWaitsForIsNotMade(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		live.set("web", held("c1", "a"))
		hurried, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		all.Go(func() { ask(t, t.Context(), s, "web", "a", nil) })
		synctest.Wait()
		all.Go(func() { ask(t, hurried, s, "db", "", context.DeadlineExceeded) })
		all.Wait()
		synctest.Wait()
		if got := live.made(); got != "[Get]" {
			t.Errorf("calls %s", got)
		}
	})
}

func TestGetThatCannotTellIsFollowedByList(t *testing.T) {
	for name, err := range map[string]error{"no such method": ErrUnimplemented, "switched off, or not found": ErrPodNotFound} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, live *slow, s *shared) {
				live.set("web", held("c1", "a"))
				live.fail = []error{err}
				ask(t, t.Context(), s, "web", "a", nil)
				live.fail = []error{err}
				ask(t, t.Context(), s, "absent", "", ErrPodNotFound)
				if got := live.made(); got != "[Get List Get List]" {
					t.Errorf("calls %s", got)
				}
			})
		})
	}
}

func TestRateLimitIsWaitedOut(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		live.set("web", held("c1", "a"))
		live.fail = slices.Repeat([]error{ErrRateLimited}, 20)
		ask(t, t.Context(), s, "web", "a", nil)
		live.fail = slices.Repeat([]error{ErrRateLimited}, 100)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		ask(t, ctx, s, "db", "", context.DeadlineExceeded)
		synctest.Wait()
		if s.running != nil {
			t.Error("calls go on though nobody waits")
		}
	})
}

func TestPatienceEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		calls := 0
		err := patiently(ctx, func() error { calls++; return ErrRateLimited })
		if !errors.Is(err, ErrRateLimited) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("patiently = %v", err)
		}
		if calls < 10 || calls > 130 {
			t.Errorf("%d calls in a minute", calls)
		}
	})
}

func TestOtherErrorsAreNotRepeated(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		live.fail = []error{ErrUnavailable}
		ask(t, t.Context(), s, "web", "", ErrUnavailable)
		if got := live.made(); got != "[Get]" {
			t.Errorf("calls %s", got)
		}
	})
}

func TestWhatIsKeptIsBounded(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		for i := range maxKept + 10 {
			pod := fmt.Sprint("p", i)
			live.set(pod, held("c1", pod))
			ask(t, t.Context(), s, pod, pod, nil)
		}
		if n := len(s.kept); n > maxKept {
			t.Errorf("%d answers are kept", n)
		}
	})
}

func TestWhatIsKeptIsUsedOnlyWhenGood(t *testing.T) {
	inBubble(t, func(t *testing.T, live *slow, s *shared) {
		live.set("web", held("c1", "a"))
		ask(t, t.Context(), s, "web", "a", nil)
		live.made()
		pod := PodKey{"shop", "web"}
		for _, tc := range []struct {
			good  func([]ContainerDevice) bool
			calls string
		}{{some, "[]"}, {none, "[Get]"}} {
			if _, err := s.devices(t.Context(), pod, tc.good); err != nil {
				t.Fatal(err)
			}
			if got := live.made(); got != tc.calls {
				t.Errorf("calls %s, want %s", got, tc.calls)
			}
		}
	})
}
