package kube

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/manifold-cni/manifold/netattach"
)

var written = time.Date(2026, 11, 23, 20, 0, 0, 0, time.UTC)

// testEntries returns two definitions in order, the second too long to be kept.
func testEntries() []*entry {
	a := newDefinition("a", `{"cniVersion":"1.0.0","type":"bridge","x":"<&>"}`)
	a.Annotations = map[string]string{netattach.ResourceNameAnnotation: "vendor.example/vfs"}
	a.UID, a.ResourceVersion = uidA, "7"
	return []*entry{newEntry(a), newEntry(newDefinition("b", strings.Repeat("x", maxConfig+1)))}
}

func encode(t testing.TB, entries []*entry) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := writeSnapshot(&b, entries, written); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "definitions")
	if err := saveSnapshot(path, testEntries(), written); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode() != snapshotMode {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	s, err := OpenSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Len() != 2 || !s.written.Equal(written) {
		t.Errorf("%d definitions of %v", s.Len(), s.written)
	}
	def, err := s.Definition(context.Background(), "default", "a")
	if err != nil {
		t.Fatal(err)
	}
	want := &netattach.Definition{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "default", Name: "a", UID: uidA, ResourceVersion: "7",
			Annotations: map[string]string{netattach.ResourceNameAnnotation: "vendor.example/vfs"},
		},
		Spec: netattach.DefinitionSpec{Config: `{"cniVersion":"1.0.0","type":"bridge","x":"<&>"}`},
	}
	if diff := cmp.Diff(want, def); diff != "" {
		t.Error(diff)
	}
	_, err = s.Definition(context.Background(), "default", "b")
	wantError(t, err, ErrInvalid, "default/b", fmt.Sprint(maxConfig+1))
	_, err = s.Definition(context.Background(), "default", "c")
	wantError(t, err, ErrNotFound, path, "2026-11-23T20:00:00Z")
	_, err = s.Definition(context.Background(), "default", "../c")
	wantError(t, err, ErrInvalid)
}

// The largest definition that is written can be read, however it is escaped: one user's
// definition must not make the file useless for everybody.
func TestSnapshotLargestDefinition(t *testing.T) {
	def := newDefinition("a", strings.Repeat("\x01", maxConfig))
	def.Annotations = map[string]string{"a": strings.Repeat("<", maxAnnotations)}
	s, err := readSnapshot(bytes.NewReader(encode(t, []*entry{newEntry(def)})))
	if err != nil || s.Len() != 1 {
		t.Fatalf("%v, %v", s, err)
	}
	if got, err := s.Definition(t.Context(), "default", "a"); err != nil || !cmp.Equal(got, def) {
		t.Error(err)
	}
}

// seal returns a snapshot of the given lines whose checksum and count are right.
func seal(t testing.TB, lines ...string) []byte {
	t.Helper()
	header, _, _ := bytes.Cut(encode(t, nil), []byte{'\n'})
	text := string(header) + "\n" + strings.Join(lines, "\n") + "\n"
	return fmt.Appendf([]byte(text), `{"end":{"count":%d,"sha256":"%x"}}`+"\n", len(lines), sha256.Sum256([]byte(text)))
}

// A definition is found however its line is encoded. The lines of other definitions are
// not decoded, since the checksum tells whether they are what the agent wrote. A line
// that is looked up is decoded and checked.
func TestSnapshotLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "definitions")
	lines := map[string]string{
		"written":   `{"definition":{"namespace":"default","name":"written","config":"{}"}}`,
		"escaped":   `{"definition":{"namespace":"default","name":"e\u0073caped","config":"{}"}}`,
		"reordered": `{"definition":{"config":"{}","name":"reordered","namespace":"default"}}`,
		"spaced":    ` { "definition" : { "namespace" : "default" , "name" : "spaced" , "config" : "{}" } } `,
	}
	writeFile(t, path, seal(t, slices.Collect(maps.Values(lines))...))
	s, err := OpenSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	for name := range lines {
		if def, err := s.Definition(t.Context(), "default", name); err != nil || def.Name != name || def.Spec.Config != "{}" {
			t.Errorf("%s: %v, %v", name, def, err)
		}
	}

	const start = `{"definition":{"namespace":"default","name":"b"`
	for _, tt := range []struct{ name, line, text string }{
		{"cut off", start + `,"conf`, "unexpected end"},
		{"another name", start + `,"name":"c"}}`, "default/c"},
		{"hostile name", start + `,"name":"../c"}}`, "../c"},
		{"oversized with configuration", start + `,"config":"{}","oversized":1}}`, "oversized"},
		{"neither", start + `},"definition":null}`, "empty line object"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			writeFile(t, path, seal(t, lines["written"], tt.line))
			s, err := OpenSnapshot(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.Definition(t.Context(), "default", "written"); err != nil {
				t.Error(err)
			}
			_, err = s.Definition(t.Context(), "default", "b")
			if wantError(t, err, ErrUnavailable, path, tt.text); errors.Is(err, ErrInvalid) {
				t.Errorf("%v keeps the next source from being asked", err)
			}
		})
	}
}

