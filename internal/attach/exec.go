package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
)

// maxOutput is how much of a delegate's stdout and stderr is kept, in bytes.
const maxOutput = 4 << 20

// executor runs delegates for libcni (as its invoke.Exec). Unlike libcni's own it lets
// each delegate inherit the sandbox's lock, limits its output, kills what it leaves
// running after its deadline, and gives every failure a kind.
type executor struct {
	version.PluginDecoder
	lock   *journal.Lock // nil: nothing to inherit
	stderr io.Writer     // where a delegate's stderr goes
	// started counts the programs that were started.
	started int
	// sought counts the programs that were looked up. For a chain that failed, it tells
	// how many plugins were tried.
	sought int
	// times records each run as the step named step of this attachment.
	times      *Times
	step       string
	attachment int
}

// findAll finds the programs of a chain, IPAM plugins included.
func (e *executor) findAll(list *libcni.NetworkConfigList, paths []string) error {
	for _, program := range chain.Programs(list) {
		if _, err := e.FindInPath(program, paths); err != nil {
			return err
		}
	}
	return nil
}

// FindInPath implements invoke.Exec.
func (e *executor) FindInPath(plugin string, paths []string) (string, error) {
	e.sought++
	path, err := invoke.FindInPath(plugin, paths)
	if err != nil {
		return "", cnierr.New("find delegate "+plugin, cnierr.DelegateMissing, "%w", err).
			WithFix("install %s into one of: %s", plugin, strings.Join(paths, " "))
	}
	if err := unix.Access(path, unix.X_OK); err != nil {
		return "", cnierr.New("find delegate "+plugin, cnierr.DelegateMissing, "%s: %w", path, err).WithFix("make it executable")
	}
	return path, nil
}

// ExecPlugin implements invoke.Exec. It runs one delegate once.
func (e *executor) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	done := e.times.step(e.step, filepath.Base(path), e.attachment)
	out, err := e.execPlugin(ctx, path, stdin, environ)
	done(err)
	return out, err
}

func (e *executor) execPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	op := "run delegate " + filepath.Base(path)
	var stdout, stderr bounded
	err := e.run(ctx, path, stdin, environ, &stdout, &stderr)
	if stderr.Len() > 0 {
		// A delegate's stderr is for people: failing to write it must not fail the pod.
		_, _ = e.stderr.Write(stderr.Bytes())
	}
	if ctx.Err() != nil && err != nil {
		if e.lock != nil {
			e.lock.EndDescendants()
		}
		return nil, cnierr.New(op, cnierr.DelegateTimeout, "killed after its deadline: %w", errors.Join(context.Cause(ctx), err)).
			WithFix("see why %s hangs, or raise delegateTimeout", path)
	}
	if err != nil {
		return nil, failure(op, err, stdout.Bytes(), stderr.Bytes())
	}
	return checkOutput(op, stdout.Bytes(), environ)
}

// run starts the delegate and waits for it. It retries for a second while the program
// file is being replaced (ETXTBSY).
func (e *executor) run(ctx context.Context, path string, stdin []byte, environ []string, stdout, stderr *bounded) error {
	var inherit *os.File
	if e.lock != nil {
		inherit = e.lock.File()
	}
	for try := 0; ; try++ {
		c, err := startChild(path, stdin, environ, inherit)
		if err == nil {
			e.started++
			return c.wait(ctx, stdout, stderr)
		}
		if !errors.Is(err, syscall.ETXTBSY) || try == 20 || ctx.Err() != nil {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// failure gives the error of a failed delegate a kind. A CNI error object that the
// delegate printed keeps its code.
func failure(op string, err error, stdout, stderr []byte) error {
	if errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ENOEXEC) {
		return cnierr.New(op, cnierr.DelegateMissing, "%w", err).WithFix("make it an executable program for this machine")
	}
	var own types.Error
	if json.Unmarshal(stdout, &own) == nil && (own.Code != 0 || own.Msg != "") {
		return cnierr.New(op, cnierr.DelegateFailed, "%w", &own)
	}
	text := fmt.Sprintf("stdout %.256q", stdout)
	if len(stderr) > 0 {
		text = fmt.Sprintf("stderr %.512q", bytes.TrimSpace(stderr))
	}
	return cnierr.New(op, cnierr.DelegateFailed, "%w, and it printed no CNI error object: %s", err, text)
}

// checkOutput checks a successful delegate's stdout. ADD without output stands for an
// empty result.
func checkOutput(op string, stdout []byte, environ []string) ([]byte, error) {
	verb := ""
	for _, kv := range environ {
		if v, ok := strings.CutPrefix(kv, "CNI_COMMAND="); ok {
			verb = v
		}
	}
	if verb != "ADD" {
		return stdout, nil
	}
	if len(bytes.TrimSpace(stdout)) == 0 {
		return []byte("{}"), nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(stdout, &object); err != nil || object == nil {
		return nil, cnierr.New(op, cnierr.DelegateFailed, "it printed no CNI result, but %.256q", stdout).
			WithFix("check that this delegate is a CNI plugin")
	}
	return stdout, nil
}

// bounded keeps at most maxOutput bytes and drops the rest, so that a delegate that
// floods its output neither blocks nor fills the memory.
type bounded struct{ bytes.Buffer }

// Write implements [io.Writer]. It never fails.
func (b *bounded) Write(p []byte) (int, error) {
	if room := maxOutput - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}
