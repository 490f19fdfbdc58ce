// Command conformance runs the tests of the standards' clauses and prints which
// test proves which clause.
//
//	go run ./test/conformance [packages]
//	go test -json ./... | go run ./test/conformance -results -
//
// The second form reads the results of a run of all tests, and also prints what go
// test would print.
//
// The clauses are the tables of docs/conformance.md. A test proves a clause if its
// name is TestClause… and one of its subtests has the clause's id as a part of its
// name, between slashes. The exit status is 1 unless every clause has passed or is
// proven in the SR-IOV lab alone, and no package failed.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	doc := flag.String("clauses", "docs/conformance.md", "file with the tables of clauses")
	root := flag.String("tests", "test", "directory with the tests of the SR-IOV lab")
	from := flag.String("results", "", "`file` with the output of go test -json, - for stdin; without it, run the clauses' tests")
	flag.Parse()
	packages := flag.Args()
	if len(packages) == 0 {
		packages = []string{"./..."}
	}
	source := func(clauses []clause) (*results, error) { return test(packages, clauses) }
	if *from != "" {
		source = func(clauses []clause) (*results, error) { return read(os.Stdout, *from, clauses) }
	}
	ok, err := run(os.Stdout, *doc, *root, source)
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

// run reads the clauses, takes their results from source, prints the table, and
// reports whether all clauses are proven.
func run(w io.Writer, doc, root string, source func([]clause) (*results, error)) (bool, error) {
	text, err := os.ReadFile(doc)
	if err != nil {
		return false, fmt.Errorf("read clauses: %w", err)
	}
	clauses, err := parseClauses(string(text))
	if err != nil {
		return false, fmt.Errorf("read clauses of %s: %w", doc, err)
	}
	if err := findLabTests(root, clauses); err != nil {
		return false, fmt.Errorf("find lab tests: %w", err)
	}
	res, err := source(clauses)
	if err != nil {
		return false, err
	}
	return report(w, clauses, res)
}

// read reads results from the file from, or from stdin for "-". It prints the final
// line of each package and the output of failed tests to w.
func read(w io.Writer, from string, clauses []clause) (*results, error) {
	in := os.Stdin
	if from != "-" {
		var err error
		if in, err = os.Open(from); err != nil {
			return nil, fmt.Errorf("read results: %w", err)
		}
		defer in.Close()
	}
	return readResults(in, clauses, w)
}

// test runs the clauses' tests. It bypasses the test cache, which does not know the
// programs that the tests build and run.
func test(packages []string, clauses []clause) (*results, error) {
	cmd := exec.Command("go", append([]string{"test", "-json", "-count=1", "-timeout=20m", "-run=^TestClause"}, packages...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("run tests: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run tests: %w", err)
	}
	res, readErr := readResults(out, clauses, io.Discard)
	var failed *exec.ExitError
	if err := cmd.Wait(); err != nil && !errors.As(err, &failed) {
		return nil, fmt.Errorf("run tests: %w", err)
	}
	if readErr != nil {
		return nil, readErr
	}
	if failed != nil && !res.failed() {
		return nil, fmt.Errorf("run tests: %w, but no test failed", failed)
	}
	return res, nil
}
