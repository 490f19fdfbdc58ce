package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/internal/kube/kubetest"
)

const definitionPath = "/apis/k8s.cni.cncf.io/v1/namespaces/default/network-attachment-definitions/"

// snapshotHas reports whether the file has exactly these configurations.
func snapshotHas(path string, want map[string]string) func() bool {
	return func() bool {
		s, err := OpenSnapshot(path)
		if err != nil || s.Len() != len(want) {
			return false
		}
		for name, config := range want {
			if def, err := s.Definition(context.Background(), "default", name); err != nil || def.Spec.Config != config {
				return false
			}
		}
		return true
	}
}

// wantDefinition looks a definition up and compares its configuration and origin.
func wantDefinition(t *testing.T, d *DefinitionInformer, name, config string, source origin) {
	t.Helper()
	def, from, err := d.lookup(context.Background(), "default", name)
	if err != nil || def.Spec.Config != config || from != source {
		t.Errorf("%s: %+v from %s, %v; want %s from %s", name, def, from, err, config, source)
	}
}

// mirrored starts an informer for a server with definitions a and b, waits until its
// mirror is written, and returns the mirror's path.
func mirrored(t *testing.T) (*kubetest.Server, *DefinitionInformer, string) {
	t.Helper()
	srv, client := startServer(t)
	srv.AddDefinition(newDefinition("a", `{"v":1}`))
	srv.AddDefinition(newDefinition("b", `{"v":1}`))
	path := filepath.Join(t.TempDir(), "definitions")
	d := NewDefinitionInformer(client, path)
	run(t, d)
	eventually(t, "mirrored", snapshotHas(path, map[string]string{"a": `{"v":1}`, "b": `{"v":1}`}))
	return srv, d, path
}

func TestDefinitionInformerMirrorsChanges(t *testing.T) {
	srv, d, path := mirrored(t)
	srv.AddDefinition(newDefinition("a", `{"v":2}`))
	eventually(t, "a change", snapshotHas(path, map[string]string{"a": `{"v":2}`, "b": `{"v":1}`}))
	srv.CloseWatches()
	srv.DeleteDefinition("default", "b")
	eventually(t, "a deletion after the watch was closed", snapshotHas(path, map[string]string{"a": `{"v":2}`}))
	if err := d.SnapshotError(); err != nil {
		t.Error(err)
	}
	if !d.HasSynced() {
		t.Error("mirrored but not synced")
	}
}

func TestDefinitionInformerLookup(t *testing.T) {
	srv, d, _ := mirrored(t)
	srv.ForgetRequests()
	wantDefinition(t, d, "a", `{"v":1}`, fromMemory)
	if reqs := srv.Requests(); len(reqs) != 0 {
		t.Errorf("requests for a cached definition: %+v", reqs)
	}
	_, err := d.Definition(context.Background(), "default", "absent")
	wantError(t, err, ErrNotFound, "default/absent")
	if n := count(srv, http.MethodGet, definitionPath+"absent"); n != 1 {
		t.Errorf("%d requests for a miss", n)
	}
	_, err = d.Definition(context.Background(), "default", "a/../b")
	wantError(t, err, ErrInvalid)

	srv.Stop()
	wantDefinition(t, d, "a", `{"v":1}`, fromMemory)
	_, err = d.Definition(context.Background(), "default", "absent")
	wantError(t, err, ErrUnavailable, "default/absent")
}

// The file outlives both the API server and the process that wrote it.
func TestDefinitionInformerWithoutServer(t *testing.T) {
	srv, _, path := mirrored(t)
	srv.Stop()
	d := NewDefinitionInformer(connect(t, srv, time.Second), path)
	run(t, d)
	wantDefinition(t, d, "a", `{"v":1}`, fromSnapshot)
	_, err := d.Definition(context.Background(), "default", "absent")
	wantError(t, err, ErrUnavailable, "default/absent", path)
	eventually(t, "failing", func() bool { _, err := d.Failing(); return err != nil })

	srv.AddDefinition(newDefinition("a", `{"v":3}`))
	srv.AddDefinition(newDefinition("absent", `{}`))
	if err := srv.Restart(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "synced", d.HasSynced)
	wantDefinition(t, d, "a", `{"v":3}`, fromMemory)
	eventually(t, "mirrored", snapshotHas(path, map[string]string{"a": `{"v":3}`, "b": `{"v":1}`, "absent": `{}`}))
}

