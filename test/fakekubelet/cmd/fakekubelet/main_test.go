package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	resv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// program is the command, running in this process.
type program struct {
	t      *testing.T
	dir    string
	reload chan os.Signal
	out    *io.PipeReader
	stderr bytes.Buffer
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// begin runs the program on DIR/kubelet and DIR/pods and waits for "ready".
func begin(t *testing.T, args ...string) *program {
	t.Helper()
	dir, err := os.MkdirTemp("", "kubelet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &program{t: t, dir: dir, reload: make(chan os.Signal)}
	p.write("pods/a.yaml", `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec: {containers: [{name: c1, resources: {limits: {vendor.example/vfs: 1}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: big, namespace: shop}
spec: {containers: [{name: c1, resources: {limits: {vendor.example/vfs: 9}}}]}
`)
	ctx, cancel := context.WithCancel(t.Context())
	p.cancel = cancel
	var in *io.PipeWriter
	p.out, in = io.Pipe()
	args = append([]string{"--dir", filepath.Join(dir, "kubelet"), "--pods", filepath.Join(dir, "pods")}, args...)
	p.done.Go(func() {
		defer in.Close()
		if err := run(ctx, args, in, &p.stderr, p.reload); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(p.end)
	return p
}

// end stops the program as SIGTERM does.
func (p *program) end() {
	p.cancel()
	_, _ = io.Copy(io.Discard, p.out) // until it exits
	p.done.Wait()
}

func (p *program) write(name, content string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

// ready reads the program's output up to "ready" and replaces the directory's path
// with DIR.
func (p *program) ready() string {
	p.t.Helper()
	var text strings.Builder
	b := make([]byte, 1)
	for !strings.HasSuffix(text.String(), "ready\n") {
		if _, err := p.out.Read(b); err != nil {
			p.t.Fatalf("%v after %q", err, text.String())
		}
		text.Write(b)
	}
	return strings.ReplaceAll(text.String(), p.dir, "DIR")
}

func TestRun(t *testing.T) {
	p := begin(t, "--devices", "vendor.example/vfs=a@1,b", "--devices", "vendor.example/gpu=g", "--rate-limit", "1e-9", "--burst", "1")
	want := `pod-resources DIR/kubelet/pod-resources/kubelet.sock
pods-api DIR/kubelet/pods-api/pods-api.sock
device-plugins DIR/kubelet/device-plugins/kubelet.sock
checkpoint DIR/kubelet/device-plugins/kubelet_internal_checkpoint
pod default/web 00000000-0000-4000-8000-000000000001
  c1 vendor.example/vfs a
ready
`
	if got := p.ready(); got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	conn, err := grpc.NewClient("unix:"+filepath.Join(p.dir, "kubelet/pod-resources/kubelet.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := resv1.NewPodResourcesListerClient(conn)
	list, err := client.List(t.Context(), &resv1.ListPodResourcesRequest{})
	if err != nil || len(list.GetPodResources()) != 1 {
		t.Fatalf("List = %v, %v", list, err)
	}
	if d := list.GetPodResources()[0].GetContainers()[0].GetDevices()[0]; d.GetTopology().GetNodes()[0].GetID() != 1 {
		t.Errorf("device %v, want node 1", d)
	}
	if _, err := client.List(t.Context(), &resv1.ListPodResourcesRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("the second call within the limit of one: %v", err)
	}
	p.end()
	if !regexp.MustCompile(`shop/big: .*not enough free devices: 9 more wanted, 1 free`).MatchString(p.stderr.String()) {
		t.Errorf("stderr %q", p.stderr.String())
	}
}

func TestReload(t *testing.T) {
	p := begin(t, "--devices", "vendor.example/vfs=a,b")
	p.ready()
	p.write("pods/b.json", `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"db"}}`)
	p.write("pods/c.yaml", `{"apiVersion":"v1","kind":"Service","metadata":{"name":"no"}}`)
	p.write("pods/readme.txt", "no manifest")
	p.reload <- syscall.SIGHUP
	if got := p.ready(); !regexp.MustCompile(`^pod default/db \S+\nready\n$`).MatchString(got) {
		t.Errorf("printed %q", got)
	}
	// A half-written manifest keeps its pods; a removed one does not.
	p.write("pods/a.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name")
	if err := os.Remove(filepath.Join(p.dir, "pods/b.json")); err != nil {
		t.Fatal(err)
	}
	p.reload <- syscall.SIGHUP
	if got := p.ready(); !regexp.MustCompile(`^deleted \S+\nready\n$`).MatchString(got) {
		t.Errorf("printed %q", got)
	}
	p.end()
	for _, want := range []string{`c.yaml holds a v1 "Service"`, "a.yaml: "} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("stderr lacks %q:\n%s", want, p.stderr.String())
		}
	}
}

func TestRunRefuses(t *testing.T) {
	for _, args := range [][]string{
		{}, {"--dir", t.TempDir(), "extra"}, {"--unknown"},
		{"--dir", t.TempDir(), "--devices", "noids"}, {"--dir", t.TempDir(), "--devices", "vendor.example/x=a@b"},
		{"--dir", t.TempDir(), "--devices", "cpu=a"}, {"--dir", "/proc/self/nowhere"},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard, nil); err == nil {
			t.Errorf("%q runs", args)
		}
	}
}
