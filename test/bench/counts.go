package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// counts are the system calls of one verb, the targets of its writes, and the
// amount that it exchanges with the agent. These cost time on every machine and are
// the same in every run.
type counts map[string]int

// uncounted are the only system calls that do not count. Their number depends on the
// scheduler, on the Go runtime, or on the machine.
var uncounted = []string{
	// Waits, wake-ups, and preemption of threads.
	"futex", "nanosleep", "clock_nanosleep", "epoll_pwait", "ppoll", "restart_syscall", "sched_yield", "getpid", "gettid", "tgkill", "rt_sigreturn",
	// What each thread does when it starts and ends. Threads have a limit of their own.
	"sigaltstack", "rt_sigprocmask", "exit", "sched_getaffinity",
	// Memory of the Go runtime.
	"mmap", "munmap", "madvise", "brk",
	// The Go runtime's start: signals that the parent ignores, and the limits it set.
	"rt_sigaction", "prlimit64", "arch_prctl",
	// Calls that the kernel's vDSO answers on some machines.
	"clock_gettime", "gettimeofday", "getrandom",
}

// Keys besides system calls: processes and threads started, the characters exchanged
// with the agent, the files opened with truncation, and reads of files. Keys that begin
// with roughly are the bytes of a file or a socket, which vary by a few between runs:
// with the digits of times, numbers, and identifiers.
const (
	roughly      = "bytes, roughly: "
	processes    = "process"
	threads      = "thread"
	agentText    = "characters to and from the agent"
	writtenFiles = "files written"
	fileReads    = "read of files"
)

// maxThreads is the most threads that a plugin may start. It starts four or five,
// depending on the scheduler.
const maxThreads = 10

// writes maps a part of the descriptor, as strace prints it, to the name of the
// target. The first that matches counts.
var writes = []struct{ what, of string }{
	{"agent", "<socket:"},
	{"journal", ".journal>"},
	{"journal", ".journal.new>"},
	{"lock", ".lock>"},
	{"record", "/results/"},
	{"delegate", "</memfd:"},
	{"stdout", "1<pipe:"},
	{"another file", ""},
}

// ofTheRuntime matches files that only the Go runtime reads, which differ between
// machines, settings of each of its threads, names that it gives to its memory, and
// the descriptor that wakes its poller.
var ofTheRuntime = regexp.MustCompile(`PR_SET_VMA|<anon_inode:\[eventfd\]>, "|/sys/fs/cgroup/|/sys/kernel/mm/|/proc/(self|\d+)/(cgroup|mountinfo)|/timerslack_ns`)

// Patterns for lines of strace -f: a call, or the rest of a call that another
// thread's interrupted; the value it returned; that it is retried.
var (
	traceLine = regexp.MustCompile(`^(\d+) +(?:[\d.]+ )?(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$`)
	returned  = regexp.MustCompile(`= (\d+)[^=]*$`)
	again     = regexp.MustCompile(`= (-1 EAGAIN|-1 EINTR|\? ERESTART)`)
)

