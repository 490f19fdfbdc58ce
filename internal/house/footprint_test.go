package house

import (
	"bytes"
	"fmt"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/perf/benchfmt"

	"github.com/manifold-cni/manifold/test/harness"
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
	goldenNumbers(t, "sizes.txt", sizes)
}

// TestAllocationsAreGolden runs the benchmarks of docs/performance.md with the command
// given there, for the one result without noise: the number of allocations per operation.
// The benchmarks are always built without the race detector, because under it sync.Pool
// forgets at random.
func TestAllocationsAreGolden(t *testing.T) {
	blocks, err := harness.Commands("performance.md")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(blocks, func(b string) bool { return strings.Contains(b, "-benchmem") })
	if i < 0 {
		t.Fatal("docs/performance.md has no command of the benchmarks")
	}
	var stderr bytes.Buffer
	cmd := exec.Command("sh", "-c", blocks[i])
	cmd.Dir, cmd.Env, cmd.Stderr = root, append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -race=false -benchtime=100x"), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", blocks[i], err, out, &stderr)
	}
	allocations := map[string]float64{}
	for read := benchfmt.NewReader(bytes.NewReader(out), ""); read.Scan(); {
		r, ok := read.Result().(*benchfmt.Result)
		if !ok {
			t.Fatalf("%v", read.Result())
		}
		n, ok := r.Value("allocs/op")
		if !ok {
			t.Fatalf("%s tells no allocations", r.Name)
		}
		name, _, _ := strings.Cut(r.Name.String(), "-") // without the number of processors
		allocations[strings.TrimPrefix(r.GetConfig("pkg"), module+"/")+"."+name] = n
	}
	goldenNumbers(t, "allocations.txt", allocations)
}

// goldenNumbers compares numbers with those of a golden file. They may differ by one
// percent: for a size, that is a few lines of code or another patch release of Go. With
// -update it writes the numbers that differ by more.
func goldenNumbers(t *testing.T, file string, have map[string]float64) {
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
		if !ok || math.Abs(have[name]-n) > n/100 {
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
