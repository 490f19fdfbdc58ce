package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// Runtime calls one CNI plugin as a container runtime does.
type Runtime struct {
	Plugin string   // path of the plugin's program
	Path   string   // CNI_PATH
	Conf   []byte   // stdin
	Env    []string // additional environment, "K=V"; "K=" removes a variable
	Args   string   // additional CNI_ARGS, "K=V;…"
}

// Sandbox is a pod's sandbox.
type Sandbox struct {
	ID    string
	NetNS string
	// Namespace, Name and UID of the pod; no pod if Name is empty.
	Namespace, Name, UID string
}

// Result is the outcome of a call.
type Result struct {
	Status int
	Stdout []byte
	Stderr []byte
	// Error is the CNI error object that a failed call printed on stdout; nil if there
	// is none.
	Error *types.Error
}

// streamsEnd is how long the streams of a plugin that has ended may stay open: until those
// that it left behind end, for example after a kill. A runtime would wait for ever.
const streamsEnd = time.Minute

// Call runs a verb and waits for its result. It fails if a process that the plugin left
// behind holds its streams open.
func (r *Runtime) Call(verb string, s Sandbox) (*Result, error) {
	cmd := r.Command(verb, s)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = &stdout, &stderr, streamsEnd
	err := cmd.Run()
	if cmd.ProcessState == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil, err
	}
	res := &Result{Status: cmd.ProcessState.ExitCode(), Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	if res.Status != 0 {
		var object types.Error
		if json.Unmarshal(res.Stdout, &object) == nil && object.Msg != "" {
			res.Error = &object
		}
	}
	return res, nil
}

// Command returns the command of a call, not yet started, with a process group of its
// own.
func (r *Runtime) Command(verb string, s Sandbox) *exec.Cmd {
	env := []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.ID, "CNI_NETNS=" + s.NetNS, "CNI_IFNAME=eth0", "CNI_PATH=" + r.Path,
		"CNI_ARGS=" + r.args(s), "PATH=" + os.Getenv("PATH"),
	}
	for _, kv := range r.Env {
		key, value, _ := strings.Cut(kv, "=")
		kept := env[:0]
		for _, have := range env {
			if !strings.HasPrefix(have, key+"=") {
				kept = append(kept, have)
			}
		}
		if env = kept; value != "" {
			env = append(env, kv)
		}
	}
	cmd := exec.Command(r.Plugin)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = env, bytes.NewReader(r.Conf), io.Discard, io.Discard
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

func (r *Runtime) args(s Sandbox) string {
	args := []string{"IgnoreUnknown=1"}
	if s.Name != "" {
		args = append(args, "K8S_POD_NAMESPACE="+s.Namespace, "K8S_POD_NAME="+s.Name, "K8S_POD_INFRA_CONTAINER_ID="+s.ID)
	}
	if s.UID != "" {
		args = append(args, "K8S_POD_UID="+s.UID)
	}
	if r.Args != "" {
		args = append(args, r.Args)
	}
	return strings.Join(args, ";")
}

// OneDocument returns an error unless b is exactly one JSON document, which is all that
// a plugin may print on stdout.
func OneDocument(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	var v any
	if err := d.Decode(&v); err != nil {
		return fmt.Errorf("stdout %q: %w", b, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("stdout %q has more than one document", b)
	}
	return nil
}