// A server that does not answer costs one timeout, not one for each lookup.
func TestDefinitionInformerPausedServer(t *testing.T) {
	srv, _, path := mirrored(t)
	srv.Pause()
	srv.ForgetRequests()
	d := NewDefinitionInformer(connect(t, srv, 50*time.Millisecond), path)
	for range 20 {
		wantDefinition(t, d, "a", `{"v":1}`, fromSnapshot)
	}
	if n := count(srv, http.MethodGet, definitionPath+"a"); n != 1 {
		t.Errorf("%d requests", n)
	}
	srv.Resume()
	d.apiFailed = d.apiFailed.Add(-2 * probePause)
	wantDefinition(t, d, "a", `{"v":1}`, fromServer)
}

// A patient caller waits for a slow server only if the snapshot lacks the definition.
func TestDefinitionInformerPatience(t *testing.T) {
	_, _, path := mirrored(t)
	srv := kubetest.Start() // a different server, whose definitions get into no snapshot
	t.Cleanup(srv.Stop)
	srv.AddDefinition(newDefinition("new", `{}`))
	srv.Pause()
	t.Cleanup(srv.Resume)
	d := NewDefinitionInformer(connect(t, srv, 50*time.Millisecond), path)
	ctx, cancel := context.WithTimeout(patiently(t.Context()), time.Minute)
	defer cancel()
	if _, from, err := d.lookup(ctx, "default", "a"); err != nil || from != fromSnapshot {
		t.Errorf("from %s, %v", from, err)
	}
	answered := make(chan error)
	go func() {
		_, err := d.Definition(ctx, "default", "new")
		answered <- err
	}()
	eventually(t, "the request", func() bool { return count(srv, http.MethodGet, definitionPath+"new") == 1 })
	select {
	case err := <-answered:
		t.Fatalf("returned before the server answered: %v", err)
	case <-time.After(200 * time.Millisecond): // still waiting; a slow machine waits longer, never shorter
	}
	srv.Resume()
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

func TestDefinitionInformerUnsyncedErrors(t *testing.T) {
	dir := t.TempDir()
	corrupt := filepath.Join(dir, "corrupt")
	writeFile(t, corrupt, []byte("garbage"))
	oversized := filepath.Join(dir, "oversized")
	if err := saveSnapshot(oversized, testEntries(), written); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name, path, def string
		code            int
		want            error
		text            string
	}{
		{"no mirror", "", "x", 500, ErrUnavailable, "failing as told"},
		{"absent", filepath.Join(dir, "absent"), "x", 500, ErrUnavailable, "absent"},
		{"corrupt", corrupt, "x", 500, ErrUnavailable, corrupt},
		{"too long", oversized, "b", 500, ErrInvalid, "default/b"},
		{"no CRD", filepath.Join(dir, "absent"), "x", 404, ErrUnavailable, ""},
		{"missing, although mirrored", oversized, "a", 0, ErrNotFound, "default/a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			srv, client := startServer(t)
			srv.FailWith(tt.code)
			_, err := NewDefinitionInformer(client, tt.path).Definition(context.Background(), "default", tt.def)
			wantError(t, err, tt.want, tt.text)
		})
	}
}

// Local says that a definition does not exist only from complete memory or a readable
// snapshot.
func TestDefinitionInformerLocal(t *testing.T) {
	srv, synced, path := mirrored(t)
	dir := t.TempDir()
	corrupt := filepath.Join(dir, "corrupt")
	writeFile(t, corrupt, []byte("garbage"))
	client := connect(t, srv, time.Second)
	srv.ForgetRequests()
	tests := []struct {
		name     string
		informer *DefinitionInformer
		a        string // the configuration of a; empty for unavailable
		absent   error
	}{
		{"synced", synced, `{"v":1}`, ErrNotFound},
		{"snapshot", NewDefinitionInformer(client, path), `{"v":1}`, ErrNotFound},
		{"no mirror", NewDefinitionInformer(client, ""), "", ErrUnavailable},
		{"first boot", NewDefinitionInformer(client, filepath.Join(dir, "absent")), "", ErrUnavailable},
		{"corrupt", NewDefinitionInformer(client, corrupt), "", ErrUnavailable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			def, err := tt.informer.Local(context.Background(), "default", "a")
			if tt.a == "" {
				wantError(t, err, ErrUnavailable, "snapshot")
			} else if err != nil || def.Spec.Config != tt.a {
				t.Errorf("%+v, %v", def, err)
			}
			_, err = tt.informer.Local(context.Background(), "default", "absent")
			wantError(t, err, tt.absent)
			_, err = tt.informer.Local(context.Background(), "default", "my_net")
			wantError(t, err, ErrName)
		})
	}
	if n := count(srv, http.MethodGet, definitionPath+"a"); n != 0 {
		t.Errorf("%d requests", n)
	}
}

