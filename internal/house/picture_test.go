package house

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/plan"
)

// lifelines are the columns of the picture of an ADD.
var lifelines = []string{"container runtime", "manifold", "journal, on disk", "manifold-agent", "kubelet", "API server", "delegates", "kernel"}

// The columns by name.
const (
	fromRuntime = iota
	shim
	disk
	agents
	kubelets
	apiServers
	delegates
	kernels
)

// arrow is a message in the picture.
type arrow struct {
	from, to int
	text     string
	step     string // the plan.Operation step under which the plugin measures it; empty for none
	back     bool   // an answer
}

// add are the messages of an ADD, in order.
var add = []arrow{
	{fromRuntime, shim, "ADD: configuration, sandbox, network namespace", "", false},
	{shim, disk, "the sandbox's lock", plan.StepLock, false},
	{shim, agents, "plan, please", plan.StepPlan, false},
	{agents, kubelets, "pod; its devices (API and checkpoint, joined)", "", false},
	{agents, apiServers, "definitions: from memory, asked only when unknown", "", false},
	{agents, shim, "plan: interfaces, configurations, devices, what to verify", "", true},
	{shim, delegates, "if a network says no cniVersion: VERSION of its plugins", plan.StepVersion, false},
	{shim, disk, "the plan, synchronised, before anything runs", plan.StepJournal, false},
	{shim, kernels, "the device as it stands: names, MAC, the PF's side", "", false},
	{shim, delegates, "for each network: ADD, with its device injected", plan.StepDelegate, false},
	{delegates, kernels, "moves, makes, sets", "", false},
	{shim, kernels, "compare: parent device, MAC, MTU, addresses, VF", plan.StepVerify, false},
	{shim, kernels, "carrier", plan.StepCarrier, false},
	{shim, delegates, "if one fails: DEL of all, in reverse", plan.StepUndo, false},
	{shim, agents, "report: result or error, times", "", false},
	{shim, fromRuntime, "result, or an error that names cause and remedy", "", true},
	{agents, apiServers, "one PATCH of network-status, one Event", "", false},
}

// Dimensions of the picture, in pixels.
const (
	column = 150
	left   = 80
	top    = 60
	row    = 34
)

// picture renders the messages as SVG.
func picture() string {
	width, height := left*2+column*(len(lifelines)-1), top+row*(len(add)+1)
	x := func(lifeline int) int { return left + column*lifeline }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	b.WriteString(`<title>An ADD, from the runtime's call to its result</title>` + "\n")
	b.WriteString(`<defs><marker id="a" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#333"/></marker></defs>` + "\n")
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", width, height)
	for i, name := range lifelines {
		fill := "#eef"
		if i == shim || i == agents {
			fill = "#dfd" // ours
		}
		fmt.Fprintf(&b, `<rect x="%d" y="14" width="132" height="26" rx="4" fill="%s" stroke="#333"/><text x="%d" y="32" text-anchor="middle">%s</text>`+"\n", x(i)-66, fill, x(i), name)
		fmt.Fprintf(&b, `<line x1="%d" y1="40" x2="%d" y2="%d" stroke="#999" stroke-dasharray="3 3"/>`+"\n", x(i), x(i), height-8)
	}
	for i, m := range add {
		y := top + row*i + 20
		dash := ""
		if m.back {
			dash = ` stroke-dasharray="6 3"`
		}
		text := m.text
		if m.step != "" {
			text += " [" + m.step + "]"
		}
		fmt.Fprintf(&b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#333" marker-end="url(#a)"%s/>`, x(m.from), y, x(m.to), y, dash)
		fmt.Fprintf(&b, `<text x="%d" y="%d" stroke="#fff" stroke-width="4" paint-order="stroke">%s</text>`+"\n", min(x(m.from), x(m.to))+8, y-6, strings.NewReplacer("&", "&amp;", "<", "&lt;").Replace(text))
	}
	return b.String() + "</svg>\n"
}

// The picture has every step that the plugin measures, so that a trace can be read next
// to it.
func TestPictureOfAnADD(t *testing.T) {
	for _, step := range []string{plan.StepLock, plan.StepPlan, plan.StepVersion, plan.StepJournal, plan.StepDelegate, plan.StepVerify, plan.StepCarrier, plan.StepUndo} {
		if !slices.ContainsFunc(add, func(m arrow) bool { return m.step == step }) {
			t.Errorf("step %s is not in the picture", step)
		}
	}
	golden(t, filepath.Join(root, "docs", "add.svg"), picture())
}