func TestOpenSnapshotRefuses(t *testing.T) {
	good := string(encode(t, testEntries()))
	lines := strings.SplitAfter(good, "\n")
	header, first, trailer := lines[0], lines[1], lines[3]
	tests := []struct {
		name string
		data string
		text string
	}{
		{"empty", "", "empty"},
		{"no JSON", "\x00\x01", "header"},
		{"another format", `{"format":"x"}`, `format "x"`},
		{"newer", strings.Replace(good, `"version":1`, `"version":2`, 1), "version 2"},
		{"only header", header, "truncated after 0"},
		{"no trailer", header + first, "truncated after 1"},
		{"half a line", good[:len(header)+20], "definition 1"},
		{"count", header + first + trailer, "trailer says 2"},
		{"altered", strings.Replace(good, "bridge", "bridgE", 1), "checksum"},
		{"header altered", strings.Replace(good, "2026", "2027", 1), "checksum"},
		{"twice", header + first + first + trailer, "twice"},
		{"after the trailer", good + "{}\n", "data after"},
		{"hostile name", header + `{"definition":{"name":"../b","namespace":"a"}}` + "\n" + trailer, "../b"},
		{"neither", header + "{}\n" + trailer, "empty line object"},
		{"long line", header + strings.Repeat("x", maxSnapshotLine+1), "too long"},
		{"oversized with configuration", header + `{"definition":{"name":"b","namespace":"a","config":"{}","oversized":1}}`, "oversized"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "definitions")
			writeFile(t, path, []byte(tt.data))
			_, err := OpenSnapshot(path)
			if wantError(t, err, ErrUnavailable, path, tt.text); errors.Is(err, ErrInvalid) {
				t.Errorf("%v keeps the next source from being asked", err)
			}
		})
	}
}

func TestOpenSnapshotFiles(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenSnapshot(filepath.Join(dir, "absent"))
	wantError(t, err, ErrUnavailable, "absent")
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v lost its cause", err)
	}
	_, err = OpenSnapshot(dir)
	wantError(t, err, ErrUnavailable, dir, "not a regular file")
	huge := filepath.Join(dir, "huge")
	writeFile(t, huge, nil)
	if err := os.Truncate(huge, maxSnapshotBytes+1); err != nil {
		t.Fatal(err)
	}
	_, err = OpenSnapshot(huge)
	wantError(t, err, ErrUnavailable, huge, "at most")
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = OpenSnapshot(fifo)
	wantError(t, err, ErrUnavailable, fifo)
}

func TestSaveSnapshotKeepsTheOldFile(t *testing.T) {
	dir := t.TempDir()
	if err := saveSnapshot(filepath.Join(dir, "absent", "definitions"), nil, written); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	// A target that cannot be replaced: a directory that is not empty.
	path := filepath.Join(dir, "definitions")
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	err := saveSnapshot(path, testEntries(), written)
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("unreplaceable: %v", err)
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Errorf("left behind: %v, %v", files, err)
	}
}

func TestRemoveLeftovers(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{".definitions123", ".definitions-9", ".definitions", ".definitions12x", ".other123", "definitions"} {
		writeFile(t, filepath.Join(dir, name), nil)
	}
	if err := os.Mkdir(filepath.Join(dir, ".definitions77"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := removeLeftovers(filepath.Join(dir, "definitions")); err != nil {
		t.Fatal(err)
	}
	var left []string
	files, err := os.ReadDir(dir)
	for _, f := range files {
		left = append(left, f.Name())
	}
	want := []string{".definitions", ".definitions12x", ".definitions77", ".other123", "definitions"}
	if err != nil || !cmp.Equal(left, want) {
		t.Errorf("left %q, %v", left, err)
	}
}

// Whatever a file holds, reading it neither panics nor yields a definition that has
// another name than was looked up, or that would be written back differently.
func FuzzReadSnapshot(f *testing.F) {
	good := encode(f, testEntries())
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(seal(f, `{"definition":{"name":"b","namespace":"a"}}`, `{"definition":{"namespace":"a","name":"c","name":"d"}}`))
	f.Add(encode(f, nil))
	f.Add([]byte(`{"format":"manifold-definitions","version":1}` + "\n" + `{"end":{"count":0}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readSnapshot(bytes.NewReader(data))
		if err != nil {
			return
		}
		for key := range s.lines {
			namespace, name, _ := strings.Cut(key, "/")
			def, err := s.Definition(t.Context(), namespace, name)
			if err != nil {
				continue
			}
			if def.Namespace != namespace || def.Name != name {
				t.Fatalf("%s is %s/%s", key, def.Namespace, def.Name)
			}
			again, err := readSnapshot(bytes.NewReader(encode(t, []*entry{{Definition: *def}})))
			if err != nil {
				t.Fatal(err)
			}
			same, err := again.Definition(t.Context(), namespace, name)
			if diff := cmp.Diff(def, same, cmpopts.EquateEmpty()); err != nil || diff != "" {
				t.Error(err, diff)
			}
		}
	})
}

func BenchmarkSnapshot(b *testing.B) {
	path := filepath.Join(b.TempDir(), "definitions")
	var entries []*entry
	for i := range 1000 {
		entries = append(entries, newEntry(newDefinition(fmt.Sprintf("net%04d", i), strings.Repeat(`{"type":"bridge"}`, 30))))
	}
	b.Run("save", func(b *testing.B) {
		for b.Loop() {
			if err := saveSnapshot(path, entries, written); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("open", func(b *testing.B) {
		for b.Loop() {
			s, err := OpenSnapshot(path)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := s.Definition(b.Context(), "default", "net0500"); err != nil {
				b.Fatal(err)
			}
		}
	})
}