// countCalls reads the output of strace -f -y for a plugin in the node's directory
// dir, and counts the plugin's own calls but not those of the programs that it
// starts.
func countCalls(r io.Reader, dir string) (counts, error) {
	out, t := counts{}, tracer{others: map[string]bool{}, begun: map[string]string{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	names := strings.NewReplacer(dir, "", `\"`, `"`)
	for lines.Scan() {
		m := traceLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // a signal, or an exit
		}
		if name, text, done := t.call(m[1], m[2], m[3]); done {
			out.add(name, names.Replace(text))
		}
	}
	return out, lines.Err()
}

// tracer joins calls that strace prints in two parts.
type tracer struct {
	first  string            // the plugin's first thread
	others map[string]bool   // threads of other programs
	begun  map[string]string // by thread, the part of its call printed so far
}

// call takes a line and returns the plugin's call that the line completes, if any.
func (t *tracer) call(thread, name, text string) (_, whole string, done bool) {
	if t.first == "" {
		t.first = thread
	}
	// The line of the clone that created this thread may come later.
	if name == "execve" && thread != t.first {
		t.others[thread] = true
	}
	whole = t.begun[thread] + text
	delete(t.begun, thread)
	if strings.HasSuffix(text, "<unfinished ...>") {
		t.begun[thread] = strings.TrimSuffix(text, "<unfinished ...>")
		return "", "", false
	}
	child := returned.FindStringSubmatch(whole)
	isClone := name == "clone" || name == "clone3" || name == "vfork"
	process := isClone && !strings.Contains(whole, "CLONE_THREAD")
	if isClone && child != nil && (process || t.others[thread]) {
		t.others[child[1]] = true
	}
	switch {
	case process:
		name = processes
	case isClone:
		name = threads
	}
	return name, whole, !t.others[thread]
}

// add counts one call.
func (c counts) add(name, text string) {
	if ofTheRuntime.MatchString(text) || again.MatchString(text) {
		return
	}
	descriptor, _, _ := strings.Cut(text, ",")
	onSocket := strings.Contains(descriptor, "<socket:")
	if onSocket && (name == "read" || name == "write") {
		c[agentText] += message(text)
		c[roughly+"agent"] += data(text)
	}
	switch name {
	case "read": // a pipe or a socket is read in any number of pieces
		if strings.Contains(descriptor, "</") {
			c[fileReads]++
		}
		return
	case "write", "pwrite64":
		for _, w := range writes {
			if strings.Contains(descriptor, w.of) {
				c["write to "+w.what]++
				if !onSocket {
					c[roughly+w.what] += data(text)
				}
				break
			}
		}
		return
	case "openat":
		if strings.Contains(text, "O_TRUNC") {
			c[writtenFiles]++
		}
	}
	if !slices.Contains(uncounted, name) {
		c[name]++
	}
}

// varies matches what differs between runs in a message: identifiers, numbers and
// times, also in their lengths.
var varies = regexp.MustCompile(`[0-9a-f]{8,}(-[0-9a-f]{4,})*|[0-9]+(\.[0-9]+)?`)

// message returns how many characters of JSON a call exchanges, with each number
// and each identifier counted as one character.
func message(text string) int {
	begin, end := strings.IndexByte(text, '{'), strings.LastIndexByte(text, '}')
	if begin < 0 {
		return 0 // the length prefix of a message
	}
	return len(varies.ReplaceAllString(text[begin:end+1], "0"))
}

// data returns the length of what a call reads or writes, as strace prints it. The
// path of the node's directory is already out of it.
func data(text string) int {
	_, text, _ = strings.Cut(text, `"`)
	return max(strings.LastIndexByte(text, '"'), 0)
}

// keep replaces what is roughly the same in old by old's value: it differs by at most
// five percent, or by a few digits.
func (c counts) keep(old counts) {
	for name, n := range c {
		was := old[name]
		if strings.HasPrefix(name, roughly) && max(n-was, was-n) <= max(was/20, 16) {
			c[name] = was
		}
	}
}

// parseCounts reads the counts of a verb from text that has them for several: each
// verb's name is on a line of its own, and an empty line follows its counts.
func parseCounts(text, verb string) (counts, error) {
	_, text, _ = strings.Cut("\n"+text, "\n"+verb+"\n")
	text, _, _ = strings.Cut(text, "\n\n")
	c := counts{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		i := strings.LastIndexByte(line, ' ')
		n, err := strconv.Atoi(line[i+1:])
		if err != nil || i < 0 {
			return nil, fmt.Errorf("%s: line %q has no count", verb, line)
		}
		c[line[:i]] = n
	}
	return c, nil
}

// String renders the counts, one per line, without the threads, whose number varies.
func (c counts) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		if name == threads {
			continue
		}
		fmt.Fprintf(&b, "%s %d\n", name, c[name])
	}
	return b.String()
}
