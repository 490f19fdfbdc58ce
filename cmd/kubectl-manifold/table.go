package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
	"k8s.io/cli-runtime/pkg/printers"
)

// table is aligned text for people, in kubectl's form. Its last column is the one
// that says good or bad, and has a colour on a terminal.
type table struct {
	header []string
	rows   []row
}

// row is a line of a table; bad says that its last cell is no good news.
type row struct {
	cells []string
	bad   bool
}

// Colours of the last column, as terminals understand them.
const (
	green = "\x1b[32m"
	red   = "\x1b[31m"
	plain = "\x1b[0m"
)

// add appends a line. An empty cell is printed as kubectl prints it.
func (t *table) add(bad bool, cells ...string) {
	for i, c := range cells {
		if c == "" {
			cells[i] = "<none>"
		}
	}
	t.rows = append(t.rows, row{cells, bad})
}

// write prints the table. What a name could do to a terminal is escaped.
func (t *table) write(w io.Writer) error {
	coloured := isTerminal(w)
	out := printers.GetNewTabWriter(w)
	if err := printers.WriteEscaped(out, strings.Join(t.header, "\t")+"\n"); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	for _, r := range t.rows {
		last := len(r.cells) - 1
		err := printers.WriteEscaped(out, strings.Join(r.cells[:last], "\t")+"\t")
		before, after := "", ""
		if coloured {
			before, after = green, plain
			if r.bad {
				before = red
			}
		}
		if err == nil {
			_, err = io.WriteString(out, before)
		}
		if err == nil {
			err = printers.WriteEscaped(out, r.cells[last])
		}
		if err == nil {
			_, err = io.WriteString(out, after+"\n")
		}
		if err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	if err := out.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// isTerminal reports whether w is a person's terminal.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
