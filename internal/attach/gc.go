package attach

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/manifold-cni/manifold/internal/chain"
	"github.com/manifold-cni/manifold/internal/cnierr"
	"github.com/manifold-cni/manifold/internal/journal"
	"github.com/manifold-cni/manifold/internal/netconf"
	"github.com/manifold-cni/manifold/internal/plan"
)

// GC releases every sandbox that is not in the list of valid attachments, of the
// journal and of those that Multus left, then passes GC on to the delegates. A sandbox
// that is being added or deleted at this moment holds its lock and is left alone, and
// so is one that may have been added while the runtime made its list (see
// collection.spares): by the delegates too. With the key disableGC nothing is
// collected: for several runtimes that share a directory, each of which knows its own
// sandboxes only.
func (e *Engine) GC(ctx context.Context, inv *netconf.Invocation) error {
	if inv.Conf.DisableGC {
		return nil
	}
	defer e.leave(inv)
	if err := checkValid(inv); err != nil {
		return err
	}
	began, err := journal.Uptime()
	if err != nil {
		return err
	}
	g := &collection{inv: *inv, began: began, clock: time.Now(), valid: map[journal.Key]bool{}, keep: map[string]bool{}}
	g.networks.valid = map[string][]types.GCAttachment{}
	for _, a := range inv.Valid {
		g.valid[journal.Key{ContainerID: a.ContainerID, IfName: a.IfName}] = true
		g.keep[a.ContainerID] = true
	}
	err = errors.Join(e.collectStale(ctx, g), e.collectForeign(ctx, g), e.passOn(ctx, g))
	if err != nil {
		return cnierr.New("collect", cnierr.TeardownIncomplete, "%w", err)
	}
	return nil
}

// checkValid refuses a GC that does not say what lives: taken for an empty list it
// would release every pod of the node.
func checkValid(inv *netconf.Invocation) error {
	err := cnierr.New("collect", cnierr.InvalidConfig, "the runtime does not say which attachments live").
		WithFix("give cni.dev/valid-attachments, with containerID and ifname of each (CNI specification, verb GC)")
	if !inv.NamesValid {
		return err
	}
	for _, a := range inv.Valid {
		if a.ContainerID == "" || a.IfName == "" {
			return err
		}
	}
	return nil
}

// collection is one GC.
type collection struct {
	inv      netconf.Invocation
	began    time.Duration        // when it began, as journal.Uptime
	clock    time.Time            // the same by the clock
	valid    map[journal.Key]bool // the runtime's attachments that live
	keep     map[string]bool      // container IDs that are not foreign and stale
	networks networks
}

// spares reports whether a sandbox that the runtime does not name may be one that it
// was adding when it made its list: its ADD ended since GC began, or within the key
// gcGrace before. The runtime must not add while it collects (CNI specification,
// lifecycle and ordering), and one that does may lose a live pod its networks. What is
// spared is no pod's for ever: the next GC collects it.
func (g *collection) spares(lock *journal.Lock, e *journal.Entry) bool {
	added, known := lock.Added()
	return known && g.began-added < time.Duration(g.inv.Conf.GCGrace) && !e.Releasing() && e.Gone() == ""
}

