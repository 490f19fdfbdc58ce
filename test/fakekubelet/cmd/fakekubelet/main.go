// Command fakekubelet runs the fake kubelet on its own, for shell scripts and for
// trying a program or a device plugin by hand:
//
//	fakekubelet --dir DIR [--devices resource=id1,id2@0]... [--pods DIR]
//
// It prints the paths of its sockets and its checkpoint, what each pod got, and
// "ready", then runs until SIGTERM or SIGINT. On SIGHUP it reads the pod manifests
// again: it adds pods with a new manifest and deletes pods whose manifest is gone.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/manifold-cni/manifold/checkpoint"
	"github.com/manifold-cni/manifold/test/fakekubelet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	reload := make(chan os.Signal, 1)
	signal.Notify(reload, syscall.SIGHUP)
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr, reload); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "fakekubelet:", err)
		os.Exit(1)
	}
}

// config holds the command-line flags.
type config struct {
	dir, pods string
	devices   deviceFlag
	rate      float64
	burst     int
	seed      int64
}

// deviceFlag collects the --devices flags.
type deviceFlag []resourceDevices

type resourceDevices struct {
	resource string
	devices  []fakekubelet.Device
}

// String implements flag.Value.
func (f *deviceFlag) String() string { return "" }

// Set implements flag.Value; the form is resource=id,id@node.
func (f *deviceFlag) Set(value string) error {
	resource, ids, found := strings.Cut(value, "=")
	if !found {
		return fmt.Errorf("%q is not resource=id,id", value)
	}
	r := resourceDevices{resource: resource}
	for id := range strings.SplitSeq(ids, ",") {
		d := fakekubelet.Device{ID: id, NUMA: checkpoint.NoNUMA}
		if at := strings.LastIndexByte(id, '@'); at >= 0 {
			node, err := strconv.ParseUint(id[at+1:], 10, 32)
			if err != nil {
				return fmt.Errorf("device %q: NUMA node: %w", id, err)
			}
			d.ID, d.NUMA = id[:at], int64(node)
		}
		r.devices = append(r.devices, d)
	}
	*f = append(*f, r)
	return nil
}

func parse(args []string, stderr io.Writer) (config, error) {
	var c config
	fl := flag.NewFlagSet("fakekubelet", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.StringVar(&c.dir, "dir", "", "the kubelet's root `directory`, like /var/lib/kubelet")
	fl.Var(&c.devices, "devices", "advertise `resource=id,id`, with @node after an ID that has a NUMA node; may be repeated")
	fl.StringVar(&c.pods, "pods", "", "a `directory` of pod manifests, YAML or JSON")
	fl.Float64Var(&c.rate, "rate-limit", 100, "calls per second that each API allows")
	fl.IntVar(&c.burst, "burst", 10, "calls that each API allows at once")
	fl.Int64Var(&c.seed, "seed", 0, "seed of the random orders")
	if err := fl.Parse(args); err != nil {
		return c, err
	}
	if c.dir == "" || fl.NArg() > 0 {
		return c, fmt.Errorf("--dir is required, and no other arguments are allowed: %q", fl.Args())
	}
	return c, nil
}

// run runs the kubelet until ctx ends. Pods that cannot be admitted are reported on
// stderr and skipped.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, reload <-chan os.Signal) error {
	c, err := parse(args, stderr)
	if err != nil {
		return err
	}
	k, err := fakekubelet.Start(c.dir, fakekubelet.WithRateLimit(c.rate, c.burst), fakekubelet.WithSeed(c.seed))
	if err != nil {
		return err
	}
	defer k.Stop()
	for _, r := range c.devices {
		if err := k.SetDevices(r.resource, r.devices...); err != nil {
			return err
		}
	}
	fmt.Fprintf(stdout, "pod-resources %s\npods-api %s\ndevice-plugins %s\ncheckpoint %s\n",
		k.PodResourcesSocket(), k.PodsSocket(), k.RegistrationSocket(), k.CheckpointPath())
	m := manifests{k: k, dir: c.pods, shown: map[manifest]types.UID{}, stdout: stdout, stderr: stderr}
	m.read()
	fmt.Fprintln(stdout, "ready")
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-reload:
			m.read()
			fmt.Fprintln(stdout, "ready")
		}
	}
}

// manifest identifies a pod by the file it comes from.
type manifest struct {
	file string
	pod  types.NamespacedName
}

// manifests are the pods that come from a directory.
type manifests struct {
	k              *fakekubelet.Kubelet
	dir            string
	shown          map[manifest]types.UID
	stdout, stderr io.Writer
}

// read makes the kubelet's pods match the directory.
func (m *manifests) read() {
	if m.dir == "" {
		return
	}
	files, err := os.ReadDir(m.dir)
	if err != nil {
		fmt.Fprintln(m.stderr, "fakekubelet:", err)
		return
	}
	found, damaged := map[manifest]bool{}, map[string]bool{}
	for _, f := range files {
		if f.IsDir() || !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(f.Name())) {
			continue
		}
		pods, err := readPods(filepath.Join(m.dir, f.Name()))
		if err != nil {
			fmt.Fprintln(m.stderr, "fakekubelet:", err)
			damaged[f.Name()] = true // perhaps half written: its pods stay
		}
		for _, pod := range pods {
			key := manifest{f.Name(), types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}}
			found[key] = true
			m.add(key, pod)
		}
	}
	for key, uid := range m.shown {
		if found[key] || damaged[key.file] {
			continue
		}
		delete(m.shown, key)
		if err := m.k.DeletePod(uid); err != nil {
			fmt.Fprintln(m.stderr, "fakekubelet:", err)
		}
		fmt.Fprintf(m.stdout, "deleted %s\n", uid)
	}
}

// add adds a pod unless it was added before.
func (m *manifests) add(key manifest, pod *corev1.Pod) {
	if _, shown := m.shown[key]; shown {
		return
	}
	pod, err := m.k.AddPod(pod, nil)
	if err != nil {
		fmt.Fprintln(m.stderr, "fakekubelet:", err)
		return
	}
	m.shown[key] = pod.UID
	fmt.Fprintf(m.stdout, "pod %s/%s %s\n", pod.Namespace, pod.Name, pod.UID)
	for _, a := range m.k.Allocations(pod.UID) {
		fmt.Fprintf(m.stdout, "  %s %s %s\n", a.Container, a.Resource, strings.Join(a.IDs, ","))
	}
}

// readPods reads the pods of a file. Together with an error it returns the pods
// before it.
func readPods(path string) ([]*corev1.Pod, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed since the directory was read
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var pods []*corev1.Pod
	for decoder := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		pod := &corev1.Pod{}
		err := decoder.Decode(pod)
		switch {
		case errors.Is(err, io.EOF):
			return pods, nil
		case err != nil:
			return pods, fmt.Errorf("manifest %s: %w", path, err)
		case pod.TypeMeta != metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}:
			return pods, fmt.Errorf("manifest %s holds a %s %q, not a v1 Pod", path, pod.APIVersion, pod.Kind)
		}
		pods = append(pods, pod)
	}
}
