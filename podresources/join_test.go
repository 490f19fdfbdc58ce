package podresources

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/manifold-cni/manifold/checkpoint"
)

// joinCase is a row of the package comment's first table: the sources at each look, and
// the answer.
type joinCase struct {
	name    string
	moments []moment
	pod     func(*Pod)
	noAPI   bool
	noFile  bool
	want    string // as show prints it; for an error, part of its text
	err     error
	took    time.Duration
}

const (
	retry = 600 * time.Millisecond
	// untilRetryEnds is the time of the first look after the end of the retries.
	untilRetryEnds = retry + retryStep
)

var (
	errDown    = &failure{ErrUnavailable, errors.New("connection refused")}
	errUnknown = fmt.Errorf("%w: Get", ErrPodNotFound)
)

func TestJoinAgreement(t *testing.T) {
	runJoin(t, []joinCase{{
		name:    "both have the same",
		moments: []moment{{live: []ContainerDevice{held("c2", "b"), held("c1", "a")}, entries: []checkpoint.Entry{entry(ours, "c1", "a"), entry(ours, "c2", "b")}}},
		want:    "vfs a in c1 by podresources+checkpoint\nvfs b in c2 by podresources+checkpoint\n",
	}, {
		name:    "neither has any",
		moments: []moment{{entries: []checkpoint.Entry{entry("uid-third", "c1", "x")}}},
		want:    "",
	}, {
		name:    "init container's device reused by an application container",
		moments: []moment{{live: []ContainerDevice{held("c1", "a")}, entries: []checkpoint.Entry{entry(ours, "setup", "a"), entry(ours, "c1", "a")}}},
		want:    "vfs a in setup+c1 by podresources+checkpoint\n",
	}, {
		name:    "init container's device of its own",
		moments: []moment{{live: []ContainerDevice{held("c1", "a")}, entries: []checkpoint.Entry{entry(ours, "c1", "a"), entry(ours, "setup", "b")}}},
		want:    "vfs b in setup by checkpoint\nvfs a in c1 by podresources+checkpoint\n",
	}, {
		name:    "init container alone has a device",
		moments: []moment{{entries: []checkpoint.Entry{entry(ours, "setup", "b")}}},
		want:    "vfs b in setup by checkpoint\n",
	}, {
		name:    "sidecar's device is live",
		moments: []moment{{live: []ContainerDevice{held("proxy", "p")}, entries: []checkpoint.Entry{entry(ours, "proxy", "p")}}},
		want:    "vfs p in proxy by podresources+checkpoint\n",
	}, {
		name: "entries of pods long gone do not matter",
		moments: []moment{{
			live:    []ContainerDevice{held("c1", "a")},
			entries: []checkpoint.Entry{entry(old, "c1", "a"), entry(ours, "c1", "a")},
		}},
		want: "vfs a in c1 by podresources+checkpoint\n",
	}})
}

func TestJoinCheckpointAlone(t *testing.T) {
	both := []checkpoint.Entry{entry(ours, "c2", "b"), entry(ours, "c1", "a")}
	from := "vfs a in c1 by checkpoint\nvfs b in c2 by checkpoint\nnote: devices are from the checkpoint alone, because the kubelet's API "
	runJoin(t, []joinCase{
		{name: "API lists the pod without devices", moments: []moment{{entries: both}}, want: from + "lists none for the pod\n", took: untilRetryEnds},
		{name: "API is down", moments: []moment{{liveErr: errDown, entries: both}}, want: from + "does not answer: " + errDown.Error() + "\n", took: untilRetryEnds},
		{name: "API does not know the pod", moments: []moment{{liveErr: errUnknown, entries: both}},
			want: from + "does not answer: " + ErrPodNotFound.Error() + ": Get\n", took: untilRetryEnds},
		{name: "API comes back", moments: []moment{{liveErr: errDown, entries: both}, {entries: both}, {live: []ContainerDevice{held("c1", "a"), held("c2", "b")}, entries: both}},
			want: "vfs a in c1 by podresources+checkpoint\nvfs b in c2 by podresources+checkpoint\n", took: 2 * retryStep},
		{name: "no API configured", noAPI: true, moments: []moment{{entries: both}}, want: "vfs a in c1 by checkpoint\nvfs b in c2 by checkpoint\n"},
		{name: "no API configured, no entries", noAPI: true, moments: []moment{{}}, want: ""},
		{name: "no API configured, no UID", noAPI: true, pod: func(p *Pod) { p.UID = "" }, moments: []moment{{entries: both}}, want: "no entry for UID", err: ErrUnavailable},
		{name: "NUMA node", noAPI: true, moments: []moment{{entries: []checkpoint.Entry{{PodUID: ours, Container: "c1", Resource: vfs,
			Devices: []checkpoint.NUMADevices{{Node: 1, IDs: []string{"a"}}}}}}}, want: "vfs a in c1 by checkpoint node [1]\n"},
		{name: "two NUMA nodes", noAPI: true, moments: []moment{{entries: []checkpoint.Entry{{PodUID: ours, Container: "c1", Resource: vfs,
			Devices: []checkpoint.NUMADevices{{Node: 0, IDs: []string{"a"}}, {Node: 1, IDs: []string{"a"}}}}}}}, want: "vfs a in c1 by checkpoint node [0 1]\n"},
	})
}