// collectStale releases the sandboxes with a journal that the runtime does not
// name any more.
func (e *Engine) collectStale(ctx context.Context, g *collection) error {
	keys, err := e.Journal.List()
	if err != nil {
		return err
	}
	var problems []error
	for _, k := range keys {
		if g.valid[k] {
			continue
		}
		entry, err := e.collect(ctx, g, k)
		if entry != nil {
			g.networks.know(entry.Plan)
		}
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// collect releases one stale sandbox unless it is spared or somebody works on it, and
// returns its journal's entry, nil when there is none, or it is damaged.
func (e *Engine) collect(ctx context.Context, g *collection, k journal.Key) (*journal.Entry, error) {
	inv := g.inv
	inv.ContainerID, inv.IfName, inv.NetNS = k.ContainerID, k.IfName, ""
	lock, err := e.Journal.TryLock(k)
	if err != nil || lock == nil {
		return nil, err
	}
	r := e.newRun(&inv, lock)
	r.entry, err = e.Journal.Open(k)
	if errors.Is(err, os.ErrNotExist) {
		return nil, r.end(true, nil)
	}
	if cnierr.Is(err, cnierr.JournalCorrupt) {
		return nil, r.delCorrupt(ctx, err)
	}
	if err != nil {
		return nil, r.end(false, err)
	}
	if g.spares(lock, r.entry) {
		r.spared(k)
		return nil, r.end(false, nil)
	}
	err = errors.Join(r.releaseAll(ctx)...)
	return r.entry, r.end(err == nil, err)
}

// spared says in the log that a sandbox was.
func (r *run) spared(k journal.Key) {
	r.warn("GC spares sandbox %s, which the runtime does not name: it was attached meanwhile or shortly before, so that the runtime may not have known it yet; the next GC collects it", k)
}

// network is a delegate chain that GC is passed on to.
type network struct {
	label  string // what network-status calls it
	name   string // the "name" in its configuration, which delegates keep their state under
	config json.RawMessage
}

// networks are the networks that sandboxes of this node are or were attached to,
// and by name the attachments that live.
type networks struct {
	all   []network
	valid map[string][]types.GCAttachment
}

// know adds the networks of a plan, each once.
func (n *networks) know(p *plan.Plan) {
	for i := range p.Attachments {
		a := &p.Attachments[i]
		same := func(o network) bool { return o.label == a.Name && o.name == a.Network }
		if !slices.ContainsFunc(n.all, same) {
			n.all = append(n.all, network{label: a.Name, name: a.Network, config: a.Config})
		}
	}
}

// live adds a plan's attachments to those that live.
func (n *networks) live(p *plan.Plan) {
	n.know(p)
	for i := range p.Attachments {
		a := &p.Attachments[i]
		n.lives(a.Network, types.GCAttachment{ContainerID: p.ContainerID, IfName: a.IfName})
	}
}

// lives adds an attachment to those of a network that live, once.
func (n *networks) lives(network string, a types.GCAttachment) {
	if !slices.Contains(n.valid[network], a) {
		n.valid[network] = append(n.valid[network], a)
	}
}

// passOn runs GC of every network's delegates with the attachments of that
// network that live (CNI specification, GC), which are more than the runtime
// knows: it has one for each sandbox. libcni releases what its own records name
// beyond them, which is how a delegate without GC is served.
//
// A new sandbox would be missing from that list, so none may begin meanwhile;
// that is why all of it must end within half of what an ADD would wait.
func (e *Engine) passOn(ctx context.Context, g *collection) (err error) {
	// Asked for before, so that a slow planner keeps nobody waiting.
	def, noDefault := e.knownDefault(ctx, &g.inv)
	ctx, cancel := context.WithTimeout(ctx, time.Duration(g.inv.Conf.LockTime)/2)
	defer cancel()
	barrier, err := e.Journal.Barrier(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, barrier.Unlock(false)) }()
	r := e.newRun(&g.inv, nil)
	unknown, err := r.survey(&g.networks)
	if err != nil {
		return err
	}
	if noDefault != nil {
		r.warn("GC is not passed on to the default network: %v", noDefault)
	}
	if len(unknown) > 0 {
		r.warn("GC is passed on to the default network alone: of %d sandboxes it is not known what they are attached to", len(unknown))
	}
	var problems []error
	all := g.networks.withDefault(def, unknown)
	for i, n := range all {
		problems = append(problems, r.passOnTo(ctx, n, g.networks.valid[n.name], len(all)-i)...)
	}
	return errors.Join(problems...)
}

// partsOf returns the failures of a network's plugins, which libcni joins.
func partsOf(err error) []error {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		return joined.Unwrap()
	}
	return []error{err}
}

