package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
	"github.com/manifold-cni/manifold/internal/verify"
	"github.com/manifold-cni/manifold/sriov"
)

// Check runs every delegate's CHECK with the recorded configuration and result, and
// repeats the verification. A network of a CNI version before 0.4.0 has no CHECK and is
// only verified.
func (e *Engine) Check(ctx context.Context, inv *netconf.Invocation) error {
	if inv.Conf.ReleaseOnly != "" {
		return nil
	}
	r, err := e.begin(ctx, inv)
	if err != nil {
		return err
	}
	r.entry, err = e.Journal.Open(keyOf(inv))
	if errors.Is(err, os.ErrNotExist) {
		if attachments, err := r.foreign(); err != nil || len(attachments) > 0 {
			return r.end(true, errors.Join(err, r.checkForeign(ctx, attachments)))
		}
		err = cnierr.New("check", cnierr.UnknownContainer, "sandbox %s is not attached", keyOf(inv)).
			About(cnierr.Subject{Pod: inv.Pod.String()})
		return r.end(true, err)
	}
	if err != nil {
		return r.end(false, err)
	}
	var outcomes []plan.Outcome
	for i := range r.entry.Plan.Attachments {
		r.exec.attachment = i
		out, err := r.checkOne(ctx, i)
		if err != nil {
			return r.end(false, cnierr.Annotate(err, r.subject(i)))
		}
		outcomes = append(outcomes, *out)
	}
	return r.end(false, r.carriers(outcomes))
}

func (r *run) checkOne(ctx context.Context, i int) (*plan.Outcome, error) {
	a := &r.entry.Plan.Attachments[i]
	result := r.entry.Result(i)
	if result == nil {
		return nil, cnierr.New("check", cnierr.TeardownIncomplete, "its ADD never completed")
	}
	list, err := listOf(a)
	if err != nil {
		return nil, err
	}
	// Without the recorded state, verify would compare less than its outcome claims.
	var before *sriov.Snapshot
	if a.Device != nil {
		if before, err = verify.Recorded(r.entry.Before(i)); err != nil {
			return nil, err
		}
	}
	rt := r.runtimeConf(a, r.inv.NetNS)
	if err := r.seedCache(list, rt, result); err != nil {
		return nil, err
	}
	if knows, err := version.GreaterThanOrEqualTo(list.CNIVersion, "0.4.0"); err == nil && knows {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(r.inv.Conf.DelegateTime))
		defer cancel()
		if err := r.cni.CheckNetworkList(ctx, list, rt); err != nil {
			return nil, verify.Vanished(r.host(), a.Device, before, delegateError("check", err))
		}
	}
	done := r.Times.step(plan.StepVerify, "", i)
	out, err := r.verify(a, result, before)
	done(err)
	return out, err
}

// statusTime bounds the whole STATUS. The kubelet considers a runtime dead that does
// not report its status within 30 s.
const statusTime = 20 * time.Second

// Status returns nil when an ADD can be served: a journal can be begun, the planner
// answers, the default network is configured and can be planned, its programs and those
// of the other networks that every pod gets are installed, and its own STATUS succeeds.
func (e *Engine) Status(ctx context.Context, inv *netconf.Invocation) error {
	if inv.Conf.ReleaseOnly != "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, min(statusTime, time.Duration(inv.Conf.PlanTime)))
	defer cancel()
	notReady := func(err error) error { return cnierr.New("status", cnierr.NotReady, "%w", err) }
	if file := inv.Conf.Readiness; file != "" {
		if _, err := os.Stat(file); err != nil {
			return notReady(fmt.Errorf("the default network's readinessindicatorfile: %w", err))
		}
	}
	if err := e.Journal.Usable(); err != nil {
		return notReady(err)
	}
	list, raw, err := e.defaultNetwork(ctx, inv)
	if err == nil {
		_, err = e.Planner.Status(ctx, plan.StatusQuery{Config: raw, Type: inv.Conf.Type})
	}
	if err != nil {
		return notReady(err)
	}
	r := e.newRun(inv, nil)
	if err := r.exec.findAll(list, inv.Path); err != nil {
		return notReady(err)
	}
	if err := r.findFurther(); err != nil {
		return notReady(err)
	}
	if err := r.cni.GetStatusNetworkList(ctx, list); err != nil {
		return notReady(err)
	}
	return nil
}

// findFurther finds the programs of the networks that every pod gets after the default
// network. Without them each ADD is refused.
func (r *run) findFurther() error {
	further, err := r.inv.Conf.Further()
	if err != nil {
		return err
	}
	for _, raw := range further {
		list, err := chain.List(raw)
		if err != nil {
			return cnierr.New("read delegates", cnierr.InvalidConfig, "%w", err)
		}
		if err := r.exec.findAll(list, r.inv.Path); err != nil {
			return cnierr.Annotate(err, cnierr.Subject{Network: list.Name})
		}
	}
	return nil
}

// defaultNetwork returns the cluster default network as an ADD would use it now. If
// only finding its CNI version fails, it returns the network with the error.
func (e *Engine) defaultNetwork(ctx context.Context, inv *netconf.Invocation) (list *libcni.NetworkConfigList, raw json.RawMessage, err error) {
	raw, err = inv.Conf.ClusterDefault(func(namespace, name string) (json.RawMessage, error) {
		return e.Planner.Status(ctx, plan.StatusQuery{Namespace: namespace, Name: name})
	})
	if err != nil {
		return nil, nil, err
	}
	if list, err = chain.List(raw); err != nil {
		return nil, nil, err
	}
	list, err = e.newRun(inv, nil).versioned(ctx, list)
	return list, raw, err
}

// knownTime bounds the question to the planner which definition is the default network,
// for verbs that release. These can neither wait for the answer nor depend on it.
const knownTime = 10 * time.Second

// knownDefault is defaultNetwork for GC and DEL. The file serves when the planner does
// not answer soon, and plugins that do not tell their versions in time are called in
// the oldest version.
func (e *Engine) knownDefault(ctx context.Context, inv *netconf.Invocation) (*libcni.NetworkConfigList, error) {
	ctx, cancel := context.WithTimeout(ctx, min(knownTime, time.Duration(inv.Conf.PlanTime)))
	defer cancel()
	list, _, err := e.defaultNetwork(ctx, inv)
	if list != nil {
		return list, nil
	}
	return nil, err
}
