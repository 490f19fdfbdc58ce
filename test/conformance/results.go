package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// state is the outcome of a test or a clause. The greatest state among its tests is
// the clause's: a pass makes up for a skip, nothing makes up for a failure.
type state int

const (
	missing state = iota
	skipped
	passed
	failed
	labOnly // only clauses have this state
)

func (s state) String() string {
	return [...]string{"missing", "skipped", "passed", "failed", "lab-only"}[s]
}

// proof is a test of a clause: the part of its name up to the clause's id, which
// sums up all its subtests.
type proof struct {
	pkg, test string
	state     state
	// said is the output of failed tests, and why tests were skipped.
	said []string
}

// results are the proofs by clause, and all other problems of the run.
type results struct {
	proofs map[string][]*proof
	// strays are subtests whose name has the form of an id but matches no clause.
	strays []string
	// broken are packages, with their output, that failed for another reason than a
	// clause's test.
	broken map[string][]string
}

// failed reports whether any test or package failed.
func (r *results) failed() bool {
	for _, proofs := range r.proofs {
		if slices.ContainsFunc(proofs, func(p *proof) bool { return p.state == failed }) {
			return true
		}
	}
	return len(r.broken) > 0
}

// event is one line of `go test -json`.
type event struct {
	Action     string
	Package    string
	ImportPath string // of a build's output
	Test       string
	Output     string
}

// reader builds results from the events of a test run.
type reader struct {
	*results
	known   map[string]bool
	output  map[string][]string // by package and test
	running map[string]event    // tests that have not ended yet
	bad     map[string]bool     // packages with a failed test of a clause
	log     io.Writer           // gets what go test would print
	logErr  error               // the first error of a write to log
}

// readResults reads the output of `go test -json`, and prints to log what go test
// would print without -json.
func readResults(in io.Reader, clauses []clause, log io.Writer) (*results, error) {
	r := &reader{
		results: &results{proofs: map[string][]*proof{}, broken: map[string][]string{}},
		known:   map[string]bool{}, output: map[string][]string{}, running: map[string]event{}, bad: map[string]bool{}, log: log,
	}
	for _, c := range clauses {
		r.known[c.id] = true
	}
	for d := json.NewDecoder(in); ; {
		var e event
		err := d.Decode(&e)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the tests' events: %w", err)
		}
		r.take(e)
	}
	// A test that has not ended died with its process.
	for _, e := range r.running {
		r.end(e, failed)
	}
	if r.logErr != nil {
		return nil, fmt.Errorf("print: %w", r.logErr)
	}
	return r.results, nil
}

// print prints the output of a package or a failed test; for a package that passed,
// only its "ok" line.
func (r *reader) print(end state, lines []string) {
	for _, line := range lines {
		if end != failed && !strings.HasPrefix(line, "ok ") {
			continue
		}
		if _, err := io.WriteString(r.log, line); err != nil && r.logErr == nil {
			r.logErr = err
		}
	}
}

// take handles one event.
func (r *reader) take(e event) {
	key := e.Package + e.ImportPath + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		r.output[key] = append(r.output[key], e.Output)
		return
	case "run":
		r.running[key] = e
		return
	}
	end, ok := map[string]state{"pass": passed, "fail": failed, "skip": skipped, "build-fail": failed}[e.Action]
	if ok && (e.Test == "" || end == failed) {
		r.print(end, r.output[key])
	}
	switch {
	case !ok:
	case e.Test != "":
		delete(r.running, key)
		r.end(e, end)
	case end == failed && !r.bad[e.Package]:
		r.broken[e.Package+e.ImportPath] = r.output[key]
	}
}

// end records a test's outcome under every clause in its name.
func (r *reader) end(e event, s state) {
	names := parts(e.Test)
	for i, name := range names[1:] {
		switch {
		case r.known[name]:
			p := r.proofOf(name, e.Package, strings.Join(names[:i+2], "/"))
			p.state = max(p.state, s)
			if s != passed {
				p.said = append(p.said, said(e.Test, r.output[e.Package+" "+e.Test])...)
			}
			r.bad[e.Package] = r.bad[e.Package] || s == failed
		case idForm.MatchString(name) && !slices.Contains(r.strays, e.Test):
			r.strays = append(r.strays, e.Test)
		}
	}
}

// proofOf returns the proof of that name and creates it if needed.
func (r *reader) proofOf(id, pkg, test string) *proof {
	for _, p := range r.proofs[id] {
		if p.pkg == pkg && p.test == test {
			return p
		}
	}
	p := &proof{pkg: pkg, test: test}
	r.proofs[id] = append(r.proofs[id], p)
	return p
}

// said returns the output of a test, without the lines of package testing.
func said(test string, output []string) []string {
	var out []string
	for _, line := range strings.Split(strings.Join(output, ""), "\n") {
		text := strings.TrimSpace(line)
		if text != "" && !strings.HasPrefix(text, "=== ") && !strings.HasPrefix(text, "--- ") {
			out = append(out, test+": "+text)
		}
	}
	return out
}
