// Package house tests the rules of this repository: which package may import which, what
// each program links, how long a function may be, what must be documented, and that the
// reference pages match the code.
package house

import (
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const module = "github.com/manifold-cni/manifold"

// root is the module's directory, relative to this package.
const root = "../.."

// may lists what each of our packages may import of ours. Each package is held to its own
// row, so nothing else is reached indirectly. Tests and programs under test/ may import
// everything.
var may = map[string][]string{
	"checkpoint":   {},
	"podresources": {"checkpoint"},
	"sriov":        {"sriov/rtnl"},
	// The settings that a pod made on a network device are read on the host and in its
	// sandbox.
	"sriov/rtnl":         {},
	"sriov/inventory":    {"sriov"},
	"sriov/sriovtest":    {"sriov"},
	"netattach":          {},
	"internal/cnierr":    {},
	"internal/killpoint": {},
	// What people read says "1 error" and "2 errors", in every program.
	"internal/words":  {},
	"internal/multus": {},
	"internal/plan":   {"internal/cnierr"},
	// attach and the agent's handover to Multus must judge libcni's records alike.
	"internal/chain":   {"internal/cnierr"},
	"internal/netconf": {"internal/cnierr", "internal/plan"},
	"internal/journal": {"internal/cnierr", "internal/killpoint", "internal/plan"},
	"internal/verify":  {"internal/cnierr", "internal/plan", "sriov", "sriov/rtnl"},
	"internal/planner": {"internal/cnierr", "internal/netconf", "internal/plan", "netattach", "podresources", "sriov"},
	"internal/attach":  {"internal/chain", "internal/cnierr", "internal/journal", "internal/killpoint", "internal/multus", "internal/netconf", "internal/plan", "internal/verify", "internal/words", "sriov"},
	// What is wrong with an object is decided once, for admission and for lint.
	"internal/rules": {"internal/cnierr", "internal/netconf", "internal/plan", "internal/planner", "netattach", "podresources"},
	// kubectl manifold shows for a pod that does not exist yet what admission would give
	// it.
	"internal/inject": {"internal/planner", "internal/rules", "netattach"},
	// It tells podresources which device belongs to a claim.
	"internal/kube":          {"netattach", "podresources"},
	"internal/kube/kubetest": {"netattach"},
	"internal/metrics":       {"internal/plan"},
	"internal/logs":          {},
	"internal/traces":        {"internal/plan"},
	// Writes that leave nothing behind when killed, reads that nothing blocks, and a watch:
	// for whoever works in a runtime's directory.
	"internal/files": {},
	// The agent and admission bound alike what strangers' connections can take.
	"internal/connlimit": {},
	// Administrators' files are read, checked and converted apart from the agent, for the
	// tools that run without one.
	"internal/configfile": {"internal/cnierr", "internal/files", "internal/logs", "internal/netconf", "internal/plan", "internal/reconcile", "internal/traces", "netattach"},
	"internal/agent": {
		"checkpoint", "internal/cnierr", "internal/configfile", "internal/connlimit", "internal/files", "internal/journal", "internal/killpoint", "internal/kube", "internal/metrics", "internal/netconf",
		"internal/nodeview", "internal/plan", "internal/planner", "internal/reconcile", "internal/traces", "netattach", "podresources", "sriov",
	},
	// The agent changes nothing on the node; install does.
	"internal/install": {
		"internal/agent", "internal/chain", "internal/cnierr", "internal/configfile", "internal/files", "internal/journal", "internal/kube", "internal/multus", "internal/netconf", "internal/plan",
		"internal/planner", "internal/words", "netattach",
	},
	"internal/reconcile": {"internal/cnierr", "internal/journal", "internal/plan", "internal/verify", "sriov", "sriov/inventory"},
	// The node as data: written by the agent, read by programs that need none of its
	// sources.
	"internal/nodeview": {"internal/cnierr", "internal/journal", "internal/plan", "internal/reconcile", "netattach", "sriov", "sriov/inventory"},
	// It must import nothing; see its package comment.
	"internal/alone": {},
	"cmd/manifold":   {"internal/alone", "internal/attach", "internal/cnierr", "internal/journal", "internal/logs", "internal/netconf", "internal/plan"},
	// The agent shows its node to authorized users as inspect shows it to a person on the
	// node.
	"cmd/manifold-agent":   {"internal/agent", "internal/configfile", "internal/inspect", "internal/install", "internal/logs", "internal/plan", "internal/words"},
	"cmd/kubectl-manifold": {"internal/inspect", "internal/nodeview", "internal/reconcile", "internal/words"},
	"internal/webhook":     {"internal/cnierr", "internal/connlimit", "internal/inject", "internal/kube", "internal/planner", "internal/rules", "netattach"},
	"cmd/manifold-webhook": {"internal/logs", "internal/webhook"},
	"internal/inspect": {
		"checkpoint", "internal/agent", "internal/cnierr", "internal/configfile", "internal/files", "internal/inject", "internal/journal", "internal/kube", "internal/netconf", "internal/nodeview", "internal/plan",
		"internal/planner", "internal/reconcile", "internal/rules", "internal/words", "netattach", "podresources", "sriov", "sriov/inventory",
	},
}

// never lists, by prefix, the packages that a program must not link.
var never = map[string][]string{
	"cmd/manifold": {"k8s.io/", "sigs.k8s.io/", "google.golang.org/", "github.com/jaypipes/", "net/http", "go.opentelemetry.io/"},
}

// pkg is a package as `go list -json` describes it.
type pkg struct {
	ImportPath string
	Imports    []string
	Standard   bool
}

func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Imports,Standard"}, args...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var pkgs []pkg
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, p)
	}
}

