package plan

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// helperEnv makes the test binary act as the one-shot program.
const helperEnv = "MANIFOLD_PLAN_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helperEnv) {
	case "plan":
		if err := ServeStream(context.Background(), os.Stdin, os.Stdout, fake{}); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	case "garbage":
		fmt.Println("hello")
		os.Exit(0)
	case "hang":
		_, _ = os.Stdin.Read(make([]byte, 1))
		select {}
	case "fail":
		fmt.Fprintln(os.Stderr, "no such thing")
		os.Exit(3)
	}
	goleak.VerifyTestMain(m)
}

// fake plans one attachment per pod and refuses the pod "bad".
type fake struct{ reports chan string }

func (f fake) Plan(_ context.Context, r Request) (*Plan, error) {
	if r.PodName == "huge" {
		return &Plan{Version: Version, Attachments: make([]Attachment, 1), Warnings: []string{strings.Repeat("x", MaxMessage)}}, nil
	}
	if r.PodName == "bad" {
		return nil, cnierr.New("assign device", cnierr.NoDevice, "none").WithFix("ask for one").About(cnierr.Subject{Resource: "r/x"})
	}
	return &Plan{Version: Version, ContainerID: r.ContainerID, Attachments: []Attachment{{Name: r.PodName}}}, nil
}

func (f fake) Report(_ context.Context, r Report) error {
	f.reports <- r.Verb + " " + r.Plan.ContainerID
	return nil
}

func (fake) Status(_ context.Context, q StatusQuery) (json.RawMessage, error) {
	if q.Name != "" {
		return json.RawMessage(`{"name":"` + q.Namespace + q.Name + `"}`), nil
	}
	return nil, errors.New("plain")
}

// served serves p on a socket until the test ends.
func served(t *testing.T, p Planner) Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "plan-")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "d", "agent.sock")
	l, err := Listen(filepath.Dir(path), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, p) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	return Client{Socket: path}
}

func TestOverTheSocket(t *testing.T) {
	f := fake{reports: make(chan string, 1)}
	c := served(t, f)
	exercise(t, c)
	if err := c.Report(t.Context(), Report{Verb: "ADD", Plan: &Plan{ContainerID: "c"}}); err != nil || <-f.reports != "ADD c" {
		t.Error(err)
	}
	fi, err := os.Stat(c.Socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("socket %v %v", fi.Mode(), err)
	}
	again, err := Listen(filepath.Dir(c.Socket), c.Socket) // over the existing socket
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}

func TestByProgram(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(helperEnv, "plan")
	c := &Command{Path: self}
	exercise(t, c)
	first := c.running.cmd.Process
	exercise(t, c)
	if c.running.cmd.Process != first {
		t.Error("the program was started again")
	}
	if err := first.Kill(); err != nil {
		t.Fatal(err)
	}
	exercise(t, c) // starts a new program
	if err := c.Close(); err != nil || c.running != nil {
		t.Errorf("close: %v", err)
	}
	for mode, want := range map[string]string{"garbage": "answer", "fail": "no such thing"} {
		t.Setenv(helperEnv, mode)
		c := &Command{Path: self}
		if _, err := c.Plan(t.Context(), Request{}); !IsTransport(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", mode, err)
		}
		if err := c.Close(); err != nil {
			t.Errorf("%s: %v", mode, err)
		}
	}
}

// A program that hangs is killed when the call's time is over.
func TestAProgramThatHangs(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(helperEnv, "hang")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c := &Command{Path: self}
	if _, err := c.Plan(ctx, Request{}); !IsTransport(err) || !errors.Is(err, context.DeadlineExceeded) || c.running != nil {
		t.Errorf("%v", err)
	}
}

// exercise checks what every transport must carry.
func exercise(t *testing.T, p Planner) {
	t.Helper()
	got, err := p.Plan(t.Context(), Request{Version: 1, PodName: "app", ContainerID: "c"})
	if err != nil || got.ContainerID != "c" || got.Attachments[0].Name != "app" {
		t.Errorf("%+v, %v", got, err)
	}
	_, err = p.Plan(t.Context(), Request{PodName: "bad"})
	if IsTransport(err) || cnierr.KindOf(err) != cnierr.NoDevice || err.Error() != "resource r/x: assign device: none; ask for one" {
		t.Errorf("a refusal became %v", err)
	}
	if config, err := p.Status(t.Context(), StatusQuery{Namespace: "a", Name: "b"}); err != nil || string(config) != `{"name":"ab"}` {
		t.Errorf("status: %s, %v", config, err)
	}
	if _, err := p.Status(t.Context(), StatusQuery{}); err == nil || IsTransport(err) {
		t.Errorf("status: %v", err)
	}
}

