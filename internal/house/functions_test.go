package house

import (
	"go/ast"
	"go/token"
	"testing"
)

// Limits of a function.
const (
	maxLines      = 60
	maxComplexity = 15
)

func TestFunctionsAreShort(t *testing.T) {
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			if n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1; n > maxLines {
				t.Errorf("%s: %s has %d lines, at most %d", f.name, fn.Name.Name, n, maxLines)
			}
			if n := complexity(fn); n > maxComplexity {
				t.Errorf("%s: %s has a complexity of %d, at most %d", f.name, fn.Name.Name, n, maxComplexity)
			}
		}
	}
}

// complexity returns the cyclomatic complexity of a function.
func complexity(fn *ast.FuncDecl) int {
	n := 1
	ast.Inspect(fn, func(x ast.Node) bool {
		switch x := x.(type) {
		case *ast.IfStmt, *ast.ForStmt, *ast.RangeStmt:
			n++
		case *ast.CaseClause:
			if x.List != nil {
				n++
			}
		case *ast.CommClause:
			if x.Comm != nil {
				n++
			}
		case *ast.BinaryExpr:
			if x.Op == token.LAND || x.Op == token.LOR {
				n++
			}
		}
		return true
	})
	return n
}