func TestImportRules(t *testing.T) {
	// Kill points are compiled in only under their tag, and import more.
	for _, tags := range []string{"", "killpoints"} {
		t.Run("tags="+tags, func(t *testing.T) {
			rooms := map[string]bool{}
			for _, p := range goList(t, "-tags="+tags, "./...") {
				name := strings.TrimPrefix(p.ImportPath, module+"/")
				if strings.HasPrefix(name, "test/") || name == "internal/house" {
					continue
				}
				rooms[name] = true
				importsOnlyAllowed(t, name, p.Imports)
			}
			for name := range may {
				if !rooms[name] {
					t.Errorf("package %s of the table does not exist: remove its row", name)
				}
			}
		})
	}
}

// importsOnlyAllowed holds one package to its row of the table.
func importsOnlyAllowed(t *testing.T, name string, imports []string) {
	t.Helper()
	allowed, ok := may[name]
	if !ok {
		t.Errorf("package %s is not in the table of import rules: a new package needs a reason", name)
	}
	for _, imp := range imports {
		if own, ours := strings.CutPrefix(imp, module+"/"); ours && !slices.Contains(allowed, own) {
			t.Errorf("%s imports %s", name, own)
		}
	}
}

// The golden files list the packages that a program links, ours and others'; for the
// plugin those of the standard library too. The standard library's internal packages are
// omitted: they change with every release of Go, and nobody here decides on them.
func TestDependenciesAreGolden(t *testing.T) {
	for program, file := range map[string]string{"cmd/manifold": "deps-manifold.txt", "cmd/manifold-agent": "deps-manifold-agent.txt"} {
		t.Run(program, func(t *testing.T) {
			var deps []string
			for _, p := range goList(t, "-deps", "./"+program) {
				for _, bad := range never[program] {
					if strings.HasPrefix(p.ImportPath, bad) {
						t.Errorf("%s links %s", program, p.ImportPath)
					}
				}
				if !p.Standard || program == "cmd/manifold" && !strings.Contains(p.ImportPath, "internal/") {
					deps = append(deps, p.ImportPath)
				}
			}
			slices.Sort(deps)
			golden(t, filepath.Join("testdata", file), strings.Join(deps, "\n")+"\n")
		})
	}
}

// golden compares text with a file, or with -update writes the file.
func golden(t *testing.T, path, text string) {
	t.Helper()
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) == text {
		return
	}
	have, wanted := strings.Split(text, "\n"), strings.Split(string(want), "\n")
	for _, line := range have {
		if !slices.Contains(wanted, line) {
			t.Errorf("%s lacks: %s", path, line)
		}
	}
	for _, line := range wanted {
		if !slices.Contains(have, line) {
			t.Errorf("%s has, and should not: %s", path, line)
		}
	}
	t.Error("if that is intended, run: make golden")
}
