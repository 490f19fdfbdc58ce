package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
)

// module is the prefix that the report drops from package names.
const module = "github.com/manifold-cni/manifold/"

// stateOf returns the state of a clause. A lab test that does not exist proves
// nothing.
func stateOf(c clause, proofs []*proof) state {
	here := missing
	for _, p := range proofs {
		here = max(here, p.state)
	}
	switch {
	case c.lab == "" || here == failed:
		return here
	case c.labExists:
		return labOnly
	}
	return missing
}

// report prints the table, then the output behind every clause that has not passed,
// and reports whether all is well.
func report(w io.Writer, clauses []clause, res *results) (bool, error) {
	tab := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tab, "clause\tstate\ttest")
	count := map[state]int{}
	var notes []string
	for _, c := range clauses {
		proofs := res.proofs[c.id]
		slices.SortFunc(proofs, func(a, b *proof) int { return cmp.Or(cmp.Compare(b.pkg, a.pkg), cmp.Compare(a.test, b.test)) })
		s := stateOf(c, proofs)
		count[s]++
		tests, said := testsOf(c, proofs)
		notes = append(notes, said...)
		fmt.Fprintf(tab, "%s\t%s\t%s\n", c.id, s, tests[0])
		for _, t := range tests[1:] {
			fmt.Fprintf(tab, "\t\t%s\n", t)
		}
	}
	if err := tab.Flush(); err != nil {
		return false, fmt.Errorf("print: %w", err)
	}
	for _, pkg := range slices.Sorted(maps.Keys(res.broken)) {
		notes = append(notes, pkg+" failed:\n"+strings.TrimRight(strings.Join(res.broken[pkg], ""), "\n"))
	}
	for _, test := range res.strays {
		notes = append(notes, test+": no clause has this id")
	}
	if len(notes) > 0 {
		fmt.Fprintf(w, "\n%s\n", strings.Join(notes, "\n"))
	}
	_, err := fmt.Fprintf(w, "\n%d clauses: %d passed, %d lab-only, %d failed, %d skipped, %d missing\n",
		len(clauses), count[passed], count[labOnly], count[failed], count[skipped], count[missing])
	if err != nil {
		return false, fmt.Errorf("print: %w", err)
	}
	ok := count[passed]+count[labOnly] == len(clauses) && len(res.broken)+len(res.strays) == 0
	return ok, nil
}

// testsOf returns the cells that name the tests of a clause, at least one, and what
// the tests printed.
func testsOf(c clause, proofs []*proof) (tests, notes []string) {
	if c.lab != "" {
		test := "SR-IOV lab: " + c.lab
		if !c.labExists {
			test += ", which does not exist"
		}
		tests = append(tests, test)
	}
	for _, p := range proofs {
		test := strings.TrimPrefix(p.pkg, module) + " " + p.test
		if p.state != passed {
			test += " (" + p.state.String() + ")"
		}
		tests = append(tests, test)
		notes = append(notes, p.said...)
	}
	if len(tests) == 0 {
		tests = []string{"-"}
	}
	return tests, notes
}
