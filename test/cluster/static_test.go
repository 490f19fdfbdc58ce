//go:build clusterlab

package cluster

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestStaticPod proves that a static pod gets its networks and its device. The kubelet
// takes the pod from a file; the API server only has a mirror pod under another UID.
func TestStaticPod(t *testing.T) {
	f := begin(t)
	pod := template("static", networks("storage, red"), container("main", Red))
	pod.TypeMeta.APIVersion, pod.TypeMeta.Kind, pod.Namespace = "v1", "Pod", namespace
	manifest, err := json.Marshal(pod)
	f.must(err)
	file := filepath.Join(manifestDir, "static.json")
	f.must(lab.Node.write(f.ctx, file, manifest))
	const mirror = "static-" + NodeName
	f.Cleanup(func() {
		f.must(os.Remove(file))
		f.gone("app=static")
	})
	f.eventually("the mirror pod to be ready", func() error {
		pod, err := f.get(mirror)
		if err == nil && !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue }) {
			err = errors.New(f.events(mirror))
		}
		return err
	})
	var here *onNode
	for _, p := range f.probe() {
		if _, ok := p.links["net2"]; ok {
			here = p
		}
	}
	if here == nil {
		t.Fatal("no sandbox has net2")
	}
	f.isDevice(here, "net2", f.device(here, "main", Red))
}