// slow is a planner that takes its time for everything. It still answers a ping, or
// hangs.
type slow struct {
	takes time.Duration
	hangs bool
}

func (s slow) wait(ctx context.Context) error {
	select {
	case <-time.After(s.takes):
		return nil
	case <-ctx.Done():
		return transportError("ask", ctx.Err())
	}
}

func (s slow) Plan(ctx context.Context, _ Request) (*Plan, error) {
	return &Plan{Attachments: []Attachment{{Name: "slow"}}}, s.wait(ctx)
}

func (s slow) Report(ctx context.Context, _ Report) error { return s.wait(ctx) }

func (s slow) Status(ctx context.Context, _ StatusQuery) (json.RawMessage, error) {
	return nil, s.wait(ctx)
}

func (s slow) Ping(ctx context.Context) error {
	if s.hangs {
		return s.wait(ctx)
	}
	return nil
}

// within runs do with a time limit of one minute of fake time, and returns how much of
// it do took.
func within(t *testing.T, do func(ctx context.Context)) (took time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		do(ctx)
		took = time.Since(began)
	})
	return took
}

// A planner that hangs is given up sooner than one that cannot be pinged. One that
// answers pings is not given up.
func TestWhoHangsIsGivenUpSooner(t *testing.T) {
	for name, c := range map[string]struct {
		first Planner
		of    string // the planner whose plan it is, empty for none
		after time.Duration
	}{
		"late":       {slow{takes: 50 * time.Second}, "slow", 50 * time.Second},
		"too late":   {slow{takes: time.Hour}, "", time.Minute},
		"hangs":      {slow{takes: time.Hour, hangs: true}, "app", 10 * time.Second},
		"cannot say": {struct{ Planner }{slow{takes: time.Hour}}, "app", 40 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			took := within(t, func(ctx context.Context) {
				p, err := (&Fallback{First: c.first, Then: fake{}}).Plan(ctx, Request{PodName: "app"})
				if c.of == "" && !IsTransport(err) || c.of != "" && (err != nil || p.Attachments[0].Name != c.of) {
					t.Errorf("%+v, %v, want that of %q", p, err, c.of)
				}
			})
			if took != c.after {
				t.Errorf("after %s, want %s", took, c.after)
			}
		})
	}
}

// A planner that hung is not asked again: a process waits for it once, whatever it asks
// first.
func TestWhoHungIsNotAskedAgain(t *testing.T) {
	ask := map[string]func(context.Context, *Fallback) error{
		"plan": func(ctx context.Context, f *Fallback) error {
			_, err := f.Plan(ctx, Request{PodName: "app"})
			return err
		},
		"report": func(ctx context.Context, f *Fallback) error {
			return f.Report(ctx, Report{Verb: "ADD", Plan: &Plan{ContainerID: "c"}})
		},
		"status": func(ctx context.Context, f *Fallback) error {
			_, err := f.Status(ctx, StatusQuery{Name: "net"})
			return err
		},
	}
	for name, after := range map[string]time.Duration{"plan": 2 * pingTime, "report": 2 * pingTime, "status": askTime} {
		t.Run(name, func(t *testing.T) {
			f := &Fallback{First: slow{takes: time.Hour, hangs: true}, Then: fake{reports: make(chan string, len(ask)+1)}}
			took := within(t, func(ctx context.Context) {
				err := ask[name](ctx, f)
				for _, again := range ask {
					err = errors.Join(err, again(ctx, f))
				}
				if err != nil {
					t.Error(err)
				}
			})
			if took != after {
				t.Errorf("all together took %s, want %s", took, after)
			}
		})
	}
	f := &Fallback{First: Client{Socket: filepath.Join(t.TempDir(), "absent")}, Then: fake{}}
	if _, err := f.Plan(t.Context(), Request{PodName: "app"}); err != nil || f.hung != nil {
		t.Errorf("one that is away comes back: %v, %v", err, f.hung)
	}
}

// away is a planner that cannot be reached until it is back.
type away struct {
	fake
	back *atomic.Bool
}

func (a away) Plan(ctx context.Context, r Request) (*Plan, error) {
	if !a.back.Load() {
		return nil, transportError("ask", errors.New("nobody listens"))
	}
	return a.fake.Plan(ctx, r)
}

