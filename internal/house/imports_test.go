// Package house holds the rules of this repository as tests: which room may
// import which, what each program links, how long a function may be, what must
// be documented, and that the reference pages are those of the code.
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

var update = flag.Bool("update", false, "make the golden files anew")

const module = "github.com/manifold-cni/manifold"

// root is the module's directory, seen from this package.
const root = "../.."

// may lists what each of our packages may import of ours; that nothing else is
// reached indirectly follows, since each package is held to its own row. Tests
// and programs under test/ may import all.
var may = map[string][]string{
	"checkpoint":   {},
	"podresources": {"checkpoint"},
	"sriov":        {"sriov/rtnl"},
	// What a pod has made of a network device is read on the host and in its sandbox alike.
	"sriov/rtnl":         {},
	"sriov/inventory":    {"sriov"},
	"sriov/sriovtest":    {"sriov"},
	"netattach":          {},
	"internal/cnierr":    {},
	"internal/killpoint": {},
	"internal/multus":    {},
	"internal/plan":      {"internal/cnierr"},
	// What a record of libcni is worth attach and the agent's handover to Multus decide alike.
	"internal/chain":   {"internal/cnierr"},
	"internal/netconf": {"internal/cnierr", "internal/plan"},
	"internal/journal": {"internal/cnierr", "internal/killpoint", "internal/plan"},
	"internal/verify":  {"internal/cnierr", "internal/plan", "sriov", "sriov/rtnl"},
	"internal/planner": {"internal/cnierr", "internal/netconf", "internal/plan", "netattach", "podresources", "sriov"},
	"internal/attach":  {"internal/chain", "internal/cnierr", "internal/journal", "internal/killpoint", "internal/multus", "internal/netconf", "internal/plan", "internal/verify", "sriov"},
	// What is wrong with an object is decided once, for admission and for lint.
	"internal/rules": {"internal/cnierr", "internal/netconf", "internal/plan", "internal/planner", "netattach", "podresources"},
	// What admission gives a pod, kubectl manifold says of one that does not exist yet.
	"internal/inject": {"internal/planner", "internal/rules", "netattach"},
	// It tells podresources what a claim's device is.
	"internal/kube":          {"netattach", "podresources"},
	"internal/kube/kubetest": {"netattach"},
	"internal/metrics":       {"internal/plan"},
	"internal/logs":          {},
	"internal/traces":        {"internal/plan"},
	// Files that a killed write of left nothing of, and a watch: for whoever writes into a runtime's directory.
	"internal/files": {},
	// What an administrator writes is read, judged and converted apart from the agent, for the tools that run without one.
	"internal/configfile": {"internal/cnierr", "internal/files", "internal/logs", "internal/netconf", "internal/plan", "internal/reconcile", "internal/traces", "netattach"},
	"internal/agent": {
		"checkpoint", "internal/cnierr", "internal/configfile", "internal/files", "internal/journal", "internal/killpoint", "internal/kube", "internal/metrics", "internal/netconf",
		"internal/nodeview", "internal/plan", "internal/planner", "internal/reconcile", "internal/traces", "netattach", "podresources", "sriov",
	},
	// The agent changes nothing on the node; what does is here.
	"internal/install": {
		"internal/agent", "internal/chain", "internal/cnierr", "internal/configfile", "internal/files", "internal/journal", "internal/kube", "internal/multus", "internal/netconf", "internal/plan",
		"internal/planner", "netattach",
	},
	"internal/reconcile": {"internal/cnierr", "internal/journal", "internal/plan", "internal/verify", "sriov", "sriov/inventory"},
	// The node as data: written by the agent, and read by programs that need none of its sources.
	"internal/nodeview": {"internal/cnierr", "internal/journal", "internal/plan", "internal/reconcile", "netattach", "sriov", "sriov/inventory"},
	// It must import nothing, see there.
	"internal/alone": {},
	"cmd/manifold":   {"internal/alone", "internal/attach", "internal/cnierr", "internal/journal", "internal/logs", "internal/netconf", "internal/plan"},
	// It shows its node to whoever may see it, as a person on the node is shown it.
	"cmd/manifold-agent":   {"internal/agent", "internal/configfile", "internal/inspect", "internal/install", "internal/logs", "internal/plan"},
	"cmd/kubectl-manifold": {"internal/inspect", "internal/nodeview", "internal/reconcile"},
	"internal/webhook":     {"internal/cnierr", "internal/inject", "internal/kube", "internal/planner", "internal/rules", "netattach"},
	"cmd/manifold-webhook": {"internal/logs", "internal/webhook"},
	"internal/inspect": {
		"checkpoint", "internal/agent", "internal/cnierr", "internal/configfile", "internal/inject", "internal/journal", "internal/kube", "internal/netconf", "internal/nodeview", "internal/plan",
		"internal/planner", "internal/reconcile", "internal/rules", "netattach", "podresources", "sriov", "sriov/inventory",
	},
}

// never lists what a program must not link, by prefix.
var never = map[string][]string{
	"cmd/manifold": {"k8s.io/", "sigs.k8s.io/", "google.golang.org/", "github.com/jaypipes/", "net/http", "go.opentelemetry.io/"},
}

// pkg is what `go list -json` says of a package.
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
					t.Errorf("package %s of the table does not exist: take its row away", name)
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
		t.Errorf("package %s is not in the table of import rules: a new room needs a reason", name)
	}
	for _, imp := range imports {
		if own, ours := strings.CutPrefix(imp, module+"/"); ours && !slices.Contains(allowed, own) {
			t.Errorf("%s imports %s", name, own)
		}
	}
}

// The golden files hold what a program links of others and of ours, and for the
// plugin the standard library too. What the standard library keeps to itself is
// left out: it changes with every release of Go, and nobody here decides on it.
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

// golden compares text with a file, or writes the file with -update.
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
	t.Error("if that is meant, run: make golden")
}
