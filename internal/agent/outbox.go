package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/files"
	"github.com/manifold-cni/manifold/internal/kube"
	"github.com/manifold-cni/manifold/internal/plan"
)

// outbox is a directory in which reports wait for an agent that can publish them. The
// one-shot mode on the host has no credential, so without the outbox a pod that was
// attached while the agent was being replaced would never get its network-status.
type outbox string

// outboxOf returns the outbox beside the journals of cniDir.
func outboxOf(cniDir string) outbox { return outbox(filepath.Join(cniDir, "reports")) }

// maxReports bounds the outbox, because pods come and go however long no agent runs.
const maxReports = 4096

// reportSuffix ends the name of a report's file, but not that of one being written.
const reportSuffix = ".json"

// put adds a report.
func (o outbox) put(r *plan.Report) error {
	const op = "keep report for the agent"
	raw, err := json.Marshal(r)
	if err != nil {
		return cnierr.New(op, cnierr.Other, "%w", err)
	}
	if err := os.MkdirAll(string(o), 0o700); err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err)
	}
	names, err := o.list()
	if err == nil && len(names) >= maxReports {
		err = fmt.Errorf("%d reports are waiting in %s", len(names), o)
	}
	if err == nil {
		// Names sort by time, so that reports are delivered in order.
		err = files.Replace(filepath.Join(string(o), fmt.Sprintf("%020d-%d%s", time.Now().UnixNano(), os.Getpid(), reportSuffix)), raw)
	}
	if err != nil {
		return cnierr.New(op, cnierr.IO, "%w", err).WithFix("find out why no agent runs on this node")
	}
	return nil
}

// list returns the reports' files, the oldest first.
func (o outbox) list() ([]string, error) {
	entries, err := os.ReadDir(string(o)) // no glob: the directory's name may have the characters of a pattern
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range entries {
		if filepath.Ext(e.Name()) == reportSuffix {
			names = append(names, filepath.Join(string(o), e.Name()))
		}
	}
	return names, err
}

// take reads a report. It removes a damaged one, since nobody will ever be able to read
// it.
func (o outbox) take(file string) (*plan.Report, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	r := &plan.Report{}
	if err := json.Unmarshal(raw, r); err != nil || r.Plan == nil {
		return nil, errors.Join(fmt.Errorf("report %s is damaged: %w", file, err), os.Remove(file))
	}
	return r, nil
}

// deliverPause is how long Deliver leaves an API server alone that does not answer.
const deliverPause = 15 * time.Second

// Deliver publishes, until ctx ends, the reports of processes that cannot reach the API
// server. While no report waits, it does nothing.
func (a *Agent) Deliver(ctx context.Context) {
	if a.src.Publisher == nil {
		return
	}
	box := outboxOf(a.src.Journal.Path)
	err := os.MkdirAll(string(box), 0o700)
	w := files.Watch(string(box), files.LookEvery)
	defer w.Close()
	if err = errors.Join(err, w.Err()); err != nil {
		a.log.Warn("cannot watch for reports kept while no agent ran; checking at intervals instead", "dir", string(box), "every", files.LookEvery.String(), "err", err)
	}
	for {
		err := a.deliver(ctx, box)
		if err != nil {
			a.log.Warn("cannot publish reports kept while no agent ran", "err", err)
		}
		if errors.Is(err, kube.ErrUnavailable) {
			select {
			case <-time.After(deliverPause):
				continue
			case <-ctx.Done():
				return
			}
		}
		if !w.Await(ctx) {
			return
		}
	}
}

// deliver publishes the waiting reports, up to the first one that must wait longer.
func (a *Agent) deliver(ctx context.Context, o outbox) error {
	files, err := o.list()
	if err != nil || len(files) == 0 {
		return err
	}
	var problems []error
	for _, file := range files {
		r, err := o.take(file)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		if err = a.tellKept(ctx, r); errors.Is(err, kube.ErrUnavailable) {
			return errors.Join(append(problems, err)...)
		}
		a.src.Metrics.Operation(operationOf(r)) // once, however often publishing was tried
		problems = append(problems, err, os.Remove(file))
	}
	return errors.Join(problems...)
}

// tellKept publishes a report that was kept. While the status must wait for the API
// server, so does the Event: each try would write another.
func (a *Agent) tellKept(ctx context.Context, r *plan.Report) (err error) {
	if r.Plan.Pod.Name == "" || r.Verb == "ADD" && a.gone(r.Plan) {
		return nil
	}
	if attached(r) {
		err = a.publish(ctx, r, apiUIDOf(r.Plan.Pod))
	}
	if !errors.Is(err, kube.ErrUnavailable) {
		a.announce(ctx, r)
	}
	return err
}
