package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// clause is a row of a table of clauses.
type clause struct {
	id  string // for example "MN-4.1.2-ips"
	lab string // name of the test that proves it in the SR-IOV lab; empty if any machine can
	// labExists is whether that test is in the source tree.
	labExists bool
}

// idForm is the form of an id: the standard, then words of letters, digits and
// dots.
var idForm = regexp.MustCompile(`^(MN|DI|DV|VF|CNI)-[A-Za-z0-9.]+(-[A-Za-z0-9.]+)*$`)

// parseClauses reads the tables of a Markdown document: every row whose first
// column is an id in backquotes. The second column is for people; the third is the
// name of a lab test in backquotes, or empty.
func parseClauses(text string) ([]clause, error) {
	var out []clause
	seen := map[string]bool{}
	for i, line := range strings.Split(text, "\n") {
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for j := range cells {
			cells[j] = strings.TrimSpace(cells[j])
		}
		c := clause{id: strings.Trim(cells[0], "`")}
		if !idForm.MatchString(c.id) {
			return nil, fmt.Errorf("line %d: %q is not the id of a clause", i+1, c.id)
		}
		if len(cells) != 3 || cells[1] == "" {
			return nil, fmt.Errorf("line %d: %s: the row must have the columns clause, meaning, lab test", i+1, c.id)
		}
		if seen[c.id] {
			return nil, fmt.Errorf("line %d: %s appears twice", i+1, c.id)
		}
		c.lab, seen[c.id] = strings.Trim(cells[2], "`"), true
		if c.lab != "" && !proves(c.lab, c.id) {
			return nil, fmt.Errorf("line %d: the name of the lab test, %q, lacks /%s", i+1, c.lab, c.id)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no clause in %d bytes", len(text))
	}
	return out, nil
}

// findLabTests looks for the lab tests' functions in the source below root: they
// have a build tag, so running the tests here does not list them.
func findLabTests(root string, clauses []clause) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for i := range clauses {
			c := &clauses[i]
			name, _, _ := strings.Cut(c.lab, "/")
			declared := name != "" && strings.Contains(string(source), "\nfunc "+name+"(t *testing.T)")
			c.labExists = c.labExists || declared && strings.Contains(string(source), `"`+c.id)
		}
		return nil
	})
}

// parts splits the name of a subtest into its parts, without the numbers that
// package testing appends to duplicate names.
func parts(test string) []string {
	out := strings.Split(test, "/")
	for i, p := range out {
		if j := strings.LastIndexByte(p, '#'); j > 0 && strings.Trim(p[j+1:], "0123456789") == "" {
			out[i] = p[:j]
		}
	}
	return out
}

// proves reports whether a test of this name proves a clause.
func proves(test, id string) bool {
	for _, p := range parts(test)[1:] {
		if p == id {
			return true
		}
	}
	return false
}
