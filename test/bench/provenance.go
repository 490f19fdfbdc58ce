package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// provenance is what a reader must know to compare runs.
type provenance struct {
	Began      time.Time         `json:"began"`
	Commit     string            `json:"commit"` // ends in "-dirty" if files differ; empty outside a repository
	Go         string            `json:"go"`
	Kernel     string            `json:"kernel"`
	Processor  string            `json:"processor"`
	Processors int               `json:"processors"`
	LoadBefore string            `json:"loadBefore"` // over 1, 5 and 15 minutes
	LoadAfter  string            `json:"loadAfter"`
	Flags      map[string]string `json:"flags"`
}

// begin describes the machine and what is measured on it.
func begin() (p provenance, err error) {
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return p, err
	}
	p = provenance{
		Began: time.Now().UTC().Truncate(time.Second), Commit: commit(), Go: runtime.Version(),
		Kernel: unix.ByteSliceToString(uname.Release[:]), Processors: runtime.NumCPU(), Flags: map[string]string{},
	}
	flag.VisitAll(func(f *flag.Flag) { p.Flags[f.Name] = f.Value.String() })
	if p.Processor, err = processor(); err != nil {
		return p, err
	}
	p.LoadBefore, err = load()
	return p, err
}

// commit returns the commit that the programs were built from, by git: the build's
// own stamp is missing with go run, or if GOFLAGS disables it.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").Output()
	if err != nil {
		return "" // no repository or no git
	}
	return strings.TrimSpace(string(out))
}

// processor returns the kernel's model name of the first processor, or "".
func processor() (string, error) {
	raw, err := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(raw)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value), nil
		}
	}
	return "", err
}

func load() (string, error) {
	raw, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "", err
	}
	return strings.Join(strings.Fields(string(raw))[:3], " "), nil
}

// String describes the run in one line.
func (p provenance) String() string {
	return fmt.Sprintf("commit %s, %s, kernel %s, %d × %s, load %s", p.Commit, p.Go, p.Kernel, p.Processors, p.Processor, p.LoadBefore)
}
