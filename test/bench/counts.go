package main

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// counts are what one verb asks of the kernel, by system call, to what it writes, and
// how much it exchanges with the agent: what costs time on every machine, and is the same
// in every run.
type counts map[string]int

// counted are the system calls that are the same in every run, whatever the
// scheduler does; threads and their waits are not, nor is in how many pieces a pipe
// or a socket is read.
var counted = []string{
	"fsync", "fdatasync", "openat", "renameat", "unlinkat", "mkdirat", "flock", "setns", "socket", "connect", "sendto", "recvfrom", "pipe2", "memfd_create",
	"newfstatat", "fstat", "fcntl", "process",
}

// Keys beside system calls: the characters exchanged with the agent, the files that
// are opened to be written from their beginning, and reads of files.
const (
	agentText    = "characters to and from the agent"
	writtenFiles = "files written"
	fileReads    = "read of files"
)

// writes are how often the plugin writes to what, by what the descriptor is.
var writes = []struct{ what, of string }{
	{"agent", "<socket:"},
	{"journal", ".journal>"},
	{"journal", ".journal.new>"},
	{"lock", ".lock>"},
	{"record", "/results/"},
	{"delegate", "</memfd:"},
}

// ofTheRuntime are files of the Go runtime alone, which differ from machine to
// machine, and what is set of each of its threads.
var ofTheRuntime = regexp.MustCompile(`/sys/fs/cgroup/|/sys/kernel/mm/|/proc/(self|\d+)/(cgroup|mountinfo)|/timerslack_ns`)

// Lines of strace -f: a call, or the rest of one that another thread's interrupted,
// what it returned, and that it is to be made again.
var (
	traceLine = regexp.MustCompile(`^(\d+) +(?:[\d.]+ )?(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$`)
	returned  = regexp.MustCompile(`= (\d+)[^=]*$`)
	again     = regexp.MustCompile(`= (-1 EAGAIN|-1 EINTR|\? ERESTART)`)
)

// countCalls reads what strace -f -y wrote of a plugin in the node's directory dir,
// and counts its own calls: those of the programs that it starts are theirs.
func countCalls(r io.Reader, dir string) (counts, error) {
	out, t := counts{}, tracer{others: map[string]bool{}, begun: map[string]string{}}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	names := strings.NewReplacer(dir, "", `\"`, `"`)
	for lines.Scan() {
		m := traceLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // a signal, or an end
		}
		if name, text, done := t.call(m[1], m[2], m[3]); done {
			out.add(name, names.Replace(text))
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
	if ofTheRuntime.MatchString(text) || again.MatchString(text) {
		return
	}
	descriptor, _, _ := strings.Cut(text, ",")
	onSocket := strings.Contains(descriptor, "<socket:")
	switch name {
	case "read":
		if strings.Contains(descriptor, "</") {
			c[fileReads]++
		}
	case "write", "pwrite64":
		for _, w := range writes {
			if strings.Contains(descriptor, w.of) {
				c["write to "+w.what]++
			}
		}
	case "openat":
		if strings.Contains(text, "O_TRUNC") {
			c[writtenFiles]++
		}
	}
	if onSocket && (name == "read" || name == "write") {
		c[agentText] += message(text)
	}
	if slices.Contains(counted, name) {
		c[name]++
	}
}

// varies is what no two runs have alike in a message: identifiers, numbers and times,
// whose lengths differ.
var varies = regexp.MustCompile(`[0-9a-f]{8,}(-[0-9a-f]{4,})*|[0-9]+(\.[0-9]+)?`)

// message returns how many characters of JSON a call exchanges, where each number
// and each identifier is one.
func message(text string) int {
	begin, end := strings.IndexByte(text, '{'), strings.LastIndexByte(text, '}')
	if begin < 0 {
		return 0 // the length of a message
	}
	return len(varies.ReplaceAllString(text[begin:end+1], "0"))
}

// String renders counts, a line each.
func (c counts) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c)) {
		fmt.Fprintf(&b, "%s %d\n", name, c[name])
	}
	return b.String()
}