func TestJoinAPIAlone(t *testing.T) {
	live := []ContainerDevice{{Container: "c1", Resource: vfs, ID: "a", NUMANodes: []int64{0, 1}}}
	from := "vfs a in c1 by podresources node [0 1]\n"
	damaged := fmt.Errorf("x: %w", checkpoint.ErrChecksum)
	runJoin(t, []joinCase{
		{name: "no checkpoint configured", noFile: true, moments: []moment{{live: live}}, want: from},
		{name: "no checkpoint configured, none", noFile: true, moments: []moment{{}}, want: ""},
		{name: "checkpoint damaged", moments: []moment{{live: live, memErr: damaged}},
			want: from + "note: devices are from the kubelet's API alone, because the checkpoint is unusable: " + damaged.Error() + "\n"},
		{name: "checkpoint absent", moments: []moment{{live: live, memErr: os.ErrNotExist}},
			want: from + "note: devices are from the kubelet's API alone, because the checkpoint is unusable: file does not exist\n"},
		{name: "checkpoint damaged, none", moments: []moment{{memErr: damaged}}, want: "note: the checkpoint is unusable: " + damaged.Error() + "\n", took: untilRetryEnds},
		{name: "checkpoint lags", moments: []moment{{live: live, entries: []checkpoint.Entry{entry("uid-third", "c1", "x")}}},
			want: from + "note: devices are from the kubelet's API alone, because the checkpoint has none of them\n", took: retryStep},
		{name: "checkpoint lags and catches up", moments: []moment{{live: live}, {live: live, entries: []checkpoint.Entry{entry(ours, "c1", "a")}}},
			want: "vfs a in c1 by podresources+checkpoint node [0 1]\n", took: retryStep},
		{name: "no UID", pod: func(p *Pod) { p.UID = "" }, moments: []moment{{live: live, entries: []checkpoint.Entry{entry(old, "c1", "a")}}},
			want: from + "note: devices were found by the pod's name alone, because the runtime gave no UID\n"},
		{name: "no UID, none", pod: func(p *Pod) { p.UID = "" }, moments: []moment{{}}, want: ""},
	})
}

