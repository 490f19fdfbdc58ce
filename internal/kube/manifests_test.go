package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
)

const podManifest = `apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations: {k8s.v1.cni.cncf.io/networks: %s}
spec:
  containers: [{name: main, image: x}]
`

const definitionManifest = `apiVersion: k8s.cni.cncf.io/v1
kind: NetworkAttachmentDefinition
metadata: {name: %s, namespace: nets}
spec: {config: '{"type":"%s"}'}
`

// manifestFiles writes files to a new directory.
func manifestFiles(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(dir, name), []byte(text))
	}
	return dir
}

func TestManifestPodsNames(t *testing.T) {
	withUID := strings.Replace(fmt.Sprintf(podManifest, "fixed", "net"), "name: fixed", "name: fixed\n  uid: "+uidA, 1)
	dir := manifestFiles(t, map[string]string{
		"a.yaml": fmt.Sprintf(podManifest, "web", "short"),
		"b.yaml": fmt.Sprintf(podManifest, "web-node1", "long"),
		"c.yml":  withUID,
		"d.json": `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"json","namespace":"other","annotations":{"k8s.v1.cni.cncf.io/networks":"j"}}}`,
	})
	tests := []struct {
		namespace, name, uid string
		networks             string // empty: not found
	}{
		{"default", "web", uidA, ""}, // an ordinary pod with the manifest's name
		{"default", "web", "", ""},
		{"default", "web-node1", uidA, "short"}, // the kubelet's name for web
		{"default", "web-node1-node1", uidB, "long"},
		{"default", "web-node2", uidA, ""},
		{"default", "fixed-node1", uidA, "net"},
		{"default", "fixed-node1", "", "net"},
		{"default", "fixed-node1", uidB, ""},
		{"default", "fixed", uidA, "net"}, // the UID proves that no other pod is meant
		{"default", "fixed", uidB, ""},
		{"default", "fixed", "", ""},
		{"other", "json-node1", uidA, "j"},
		{"default", "json-node1", uidA, ""},
		{"default", "node1", uidA, ""},
	}
	m := NewManifestPods(dir, "Node1") // node names are lower case in pod names
	for _, tt := range tests {
		pod, err := m.Pod(context.Background(), tt.namespace, tt.name, tt.uid)
		if tt.networks == "" {
			wantError(t, err, ErrNotFound, tt.namespace+"/"+tt.name)
			continue
		}
		if err != nil {
			t.Errorf("%+v: %v", tt, err)
			continue
		}
		if !IsStatic(pod) || pod.Annotations[netattach.NetworksAnnotation] != tt.networks || pod.Name != tt.name || tt.uid != "" && pod.UID != types.UID(tt.uid) {
			t.Errorf("%+v: %+v", tt, pod.ObjectMeta)
		}
	}
	if p := m.Problems(); len(p) != 0 {
		t.Error(p)
	}
}

// The answer belongs to the caller: changing it does not change the next one.
func TestManifestPodsCopies(t *testing.T) {
	m := NewManifestPods(manifestFiles(t, map[string]string{"a.yaml": fmt.Sprintf(podManifest, "web", "net")}), "node1")
	age(t, &m.dir)
	for _, uid := range []string{uidA, uidB} {
		pod, err := m.Pod(context.Background(), "default", "web-node1", uid)
		if err != nil || string(pod.UID) != uid || pod.Name != "web-node1" {
			t.Errorf("%v, %v", pod, err)
		}
	}
}

func TestManifestDocuments(t *testing.T) {
	dir := manifestFiles(t, map[string]string{
		"mixed.yaml": "# a comment alone\n---\n" + fmt.Sprintf(podManifest, "web", "net") + "---\n" +
			"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\n" +
			fmt.Sprintf(definitionManifest, "one", "bridge") + "---\n---\n" + fmt.Sprintf(definitionManifest, "two", "macvlan"),
		"list.yaml": "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: x}}\n" +
			"- apiVersion: k8s.cni.cncf.io/v1\n  kind: NetworkAttachmentDefinition\n  metadata: {name: three}\n  spec: {config: '{\"type\":\"ptp\"}'}\n",
		"typed.json":   `{"apiVersion":"k8s.cni.cncf.io/v1","kind":"NetworkAttachmentDefinitionList","items":[{"metadata":{"name":"four"},"spec":{"config":"{\"type\":\"vlan\"}"}}]}`,
		"pods.json":    `{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"listed"}}]}`,
		".hidden.yaml": fmt.Sprintf(definitionManifest, "hidden", "bridge"),
		"notes.txt":    fmt.Sprintf(definitionManifest, "notes", "bridge"),
	})
	defs, pods := NewManifestDefinitions(dir), NewManifestPods(dir, "node1")
	for name, cniType := range map[string]string{"nets/one": "bridge", "nets/two": "macvlan", "default/three": "ptp", "default/four": "vlan"} {
		namespace, name, _ := strings.Cut(name, "/")
		def, err := defs.Definition(context.Background(), namespace, name)
		if err != nil || def.Spec.Config != `{"type":"`+cniType+`"}` {
			t.Errorf("%s: %v, %v", name, def, err)
		}
	}
	for _, name := range []string{"hidden", "notes"} {
		_, err := defs.Definition(context.Background(), "nets", name)
		wantError(t, err, ErrNotFound, "nets/"+name, dir)
	}
	for _, name := range []string{"web-node1", "listed-node1"} {
		if _, err := pods.Pod(context.Background(), "default", name, ""); err != nil {
			t.Error(err)
		}
	}
	if p := append(defs.Problems(), pods.Problems()...); len(p) != 0 {
		t.Error(p)
	}
	_, err := defs.Definition(context.Background(), "nets", "..")
	wantError(t, err, ErrInvalid)
	_, err = pods.Pod(context.Background(), "nets", "..", "")
	wantError(t, err, ErrInvalid)
}

