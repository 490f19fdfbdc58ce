package house

import (
	"go/ast"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// libraries are the packages that other projects may import.
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

// undocumentedSpec reports exported types, constants and variables without a comment. One
// comment may cover a group, and the comment of a type may explain its fields.
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

// exportedReceiver reports whether fn is a plain function or a method of an exported
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

// Every page with commands is named by a test that runs them, or has only commands that
// run the tests.
func TestCommandsOfPagesAreRun(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	tests := testsText(t)
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(page), ".md")
		blocks := regexp.MustCompile("(?sm)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(raw), -1)
		if len(blocks) == 0 || strings.Contains(tests, "\npage "+name+"\n") || strings.Contains(tests, name+`.md"`) {
			continue
		}
		for _, block := range blocks {
			for _, line := range strings.Split(strings.TrimSpace(block[1]), "\n") {
				words := strings.Fields(line)
				target := words[0] == "make" && strings.Contains(string(makefile), "\n"+words[1]+":")
				if !target && words[0] != "go" {
					t.Errorf("docs/%s.md: no test runs %q", name, line)
				}
			}
		}
	}
}

// Commands in a block of another kind would not be run by any test.
func TestCommandsAreInBlocksOfCommands(t *testing.T) {
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile("(?sm)^```([a-z]*)\n(.*?)^```$")
	command := regexp.MustCompile("(?m)^(manifold-agent|kubectl|helm|make|go) .*$")
	for _, page := range pages {
		raw, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range block.FindAllStringSubmatch(string(raw), -1) {
			if found := command.FindString(b[2]); b[1] != "sh" && found != "" {
				t.Errorf("%s: %q is in no block of commands (sh)", filepath.Base(page), found)
			}
		}
	}
}

// testsText returns the text of all Go files and scripts under test/.
func testsText(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	err := filepath.WalkDir(filepath.Join(root, "test"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" && filepath.Ext(path) != ".txtar" {
			return err
		}
		raw, err := os.ReadFile(path)
		all.Write(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all.String()
}