// Without an agent, processes plan one after another until there is an agent, and wait
// no longer than queueTime.
func TestOneAfterAnotherPlansWithoutAnAgent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		comes time.Duration // when the agent comes, after the first has its turn
		ends  time.Duration // how long that turn takes
		after time.Duration // when the second has its plan
		of    string        // and whose plan it is
	}{
		"the agent comes":   {comes: time.Second, ends: time.Minute, after: time.Second, of: "agent's"},
		"the turn is over":  {comes: time.Hour, ends: time.Second, after: time.Second + 50*time.Second, of: "slow"},
		"the turn does not": {comes: time.Hour, ends: time.Minute, after: queueTime + 50*time.Second, of: "slow"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var back atomic.Bool
				time.AfterFunc(c.comes, func() { back.Store(true) })
				began, done := time.Now(), make(chan error)
				go func() {
					_, err := (&Fallback{First: away{back: &back}, Then: slow{takes: c.ends}, Queue: file}).Plan(t.Context(), Request{})
					done <- err
				}()
				synctest.Wait()
				p, err := (&Fallback{First: away{back: &back}, Then: slow{takes: 50 * time.Second}, Queue: file}).
					Plan(t.Context(), Request{PodName: "agent's"})
				if took := time.Since(began).Truncate(queuePoll * 5); err != nil || p.Attachments[0].Name != c.of || took != c.after {
					t.Errorf("%+v, %v after %s, want that of %q after %s", p, err, took, c.of, c.after)
				}
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// With a missing queue file there is no queue.
func TestQueueOfAFileThatIsNot(t *testing.T) {
	f := &Fallback{First: away{back: new(atomic.Bool)}, Then: fake{}, Queue: filepath.Join(t.TempDir(), "absent")}
	if p, err := f.Plan(t.Context(), Request{PodName: "app"}); err != nil || p == nil {
		t.Errorf("%+v, %v", p, err)
	}
}

// waiting is a planner that tells what began and waits until the call ends. A report
// also waits until it is told to end.
type waiting struct {
	fake
	began, ended chan string
	enough       chan struct{}
}

func (w waiting) Plan(ctx context.Context, _ Request) (*Plan, error) {
	w.began <- opPlan
	<-ctx.Done()
	w.ended <- opPlan
	return nil, ctx.Err()
}

func (w waiting) Report(ctx context.Context, _ Report) error {
	w.began <- opReport
	select {
	case <-ctx.Done():
		w.ended <- opReport
	case <-w.enough:
	}
	return nil
}

// A question ends with its caller; a report is published all the same.
func TestACallEndsWithItsCaller(t *testing.T) {
	w := waiting{began: make(chan string), ended: make(chan string, 2), enough: make(chan struct{})}
	c := served(t, w)
	for _, call := range []func(context.Context) error{
		func(ctx context.Context) error {
			return c.Report(ctx, Report{Verb: "ADD", Plan: &Plan{ContainerID: "c"}})
		},
		func(ctx context.Context) error { _, err := c.Plan(ctx, Request{PodName: "app"}); return err },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		given := make(chan error)
		go func() { given <- call(ctx) }()
		<-w.began
		cancel()
		if err := <-given; !IsTransport(err) {
			t.Errorf("%v", err)
		}
	}
	if op := <-w.ended; op != opPlan {
		t.Errorf("%s ended with its caller", op)
	}
	close(w.enough)
}

func TestNobodyThere(t *testing.T) {
	c := Client{Socket: filepath.Join(t.TempDir(), "absent.sock")}
	if _, err := c.Plan(t.Context(), Request{}); !IsTransport(err) || cnierr.KindOf(err) != cnierr.TryAgain {
		t.Errorf("%v", err)
	}
	if _, err := (&Command{Path: "/nonexistent/agent"}).Plan(t.Context(), Request{}); !IsTransport(err) {
		t.Errorf("%v", err)
	}
	f := fake{}
	if p, err := (&Fallback{First: c, Then: f}).Plan(t.Context(), Request{PodName: "app"}); err != nil || p == nil {
		t.Errorf("fallback: %v", err)
	}
	if _, err := (&Fallback{First: c, Then: c}).Plan(t.Context(), Request{}); !IsTransport(err) {
		t.Errorf("both absent: %v", err)
	}
	refusing := &Fallback{First: f, Then: c}
	if _, err := refusing.Plan(t.Context(), Request{PodName: "bad"}); cnierr.KindOf(err) != cnierr.NoDevice {
		t.Errorf("a refusal is an answer: %v", err)
	}
}

// unanswered returns the path of a socket that accepts connections without anybody
// answering.
func unanswered(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.sock")
	l, err := Listen(filepath.Dir(path), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the test is over
	return path
}

// When the agent's socket accepts and nobody answers, the other planner is asked while
// there is time.
func TestAnAgentThatHangs(t *testing.T) {
	path := unanswered(t)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	p, err := (&Fallback{First: Client{Socket: path}, Then: fake{}}).Plan(ctx, Request{PodName: "web"})
	if err != nil || p.Attachments[0].Name != "web" {
		t.Errorf("%v, %v", p, err)
	}
}

// Whoever waits for an agent until the time is up reads what to look at.
func TestTimeIsUp(t *testing.T) {
	path := unanswered(t)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	_, err := Client{Socket: path}.Plan(ctx, Request{PodName: "web"})
	var e *cnierr.Error
	if !errors.As(err, &e) || e.Kind != cnierr.TryAgain || !strings.Contains(e.Fix, "API server") {
		t.Errorf("%v", err)
	}
}

func TestAPlanTooLargeIsARefusal(t *testing.T) {
	_, err := served(t, fake{}).Plan(context.Background(), Request{PodName: "huge"})
	if err == nil || IsTransport(err) || !strings.Contains(err.Error(), "too large") {
		t.Errorf("%v", err)
	}
}

func TestBadAnswers(t *testing.T) {
	oversize := []byte{0xff, 0xff, 0xff, 0xff}
	frame := func(body string) []byte {
		return append([]byte{0, 0, 0, byte(len(body))}, body...)
	}
	for name, answer := range map[string][]byte{
		"nothing": nil, "oversize": oversize, "not JSON": frame("x"), "no plan": frame("{}"), "no attachment": frame(`{"plan":{"version":1}}`),
		"newer": frame(`{"plan":{"version":9,"attachments":[{}]}}`), "half": frame(`{"plan"`)[:6],
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				var in call
				_ = readFrame(conn, &in) // what was asked does not matter
				_, _ = conn.Write(answer)
			}()
			if _, err := (Client{Socket: path}).Plan(t.Context(), Request{}); !IsTransport(err) {
				t.Errorf("%v", err)
			}
			<-done
		})
	}
}

