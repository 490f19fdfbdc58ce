package kube

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
	"github.com/manifold-cni/manifold/netattach"
)

// answers is a source with one fixed answer. It counts how often it is asked.
type answers struct {
	pod   *corev1.Pod
	def   *netattach.Definition
	err   error
	asked int
}

func (a *answers) Pod(context.Context, string, string, string) (*corev1.Pod, error) {
	a.asked++
	return a.pod, a.err
}

func (a *answers) Definition(context.Context, string, string) (*netattach.Definition, error) {
	a.asked++
	return a.def, a.err
}

func TestFirst(t *testing.T) {
	found := func() *answers { return &answers{pod: newPod("web", uidA, "n"), def: newDefinition("net", "{}")} }
	fails := func(text string, kind error) *answers { return &answers{err: fmt.Errorf("%s: %w", text, kind)} }
	tests := []struct {
		name    string
		sources []*answers
		want    error
		text    []string
		asked   []int
	}{
		{"none", nil, ErrUnavailable, []string{"no source"}, nil},
		{"first answers", []*answers{found(), found()}, nil, nil, []int{1, 0}},
		{"after missing and down", []*answers{fails("a", ErrNotFound), fails("b", ErrUnavailable), found()}, nil, nil, []int{1, 1, 1}},
		{"one missing", []*answers{fails("a", ErrNotFound)}, ErrNotFound, []string{"a: not found"}, []int{1}},
		{"all missing", []*answers{fails("a", ErrNotFound), fails("b", ErrNotFound)}, ErrNotFound, []string{"a: not found; b: not found"}, []int{1, 1}},
		{"missing, then down", []*answers{fails("a", ErrNotFound), fails("b", ErrUnavailable)}, ErrUnavailable, []string{"a: not found; b:"}, []int{1, 1}},
		{"down, then missing", []*answers{fails("a", ErrUnavailable), fails("b", ErrNotFound)}, ErrUnavailable, []string{"; b: not found"}, []int{1, 1}},
		{"invalid ends it", []*answers{fails("a", ErrInvalid), found()}, ErrInvalid, nil, []int{1, 0}},
		{"invalid after missing", []*answers{fails("a", ErrNotFound), fails("b", ErrInvalid), found()}, ErrInvalid, []string{"a: not found; b: invalid"}, []int{1, 1, 0}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var pods []Pods
			var defs []Definitions
			for _, s := range tt.sources {
				pods, defs = append(pods, s), append(defs, s)
			}
			_, err := FirstPods(pods...).Pod(context.Background(), "default", "web", uidA)
			wantError(t, err, tt.want, tt.text...)
			for i, s := range tt.sources {
				if s.asked != tt.asked[i] {
					t.Errorf("source %d asked %d times, want %d", i, s.asked, tt.asked[i])
				}
			}
			_, err = FirstDefinitions(defs...).Definition(context.Background(), "default", "net")
			wantError(t, err, tt.want, tt.text...)
		})
	}
}

