package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Limits of a function.
const (
	maxLines      = 60
	maxComplexity = 15
)

// libraries are the packages that others may use.
var libraries = []string{"checkpoint", "podresources", "sriov", "sriov/inventory", "netattach"}

// file is a parsed source file.
type file struct {
	dir, name string
	ast       *ast.File
	fset      *token.FileSet
}

func sources(t *testing.T) []file {
	t.Helper()
	var out []file
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		fset := token.NewFileSet()
		parsed, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		rel, relErr := filepath.Rel(root, path)
		out = append(out, file{filepath.Dir(rel), rel, parsed, fset})
		if err == nil {
			err = relErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

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

// complexity is the cyclomatic complexity of a function.
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

func TestEveryPackageIsDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		documented[f.dir] = documented[f.dir] || f.ast.Doc.Text() != ""
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package %s has no doc comment", dir)
		}
	}
}

func TestLibrariesAreDocumentedAndHaveExamples(t *testing.T) {
	examples := map[string]bool{}
	for _, f := range sources(t) {
		for _, lib := range libraries {
			if f.dir != lib {
				continue
			}
			if !strings.HasSuffix(f.name, "_test.go") {
				undocumented(t, f)
			}
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Example") {
					examples[lib] = true
				}
			}
		}
	}
	for _, lib := range libraries {
		if !examples[lib] {
			t.Errorf("library %s has no Example", lib)
		}
	}
}

// undocumented reports exported declarations without a comment.
func undocumented(t *testing.T, f file) {
	t.Helper()
	for _, d := range f.ast.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Name.IsExported() && d.Doc.Text() == "" && exportedReceiver(d) {
				t.Errorf("%s: %s is not documented", f.name, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, s := range d.Specs {
				ts, ok := s.(*ast.TypeSpec)
				if ok && ts.Name.IsExported() && d.Doc.Text() == "" && ts.Doc.Text() == "" {
					t.Errorf("%s: type %s is not documented", f.name, ts.Name.Name)
				}
			}
		}
	}
}

// exportedReceiver reports whether a function is one, or a method of an exported
// type.
func exportedReceiver(fn *ast.FuncDecl) bool {
	if fn.Recv == nil {
		return true
	}
	typ := fn.Recv.List[0].Type
	if p, ok := typ.(*ast.StarExpr); ok {
		typ = p.X
	}
	id, ok := typ.(*ast.Ident)
	return ok && id.IsExported()
}

func TestNothingIsLeftForLater(t *testing.T) {
	later := []string{"TO" + "DO", "FIX" + "ME", "X" + "XX"}
	for _, f := range sources(t) {
		for _, group := range f.ast.Comments {
			for _, word := range later {
				if strings.Contains(group.Text(), word) {
					t.Errorf("%s: a comment says %s", f.name, word)
				}
			}
		}
	}
}

func TestReadmeIsShort(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n > 120 {
		t.Errorf("README.md has %d lines, at most 120", n)
	}
}

func TestFuzzTargetsHaveSeeds(t *testing.T) {
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(fn.Name.Name, "Fuzz") || !strings.HasSuffix(f.name, "_test.go") {
				continue
			}
			seeded := false
			ast.Inspect(fn, func(x ast.Node) bool {
				if sel, ok := x.(*ast.SelectorExpr); ok && sel.Sel.Name == "Add" {
					seeded = true
				}
				return true
			})
			corpus, err := filepath.Glob(filepath.Join(root, f.dir, "testdata", "fuzz", fn.Name.Name, "*"))
			if err != nil {
				t.Fatal(err)
			}
			if !seeded && len(corpus) == 0 {
				t.Errorf("%s: %s has neither seeds nor a corpus", f.name, fn.Name.Name)
			}
		}
	}
}
