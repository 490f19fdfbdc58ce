package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/manifold-cni/manifold/netattach"
	"github.com/manifold-cni/manifold/test/harness"
)

// Numbers of rounds.
const (
	bursts    = 10  // rounds with many pods at once
	realShare = 10  // real delegates get one round for this many of no-op delegates
	fewRounds = 200 // for what needs no 99th percentile
)

// rounds returns the number of rounds with atOnce pods at a time.
func (n *node) rounds(d delegates, atOnce int) int {
	switch {
	case atOnce > 1:
		return min(bursts, n.pods)
	case d.name == noopName:
		return n.pods
	default:
		return max(1, n.pods/realShare)
	}
}

// few is the number of rounds for measurements with the node's own pods.
func (n *node) few() int { return min(fewRounds, n.pods, n.options.restart) }

// level measures all contenders in turn, with atOnce pods at a time.
func (n *node) level(r *report, d delegates, atOnce int) error {
	contenders := n.contenders(d)
	adds, dels := make([]*series, len(contenders)), make([]*series, len(contenders))
	for c, who := range contenders {
		adds[c] = &series{Delegates: d.name, AtOnce: atOnce, Verb: "ADD", Contender: who.name}
		dels[c] = &series{Delegates: d.name, AtOnce: atOnce, Verb: "DEL", Contender: who.name}
	}
	if err := n.watchBackground(); err != nil {
		return err
	}
	rounds, alone := n.rounds(d, atOnce), []float64{}
	for round := range rounds {
		if err := n.round(d, contenders, round, adds, dels); err != nil {
			return err
		}
		took, err := n.durableFile()
		if err != nil {
			return err
		}
		alone = append(alone, took)
		progress(fmt.Sprintf("%s delegates, %d at once: %d of %d rounds", d.name, atOnce, round+1, rounds))
	}
	progress("")
	r.addComparison(adds)
	r.addComparison(dels)
	if d.name == noopName && atOnce == 1 {
		fmt.Fprintln(r.out)
		r.addQuantiles("a new file made durable, alone", alone)
	}
	return nil
}

