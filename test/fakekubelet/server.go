package fakekubelet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	dpv1 "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	podsv1 "k8s.io/kubelet/pkg/apis/pods/v1alpha1"
)

// Phase is a stage in the life of a kubelet process.
type Phase int

// The phases, in the order in which a restarting kubelet passes through them.
const (
	// Down: the process and its sockets are gone.
	Down Phase = iota
	// Empty: the sockets answer, but the kubelet knows neither pods nor devices. List
	// and GetAllocatableResources are empty, Get returns Unknown with "not found", the
	// Pods API FailedPrecondition. No pod can get a device.
	Empty
	// Registered: the device plugins have registered again, which rewrites the
	// checkpoint; there are still no pods. Adding a pod now purges nothing.
	Registered
	// GetOnly: Get answers and the Pods API is ready; List is still empty.
	GetOnly
	// Normal: everything answers.
	Normal
)

// run is one kubelet process, from start to exit.
type run struct {
	ctx     context.Context // ends with the process
	cancel  context.CancelFunc
	servers []*grpc.Server
	work    sync.WaitGroup // servers and goroutines that follow device plugins
}

// SetPhase moves the kubelet to a phase at once. Moving back to an earlier phase is
// a restart and passes through Down: connections and watches end, allocations are
// read from the checkpoint, and the sockets of device plugins are removed, so that
// real plugins must register again. SetPhase also restarts a stopped kubelet.
func (k *Kubelet) SetPhase(p Phase) error {
	k.life.Lock()
	defer k.life.Unlock()
	if p < k.Phase() {
		k.down()
	}
	if p == Down {
		return nil
	}
	if k.Phase() == Down {
		if err := k.up(); err != nil {
			return fmt.Errorf("start kubelet: %w", err)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	was := k.phase
	k.phase = p
	if was < Registered && p >= Registered {
		return k.registerBuiltins()
	}
	return nil
}

// Phase returns the current phase.
func (k *Kubelet) Phase() Phase {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.phase
}

// up starts a process in phase Empty; life is held.
func (k *Kubelet) up() error {
	for _, d := range []string{podResourcesDir, podsAPIDir, devicePluginsDir} {
		if err := os.MkdirAll(filepath.Join(k.dir, d), 0o750); err != nil {
			return err
		}
	}
	if err := k.removePluginSockets(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &run{ctx: ctx, cancel: cancel}
	k.mu.Lock()
	k.load()
	err := k.loadClaims()
	k.run, k.phase = r, Empty
	k.mu.Unlock()
	if err != nil {
		k.down()
		return err
	}
	if err := k.listen(r); err != nil {
		k.down()
		return err
	}
	return nil
}

// down stops the process, if there is one; life is held.
func (k *Kubelet) down() {
	k.mu.Lock()
	r := k.run
	k.run, k.phase = nil, Down
	k.mu.Unlock()
	if r == nil {
		return
	}
	r.cancel()
	for _, s := range r.servers {
		s.Stop() // waits for handlers, so nothing adds to work after this
	}
	r.work.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, res := range k.resources {
		res.live = false
	}
}

// listen opens the sockets of the process.
func (k *Kubelet) listen(r *run) error {
	limit := func() *rate.Limiter { return rate.NewLimiter(rate.Limit(k.opts.rate), k.opts.burst) }
	if err := k.serve(r, k.PodResourcesSocket(), limit(), func(s *grpc.Server) {
		resv1.RegisterPodResourcesListerServer(s, &podResources{k: k})
	}); err != nil {
		return err
	}
	if !k.opts.noPodsAPI {
		if err := k.serve(r, k.PodsSocket(), limit(), func(s *grpc.Server) {
			podsv1.RegisterPodsServer(s, &podsAPI{k: k})
		}); err != nil {
			return err
		}
	}
	return k.serve(r, k.RegistrationSocket(), nil, func(s *grpc.Server) {
		dpv1.RegisterRegistrationServer(s, &registration{k: k})
	})
}

// serve serves one socket; a nil limit means no limit.
func (k *Kubelet) serve(r *run, socket string, limit *rate.Limiter, register func(*grpc.Server)) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer(grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			if err := k.enter(ctx, path.Base(info.FullMethod), limit); err != nil {
				return nil, err
			}
			return handler(ctx, req)
		}),
		// A kubelet does not limit streams either.
		grpc.StreamInterceptor(func(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			if err := k.enter(stream.Context(), path.Base(info.FullMethod), nil); err != nil {
				return err
			}
			return handler(srv, stream)
		}))
	register(s)
	r.servers = append(r.servers, s)
	r.work.Go(func() { _ = s.Serve(l) }) // returns after Stop, which is no failure
	return nil
}

// enter runs before every call: it counts the call, applies the rate limit, and
// hangs or fails as configured.
func (k *Kubelet) enter(ctx context.Context, method string, limit *rate.Limiter) error {
	k.mu.Lock()
	k.calls[method]++
	k.mu.Unlock()
	if limit != nil && !limit.Allow() {
		return status.Error(codes.ResourceExhausted, "rejected by rate limit")
	}
	k.mu.Lock()
	gate, err := k.hangs[method], k.failures[method]
	k.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		}
	}
	return err
}