// TestFirstHasPatience: a slow server is waited for if no other source answers, and is
// asked only once otherwise.
func TestFirstHasPatience(t *testing.T) {
	srv := kubetest.Start()
	t.Cleanup(srv.Stop)
	srv.AddPod(newPod("web", uidA, "node1"))
	srv.AddDefinition(newDefinition("net", "{}"))
	client := connect(t, srv, 50*time.Millisecond)
	pods, defs := NewPodInformer(client, "node1"), NewDefinitionInformer(client, "")
	const pod = "/api/v1/namespaces/default/pods/web"
	for path, ask := range map[string]func(context.Context) error{
		pod: func(ctx context.Context) error {
			_, err := FirstPods(pods, &answers{err: ErrNotFound}).Pod(ctx, "default", "web", uidA)
			return err
		},
		definitionPath + "net": func(ctx context.Context) error {
			_, err := FirstDefinitions(defs).Definition(ctx, "default", "net")
			return err
		},
	} {
		srv.Pause()
		answered := make(chan error)
		go func() { answered <- ask(t.Context()) }()
		eventually(t, "a second request", func() bool { return count(srv, http.MethodGet, path) == 2 })
		srv.Resume()
		if err := <-answered; err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	srv.Pause()
	t.Cleanup(srv.Resume)
	srv.ForgetRequests()
	got, err := FirstPods(pods, &answers{pod: newPod("web", uidA, "node1")}).Pod(t.Context(), "default", "web", uidA)
	if n := count(srv, http.MethodGet, pod); err != nil || got.Name != "web" || n != 1 {
		t.Errorf("%v, %v after %d requests", got, err, n)
	}
}

// late is a source for which a request's timeout is too short. It records which callers
// were patient.
type late struct{ patient []bool }

func (l *late) Pod(ctx context.Context, _, _, _ string) (*corev1.Pod, error) {
	patient := ctx.Value(patience{}) != nil
	if l.patient = append(l.patient, patient); patient {
		return newPod("web", uidA, "node1"), nil
	}
	return nil, &apiError{ErrUnavailable, context.DeadlineExceeded}
}

// TestPatienceIsKept: of the questions that belong together, only the first is asked
// twice.
func TestPatienceIsKept(t *testing.T) {
	for _, c := range []struct {
		ctx  context.Context
		want []bool
	}{
		{t.Context(), []bool{false, true, false, true}},
		{Together(t.Context()), []bool{false, true, true}},
	} {
		source := &late{}
		for range 2 {
			if _, err := FirstPods(source).Pod(c.ctx, "default", "web", uidA); err != nil {
				t.Error(err)
			}
		}
		if !slices.Equal(source.patient, c.want) {
			t.Errorf("asked with patience %v, want %v", source.patient, c.want)
		}
	}
}

// silent is a source that never answers and makes a patient caller wait.
type silent struct{}

func (silent) Pod(ctx context.Context, _, _, _ string) (*corev1.Pod, error) {
	if ctx.Value(patience{}) != nil {
		<-ctx.Done()
	}
	return nil, &apiError{ErrUnavailable, context.DeadlineExceeded}
}

// TestPatienceHasNoSourceWait: a slow server does not use up another source's time.
func TestPatienceHasNoSourceWait(t *testing.T) {
	ctx, cancel := context.WithTimeout(Together(t.Context()), time.Minute)
	defer cancel()
	if _, err := FirstPods(&late{}).Pod(ctx, "default", "web", uidA); err != nil {
		t.Fatal(err)
	}
	if _, err := FirstPods(silent{}, &answers{pod: newPod("web", uidA, "node1")}).Pod(ctx, "default", "web", uidA); err != nil {
		t.Error(err)
	}
}

func TestFirstEndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	a, b := &answers{err: ErrUnavailable}, &answers{}
	if _, err := FirstPods(a, b).Pod(ctx, "default", "web", ""); !errors.Is(err, ErrUnavailable) || b.asked != 0 {
		t.Errorf("%v, second source asked %d times", err, b.asked)
	}
}

func TestIsStatic(t *testing.T) {
	for source, want := range map[string]bool{"": false, "api": false, "file": true, "http": true} {
		pod := newPod("web", uidA, "node1")
		pod.Annotations["kubernetes.io/config.source"] = source // as the kubelet reports it
		if got := IsStatic(pod); got != want {
			t.Errorf("source %q: static %t", source, got)
		}
	}
}

// ErrName tells a name that Kubernetes does not allow from an object that is refused.
func TestNameErrors(t *testing.T) {
	d := NewManifestDefinitions(t.TempDir())
	for _, ref := range [][2]string{{"kube-system", "my_net"}, {"kube_system", "net"}, {"", "net"}, {"default", "a/b"}} {
		_, err := d.Definition(context.Background(), ref[0], ref[1])
		if wantError(t, err, ErrName); !errors.Is(err, ErrName) {
			t.Errorf("%v is about the name", err)
		}
	}
	_, err := newEntry(newDefinition("long", strings.Repeat("x", maxConfig+1))).definition()
	if wantError(t, err, ErrInvalid); errors.Is(err, ErrName) {
		t.Errorf("%v is about the object", err)
	}
}

func TestCombinedKeepsCauses(t *testing.T) {
	err := combine([]error{ErrNotFound, fmt.Errorf("%w: %w", ErrUnavailable, fs.ErrPermission)})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v lost its cause", err)
	}
}