func TestBadCalls(t *testing.T) {
	for _, in := range []string{"x", "{", "{}", `{"op":"plan"}`, `{"op":"report"}`, `{"op":"report","report":{}}`, `{"op":"format"}`} {
		var out bytes.Buffer
		if err := ServeStream(t.Context(), bytes.NewReader([]byte(in)), &out, fake{}); err != nil || !bytes.Contains(out.Bytes(), []byte(`"error"`)) {
			t.Errorf("%q: %s %v", in, out.Bytes(), err)
		}
	}
}

// One stream carries several calls, each with an answer. A call that is too large is
// the last.
func TestManyCalls(t *testing.T) {
	status := `{"op":"status","status":{"namespace":"a","name":"b"}}`
	huge := `{"op":"` + strings.Repeat("x", 2*MaxMessage) + `"}`
	var out bytes.Buffer
	if err := ServeStream(t.Context(), strings.NewReader(status+status+"\n"+huge+status), &out, fake{}); err != nil {
		t.Fatal(err)
	}
	answers := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(answers) != 3 || !strings.Contains(answers[0], `"ab"`) || answers[1] != answers[0] || !strings.Contains(answers[2], "bytes") {
		t.Errorf("%.500q", answers)
	}
	out.Reset()
	if err := ServeStream(t.Context(), strings.NewReader(""), &out, fake{}); err != nil || out.Len() > 0 {
		t.Errorf("no call: %q, %v", out.Bytes(), err)
	}
}

func FuzzFrame(f *testing.F) {
	var b bytes.Buffer
	if err := writeFrame(&b, call{Op: opStatus}); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte{0, 0, 0, 1, '{'})
	f.Fuzz(func(t *testing.T, data []byte) {
		var c call
		if readFrame(bytes.NewReader(data), &c) == nil {
			dispatch(t.Context(), call{Op: c.Op}, fake{})
		}
	})
}

// A call is encoded as encoding/json would encode it, including fields that are added
// later.
func TestEveryPartOfACallIsEncoded(t *testing.T) {
	type plain call
	for _, f := range reflect.VisibleFields(reflect.TypeFor[call]()) {
		var c call
		v := reflect.ValueOf(&c).Elem().FieldByIndex(f.Index)
		if v.Kind() == reflect.Pointer {
			v.Set(reflect.New(f.Type.Elem()))
		} else {
			v.SetString("x")
		}
		var got, want map[string]any
		for into, in := range map[*map[string]any]any{&got: c, &want: plain(c)} {
			raw, err := json.Marshal(in)
			if err == nil {
				err = json.Unmarshal(raw, into)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", f.Name, got, want)
		}
	}
}
