package inspect

import (
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/test/harness"
)

// An agent that accepts calls and answers none, as one that is stopped, keeps nobody on
// the node from an answer: the sources are read instead.
func TestLocalPastASilentAgent(t *testing.T) {
	p := harness.NewPlace(t)
	silent, err := net.Listen("unix", p.Path("agent.sock"))
	p.Must(err)
	defer silent.Close()
	conf, err := json.Marshal(map[string]string{
		"node": "node1", "socket": p.Path("agent.sock"), "cniDir": p.Path("state"), "sysRoot": p.Dir, "kubeletDir": p.Path("kubelet"), "reconcile": "off",
		"snapshot": p.Path("definitions.snapshot"), "cniConfig": p.Path("00-manifold.conflist"),
	})
	p.Must(err)
	p.File("agent.json", string(conf))
	p.File("00-manifold.conflist", `{"cniVersion": "1.1.0", "name": "manifold", "plugins": [{"type": "manifold", "clusterNetwork": "net"}]}`)
	l := Local{Config: p.Path("agent.json"), patience: 50 * time.Millisecond}

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	views, err := l.Views(ctx, nil)
	p.Must(err)
	if len(views) != 1 || views[0].Node != "node1" || len(views[0].Problems) == 0 || !strings.Contains(views[0].Problems[0], "the agent does not answer") {
		t.Errorf("%+v", views)
	}
	e, err := l.Explain(ctx, "default", "app")
	if err != nil || !strings.Contains(e.Steps[0].Text, "it does not answer") {
		t.Errorf("%+v, %v", e, err)
	}
	if ctx.Err() != nil {
		t.Error("it waited as long as it was allowed to")
	}
}
