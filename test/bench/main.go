// Command bench compares Manifold with the floor: libcni in one running process
// executing the same no-op delegates, on the same machine, in the same run, the
// two in turn. What counts are differences and ratios; absolute figures mean
// little without the floor's beside them.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/manifold-cni/manifold/test/harness"
)

// dirEnv hands the directory of built programs to the process inside.
const dirEnv = "MANIFOLD_BENCH_DIR"

var pods = flag.Int("pods", 100, "pods per contender and level")

func main() {
	flag.Parse()
	code, err := harness.Enter(build)
	if err == nil && code < 0 {
		code = 0
		err = measure(os.Getenv(dirEnv))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		code = 1
	}
	os.Exit(code)
}

// build builds our programs and the delegate, outside the namespaces.
func build() error {
	dir, err := os.MkdirTemp("", "manifold-bench-")
	if err != nil {
		return err
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	if err := harness.Programs(bin, false); err != nil {
		return err
	}
	if err := harness.Program(bin, "./test/delegates/noop"); err != nil {
		return err
	}
	return os.Setenv(dirEnv, dir)
}

// contender attaches and releases one pod.
type contender struct {
	name     string
	add, del func(i int) error
}

func measure(dir string) error {
	defer os.RemoveAll(dir)
	n, err := newNode(dir)
	if err != nil {
		return err
	}
	defer n.stop()
	contenders := []contender{
		{"floor", n.floorAdd, n.floorDel},
		{"manifold", n.manifoldAdd, n.manifoldDel},
	}
	fmt.Printf("3 no-op delegates, network-status published before ADD returns, %d pods each\n\n", *pods)
	fmt.Println("                     p50       p90       p99")
	for _, at := range []int{1, 10} {
		if err := level(contenders, at); err != nil {
			return err
		}
	}
	if err := n.starts(); err != nil {
		return err
	}
	return n.footprint()
}

// level measures both contenders with a number of pods at once.
func level(contenders []contender, atOnce int) error {
	adds, dels := make([][]time.Duration, len(contenders)), make([][]time.Duration, len(contenders))
	for round := 0; round < *pods; round += atOnce {
		for c := range contenders {
			add, err := together(atOnce, round, contenders[c].add)
			if err != nil {
				return fmt.Errorf("%s ADD: %w", contenders[c].name, err)
			}
			del, err := together(atOnce, round, contenders[c].del)
			if err != nil {
				return fmt.Errorf("%s DEL: %w", contenders[c].name, err)
			}
			adds[c], dels[c] = append(adds[c], add...), append(dels[c], del...)
		}
	}
	for _, verb := range []struct {
		name  string
		times [][]time.Duration
	}{{"ADD", adds}, {"DEL", dels}} {
		fmt.Printf("%s, %d at once\n", verb.name, atOnce)
		for c := range contenders {
			fmt.Printf("  %-12s %s %s %s\n", contenders[c].name, at(verb.times[c], 50), at(verb.times[c], 90), at(verb.times[c], 99))
		}
		floor, ours := quantile(verb.times[0], 50), quantile(verb.times[1], 50)
		fmt.Printf("  over the floor: %+.1f ms, ratio %.2f\n", float64(ours-floor)/1e6, float64(ours)/float64(floor))
	}
	return nil
}

// together runs f for pods first to first+n-1 at once and returns each one's
// time.
func together(n, first int, f func(int) error) ([]time.Duration, error) {
	times, errs := make([]time.Duration, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			began := time.Now()
			errs[i] = f(first + i)
			times[i] = time.Since(began)
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return times, nil
}

func quantile(times []time.Duration, percent int) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	return sorted[min(len(sorted)-1, len(sorted)*percent/100)]
}

func at(times []time.Duration, percent int) string {
	return fmt.Sprintf("%6.1f ms", float64(quantile(times, percent))/1e6)
}
