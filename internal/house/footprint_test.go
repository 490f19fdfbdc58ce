package house

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/perf/benchfmt"
)

// maxShim is the maximum size of the stripped plugin, in bytes.
const maxShim = 5_000_000

// TestSizesAreGolden compares the sizes of the node's programs: what they take of its
// disk and, once mapped, of its memory.
func TestSizesAreGolden(t *testing.T) {
	dir := t.TempDir()
	sizes := map[string]float64{}
	for _, program := range []string{"cmd/manifold", "cmd/manifold-agent"} {
		out := filepath.Join(dir, filepath.Base(program))
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./"+program)
		// One architecture on every machine, since the length of instructions counts.
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "GOARCH=amd64")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		fi, err := os.Stat(out)
		if err != nil {
			t.Fatal(err)
		}
		sizes[program] = float64(fi.Size())
	}
	if size := sizes["cmd/manifold"]; size > maxShim {
		t.Errorf("the plugin has %.0f bytes, at most %d", size, maxShim)
	}
	goldenNumbers(t, "sizes.txt", sizes, onePercent)
}

// timed are the benchmarks whose allocations depend on how long they run: they read
// their sources again after some time.
const timed = "^Benchmark(DevicesFromCache|ManifestDefinition)$"

// TestAllocationsAreGolden runs the benchmarks of all packages outside test, except those
// in timed, for their results without noise: the allocations and the bytes allocated per
// operation. The benchmarks are always built without the race detector, because under it
// sync.Pool forgets at random.
func TestAllocationsAreGolden(t *testing.T) {
	args := append([]string{"test", "-run", "^$", "-bench", ".", "-skip", timed, "-benchmem", "-benchtime", "100x", "-race=false"}, benchmarked(t)...)
	var stderr bytes.Buffer
	cmd := exec.Command("go", args...)
	cmd.Dir, cmd.Stderr = root, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd, err, out, &stderr)
	}
	allocations, allocated := map[string]float64{}, map[string]float64{}
	for read := benchfmt.NewReader(bytes.NewReader(out), ""); read.Scan(); {
		r, ok := read.Result().(*benchfmt.Result)
		if !ok {
			t.Fatalf("%v", read.Result())
		}
		name, _, _ := strings.Cut(r.Name.String(), "-") // without the number of processors
		name = strings.TrimPrefix(r.GetConfig("pkg"), module+"/") + "." + name
		n, counted := r.Value("allocs/op")
		bytes, measured := r.Value("B/op")
		if !counted || !measured {
			t.Fatalf("%s has no allocations", name)
		}
		allocations[name], allocated[name] = n, bytes
	}
	goldenNumbers(t, "allocations.txt", allocations, onePercent)
	goldenNumbers(t, "allocated.txt", allocated, tenPercent)
}

// benchmarked returns the packages outside test that have benchmarks, relative to root.
func benchmarked(t *testing.T) []string {
	t.Helper()
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path == filepath.Join(root, "test"):
			return filepath.SkipDir
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		if bytes.Contains(text, []byte("\nfunc Benchmark")) {
			rel, err := filepath.Rel(root, filepath.Dir(path))
			found["./"+rel] = true
			return err
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(found))
}

// onePercent is how far a size or a number of allocations may be from the golden one: a
// few lines of code, or another patch release of Go.
func onePercent(n float64) float64 { return n / 100 }

// tenPercent is how far allocated bytes may be from the golden ones. They are a mean over
// few operations, with buffers that grow and pools that are filled in some of them.
func tenPercent(n float64) float64 { return max(n/10, 128) }

// goldenNumbers compares numbers with those of a golden file. They may differ by what
// within returns for the golden number. With -update it writes those that differ by more.
func goldenNumbers(t *testing.T, file string, have map[string]float64, within func(float64) float64) {
	t.Helper()
	path := filepath.Join("testdata", file)
	text, err := os.ReadFile(path)
	if err != nil && !(*update && os.IsNotExist(err)) {
		t.Fatal(err)
	}
	want := map[string]float64{}
	for line := range strings.Lines(string(text)) {
		var name string
		var n float64
		if _, err := fmt.Sscan(line, &name, &n); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		want[name] = n
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(have)) {
		n, ok := want[name]
		delete(want, name)
		if !ok || math.Abs(have[name]-n) > within(n) {
			if !*update {
				t.Errorf("%s: %s is %.0f and was %.0f: if that is intended, run: make golden", path, name, have[name], n)
			}
			n = have[name]
		}
		fmt.Fprintf(&b, "%s %.0f\n", name, n)
	}
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	for name := range want {
		t.Errorf("%s: %s is no longer measured: run: make golden", path, name)
	}
}
