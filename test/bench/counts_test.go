package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/test/harness"
)

var update = flag.Bool("update", false, "rewrite the golden file")

func TestMain(m *testing.M) { harness.Main(m, func() error { return build(options{fake: true}) }) }

// TestCostOfAPod pins the cost of a pod with three networks in counts that do not
// depend on noise: every system call of the plugin, except those of the scheduler and
// of the Go runtime. If they sink, regenerate the golden file; if they rise, there must
// be a reason.
func TestCostOfAPod(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace, which counts the system calls, is not installed")
	}
	dir := os.Getenv(dirEnv)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	n, err := newNode(options{fake: true, pods: 2}, dir, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.stop(); err != nil {
			t.Error(err)
		}
	})
	traces := t.TempDir()
	if err := n.traced(traces); err != nil {
		t.Fatal(err)
	}
	if err := n.awaitStatus(n.sandbox(n.podsOf[noopName][0], 0)); err != nil {
		t.Error(err)
	}
	golden := filepath.Join("testdata", "counts.txt")
	want, err := os.ReadFile(golden)
	if err != nil && !(*update && os.IsNotExist(err)) {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, verb := range []string{"ADD", "DEL"} {
		c, err := costOf(filepath.Join(traces, verb+".strace"), dir, verb, string(want))
		if err != nil {
			t.Fatal(err)
		}
		if c[threads] > maxThreads {
			t.Errorf("%s starts %d threads, want at most %d", verb, c[threads], maxThreads)
		}
		fmt.Fprintf(&text, "%s\n%s\n", verb, c)
	}
	if *update {
		if err := os.WriteFile(golden, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if text.String() != string(want) {
		t.Errorf("a pod costs\n%s\nwant\n%s\nif the change is intended, run: go test ./test/bench -run TestCostOfAPod -update", text.String(), want)
	}
}

// costOf returns the counts of a verb's trace. The bytes that are roughly as in the golden
// text are those of the golden text.
func costOf(trace, dir, verb, golden string) (counts, error) {
	f, err := os.Open(trace)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := countCalls(f, dir)
	if err != nil {
		return nil, err
	}
	old, err := parseCounts(golden, verb)
	c.keep(old)
	return c, err
}

// traced is the output of strace for a plugin that starts threads and a delegate.
const traced = `100 0.000000 execve("/plugin", ["/plugin"], 0x0) = 0
100 0.1 openat(AT_FDCWD, "/sys/fs/cgroup/cpu.max", O_RDONLY) = 3
100 0.1 read(3</proc/100/cgroup>, "x", 8) = 1
100 0.1 clone(child_stack=0x1, flags=CLONE_VM|CLONE_THREAD <unfinished ...>
101 0.1 openat(AT_FDCWD, "/a", O_RDONLY <unfinished ...>
100 0.1 <... clone resumed>) = 101
101 0.1 <... openat resumed>) = 5</a>
101 0.1 read(5</a>, "", 8) = 0
101 0.1 write(6<socket:[1]>, "\0\0\0007{\"took\":1.25,\"id\":\"06fe3d73-9e00-4a94\",\"dir\":\"/node/net.d\"}", 300) = 300
101 0.1 read(6<socket:[1]>, 0x1, 4) = -1 EAGAIN (Resource temporarily unavailable)
101 0.1 read(6<socket:[1]>, "\0\0\0\2", 4) = 4
101 0.1 read(6<socket:[1]>, "{}", 2) = 2
100 0.1 clone(child_stack=NULL, flags=CLONE_VM|CLONE_VFORK|SIGCHLD <unfinished ...>
102 0.1 execve("/delegate", ["/delegate"], 0x0) = 0
102 0.1 flock(3, LOCK_EX) = 0
100 0.1 <... clone resumed>) = 102
102 0.1 openat(AT_FDCWD, "/b", O_RDONLY) = 3
100 0.1 openat(AT_FDCWD, "/c", O_WRONLY|O_CREAT|O_TRUNC|O_CLOEXEC, 0600) = 6</c>
100 0.1 write(7</node/state/x.journal>, "a { .lock>", 10) = 10
100 0.1 pwrite64(8</memfd:stdin>(deleted), "{}", 2, 0) = 2
102 0.1 clone(child_stack=0x1, flags=CLONE_VM|CLONE_THREAD) = 103
103 0.1 fsync(3) = 0
101 0.1 fsync(5</a>) = 0
100 0.1 write(9</var/log/manifold.log>, "planned", 7) = 7
100 0.1 write(4<anon_inode:[eventfd]>, "\1\0\0\0\0\0\0\0", 8) = 8
100 0.1 pread64(5</a>, "a", 1, 0) = 1
100 0.1 syncfs(5</a> <unfinished ...>
101 0.1 futex(0x1, FUTEX_WAIT_PRIVATE, 0, NULL <unfinished ...>
100 0.1 <... syncfs resumed>) = 0
101 0.1 <... futex resumed>) = 0
102 0.1 +++ exited with 0 +++
`

func TestCountCalls(t *testing.T) {
	c, err := countCalls(strings.NewReader(traced), "/node")
	if err != nil {
		t.Fatal(err)
	}
	const want = `bytes, roughly: agent 73
bytes, roughly: another file 7
bytes, roughly: delegate 2
bytes, roughly: journal 10
characters to and from the agent 36
execve 1
files written 1
fsync 1
openat 2
pread64 1
process 1
read of files 1
syncfs 1
write to agent 1
write to another file 1
write to delegate 1
write to journal 1
`
	if got := c.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if c[threads] != 1 {
		t.Errorf("%d threads, want 1", c[threads])
	}
}

// TestBytesMayVary proves that a field of many digits costs bytes although it is one
// character, and that a few digits more do not matter.
func TestBytesMayVary(t *testing.T) {
	old, err := parseCounts("ADD\nopenat 2\nbytes, roughly: agent 1000\n\nDEL\nopenat 1\n\n", "ADD")
	if err != nil {
		t.Fatal(err)
	}
	for bytes, want := range map[int]int{950: 1000, 1050: 1000, 949: 949, 1051: 1051} {
		c := counts{"openat": 3, roughly + "agent": bytes}
		if c.keep(old); c[roughly+"agent"] != want || c["openat"] != 3 {
			t.Errorf("%d bytes are kept as %v, want %d", bytes, c, want)
		}
	}
	c := counts{}
	c.add("write", `6<socket:[1]>, "{\"at\":`+strings.Repeat("7", 100)+`}", 107) = 107`)
	if c[agentText] >= 20 || c[roughly+"agent"] < 100 {
		t.Errorf("a field of 100 digits counts as %v", c)
	}
}
