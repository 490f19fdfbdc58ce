package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"

	"github.com/manifold-cni/manifold/netattach"
)

const (
	// snapshotDelay gathers changes that come together into one write.
	snapshotDelay = 200 * time.Millisecond
	// snapshotRetry is the pause after a write that failed.
	snapshotRetry = 10 * time.Second
	// probePause is how long one unanswered request to the API server counts for later
	// lookups that the snapshot can answer, so that many pods starting at once do not
	// each wait for a timeout.
	probePause = 5 * time.Second
)

// DefinitionInformer keeps every definition of the cluster in memory, with one list and
// one watch, and mirrors them to a file that outlives the API server. It implements
// [Definitions].
type DefinitionInformer struct {
	client   *Client
	path     string
	informer cache.SharedIndexInformer
	watch    watchState
	dirty    chan struct{} // holds a token while the file is older than memory

	mu        sync.Mutex
	snapshot  *Snapshot // loaded when first needed, dropped once synced
	apiFailed time.Time // when the last GET failed; zero after one that succeeded
	apiErr    error     // why
	saveErr   error     // why the latest write failed; nil when it did not
}

// NewDefinitionInformer returns an informer that mirrors to the file snapshot,
// whose directory must exist; an empty path keeps no mirror. It does nothing
// before [DefinitionInformer.Run].
func NewDefinitionInformer(client *Client, snapshot string) *DefinitionInformer {
	lw := cache.NewListWatchFromClient(client.definitions, netattach.Resource, metav1.NamespaceAll, fields.Everything())
	d := &DefinitionInformer{client: client, path: snapshot, dirty: make(chan struct{}, 1)}
	d.informer = cache.NewSharedIndexInformer(d.watch.observe(lw), &netattach.Definition{}, 0, nil)
	d.watch.install(d.informer, func(obj any) (any, error) {
		if def, ok := obj.(*netattach.Definition); ok {
			return newEntry(def), nil
		}
		return obj, nil // an entry already, or a deletion that the watch missed
	})
	return d
}

// Run lists, watches and mirrors until ctx ends. It returns when its goroutines have
// returned and pending changes are written.
func (d *DefinitionInformer) Run(ctx context.Context) {
	if d.path == "" {
		d.informer.RunWithContext(ctx)
		return
	}
	reg, err := d.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { d.markDirty() },
		DeleteFunc: func(any) { d.markDirty() },
		UpdateFunc: func(old, new any) {
			a, okA := old.(*entry)
			b, okB := new.(*entry)
			if !okA || !okB || a.ResourceVersion != b.ResourceVersion {
				d.markDirty()
			}
		},
	})
	if err != nil { // the informer was stopped: Run was called twice
		d.setSaveErr(err)
		return
	}
	d.setSaveErr(removeLeftovers(d.path))
	var wg sync.WaitGroup
	wg.Go(func() { d.mirror(ctx, reg.HasSynced) })
	d.informer.RunWithContext(ctx)
	wg.Wait()
}

// HasSynced reports whether the first list is complete.
func (d *DefinitionInformer) HasSynced() bool { return d.informer.HasSynced() }

// Failing returns the latest failure to list or watch, and since when nothing has
// succeeded. err is nil while the informer hears from the API server. Memory holds the
// state as of since.
func (d *DefinitionInformer) Failing() (since time.Time, err error) { return d.watch.failing() }

// SnapshotError returns why the mirror file is not up to date, or nil when the latest
// write succeeded. Lookups go on regardless.
func (d *DefinitionInformer) SnapshotError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.saveErr
}

// Definition implements [Definitions].
func (d *DefinitionInformer) Definition(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	def, _, err := d.lookup(ctx, namespace, name)
	return def, err
}

// lookup returns a definition and where it comes from: memory; on a miss one direct
// GET, because the informer may lag behind; and, when the API server does not answer
// and the informer never synced, the snapshot. When the snapshot has the definition,
// lookup waits for the API server no longer than a request's timeout.
func (d *DefinitionInformer) lookup(ctx context.Context, namespace, name string) (*netattach.Definition, origin, error) {
	if err := checkNames("definition", namespace, name); err != nil {
		return nil, "", err
	}
	// The store behind an informer reports no errors.
	if obj, ok, _ := d.informer.GetStore().GetByKey(namespace + "/" + name); ok {
		if e, ok := obj.(*entry); ok {
			def, err := e.definition()
			return def, fromMemory, err
		}
	}
	if err := d.recentFailure(); err != nil {
		if def, from, snapErr := d.inSnapshot(ctx, namespace, name); snapErr == nil {
			return def, from, nil
		}
	}
	if ctx.Value(patience{}) != nil {
		if _, _, err := d.inSnapshot(ctx, namespace, name); err == nil {
			ctx = context.WithValue(ctx, patience{}, nil)
		}
	}
	def, err := d.get(ctx, namespace, name)
	if err == nil || !errors.Is(err, ErrUnavailable) {
		return def, fromServer, err
	}
	def, from, snapErr := d.inSnapshot(ctx, namespace, name)
	switch {
	case snapErr == nil:
		return def, from, nil
	case errors.Is(snapErr, errNoSnapshot):
		return nil, "", err
	case errors.Is(snapErr, ErrInvalid):
		return nil, from, snapErr // the definition itself is refused
	default:
		// Only the API server's answer decides: it may know what the file does not.
		return nil, "", &combined{text: err.Error() + "; " + snapErr.Error(), errs: []error{err}}
	}
}

