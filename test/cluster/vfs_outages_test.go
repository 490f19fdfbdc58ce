//go:build nodelab

package cluster

import (
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/manifold-cni/manifold/test/cluster/nodestate"
)

// allocated returns the devices that the kubelet says are a pod's.
func (f *fixture) allocated(pod string) (ids []string) {
	f.Helper()
	var all []nodestate.Allocation
	f.ask(&all, "devices")
	for _, a := range all {
		if a.Pod == namespace+"/"+pod {
			ids = append(ids, a.IDs...)
		}
	}
	slices.Sort(ids)
	return ids
}

// manifest makes a static pod, until the test ends or remove is called.
func (f *fixture) manifest(name string, options ...option) (remove func()) {
	f.Helper()
	pod := template(name, options...)
	pod.APIVersion, pod.Kind, pod.Namespace = "v1", "Pod", namespace
	raw, err := json.Marshal(pod)
	f.must(err)
	file := manifestDir + "/" + name + ".json"
	f.write(file, raw)
	remove = sync.OnceFunc(func() {
		_, err := lab.Node.run(f.ctx, "/bin/rm", file)
		f.must(err)
		f.eventually("static pod "+name+" to be gone", func() error {
			if f.sandbox(name) != nil {
				return errors.New("it is there")
			}
			return nil
		})
	})
	f.Cleanup(remove)
	return remove
}

// write writes a file on the node, which nobody sees in part.
func (f *fixture) write(file string, content []byte) {
	f.Helper()
	_, err := lab.Node.run(f.ctx, "/bin/sh", "-ec", `mkdir -p "$(dirname "$2")"; printf %s "$1" > "$2.new"; mv "$2.new" "$2"`, "sh", string(content), file)
	f.must(err)
}

// sandbox returns what is on the node of a static pod, nil when nothing is.
func (f *fixture) sandbox(static string) *onNode {
	f.Helper()
	for _, p := range f.probe() {
		if p.pod == namespace+"/"+static+"-"+NodeName {
			return p
		}
	}
	return nil
}

// attached waits until the networks of a static pod are attached.
func (f *fixture) attached(static string) (here *onNode) {
	f.Helper()
	f.eventually("static pod "+static+" to be attached", func() error {
		if here = f.sandbox(static); here == nil || here.links["net1"].Name == "" {
			return errors.New("it is not")
		}
		return nil
	})
	return here
}

// containerd is killed in the middle of an ADD, alone or with the plugin that it
// runs: the pod starts all the same, with its VF, and the first sandbox leaves
// nothing.
func TestRuntimeKilledDuringADD(t *testing.T) {
	for name, kill := range map[string]func(f *fixture){
		"alone": func(f *fixture) {
			_, err := lab.Node.run(f.ctx, "/bin/sh", "-c", "kill -9 $(pidof containerd)")
			f.must(err)
			f.must(lab.Node.KillService(Containerd))
		},
		"with the plugin": func(f *fixture) { f.must(lab.Node.KillService(Containerd)) },
	} {
		t.Run(name, func(t *testing.T) {
			f := begin(t)
			const gate = "/run/gate"
			f.network("slow", "", `{"cniVersion": "1.0.0", "type": "scripted", "script": {"ADD": {"gate": "`+gate+`"}}}`)
			f.create("caught", networks("red, slow"), container("main", Red))
			f.Cleanup(func() {
				_, err := lab.Node.run(f.ctx, "/bin/rm", "-f", gate, gate+".reached")
				f.must(err)
			})
			f.eventually("its ADD to be under way", func() error {
				_, err := lab.Node.run(f.ctx, "/bin/ls", gate+".reached")
				return err
			})
			kill(f)
			f.must(lab.Node.startRuntime(f.ctx))
			_, err := lab.Node.run(f.ctx, "/bin/touch", gate)
			f.must(err)
			f.stands(f.running("caught"), []string{red, "slow"}, place{"main", Red})
			f.eventually("nothing to be left of the first sandbox", f.isInOrder)
		})
	}
}
