package house

import (
	"go/ast"
	"strings"
	"testing"
)

// libraries are the packages that others may use.
var libraries = []string{"checkpoint", "podresources", "sriov", "sriov/inventory", "netattach"}

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
			for _, spec := range d.Specs {
				undocumentedSpec(t, f, d.Doc.Text() != "", spec)
			}
		}
	}
}

// undocumentedSpec reports exported types, constants and variables without a
// comment. One comment may cover a group; what fields mean, the comment of their
// type may say.
func undocumentedSpec(t *testing.T, f file, group bool, spec ast.Spec) {
	t.Helper()
	switch s := spec.(type) {
	case *ast.ValueSpec:
		for _, n := range s.Names {
			if n.IsExported() && !group && s.Doc.Text() == "" && s.Comment.Text() == "" {
				t.Errorf("%s: %s is not documented", f.name, n.Name)
			}
		}
	case *ast.TypeSpec:
		if s.Name.IsExported() && !group && s.Doc.Text() == "" {
			t.Errorf("%s: type %s is not documented", f.name, s.Name.Name)
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
