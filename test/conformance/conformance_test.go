package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
)

func TestParseClauses(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		want string // ids and lab tests, or a part of the error
	}{
		"two":             {"# Title\n\n| clause | what | lab |\n|---|---|---|\n| `MN-3.2-a` | one | |\n\n| `VF-pf` | two | `TestLab/VF-pf` |\n", "MN-3.2-a, VF-pf TestLab/VF-pf"},
		"other table":     {"| state | meaning |\n| passed | good |\n| `CNI-gc` | all | |", "CNI-gc"},
		"none":            {"| clause | what |\n", "no clause"},
		"twice":           {"| `CNI-gc` | a | |\n| `CNI-gc` | b | |\n", "line 2: CNI-gc appears twice"},
		"no id":           {"| `make` | a | |\n", `"make" is not the id`},
		"two columns":     {"| `CNI-gc` | a |\n", "must have the columns"},
		"no meaning":      {"| `CNI-gc` | | |\n", "must have the columns"},
		"another's test":  {"| `VF-pf` | a | `TestLab/VF-parent` |\n", "lacks /VF-pf"},
		"a longer id's":   {"| `VF-pf` | a | `TestLab/VF-pf-twice` |\n", "lacks /VF-pf"},
		"the test itself": {"| `VF-pf` | a | `VF-pf` |\n", "lacks /VF-pf"},
	} {
		t.Run(name, func(t *testing.T) {
			clauses, err := parseClauses(tc.text)
			var got []string
			for _, c := range clauses {
				got = append(got, strings.TrimSpace(c.id+" "+c.lab))
			}
			if err == nil && strings.Join(got, ", ") != tc.want || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func TestDocumentIsRead(t *testing.T) {
	text, err := os.ReadFile("../../docs/conformance.md")
	if err != nil {
		t.Fatal(err)
	}
	clauses, err := parseClauses(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if rows := strings.Count(string(text), "\n| `"); rows != len(clauses) {
		t.Errorf("%d clauses of %d rows", len(clauses), rows)
	}
}

func TestProves(t *testing.T) {
	for test, want := range map[string]bool{
		"TestClauseA/MN-1-a":           true,
		"TestClauseA/MN-1-a/more/rows": true,
		"TestClauseA/DV-b/MN-1-a":      true,
		"TestClauseA/MN-1-a#01":        true,
		"TestClauseA/MN-1-a-twice":     false,
		"TestClauseA/MN-1":             false,
		"TestClauseA/xMN-1-a":          false,
		"TestClauseA":                  false,
		"MN-1-a":                       false,
		"TestClauseA/MN-1-a#x":         false,
	} {
		if got := proves(test, "MN-1-a"); got != want {
			t.Errorf("%s: %v", test, got)
		}
	}
}

func TestFindLabTests(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("a_test.go", "//go:build lab\n\npackage a\n\nfunc TestLab(t *testing.T) {\n\tt.Run(\"VF-pf\", nil)\n}\n")
	write("b.go", "package a\n\nfunc TestNo(t *testing.T) { \"VF-b\" }\n")
	clauses := []clause{{id: "VF-pf", lab: "TestLab/VF-pf"}, {id: "VF-a", lab: "TestLab/VF-a"}, {id: "VF-b", lab: "TestNo/VF-b"}, {id: "VF-c"}}
	if err := findLabTests(dir, clauses); err != nil {
		t.Fatal(err)
	}
	for _, c := range clauses {
		if c.labExists != (c.id == "VF-pf") {
			t.Errorf("%+v", c)
		}
	}
	if err := findLabTests(dir+"/none", clauses); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory that does not exist: %v", err)
	}
}

// stream returns a test run as `go test -json` prints it. A line of text is action,
// package, test and output, separated by blanks; "-" stands for no test.
func stream(t *testing.T, text string) *bytes.Buffer {
	t.Helper()
	var out bytes.Buffer
	for _, line := range strings.Split(text, "\n") {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		if len(f) < 3 {
			continue
		}
		e := map[string]string{"Action": f[0], "Package": module + f[1]}
		if f[2] != "-" {
			e["Test"] = f[2]
		}
		if len(f) > 3 {
			e["Output"] = f[3] + "\n"
		}
		if err := json.NewEncoder(&out).Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	return &out
}

var fewClauses = []clause{{id: "MN-1-a"}, {id: "MN-1-a-twice"}, {id: "DV-b"}, {id: "VF-c", lab: "TestLab/VF-c", labExists: true}}

func TestReport(t *testing.T) {
	const passing = `
		pass e2e TestClauseA/MN-1-a/row
		pass e2e TestClauseA/MN-1-a
		pass e2e TestClauseA/MN-1-a-twice
		pass e2e TestClauseA/DV-b
		pass e2e TestClauseA
		pass e2e -`
	for name, tc := range map[string]struct {
		events string
		ok     bool
		want   []string
		never  string
	}{
		"all": {passing, true, []string{
			"MN-1-a        passed    e2e TestClauseA/MN-1-a\n", "VF-c          lab-only  SR-IOV lab: TestLab/VF-c\n",
			"4 clauses: 3 passed, 1 lab-only, 0 failed, 0 skipped, 0 missing",
		}, "row"},
		"missing": {strings.Replace(passing, "pass e2e TestClauseA/DV-b", "", 1), false, []string{"DV-b          missing   -\n", "1 missing"}, ""},
		"failed row": {passing + "\noutput lib TestClauseB/MN-1-a/row b_test.go:7: no\nfail lib TestClauseB/MN-1-a/row\nfail lib -", false, []string{
			"MN-1-a        failed    lib TestClauseB/MN-1-a (failed)\n", "e2e TestClauseA/MN-1-a\n", "TestClauseB/MN-1-a/row: b_test.go:7: no\n", "1 failed",
		}, "lib failed"},
		"skipped beside": {passing + "\noutput lib TestClauseB/DV-b a.go:1: needs a tool\nskip lib TestClauseB/DV-b\npass lib -", true, []string{
			"DV-b          passed    lib TestClauseB/DV-b (skipped)\n", "TestClauseB/DV-b: a.go:1: needs a tool\n",
		}, ""},
		"skipped alone":              {strings.Replace(passing, "pass e2e TestClauseA/DV-b", "skip e2e TestClauseA/DV-b", 1), false, []string{"DV-b          skipped ", "1 skipped"}, ""},
		"lab test's rule fails here": {passing + "\nfail lib TestClauseB/VF-c\nfail lib -", false, []string{"VF-c          failed "}, "lib failed:"},
		"died":                       {passing + "\nrun lib TestClauseB/DV-b\nfail lib -", false, []string{"DV-b          failed "}, ""},
		"package":                    {passing + "\noutput lib - does not build\nfail lib -", false, []string{module + "lib failed:\ndoes not build\n"}, ""},
		"unknown":                    {passing + "\npass lib TestClauseB/DV-bb", false, []string{"TestClauseB/DV-bb: no clause has this id\n"}, ""},
		"no id":                      {passing + "\npass lib TestClauseB/some-row", true, nil, "some-row"},
		"both":                       {passing + "\npass lib TestClauseB/DV-b/MN-1-a", true, []string{"lib TestClauseB/DV-b\n", "lib TestClauseB/DV-b/MN-1-a\n"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			res, err := readResults(stream(t, tc.events), fewClauses, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			ok, err := report(&out, fewClauses, res)
			if err != nil || ok != tc.ok {
				t.Errorf("ok %v, %v", ok, err)
			}
			for _, want := range tc.want {
				if !strings.Contains(out.String(), want) {
					t.Errorf("lacks %q:\n%s", want, out.String())
				}
			}
			if tc.never != "" && strings.Contains(out.String(), tc.never) {
				t.Errorf("has %q:\n%s", tc.never, out.String())
			}
		})
	}
}

// TestLog proves that a run's results are printed as go test prints them.
func TestLog(t *testing.T) {
	var log bytes.Buffer
	in := stream(t, `
		output lib TestA === RUN TestA
		output lib TestA a.go:1: said on the way
		pass lib TestA
		output lib - PASS
		output lib - ok lib 1s
		pass lib -
		output e2e TestClauseA/MN-1-a a.go:2: wrong
		fail e2e TestClauseA/MN-1-a
		output e2e - a.go:3: left behind
		output e2e - FAIL e2e 1s
		fail e2e -`)
	if _, err := readResults(in, fewClauses, &log); err != nil {
		t.Fatal(err)
	}
	if got, want := log.String(), "ok lib 1s\na.go:2: wrong\na.go:3: left behind\nFAIL e2e 1s\n"; got != want {
		t.Errorf("printed\n%swant\n%s", got, want)
	}
	in = stream(t, "output lib - ok lib 1s\npass lib -")
	if _, err := readResults(in, fewClauses, full{}); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("with a log that fails: %v", err)
	}
}

// full is a writer that accepts nothing.
type full struct{}

// Write implements io.Writer.
func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestLabTestThatDoesNotExist(t *testing.T) {
	if s := stateOf(clause{id: "VF-c", lab: "TestLab/VF-c"}, []*proof{{state: passed}}); s != missing {
		t.Errorf("a clause whose lab test does not exist is %s", s)
	}
}

func TestBrokenStream(t *testing.T) {
	if res, err := readResults(strings.NewReader("{\"Action\":\"run\"}\nFAIL"), nil, io.Discard); err == nil {
		t.Errorf("read as %+v", res)
	}
}
