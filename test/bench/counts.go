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

// counts are what one verb asks of the kernel, by system call, and how many bytes
// it exchanges with the agent: what costs time on every machine, and is the same
// in every run.
type counts map[string]int

// counted are the system calls that are the same in every run, whatever the
// scheduler does; threads and their waits are not.
var counted = []string{
	"fsync", "fdatasync", "openat", "renameat", "unlinkat", "mkdirat", "flock", "setns", "socket", "connect", "sendto", "pipe2", "memfd_create",
	"process",
}

// Keys beside system calls: the bytes exchanged with the agent, and the files that
// are opened to be written from their beginning.
const (
	agentBytes   = "bytes with the agent"
	writtenFiles = "files written"
)

// Lines of strace -f: a call, or the rest of one that another thread's interrupted.
var (
	traceLine = regexp.MustCompile(`^(\d+) +(?:[\d.]+ )?(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$`)
	returned  = regexp.MustCompile(`= (\d+)[^=]*$`)
)

// countCalls reads what strace -f -y wrote of a plugin, and counts its own calls:
// those of the programs that it starts are theirs.
func countCalls(r io.Reader) (counts, error) {
	out, t := counts{}, tracer{others: map[string]bool{}, begun: map[string]string{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := traceLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // a signal, or an end
		}
		if name, text, done := t.call(m[1], m[2], m[3]); done {
			out.add(name, text)
		}
	}
	return out, lines.Err()
}

// tracer joins calls that strace shows in two parts.
type tracer struct {
	first  string            // the plugin's first thread
	others map[string]bool   // threads of other programs
	begun  map[string]string // by thread, what of its call was shown
}

// call takes a line and returns the plugin's call that is complete with it.
func (t *tracer) call(thread, name, text string) (_, whole string, done bool) {
	if t.first == "" {
		t.first = thread
	}
	// The line that says whose child it is may come later.
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
	if process {
		name = "process"
	}
	return name, whole, !t.others[thread]
}

// add counts one call.
func (c counts) add(name, text string) {
	if n := returned.FindStringSubmatch(text); n != nil && (name == "read" || name == "write") && strings.Contains(text, "<socket:") {
		size, _ := strconv.Atoi(n[1]) // digits
		c[agentBytes] += size
	}
	// The Go runtime's own, which differ from machine to machine, and what is set of
	// each of its threads.
	for _, of := range []string{`"/sys/fs/cgroup/`, `"/sys/kernel/mm/`, `"/proc/self/cgroup"`, `"/proc/self/mountinfo"`, `/timerslack_ns"`} {
		if strings.Contains(text, of) {
			return
		}
	}
	if slices.Contains(counted, name) {
		c[name]++
	}
	if name == "openat" && strings.Contains(text, "O_TRUNC") {
		c[writtenFiles]++
	}
}

// String renders counts, a line each. Bytes are rounded up: names and times in
// messages differ in length.
func (c counts) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		n := c[name]
		if name == agentBytes {
			const step = 512
			n = (n + step - 1) / step * step
		}
		fmt.Fprintf(&b, "%s %d\n", name, n)
	}
	return b.String()
}