// survey learns the attachments of all sandboxes that hold any: from the journals,
// and of the others, which are older than Manifold on this node, from what Multus
// and libcni recorded. It returns those of the runtime's that this does not tell
// all of. A journal that cannot be read ends it: delegates must not release what
// it may hold.
func (r *run) survey(nets *networks) (unknown []netconf.Attachment, err error) {
	keys, err := r.Journal.List()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		entry, err := r.Journal.Open(k)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		nets.live(entry.Plan)
	}
	others, err := r.others(keys)
	if err != nil {
		return nil, err
	}
	for _, k := range others {
		inv := *r.inv
		inv.ContainerID, inv.IfName, inv.NetNS = k.ContainerID, k.IfName, ""
		attachments, lost, err := r.newRun(&inv, nil).recordedForeign()
		if err != nil {
			return nil, err
		}
		nets.live(planOf(k.ContainerID, attachments))
		a := netconf.Attachment{ContainerID: k.ContainerID, IfName: k.IfName}
		if (lost != nil || len(attachments) == 0) && slices.Contains(r.inv.Valid, a) {
			r.warn("what sandbox %s is attached to is not known: %v", k, lost)
			unknown = append(unknown, a)
		}
	}
	return unknown, nil
}

// others returns the sandboxes without a journal that may hold attachments: the
// runtime's, by each interface that it names, of which the first need not be the
// one that Multus was called for; and, each once, those that are worked on, which
// the runtime need not name any more while it deletes them, and those that libcni
// has records of. The last were collected just before, so what is left is being
// deleted or could not be, and libcni would run a DEL beside another, or the same
// one again.
func (r *run) others(journals []journal.Key) ([]journal.Key, error) {
	locked, err := r.Journal.Locked()
	if err != nil {
		return nil, err
	}
	records, err := r.cni.GetCachedAttachments("")
	if err != nil {
		return nil, cnierr.New("read libcni's records", cnierr.IO, "%w", err)
	}
	all := locked
	for _, a := range records {
		all = append(all, journal.Key{ContainerID: a.ContainerID, IfName: defaultIfName})
	}
	seen := map[string]bool{}
	for _, k := range journals {
		seen[k.ContainerID] = true
	}
	var out []journal.Key
	for _, a := range r.inv.Valid {
		if !seen[a.ContainerID] {
			out = append(out, journal.Key{ContainerID: a.ContainerID, IfName: a.IfName})
		}
	}
	for _, k := range out {
		seen[k.ContainerID] = true
	}
	for _, k := range all {
		if !seen[k.ContainerID] {
			seen[k.ContainerID] = true
			out = append(out, k)
		}
	}
	return out, nil
}

// withDefault returns the networks to pass GC on to: those that are known, and
// the cluster default network, nil for one that cannot be read, even when no
// sandbox is left on it. Of unknown sandboxes only the attachment to the default
// network is certain. While there are any, the other networks are left out, since
// the attachments that these sandboxes have there would be taken for stale.
func (n *networks) withDefault(def *libcni.NetworkConfigList, unknown []netconf.Attachment) []network {
	out := n.all
	if def != nil {
		out = slices.DeleteFunc(out, func(o network) bool { return o.name == def.Name })
		out = append([]network{{label: def.Name, name: def.Name, config: def.Bytes}}, out...)
	}
	if len(unknown) == 0 {
		return out
	}
	if def == nil {
		return nil
	}
	for _, a := range unknown {
		n.lives(def.Name, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
	}
	return out[:1]
}

// passOnTo runs the GC of one network, with its part of the time that it and the
// others behind it have: a delegate that hangs keeps none of theirs. It returns the
// failures of its plugins.
func (r *run) passOnTo(ctx context.Context, n network, valid []types.GCAttachment, left int) (problems []error) {
	if end, bounded := ctx.Deadline(); bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/time.Duration(left))
		defer cancel()
	}
	about := cnierr.Subject{Network: n.label}
	list, err := chain.List(n.config)
	if err != nil {
		return []error{cnierr.Annotate(err, about)}
	}
	if valid == nil {
		valid = []types.GCAttachment{} // an empty list, not none
	}
	list.Name = n.name // which a definition's configuration need not say
	err = r.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	for _, err := range partsOf(err) {
		problems = append(problems, cnierr.Annotate(explainVersion(list, delegateError("gc", err)), about))
	}
	return problems
}