func TestJoinContradiction(t *testing.T) {
	olds := []checkpoint.Entry{entry(old, "c1", "x")}
	mine := entry(ours, "c1", "a")
	runJoin(t, []joinCase{
		{name: "older pod of the name", moments: []moment{{live: []ContainerDevice{held("c1", "x")}, entries: olds}},
			want: "device x of vendor.example/vfs is allocated to pod UID uid-old", err: ErrOtherPod, took: untilRetryEnds},
		{name: "older pod of the name goes away", moments: []moment{
			{live: []ContainerDevice{held("c1", "x")}, entries: olds},
			{live: []ContainerDevice{held("c1", "a")}, entries: []checkpoint.Entry{mine}},
		}, want: "vfs a in c1 by podresources+checkpoint\n", took: retryStep},
		{name: "older pod's device, ours in the checkpoint", moments: []moment{{live: []ContainerDevice{held("c1", "x")}, entries: append(slices.Clone(olds), mine)}},
			want: "device x of vendor.example/vfs to pod shop/web-0, the checkpoint to pod UID uid-old", err: ErrConflict, took: retryStep},
		{name: "older pod of the name is listed as well", moments: []moment{{live: []ContainerDevice{held("c1", "x"), held("c1", "a")}, entries: append(slices.Clone(olds), mine)}},
			want: "vfs a in c1 by podresources+checkpoint\n" +
				"note: the kubelet's API gives device x of vendor.example/vfs to a pod of this name as well, the checkpoint to pod UID uid-old\n"},
		{name: "older pod of the name is listed as well, ours in part", moments: []moment{{
			live: []ContainerDevice{held("c1", "x"), held("c1", "a")}, entries: append(slices.Clone(olds), mine, entry(ours, "c2", "b"))}},
			want: "device x of vendor.example/vfs to pod shop/web-0, the checkpoint to pod UID uid-old", err: ErrConflict, took: retryStep},
		{name: "other devices, nobody's", moments: []moment{{live: []ContainerDevice{held("c1", "n")}, entries: []checkpoint.Entry{mine}}},
			want: "vfs n in c1 by podresources\n" +
				"note: device a of vendor.example/vfs is left out: the checkpoint has it in container c1, where the kubelet's API does not list it\n" +
				"note: the checkpoint differs from the kubelet's API, whose answer is used\n", took: retryStep},
		{name: "same device in another container", moments: []moment{{live: []ContainerDevice{held("c2", "a")}, entries: []checkpoint.Entry{mine}}},
			want: "vfs a in c2 by podresources\n" +
				"note: device a of vendor.example/vfs is left out: the checkpoint has it in container c1, where the kubelet's API does not list it\n" +
				"note: the checkpoint differs from the kubelet's API, whose answer is used\n", took: retryStep},
		{name: "differ once", moments: []moment{
			{live: []ContainerDevice{held("c1", "n")}, entries: []checkpoint.Entry{mine}},
			{live: []ContainerDevice{held("c1", "a")}, entries: []checkpoint.Entry{mine}},
		}, want: "vfs a in c1 by podresources+checkpoint\n", took: retryStep},
	})
}

func TestJoinNoSourceAnswers(t *testing.T) {
	runJoin(t, []joinCase{
		{name: "both unreadable", moments: []moment{{liveErr: errDown, memErr: os.ErrNotExist}},
			want: ErrUnavailable.Error() + ": API: connection refused; checkpoint: file does not exist", err: ErrUnavailable, took: untilRetryEnds},
		{name: "API down, no entries", moments: []moment{{liveErr: errDown}}, want: `no entry for UID "uid-new"`, err: ErrUnavailable, took: untilRetryEnds},
		{name: "pod unknown, no entries", moments: []moment{{liveErr: errUnknown}}, want: "does not know the pod", err: ErrPodNotFound, took: untilRetryEnds},
		{name: "no source configured", noAPI: true, noFile: true, moments: []moment{{}}, want: "not configured", err: ErrUnavailable},
		{name: "API alone, down", noFile: true, moments: []moment{{liveErr: errDown}}, want: "connection refused", err: ErrUnavailable, took: untilRetryEnds},
	})
}

func runJoin(t *testing.T, cases []joinCase) {
	t.Helper()
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { tc.run(t) })
		})
	}
}

