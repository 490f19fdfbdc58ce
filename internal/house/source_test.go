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

func TestNothingIsLeftForLater(t *testing.T) {
	later := []string{"TO" + "DO", "FIX" + "ME", "X" + "XX"}
	report := func(name, text string) {
		for _, word := range later {
			if strings.Contains(text, word) {
				t.Errorf("%s says %s", name, word)
			}
		}
	}
	for _, f := range sources(t) {
		for _, group := range f.ast.Comments {
			report(f.fset.Position(group.Pos()).String(), group.Text())
		}
	}
	for _, pattern := range []string{"*.md", "docs/*.md", "Makefile", "Dockerfile", ".ci/*", "*.yml", ".*.yml", "deploy/*"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if text, err := os.ReadFile(name); err == nil { // a directory has no text
				report(name, string(text))
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
			seeded := addsSeeds(fn)
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

// addsSeeds reports whether a fuzz target calls Add on its *testing.F.
func addsSeeds(fn *ast.FuncDecl) bool {
	f, found := fn.Type.Params.List[0].Names[0].Name, false
	ast.Inspect(fn, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && sel.Sel.Name == "Add" {
			id, ok := sel.X.(*ast.Ident)
			found = found || ok && id.Name == f
		}
		return !found
	})
	return found
}