// Whatever else is in the directory, the good file is found and the bad one is reported
// by name.
func TestManifestProblems(t *testing.T) {
	// Each level of aliases multiplies the size of the expanded document.
	bomb := "a: &a [" + strings.Repeat("x,", 100) + "x]\n"
	for _, level := range []string{"b", "c", "d"} {
		prev := string(level[0] - 1)
		bomb += level + ": &" + level + " [" + strings.Repeat("*"+prev+",", 30) + "*" + prev + "]\n"
	}
	long := "a: &a " + strings.Repeat("x", maxManifestFile/2) + "\nb: [*a, *a, *a]\n"
	many := strings.Repeat("---\na: b\napiVersion: v1\nkind: Node\n", maxManifestDocs+1)
	tests := []struct{ name, data, text string }{
		{"yaml", "a: [", "document 1"},
		{"kindless", "a: b", "Kind"},
		{"scalar", "just text", "document 1"},
		{"binary", "\x00\xff", "document 1"},
		{"wrong type", "apiVersion: v1\nkind: Pod\nmetadata: {name: [1]}\n", "document 1"},
		{"second document", fmt.Sprintf(definitionManifest, "fine", "bridge") + "---\n{", "document 2"},
		{"no name", "apiVersion: v1\nkind: List\nitems: [{apiVersion: k8s.cni.cncf.io/v1, kind: NetworkAttachmentDefinition}]", "name"},
		{"hostile name", fmt.Sprintf(definitionManifest, "../x", "bridge"), "../x"},
		{"same name", fmt.Sprintf(definitionManifest, "good", "macvlan"), "defined a second time"},
		{"item", "apiVersion: v1\nkind: List\nitems: [{kind: 1}]", "item 1"},
		{"bomb", bomb, "document 1"},
		{"long", long, "expands"},
		{"too large", strings.Repeat("#", maxManifestFile+1), "at most"},
		{"documents", many, "more than"},
		{"items", "apiVersion: v1\nkind: PodList\nitems: [" + strings.Repeat("{},", maxManifestDocs) + "{}]", "items"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := manifestFiles(t, map[string]string{
				"good.yaml": fmt.Sprintf(definitionManifest, "good", "bridge"), "zbad.yaml": tt.data,
			})
			m := NewManifestDefinitions(dir)
			def, err := m.Definition(context.Background(), "nets", "good")
			if err != nil || !strings.Contains(def.Spec.Config, "bridge") {
				t.Errorf("%v, %v", def, err)
			}
			p := m.Problems()
			if len(p) != 1 || !strings.Contains(p[0].Error(), filepath.Join(dir, "zbad.yaml")) || !strings.Contains(p[0].Error(), tt.text) {
				t.Errorf("problems %.500v, want one about zbad.yaml: %s", p, tt.text)
			}
			_, err = m.Definition(context.Background(), "nets", "absent")
			wantError(t, err, ErrNotFound, "zbad.yaml")
		})
	}
}

func TestManifestHostileFiles(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	text := []byte(fmt.Sprintf(definitionManifest, "secret", "bridge"))
	writeFile(t, filepath.Join(outside, "secret.yaml"), text)
	writeFile(t, filepath.Join(dir, "target"), []byte(fmt.Sprintf(definitionManifest, "linked", "bridge")))
	for name, target := range map[string]string{
		"absolute.yaml": filepath.Join(outside, "secret.yaml"), "escaping.yaml": "../" + filepath.Base(outside) + "/secret.yaml",
		"dangling.yaml": "absent", "loop.yaml": "loop.yaml", "inside.yaml": "target",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "directory.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	m := NewManifestDefinitions(dir)
	if _, err := m.Definition(context.Background(), "nets", "linked"); err != nil {
		t.Errorf("a link inside of the directory: %v", err)
	}
	_, err := m.Definition(context.Background(), "nets", "secret")
	wantError(t, err, ErrNotFound)
	if p := m.Problems(); len(p) != 6 {
		t.Errorf("%d problems: %v", len(p), p)
	}
}

func TestManifestDirectoryLimits(t *testing.T) {
	dir := t.TempDir()
	for i := range maxManifestBytes/maxManifestFile + 2 {
		path := filepath.Join(dir, fmt.Sprintf("%02d.yaml", i))
		writeFile(t, path, nil)
		if err := os.Truncate(path, maxManifestFile); err != nil { // only zeros: valid to read, impossible to parse
			t.Fatal(err)
		}
	}
	p := NewManifestDefinitions(dir).Problems()
	if len(p) == 0 || !strings.Contains(p[len(p)-1].Error(), "32.yaml and those after it") {
		t.Errorf("%d problems: %.500v", len(p), p)
	}
}

func TestManifestDirectoryAbsent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	_, err := NewManifestPods(dir, "node1").Pod(context.Background(), "default", "web", "")
	wantError(t, err, ErrUnavailable, dir)
	defs := NewManifestDefinitions(dir)
	_, err = defs.Definition(context.Background(), "default", "net")
	wantError(t, err, ErrUnavailable, dir)
	if p := defs.Problems(); len(p) != 1 {
		t.Errorf("problems %v", p)
	}
}

