//go:build apiserver

package kubectl

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// page is a page of docs/ whose commands a script runs.
type page struct {
	file   string
	text   string
	blocks []block
	next   int // the first block that has not run yet
}

// block is a fenced block of commands, with the expected output if a block of text
// follows.
type block struct {
	commands string
	output   string
	from, to int // of output in the page's text; to is 0 without output
}

var (
	fence = regexp.MustCompile("(?sm)^```(sh|text)\n(.*?)^```$")
	// changing matches what differs from run to run.
	changing = []struct {
		what *regexp.Regexp
		by   string
	}{
		{regexp.MustCompile(`\b[0-9][0-9hms]* ago`), "2s ago"},
		{regexp.MustCompile(`\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b`), "6f1c30a2-58d1-4f5e-9a0b-7d6f7c1f52aa"},
		{regexp.MustCompile(`\b20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z`), "2026-05-04T03:00:00Z"},
		{regexp.MustCompile(`\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b`), "02:00:00:00:00:02"},
		{regexp.MustCompile(`on kernel [^ \n]+`), "on kernel 6.12.0"},
		{regexp.MustCompile(`has [0-9]+ MiB left`), "has 20480 MiB left"},
	}
)

// pages are the pages that scripts have opened, by the script's node.
var pages = map[*node]*page{}

// cmdPage opens docs/NAME.md: "page NAME".
func cmdPage(ts *testscript.TestScript, _ bool, args []string) {
	p := &page{file: filepath.Join("..", "..", "docs", args[0]+".md")}
	raw, err := os.ReadFile(p.file)
	ts.Check(err)
	p.text = string(raw)
	for _, m := range fence.FindAllStringSubmatchIndex(p.text, -1) {
		switch body := p.text[m[4]:m[5]]; {
		case p.text[m[2]:m[3]] == "sh":
			p.blocks = append(p.blocks, block{commands: body})
		case len(p.blocks) > 0 && p.blocks[len(p.blocks)-1].to == 0:
			last := &p.blocks[len(p.blocks)-1]
			last.output, last.from, last.to = body, m[4], m[5]
		default:
			ts.Fatalf("%s: a block of text without commands before it:\n%s", p.file, body)
		}
	}
	pages[of(ts)] = p
}

// cmdBlock runs the page's next block of commands in a shell and compares the
// output: "block", or "! block" for a block that must fail.
func cmdBlock(ts *testscript.TestScript, neg bool, _ []string) {
	p := pages[of(ts)]
	if p.next == len(p.blocks) {
		ts.Fatalf("%s has no more commands", p.file)
	}
	b := &p.blocks[p.next]
	p.next++
	if err := ts.Exec("sh", "-ec", here(ts, b.commands)); (err != nil) != neg {
		ts.Fatalf("%s: %v:\n%s", p.file, err, b.commands)
	}
	if b.to == 0 {
		return
	}
	got := steady(ts, ts.ReadFile("stdout"))
	if got != b.output && !*update {
		ts.Fatalf("%s: the output of\n%s\nis documented as\n%s\nbut is\n%s\nrun: go test -tags apiserver ./test/kubectl -update", p.file, b.commands, b.output, got)
	}
	b.output = got
}

// here replaces the default directories in commands with those of the script's
// node.
func here(ts *testscript.TestScript, commands string) string {
	config := ts.Getenv("CONFIG")
	return strings.NewReplacer("--local", "--local --agent-config "+config,
		"manifold-agent reconcile", "manifold-agent reconcile --config "+config, "/etc/cni/net.d/manifold.d/agent.json", config, "/etc/cni/net.d", ts.Getenv("WORK")+"/net.d").Replace(commands)
}

// cmdPass skips a block of commands that runs other tests: "pass".
func cmdPass(ts *testscript.TestScript, _ bool, _ []string) {
	p := pages[of(ts)]
	if p.next == len(p.blocks) || !strings.HasPrefix(p.blocks[p.next].commands, "make ") && !strings.HasPrefix(p.blocks[p.next].commands, "go run ./test/") {
		ts.Fatalf("%s: the next block does not only run tests", p.file)
	}
	p.next++
}

// steady replaces what differs from run to run in the output of commands.
func steady(ts *testscript.TestScript, out string) string {
	work := ts.Getenv("WORK")
	out = strings.NewReplacer(work+"/net.d/", "/etc/cni/net.d/", work+"/bin", "/opt/cni/bin", work+"/state", "/var/lib/cni/manifold",
		work+"/kubelet/", "/var/lib/kubelet/", work+"/agent.sock", "/run/manifold/agent.sock", work+"/agent.json", "/etc/cni/net.d/manifold.d/agent.json",
		work+"/agent.kubeconfig", "/etc/cni/net.d/manifold.d/kubeconfig").Replace(out)
	for _, c := range changing {
		out = c.what.ReplaceAllString(out, c.by)
	}
	var lines []string
	for line := range strings.Lines(out) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	return strings.Join(lines, "\n") + "\n"
}

// finish writes the page if it is being updated, and fails if blocks have not run.
func (p *page) finish() error {
	if p.next < len(p.blocks) {
		return fmt.Errorf("%s: only %d of %d blocks of commands have run", p.file, p.next, len(p.blocks))
	}
	if !*update {
		return nil
	}
	text := p.text
	for i := len(p.blocks) - 1; i >= 0; i-- {
		if b := p.blocks[i]; b.to > 0 {
			text = text[:b.from] + b.output + text[b.to:]
		}
	}
	return os.WriteFile(p.file, []byte(text), 0o644)
}