// Local is Definition without the API server: it reads memory and, until memory is
// complete, the snapshot. Its [ErrNotFound] may be a moment old. Without a readable
// snapshot it returns [ErrUnavailable] until memory is complete. It serves names that
// usually have no definition because something else answers to them, so that looking
// them up costs no request.
func (d *DefinitionInformer) Local(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	if err := checkNames("definition", namespace, name); err != nil {
		return nil, err
	}
	synced := d.informer.HasSynced() // before the lookup, so that memory is known to have been complete
	// The store behind an informer reports no errors.
	if obj, ok, _ := d.informer.GetStore().GetByKey(namespace + "/" + name); ok {
		if e, ok := obj.(*entry); ok {
			return e.definition()
		}
	}
	if synced {
		return nil, fmt.Errorf("%s: not in memory: %w", definitionText(namespace, name), ErrNotFound)
	}
	def, _, err := d.inSnapshot(ctx, namespace, name)
	if errors.Is(err, errNoSnapshot) {
		return nil, fmt.Errorf("%s: not synced from the API server, and there is no snapshot: %w", definitionText(namespace, name), ErrUnavailable)
	}
	return def, err
}

// get asks the API server once.
func (d *DefinitionInformer) get(ctx context.Context, namespace, name string) (*netattach.Definition, error) {
	def := &netattach.Definition{}
	err := d.client.get(ctx, d.client.definitions, netattach.Resource, namespace, name, definitionText(namespace, name), def)
	d.mu.Lock()
	d.apiFailed, d.apiErr = time.Time{}, nil
	if errors.Is(err, ErrUnavailable) && ctx.Err() == nil {
		d.apiFailed, d.apiErr = time.Now(), err
	}
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return newEntry(def).definition()
}

// recentFailure returns the failure of a GET within the last probePause, or nil.
func (d *DefinitionInformer) recentFailure() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.apiFailed.IsZero() || time.Since(d.apiFailed) > probePause {
		return nil
	}
	return d.apiErr
}

// errNoSnapshot: there is no snapshot to ask, because none is configured or because
// memory is complete and knows all that the file does.
var errNoSnapshot = errors.New("no snapshot to ask")

func (d *DefinitionInformer) inSnapshot(ctx context.Context, namespace, name string) (*netattach.Definition, origin, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.path == "" || d.informer.HasSynced() {
		d.snapshot = nil
		return nil, "", errNoSnapshot
	}
	if d.snapshot == nil {
		s, err := OpenSnapshot(d.path)
		if err != nil {
			return nil, "", err
		}
		d.snapshot = s
	}
	def, err := d.snapshot.Definition(ctx, namespace, name)
	return def, fromSnapshot, err
}

func (d *DefinitionInformer) markDirty() {
	select {
	case d.dirty <- struct{}{}:
	default: // marked already
	}
}

// mirror writes the file once the first list is complete, and after changes. Before
// that the file knows more than memory and is left alone.
func (d *DefinitionInformer) mirror(ctx context.Context, synced func() bool) {
	if !cache.WaitForCacheSync(ctx.Done(), synced) {
		return
	}
	d.forgetSnapshot()
	d.markDirty() // even an empty cluster gets a file
	for {
		select {
		case <-ctx.Done(): // pending changes are written all the same
		case <-d.dirty:
			d.markDirty() // the mark stays until the file is written
		}
		sleep(ctx, snapshotDelay)
		if d.saveIfDirty() != nil {
			d.markDirty()
			sleep(ctx, snapshotRetry)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// forgetSnapshot frees what was loaded while memory was incomplete.
func (d *DefinitionInformer) forgetSnapshot() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snapshot = nil
}

// saveIfDirty writes the file if anything changed since it was written.
func (d *DefinitionInformer) saveIfDirty() error {
	select {
	case <-d.dirty: // before memory is read, so that no later change is lost
	default:
		return nil
	}
	objs := d.informer.GetStore().List()
	entries := make([]*entry, 0, len(objs))
	for _, obj := range objs {
		if e, ok := obj.(*entry); ok {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	err := saveSnapshot(d.path, entries, time.Now())
	d.setSaveErr(err)
	return err
}

func (d *DefinitionInformer) setSaveErr(err error) {
	if err != nil {
		err = fmt.Errorf("mirror of definitions: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.saveErr = err
}

// sleep waits for d. It returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