// age makes files old enough that their times reveal every later change.
func age[T any](t *testing.T, m *manifestDir[T]) {
	t.Helper()
	if _, err := m.load(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "settled", func() bool {
		_, err := m.load()
		return err == nil && m.stamp != nil
	})
}

func TestManifestsReadAgainOnlyWhenChanged(t *testing.T) {
	dir := manifestFiles(t, map[string]string{"a.yaml": fmt.Sprintf(definitionManifest, "net", "bridge")})
	path := filepath.Join(dir, "a.yaml")
	m := NewManifestDefinitions(dir)
	reads := 0
	collect := m.dir.collect
	m.dir.collect = func(obj runtime.Object, into *manifestSet[entry]) error { reads++; return collect(obj, into) }
	age(t, &m.dir)
	reads = 0
	config := func() string {
		def, err := m.Definition(context.Background(), "nets", "net")
		if err != nil {
			return err.Error()
		}
		return def.Spec.Config
	}
	if config(); reads != 0 {
		t.Error("read again without a change")
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// The length is the same and the modification time is forged: the change time
	// reveals it.
	writeFile(t, path, []byte(fmt.Sprintf(definitionManifest, "net", "routed")))
	if err := os.Chtimes(path, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	if got := config(); got != `{"type":"routed"}` {
		t.Error(got)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := config(); !strings.Contains(got, "not found") {
		t.Error(got)
	}
}

// A file that is written twice within one tick of the kernel's clock is read again.
func TestManifestsWrittenInQuickSuccession(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	m := NewManifestDefinitions(filepath.Dir(path))
	for i := range 200 {
		cniType := fmt.Sprintf("type%03d", i)
		writeFile(t, path, []byte(fmt.Sprintf(definitionManifest, "net", cniType)))
		def, err := m.Definition(context.Background(), "nets", "net")
		if err != nil || def.Spec.Config != `{"type":"`+cniType+`"}` {
			t.Fatalf("after writing %s: %+v, %v", cniType, def, err)
		}
	}
	// Some kernels' clocks are finer: a file from the future shows the same.
	if err := os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := m.dir.load(); err != nil || m.dir.stamp != nil {
		t.Errorf("trusts a time that a later write may have too: %v, %v", m.dir.stamp, err)
	}
}

// Whatever a file holds, it yields a problem or an object with a valid name, and memory
// stays bounded.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(podManifest, "web", "net")))
	f.Add([]byte(fmt.Sprintf(definitionManifest, "net", "bridge") + "---\nkind: List\napiVersion: v1\nitems: [{}]\n"))
	f.Add([]byte("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"))
	f.Add([]byte(`{"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"a"}},null]}`))
	pods := manifestDir[corev1.Pod]{collect: collectPod}
	defs := manifestDir[entry]{collect: collectDefinition}
	codec := manifestCodec()
	f.Fuzz(func(t *testing.T, data []byte) {
		podSet := &manifestSet[corev1.Pod]{objects: map[string]*corev1.Pod{}}
		pods.parse(data, codec, podSet)
		for key, pod := range podSet.objects {
			if err := checkNames("pod", pod.Namespace, pod.Name); err != nil || key != pod.Namespace+"/"+pod.Name {
				t.Errorf("%s: %v", key, err)
			}
		}
		defSet := &manifestSet[entry]{objects: map[string]*entry{}}
		defs.parse(data, codec, defSet)
		for key, e := range defSet.objects {
			if err := checkNames("definition", e.Namespace, e.Name); err != nil || key != e.key() || len(e.Spec.Config) > maxConfig {
				t.Errorf("%s: %v", key, err)
			}
		}
	})
}

func BenchmarkManifestDefinition(b *testing.B) {
	files := map[string]string{}
	for i := range 50 {
		files[fmt.Sprintf("%02d.yaml", i)] = fmt.Sprintf(definitionManifest, fmt.Sprintf("net%02d", i), "bridge")
	}
	m := NewManifestDefinitions(manifestFiles(b, files))
	for b.Loop() {
		if _, err := m.Definition(context.Background(), "nets", "net25"); err != nil {
			b.Fatal(err)
		}
	}
}
