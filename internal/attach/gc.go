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
	"github.com/manifold-cni/manifold/internal/words"
)

// GC releases every sandbox, of the journal or left by Multus, that is not in the
// runtime's list of valid attachments. Then it passes GC on to the delegates. A sandbox
// that is being added or deleted holds its lock and is left alone, by the delegates
// too. So is one that may have been added while the runtime made its list, see
// collection.spares. With the key disableGC nothing is collected: it is for several
// runtimes that share a directory, where each knows only its own sandboxes.
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

// checkValid refuses a GC that does not name the live attachments. Taken for an empty
// list, it would release every pod of the node.
func checkValid(inv *netconf.Invocation) error {
	err := cnierr.New("collect", cnierr.InvalidConfig, "the runtime does not name the valid attachments").
		WithFix("pass cni.dev/valid-attachments with containerID and ifname of each (CNI specification, verb GC)")
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
	began    time.Duration        // journal.Uptime at the start
	clock    time.Time            // the same moment on the wall clock
	valid    map[journal.Key]bool // the runtime's live attachments
	keep     map[string]bool      // container IDs that collectForeign leaves alone
	networks networks
}

// spares reports whether the runtime may have been adding a sandbox, which it does not
// name, while it made its list: the sandbox's ADD succeeded after GC began, or up to
// gcGrace before. The runtime must not add while it collects (CNI specification,
// lifecycle and ordering), but without this a runtime that does would take a live pod's
// networks away. A spared sandbox that belongs to no pod is collected by the next GC.
func (g *collection) spares(lock *journal.Lock, e *journal.Entry) bool {
	added, known := lock.Added()
	return known && g.began-added < time.Duration(g.inv.Conf.GCGrace) && !e.Releasing() && e.Gone() == ""
}

// collectStale releases the sandboxes that have a journal and that the runtime no
// longer names.
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

// collect releases one stale sandbox unless it is spared or somebody works on it. It
// returns the journal's entry, or nil when nothing was released from one.
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

// spared logs that GC spared a sandbox.
func (r *run) spared(k journal.Key) {
	r.warn("GC spares sandbox %s, which the runtime does not name: it was attached during GC or shortly before, so the runtime may not have known it yet; the next GC collects it", k)
}

// network is a delegate chain that GC is passed on to.
type network struct {
	label  string // its name in network-status
	name   string // "name" in its configuration, under which delegates keep their state
	config json.RawMessage
}

// networks are the networks that sandboxes of this node are or were attached to, and
// the live attachments by network name.
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

// live adds a plan's attachments to the live ones.
func (n *networks) live(p *plan.Plan) {
	n.know(p)
	for i := range p.Attachments {
		a := &p.Attachments[i]
		n.lives(a.Network, types.GCAttachment{ContainerID: p.ContainerID, IfName: a.IfName})
	}
}

// lives adds an attachment to the live ones of a network, once.
func (n *networks) lives(network string, a types.GCAttachment) {
	if !slices.Contains(n.valid[network], a) {
		n.valid[network] = append(n.valid[network], a)
	}
}

// passOn runs GC of every network's delegates with the live attachments of that network
// (CNI specification, GC). These are more than the runtime knows, which has one per
// sandbox. Where libcni's own records name others, libcni releases them; that serves
// delegates without GC.
//
// A new sandbox would be missing from that list, so none may begin meanwhile. Therefore
// all of GC must finish within half the time that an ADD would wait.
func (e *Engine) passOn(ctx context.Context, g *collection) (err error) {
	// Ask before taking the barrier, so that a slow planner keeps nobody waiting.
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
		r.warn("GC is passed on to the default network only: the attachments of %s are unknown", words.Count(len(unknown), "sandbox", "sandboxes"))
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

// survey learns the attachments of all sandboxes that have any: from the journals, and
// for sandboxes older than Manifold on this node from what Multus and libcni recorded.
// unknown are the runtime's attachments whose sandboxes these records do not cover
// completely. A journal that cannot be read stops the survey, because delegates must
// not release what it may hold.
func (r *run) survey(nets *networks) (unknown []netconf.Attachment, err error) {
	keys, err := r.Journal.List()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		entry, err := r.Journal.Open(k)
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted in the meantime
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
			r.warn("the attachments of sandbox %s are unknown: %v", k, lost)
			unknown = append(unknown, a)
		}
	}
	return unknown, nil
}

// others returns the sandboxes without a journal that may hold attachments. The
// runtime's come by each interface that it names, because the first need not be the one
// that Multus was called for. After them come, once each, the sandboxes that are being
// worked on, which the runtime may no longer name while it deletes them, and those that
// libcni has records of. Stale ones among the latter were collected just before. Those
// left are being deleted or could not be released, and libcni would run a second DEL
// beside the first or after it.
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

// withDefault returns the networks to pass GC on to: the known ones and the cluster
// default network def, even when no sandbox is left on it. def is nil when it cannot be
// read. For unknown sandboxes only the attachment to the default network is certain.
// While there are any, the other networks are left out: their delegates would take the
// attachments of these sandboxes for stale.
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

// passOnTo runs the GC of one network within its share of the time left for it and the
// networks after it, so that a delegate that hangs takes none of theirs. left is the
// number of these networks. It returns the failures of the network's plugins.
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
	list.Name = n.name // a definition's configuration need not have a name
	err = r.cni.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})
	for _, err := range partsOf(err) {
		problems = append(problems, cnierr.Annotate(explainVersion(list, delegateError("gc", err)), about))
	}
	return problems
}
