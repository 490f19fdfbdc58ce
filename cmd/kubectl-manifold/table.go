package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"golang.org/x/term"
	"k8s.io/cli-runtime/pkg/printers"
)

// table is aligned text for people, in kubectl's form. Its last column is the verdict,
// which has a color on a terminal. A table without rows prints the sentence empty.
type table struct {
	header []string
	rows   []row
	empty  string
}

// row is a line of a table; colour is the color of its last cell, empty for none.
type row struct {
	cells  []string
	colour string
}

// Terminal escape sequences for the colors of the last column.
const (
	green = "\x1b[32m"
	red   = "\x1b[31m"
	plain = "\x1b[0m"
)

// verdict returns the color for good or bad news.
func verdict(good bool) string {
	if good {
		return green
	}
	return red
}

// breaks matches whatever ends a line or a cell, with the white space around it. controls
// matches the control characters that kubectl's own escaping leaves.
var (
	breaks   = regexp.MustCompile(`\s*[\n\r\t\v\f\x{85}\x{2028}\x{2029}]\s*`)
	controls = regexp.MustCompile(`[\x{80}-\x{9f}]`)
)

// oneLine returns a text on one line. Only this program breaks lines and columns, never
// an annotation, a name or a message of several lines.
func oneLine(s string) string {
	return controls.ReplaceAllString(breaks.ReplaceAllString(s, " "), "\uFFFD")
}

// printLine prints a text as one line, whatever it contains.
func printLine(w io.Writer, text string) error {
	if err := printers.WriteEscaped(w, oneLine(text)+"\n"); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// add appends a row. Empty cells are printed as kubectl prints them.
func (t *table) add(colour string, cells ...string) {
	for i, c := range cells {
		if cells[i] = oneLine(c); c == "" {
			cells[i] = "<none>"
		}
	}
	t.rows = append(t.rows, row{cells, colour})
}

// write prints the table. It escapes everything that could control a terminal.
func (t *table) write(w io.Writer) error {
	if len(t.rows) == 0 {
		return printLine(w, t.empty)
	}
	coloured := takesColours(w)
	out := printers.GetNewTabWriter(w)
	if err := printers.WriteEscaped(out, strings.Join(t.header, "\t")+"\n"); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	for _, r := range t.rows {
		last := len(r.cells) - 1
		err := printers.WriteEscaped(out, strings.Join(r.cells[:last], "\t")+"\t")
		before, after := "", ""
		if coloured && r.colour != "" {
			before, after = r.colour, plain
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

// takesColours reports whether w is a terminal.
func takesColours(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}
