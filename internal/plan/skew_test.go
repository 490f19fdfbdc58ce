package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// During an upgrade of a node an old plugin may meet a new agent, and the reverse.
// testdata/first has calls and answers as the first release writes them. It is never
// regenerated.

func first(t *testing.T, name string) json.RawMessage {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", "first", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestThisAgentAnswersTheFirstPlugin(t *testing.T) {
	reports := make(chan string, 1)
	c := served(t, fake{reports})
	ask := func(name string) answer {
		conn, err := net.Dial("unix", c.Socket)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		var out answer
		if err := writeFrame(conn, first(t, name)); err != nil {
			t.Fatal(err)
		}
		if err := readFrame(conn, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := ask("plan"); out.Plan == nil || out.Plan.Attachments[0].Name != "web" || out.Plan.Version != 1 {
		t.Errorf("plan: %+v", out)
	}
	if out := ask("report"); out.Error != nil || <-reports != "ADD c1" {
		t.Errorf("report: %+v", out)
	}
	if out := ask("status"); string(out.Config) != `{"name":"kube-systemcluster-net"}` {
		t.Errorf("status: %s, %v", out.Config, out.Error)
	}
}

// firstAgent answers like the agent of the first release.
func firstAgent(t *testing.T) Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "plan-")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	t.Cleanup(func() {
		_ = l.Close()
		<-ended
		_ = os.RemoveAll(dir)
	})
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			if err := answerAsFirst(t, conn); err != nil {
				t.Error(err)
			}
		}
	}()
	return Client{Socket: l.Addr().String()}
}

func answerAsFirst(t *testing.T, conn net.Conn) error {
	defer conn.Close()
	var in struct {
		Op      string
		Request struct{ PodName string }
		Status  struct{ Name string }
		Report  struct {
			Version int
			Plan    struct{ ContainerID string }
		}
	}
	if err := readFrame(conn, &in); err != nil {
		return err
	}
	var out any = first(t, "answer-unknown")
	switch {
	case in.Op == "plan" && in.Request.PodName == "bad":
		out = first(t, "answer-refused")
	case in.Op == "plan":
		out = first(t, "answer-plan")
	case in.Op == "status" && in.Status.Name == "missing":
		out = first(t, "answer-status-missing")
	case in.Op == "status":
		out = first(t, "answer-status")
	case in.Op == "report" && in.Report.Version == 1 && in.Report.Plan.ContainerID != "":
		out = struct{}{}
	}
	if err := writeFrame(conn, out); err != nil && in.Op != opObserve { // its caller does not wait
		return fmt.Errorf("%s: %w", in.Op, err)
	}
	return nil
}

func TestThisPluginUnderstandsTheFirstAgent(t *testing.T) {
	c := firstAgent(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, err := c.Plan(ctx, Request{Version: Version, PodName: "web", ContainerID: "c1", ID: "new"})
	if err != nil || len(p.Attachments) != 2 || p.Attachments[1].Device.ID != "0000:01:10.0" || p.Attachments[1].Want.Verify != VerifyEnforce {
		t.Fatalf("%+v, %v", p, err)
	}
	if _, err := c.Plan(ctx, Request{Version: Version, PodName: "bad"}); !cnierr.Is(err, cnierr.NoDevice) || IsTransport(err) {
		t.Errorf("a refusal: %v", err)
	}
	if config, err := c.Status(ctx, StatusQuery{Name: "cluster-net"}); err != nil || string(config) == "" {
		t.Errorf("status: %s, %v", config, err)
	}
	// On this error the caller falls back to a file. It must look neither like a broken
	// definition nor like an unreachable agent.
	if _, err := c.Status(ctx, StatusQuery{Name: "missing"}); !cnierr.Is(err, cnierr.NotReady) || cnierr.Is(err, cnierr.InvalidDefinition) || IsTransport(err) {
		t.Errorf("status without a definition: %v", err)
	}
	if err := c.Report(ctx, Report{Version: Version, Plan: p.Digest(), Verb: "ADD", Later: true, Operation: &Operation{Verb: "ADD"}}); err != nil {
		t.Errorf("report: %v", err)
	}
	c.Observe(ctx, Operation{Verb: "DEL"}) // refused there, without telling anybody
	if _, err := c.Inspect(ctx, Question{About: AboutNode}); !cnierr.Is(err, cnierr.Decode) {
		t.Errorf("what the first agent does not know: %v", err)
	}
}