func TestDefinitionInformerTrims(t *testing.T) {
	srv, client := startServer(t)
	def := newDefinition("a", `{}`)
	def.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}
	def.Labels = map[string]string{"a": "b"}
	def.Annotations = map[string]string{corev1.LastAppliedConfigAnnotation: "{}", "keep": "this"}
	srv.AddDefinition(def)
	srv.AddDefinition(newDefinition("long", strings.Repeat("x", maxConfig+1)))
	d := NewDefinitionInformer(client, "")
	run(t, d)
	eventually(t, "synced", d.HasSynced)
	got, err := d.Definition(context.Background(), "default", "a")
	if err != nil || got.ManagedFields != nil || got.Labels != nil || len(got.Annotations) != 1 || got.Annotations["keep"] != "this" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = d.Definition(context.Background(), "default", "long")
	wantError(t, err, ErrInvalid, "default/long", fmt.Sprint(maxConfig+1))
	obj, ok, err := d.informer.GetStore().GetByKey("default/long")
	if e, isEntry := obj.(*entry); !ok || err != nil || !isEntry || e.Spec.Config != "" {
		t.Errorf("kept in memory: %v, %v", obj, err)
	}
}

func TestDefinitionInformerCannotWrite(t *testing.T) {
	srv, client := startServer(t)
	srv.AddDefinition(newDefinition("a", `{}`))
	d := NewDefinitionInformer(client, filepath.Join(t.TempDir(), "absent", "definitions"))
	run(t, d)
	eventually(t, "an error", func() bool { return d.HasSynced() && errors.Is(d.SnapshotError(), os.ErrNotExist) })
	wantDefinition(t, d, "a", `{}`, fromMemory)
}

// Once memory has been complete, the file is never read again: it may hold deleted
// definitions.
func TestDefinitionInformerSyncedIgnoresSnapshot(t *testing.T) {
	srv, d, path := mirrored(t)
	srv.Stop()
	if err := saveSnapshot(path, []*entry{newEntry(newDefinition("ghost", `{}`))}, written); err != nil {
		t.Fatal(err)
	}
	_, err := d.Definition(context.Background(), "default", "ghost")
	wantError(t, err, ErrUnavailable)
}

// A change just before the end is still written, and no temporary file is left.
func TestDefinitionInformerWritesAtTheEnd(t *testing.T) {
	srv, client := startServer(t)
	path := filepath.Join(t.TempDir(), "definitions")
	leftover := filepath.Join(filepath.Dir(path), ".definitions12345")
	writeFile(t, leftover, nil)
	d := NewDefinitionInformer(client, path)
	stop := run(t, d)
	eventually(t, "an empty file", snapshotHas(path, nil))
	srv.AddDefinition(newDefinition("a", `{}`))
	eventually(t, "cached", func() bool { return len(d.informer.GetStore().ListKeys()) == 1 })
	eventually(t, "marked or written", func() bool { return len(d.dirty) > 0 || snapshotHas(path, map[string]string{"a": `{}`})() })
	stop()
	if !snapshotHas(path, map[string]string{"a": `{}`})() {
		t.Error("the last change is lost")
	}
	if _, err := os.Stat(leftover); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a killed writer's file is left: %v", err)
	}
}

func BenchmarkDefinitionInformer(b *testing.B) {
	srv, client := startServer(b)
	const n = 1000
	for i := range n {
		srv.AddDefinition(newDefinition(fmt.Sprintf("net%04d", i), strings.Repeat(`{"type":"bridge"}`, 30)))
	}
	before := heap()
	d := NewDefinitionInformer(client, "")
	run(b, d)
	eventually(b, "synced", d.HasSynced)
	perDefinition := float64(heap()-before) / n
	for b.Loop() {
		if _, err := d.Definition(context.Background(), "default", "net0500"); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(perDefinition, "heap-B/definition")
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