// durableFile returns how long the disk takes for a new file of the size of a
// journal's first record, in ms: what an ADD waits for before its first delegate. On
// a busy disk, or one shared with others, single calls take very long.
func (n *node) durableFile() (took float64, err error) {
	dir, err := os.Open(n.path("."))
	if err != nil {
		return 0, err
	}
	defer dir.Close()
	record := make([]byte, 4<<10)
	began := time.Now()
	f, err := os.Create(n.path("durable"))
	if err != nil {
		return 0, err
	}
	_, err = f.Write(record)
	err = errors.Join(err, f.Sync(), dir.Sync())
	took = millis(time.Since(began))
	return took, errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// round lets each contender attach and release pods that nobody has seen before,
// because what is published about a pod, and its Events, happens once per pod. Each
// round starts with another contender.
func (n *node) round(d delegates, contenders []contender, round int, adds, dels []*series) error {
	boxes := make([][]harness.Sandbox, len(contenders))
	for c := range contenders {
		for i := range adds[c].AtOnce {
			pod, err := n.pod(d, nil)
			if err != nil {
				return err
			}
			boxes[c] = append(boxes[c], n.sandbox(pod, i))
		}
	}
	if err := n.awaitRest(); err != nil {
		return err
	}
	for i := range contenders {
		c := (round + i) % len(contenders)
		who := contenders[c]
		if err := n.measure(adds[c], who, who.add, boxes[c]); err != nil {
			return err
		}
		if err := n.measure(dels[c], who, who.del, boxes[c]); err != nil {
			return err
		}
	}
	for c, who := range contenders {
		if who.agent {
			n.attached += len(boxes[c])
		}
		if err := n.deletePods(boxes[c], who.agent); err != nil {
			return err
		}
	}
	return nil
}

// measure runs a verb in all sandboxes at once, and adds its cost to s: the time of
// each call, and the processor time until no work of it is left.
func (n *node) measure(s *series, who contender, verb func(harness.Sandbox) error, boxes []harness.Sandbox) error {
	times, errs := make([]float64, len(boxes)), make([]error, len(boxes))
	used, err := n.spent(who, func() error {
		var wg sync.WaitGroup
		for i, box := range boxes {
			wg.Go(func() {
				began := time.Now()
				errs[i] = verb(box)
				times[i] = millis(time.Since(began))
			})
		}
		wg.Wait()
		return errors.Join(errs...)
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", s.Contender, s.Verb, err)
	}
	s.add(times, used)
	return nil
}

// spent returns the processor time of a contender's work, and waits until agent and
// API server are at rest. It waits after every contender, so that all start from the
// same rest: directly after other work, processors and caches are warm. What an agent
// does during the wait belongs to the work.
func (n *node) spent(who contender, work func() error) (usage, error) {
	before, err := who.used()
	if err != nil {
		return usage{}, err
	}
	began := time.Now()
	if err := work(); err != nil {
		return usage{}, err
	}
	after, err := who.used()
	if err := errors.Join(err, n.awaitRest()); err != nil || !who.agent {
		return after.since(before), err
	}
	after, err = who.used()
	used := after.since(before)
	used.api -= time.Duration(n.background * float64(time.Since(began)))
	return used, err
}

// The agent and the API server are at rest when they use almost no processor time
// in several successive spans. A span is at least as long as the pause after which the
// agent starts what nobody waits for, backgroundPause in cmd/manifold-agent.
const (
	restSpan   = 3 * time.Millisecond
	restAtMost = restSpan / 20
	restSpans  = 2
)

// patience is the timeout for something that happens on its own.
const patience = time.Minute

// awaitRest waits until agent and API server are at rest: an Event, or a status
// published after ADD, belongs to the call before and must not overlap the next one.
func (n *node) awaitRest() error {
	end := time.Now().Add(patience)
	for quiet := 0; quiet < restSpans; {
		before, err := n.processorTime()
		if err != nil {
			return err
		}
		time.Sleep(restSpan)
		after, err := n.processorTime()
		if err != nil {
			return err
		}
		quiet++
		if after-before > restAtMost {
			quiet = 0
		}
		if time.Now().After(end) {
			return fmt.Errorf("agent and API server are not at rest after %v", patience)
		}
	}
	return nil
}

// processorTime returns the processor time of agent and API server so far.
func (n *node) processorTime() (time.Duration, error) {
	agent, err := n.agentCPU()
	api, err2 := n.cluster.cpu()
	return agent + api, errors.Join(err, err2)
}

// watchBackground measures the share of a processor that the API server uses when
// nobody calls it, which is charged to no contender.
func (n *node) watchBackground() error {
	if err := n.awaitRest(); err != nil {
		return err
	}
	before, err := n.cluster.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	time.Sleep(min(n.idle, 2*time.Second))
	after, err := n.cluster.cpu()
	n.background = float64(after-before) / float64(time.Since(began))
	return err
}

// deletePods deletes the sandboxes' pods from the node. Pods that an agent attached
// must have a network-status by then; otherwise the measurement was of something
// else.
func (n *node) deletePods(boxes []harness.Sandbox, attached bool) error {
	for _, box := range boxes {
		if attached {
			if err := n.awaitStatus(box); err != nil {
				return err
			}
		}
		if err := n.kubelet.DeletePod(types.UID(box.UID)); err != nil {
			return err
		}
	}
	return nil
}

// awaitStatus waits for the network-status of a pod.
func (n *node) awaitStatus(box harness.Sandbox) error {
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		pod, err := n.cluster.get(box.Namespace, box.Name)
		if err != nil || pod.Annotations[netattach.StatusAnnotation] != "" {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("pod %s/%s has no network-status", box.Namespace, box.Name)
		}
	}
}