// run asks once, in a bubble whose clock measures how long the answer takes.
func (tc *joinCase) run(t *testing.T) {
	s := &script{t: t, moments: tc.moments}
	var live Live
	var memory Memory
	if !tc.noAPI {
		live = s
	}
	if !tc.noFile {
		memory = s
	}
	pod := web()
	if tc.pod != nil {
		tc.pod(&pod)
	}
	began := time.Now()
	a, err := NewReader(live, memory, Options{Retry: retry}).Devices(t.Context(), pod, []string{vfs})
	if took := time.Since(began); took != tc.took {
		t.Errorf("took %v, want %v", took, tc.took)
	}
	if tc.err != nil {
		if !errors.Is(err, tc.err) || !strings.Contains(err.Error(), tc.want) || a != nil {
			t.Errorf("Devices = %v, %v, want %v with %q", a, err, tc.err, tc.want)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := show(a); got != tc.want {
		t.Errorf("got\n%swant\n%s", got, tc.want)
	}
}

func TestPluginsOrderIsTheFirstHolders(t *testing.T) {
	answered := func(container string, ids ...string) checkpoint.Entry {
		e := entry(ours, container, slices.Sorted(slices.Values(ids))...)
		value := strings.Join(ids, ",")
		pair := "\x0a\x01E\x12" + string(rune(len(value))) + value
		e.AllocResp = []byte("\x0a" + string(rune(len(pair))) + pair)
		return e
	}
	s := &script{t: t, moments: []moment{{
		live:    []ContainerDevice{held("c1", "a"), held("c1", "b"), held("c2", "c")},
		entries: []checkpoint.Entry{answered("c1", "b", "a"), answered("setup", "a", "b"), entry(ours, "c2", "c")},
	}}}
	a, err := NewReader(s, s, Options{}).Devices(t.Context(), web(), nil)
	if err != nil {
		t.Fatal(err)
	}
	want := "vfs a in setup+c1 by podresources+checkpoint listed at 0\nvfs b in setup+c1 by podresources+checkpoint listed at 1\nvfs c in c2 by podresources+checkpoint\n"
	if got := show(a); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

// FuzzJoin checks what must hold for every answer, whatever the sources report. Each
// byte of the input is a holding: one bit for the source, others for UID, container and
// device.
func FuzzJoin(f *testing.F) {
	f.Add([]byte{0x01, 0x81, 0x02}, true)
	f.Add([]byte{0x00, 0x80, 0xa4, 0x05}, false)
	f.Fuzz(func(t *testing.T, raw []byte, known bool) {
		v := &view{pod: web(), live: nil}
		var entries []checkpoint.Entry
		for _, b := range raw {
			container, id := []string{"setup", "proxy", "c1", "stray"}[b&3], string(rune('a'+b>>2&7))
			switch {
			case b&0x80 == 0:
				v.live = append(v.live, held(container, id))
			case b&0x40 == 0:
				entries = append(entries, entry(ours, container, id))
			default:
				entries = append(entries, entry(old, container, id))
			}
		}
		if !known {
			v.live, v.liveErr = nil, ErrPodNotFound
		}
		v.mem = decoded(t, entries)
		v.own = v.mem.Pod(ours)
		d := v.decide()
		if (d.alloc == nil) == (d.err == nil) {
			t.Fatalf("allocation %v and error %v", d.alloc, d.err)
		}
		if d.err == nil {
			holdsInvariants(t, v, d.alloc)
		}
	})
}

func holdsInvariants(t *testing.T, v *view, a *Allocation) {
	t.Helper()
	seen := map[string]bool{}
	for _, d := range a.Devices {
		if seen[d.ID] || len(d.Containers) == 0 {
			t.Fatalf("device %+v twice, or without a holder", d)
		}
		seen[d.ID] = true
		holders := v.mem.Holders(d.Resource, d.ID)
		mine := slices.ContainsFunc(holders, func(e checkpoint.Entry) bool { return e.PodUID == ours })
		if len(holders) > 0 && !mine {
			t.Fatalf("device %s of pod %s is given to another", d.ID, holders[0].PodUID)
		}
		if mine != (d.Source != FromAPI) && len(a.Notes) == 0 {
			t.Fatalf("source of %+v, and no note", d)
		}
	}
	rest, _, uid := v.apart()
	for _, d := range rest {
		if !seen[d.ID] {
			t.Fatalf("live device %s is missing without an error", d.ID)
		}
	}
	if uid != "" && len(a.Notes) == 0 {
		t.Fatal("another pod's device is left out without a note")
	}
	if len(v.own) > 0 && len(a.Devices) == 0 {
		t.Fatal("an empty answer while the checkpoint has entries")
	}
}

// TestTheCheckpointAnswersForAKubeletAtItsLimit proves that the checkpoint answers when
// another client keeps the kubelet at its limit forever.
func TestTheCheckpointAnswersForAKubeletAtItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s := &script{t: t, moments: []moment{{liveErr: ErrRateLimited, entries: []checkpoint.Entry{entry(ours, "c1", "a")}}}}
		a, err := NewReader(s, s, Options{}).Devices(ctx, web(), []string{vfs})
		if err != nil || ctx.Err() != nil {
			t.Fatalf("%v, context %v", err, ctx.Err())
		}
		if len(a.Devices) != 1 || a.Devices[0].ID != "a" || a.Devices[0].Source != FromCheckpoint {
			t.Errorf("%+v", a)
		}
		synctest.Wait()
	})
}
