package inject

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/json"

	"github.com/manifold-cni/manifold/internal/planner"
	"github.com/manifold-cni/manifold/internal/rules"
	"github.com/manifold-cni/manifold/netattach"
)

// given returns definitions of namespace shop: a and b need devices, a also nodes of a
// rack, c needs nothing, d needs another rack.
func given() map[planner.Ref]*netattach.Definition {
	out := map[planner.Ref]*netattach.Definition{}
	for name, annotations := range map[string]map[string]string{
		"a": {netattach.ResourceNameAnnotation: "x.example/a", netattach.NodeSelectorAnnotation: "rack=1"},
		"b": {netattach.ResourceNameAnnotation: "x.example/b"}, "c": nil, "d": {netattach.NodeSelectorAnnotation: "rack=2,row=7"},
		"e": {netattach.NodeSelectorAnnotation: "no label"},
	} {
		def := &netattach.Definition{Spec: netattach.DefinitionSpec{Config: `{"type":"host-device"}`}}
		def.Namespace, def.Name, def.Annotations = "shop", name, annotations
		out[planner.Ref{Namespace: "shop", Name: name}] = def
	}
	return out
}

// injected injects into a pod in JSON, and returns the pod after the patch.
func injected(t *testing.T, raw string) (in *Injection, after string, err error) {
	t.Helper()
	r, err := rules.New(nil, "does not exist")
	if err != nil {
		t.Fatal(err)
	}
	pod, err := rules.DecodePod([]byte(raw))
	if err != nil {
		return nil, "", err
	}
	var object map[string]any
	if err := json.Unmarshal([]byte(raw), &object); err != nil {
		t.Fatal(err)
	}
	pod.Namespace = "shop"
	if _, err := r.Demands(pod, given()); err != nil {
		return nil, "", err
	}
	in, err = Pod(r, object, pod, func([]planner.Ref) (map[planner.Ref]*netattach.Definition, error) { return given(), nil })
	if err != nil {
		return nil, "", err
	}
	after = patched(t, raw, in)
	var same map[string]any
	if err := json.Unmarshal([]byte(after), &same); err != nil || !equality.Semantic.DeepEqual(same, object) {
		t.Errorf("the object is %v, the patch makes %s: %v", object, after, err)
	}
	return in, after, nil
}

// patched applies the operations as the API server does.
func patched(t *testing.T, raw string, in *Injection) string {
	t.Helper()
	if len(in.Operations) == 0 {
		return raw
	}
	ops, err := json.Marshal(in.Operations)
	if err != nil {
		t.Fatal(err)
	}
	patch, err := jsonpatch.DecodePatch(ops)
	if err != nil {
		t.Fatal(err)
	}
	after, err := patch.Apply([]byte(raw))
	if err != nil {
		t.Fatalf("%v: %s on %s", err, ops, raw)
	}
	return string(after)
}

// spec returns a pod that selects networks; rest is appended to its spec.
func spec(networks, rest string) string {
	quoted, _ := json.Marshal(networks) // a string always encodes
	return fmt.Sprintf(`{"metadata":{"annotations":{"k8s.v1.cni.cncf.io/networks":%s}},"spec":{%s}}`, quoted, rest)
}

// limits returns the operation that sets the first limit of a container without
// resources; requests returns the operation that follows it.
func limits(container int, resource string, n int) string {
	return fmt.Sprintf(`{"op":"add","path":"/spec/containers/%d/resources","value":{"limits":{"%s":"%d"}}}`, container, resource, n)
}

func requests(container int, resource string, n int) string {
	return fmt.Sprintf(`{"op":"add","path":"/spec/containers/%d/resources/requests","value":{"%s":"%d"}}`, container, resource, n)
}

func TestInject(t *testing.T) {
	const (
		rack    = `{"op":"add","path":"/spec/nodeSelector","value":{"rack":"1"}}`
		two     = `"containers":[{"name":"m"},{"name":"n"}]`
		claimed = `"resourceClaims":[{"name":"nic"}],` + two
	)
	for name, tc := range map[string]struct {
		pod      string
		ops      []string
		warnings []string
	}{
		"nothing":               {spec("c", two), nil, nil},
		"into the first":        {spec("b", two), []string{limits(0, "x.example/b", 1), requests(0, "x.example/b", 1)}, nil},
		"counted":               {spec("b,a,b", two), []string{limits(0, "x.example/a", 1), requests(0, "x.example/a", 1), `{"op":"add","path":"/spec/containers/0/resources/limits/x.example~1b","value":"2"}`, `{"op":"add","path":"/spec/containers/0/resources/requests/x.example~1b","value":"2"}`, rack}, nil},
		"container named":       {spec(`[{"name":"b","manifold.dev/container":"n"},{"name":"b"}]`, two), []string{limits(0, "x.example/b", 1), requests(0, "x.example/b", 1), limits(1, "x.example/b", 1), requests(1, "x.example/b", 1)}, nil},
		"no such container":     {spec(`[{"name":"b","manifold.dev/container":"z"}]`, two), nil, nil},
		"enough":                {spec("b,b", `"containers":[{"name":"m","resources":{"limits":{"x.example/b":"1"}}},{"name":"n","resources":{"limits":{"x.example/b":"1"}}}]`), nil, nil},
		"more than enough":      {spec("b", `"containers":[{"name":"m","resources":{"limits":{"x.example/b":"7"}}}]`), nil, nil},
		"raised, others kept":   {spec("b,b,b", `"containers":[{"name":"m","resources":{"limits":{"cpu":"2","x.example/b":"1"},"requests":{"x.example/b":"1"}}}]`), []string{`{"op":"add","path":"/spec/containers/0/resources/limits/x.example~1b","value":"3"}`, `{"op":"add","path":"/spec/containers/0/resources/requests/x.example~1b","value":"3"}`}, nil},
		"requests alone":        {spec("b", `"containers":[{"name":"m","resources":{"requests":{"cpu":"1"}}}]`), []string{`{"op":"add","path":"/spec/containers/0/resources/limits","value":{"x.example/b":"1"}}`, `{"op":"add","path":"/spec/containers/0/resources/requests/x.example~1b","value":"1"}`}, nil},
		"request without limit": {spec("b", `"containers":[{"name":"m","resources":{"requests":{"x.example/b":"5"}}}]`), []string{`{"op":"add","path":"/spec/containers/0/resources/limits","value":{"x.example/b":"5"}}`, `{"op":"add","path":"/spec/containers/0/resources/requests/x.example~1b","value":"5"}`}, nil},
		"request above limit":   {spec("b,b", `"containers":[{"name":"m","resources":{"limits":{"x.example/b":"1"},"requests":{"x.example/b":"5"}}}]`), []string{`{"op":"add","path":"/spec/containers/0/resources/limits/x.example~1b","value":"5"}`, `{"op":"add","path":"/spec/containers/0/resources/requests/x.example~1b","value":"5"}`}, nil},
		"named and has it":      {spec(`[{"name":"b","manifold.dev/container":"n"},{"name":"b"}]`, `"containers":[{"name":"m"},{"name":"n","resources":{"limits":{"x.example/b":2}}}]`), nil, nil},
		"init is not enough":    {spec("b", `"initContainers":[{"name":"i","resources":{"limits":{"x.example/b":"1"}}}],"containers":[{"name":"m"}]`), []string{limits(0, "x.example/b", 1), requests(0, "x.example/b", 1)}, nil},
		"sidecar is":            {spec("b", `"initContainers":[{"name":"i","restartPolicy":"Always","resources":{"limits":{"x.example/b":"1"}}}],"containers":[{"name":"m"}]`), nil, nil},
		"init named":            {spec(`[{"name":"b","manifold.dev/container":"i"}]`, `"initContainers":[{"name":"i"}],"containers":[{"name":"m"}]`), []string{`{"op":"add","path":"/spec/initContainers/0/resources","value":{"limits":{"x.example/b":"1"}}}`, `{"op":"add","path":"/spec/initContainers/0/resources/requests","value":{"x.example/b":"1"}}`}, nil},
		"claim named":           {spec(`[{"name":"b","manifold.dev/claim":"nic"},{"name":"b"}]`, claimed), []string{limits(0, "x.example/b", 1), requests(0, "x.example/b", 1)}, nil},
		"claim not named":       {spec("b", claimed), nil, []string{"resource claims that no network names"}},
		"claim, container":      {spec(`[{"name":"b","manifold.dev/container":"m"}]`, claimed), []string{limits(0, "x.example/b", 1), requests(0, "x.example/b", 1)}, nil},
		"container's claims":    {spec(`[{"name":"b","manifold.dev/container":"m"}]`, `"resourceClaims":[{"name":"nic"}],"containers":[{"name":"m","resources":{"claims":[{"name":"nic"}]}}]`), []string{`{"op":"add","path":"/spec/containers/0/resources/limits","value":{"x.example/b":"1"}}`, `{"op":"add","path":"/spec/containers/0/resources/requests","value":{"x.example/b":"1"}}`}, nil},
		"labels":                {spec("d", `"nodeSelector":{"row":"7"},`+two), []string{`{"op":"add","path":"/spec/nodeSelector/rack","value":"2"}`}, nil},
		"labels differ":         {spec("d", `"nodeSelector":{"row":"7","rack":"1"},`+two), nil, []string{"shop/d is for nodes with rack=2, and the pod asks for rack=1"}},
		"label that is none":    {spec("e", two), nil, []string{"is ignored"}},
		"huge":                  {spec("b", `"containers":[{"name":"m","resources":{"limits":{"x.example/b":"9E18"}}},{"name":"n","resources":{"limits":{"x.example/b":"9E18"}}}]`), nil, nil},
	} {
		t.Run(name, func(t *testing.T) {
			in, after, err := injected(t, tc.pod)
			if err != nil {
				t.Fatal(err)
			}
			var ops []string
			for _, op := range in.Operations {
				raw, err := json.Marshal(op)
				if err != nil {
					t.Fatal(err)
				}
				ops = append(ops, string(raw))
			}
			if !slices.Equal(ops, tc.ops) {
				t.Errorf("operations\n%s\nwant\n%s", strings.Join(ops, "\n"), strings.Join(tc.ops, "\n"))
			}
			if len(in.Warnings) != len(tc.warnings) || len(tc.warnings) > 0 && !strings.Contains(in.Warnings[0], tc.warnings[0]) {
				t.Errorf("warnings %q, want %q", in.Warnings, tc.warnings)
			}
			if again, _, err := injected(t, after); err != nil || len(again.Operations) > 0 {
				t.Errorf("not idempotent: %v, %v", again.Operations, err)
			}
		})
	}
}

// Containers take over the devices of init containers that have finished. Networks that
// share a pod need a device each all the same, so validation accepts what was injected.
func TestInjectWhereDevicesAreTakenOver(t *testing.T) {
	const i, m, any = `{"name":"b","manifold.dev/container":"i"}`, `{"name":"b","manifold.dev/container":"m"}`, `{"name":"b"}`
	for name, tc := range map[string]struct {
		networks []string
		rest     string
		want     map[string]int64 // devices by container
	}{
		"named and any":        {[]string{i, any}, `"initContainers":[{"name":"i"}],"containers":[{"name":"m"},{"name":"n"}]`, map[string]int64{"i": 1, "m": 2, "n": 0}},
		"two named":            {[]string{i, m}, `"initContainers":[{"name":"i"}],"containers":[{"name":"m"}]`, map[string]int64{"i": 1, "m": 2}},
		"two of one":           {[]string{i, i, any}, `"initContainers":[{"name":"i"}],"containers":[{"name":"m"}]`, map[string]int64{"i": 2, "m": 3}},
		"nothing to take over": {[]string{i, any}, `"initContainers":[{"name":"i","restartPolicy":"Always"}],"containers":[{"name":"m"}]`, map[string]int64{"i": 1, "m": 1}},
		"taken over in turn":   {[]string{i, any}, `"initContainers":[{"name":"i"},{"name":"j","resources":{"limits":{"x.example/b":"2"}}}],"containers":[{"name":"m"}]`, map[string]int64{"i": 1, "j": 2, "m": 1}},
	} {
		t.Run(name, func(t *testing.T) {
			_, after, err := injected(t, spec("["+strings.Join(tc.networks, ",")+"]", tc.rest))
			if err != nil {
				t.Fatal(err)
			}
			pod, err := rules.DecodePod([]byte(after))
			if err != nil {
				t.Fatal(err)
			}
			pod.Namespace = "shop"
			for _, s := range slots(pod) {
				if got := s.has("x.example/b"); got != tc.want[s.Name] {
					t.Errorf("container %s requests %d devices, want %d", s.Name, got, tc.want[s.Name])
				}
			}
			r, err := rules.New(nil, "does not exist")
			if err != nil {
				t.Fatal(err)
			}
			if found := r.Pod(pod, nil, given()); len(found) > 0 {
				t.Errorf("validation says %v", found)
			}
			if again, _, err := injected(t, after); err != nil || len(again.Operations) > 0 {
				t.Errorf("not idempotent: %v, %v", again, err)
			}
		})
	}
}

func TestInjectByThePodsAnnotation(t *testing.T) {
	pod := strings.Replace(spec("b", `"initContainers":[{"name":"i"}],"containers":[{"name":"m"},{"name":"n","volumeMounts":[{"name":"v","mountPath":"/v"}]},{"name":"o","volumeMounts":[{"name":"v","mountPath":"/net/"}]}],"volumes":[{"name":"v","emptyDir":{}}]`),
		`"annotations":{`, `"annotations":{"manifold.dev/container":"n","manifold.dev/network-status-volume":"/net",`, 1)
	in, after, err := injected(t, pod)
	if err != nil {
		t.Fatal(err)
	}
	got := &corev1.Pod{}
	if err := json.Unmarshal([]byte(after), got); err != nil {
		t.Fatal(err)
	}
	if n := got.Spec.Containers[1].Resources.Limits["x.example/b"]; n.Value() != 1 || in.Devices != 1 {
		t.Errorf("container n gets %v", got.Spec.Containers[1].Resources)
	}
	mounts := []int{len(got.Spec.InitContainers[0].VolumeMounts), len(got.Spec.Containers[0].VolumeMounts), len(got.Spec.Containers[1].VolumeMounts), len(got.Spec.Containers[2].VolumeMounts)}
	if !slices.Equal(mounts, []int{1, 1, 2, 1}) {
		t.Errorf("mounts %v", mounts)
	}
	v := got.Spec.Volumes[len(got.Spec.Volumes)-1]
	if len(got.Spec.Volumes) != 2 || v.DownwardAPI == nil || v.DownwardAPI.Items[0].FieldRef.FieldPath != "metadata.annotations['k8s.v1.cni.cncf.io/network-status']" {
		t.Errorf("volumes %+v", got.Spec.Volumes)
	}
	if again, _, err := injected(t, after); err != nil || len(again.Operations) > 0 {
		t.Errorf("not idempotent: %v, %v", again, err)
	}
}

// FuzzInject: whatever a pod is, the patch applies, lowers and removes nothing, and a
// second patch is empty.
func FuzzInject(f *testing.F) {
	f.Add("b,a@x", `{"spec":{"containers":[{"name":"m"}]}}`)
	f.Add(`[{"name":"b","manifold.dev/container":"n"},{"name":"d"}]`, `{"spec":{"nodeSelector":null,"containers":[{"name":"n","resources":{"limits":{"x.example/b":"1","cpu":"1m"}}}],"future":[1.5,{"x":null}]}}`)
	f.Add("b", `{"metadata":{"annotations":{"manifold.dev/network-status-volume":"/n","manifold.dev/container":"i"}},"spec":{"initContainers":[{"name":"i","restartPolicy":"Always"}],"volumes":[]}}`)
	f.Add("b", `{"spec":{"resourceClaims":[{"name":"c"}],"containers":[{"resources":{"claims":[{"name":"c"}],"requests":{"x.example/b":"-3"}}},null]}}`)
	f.Fuzz(func(t *testing.T, networks, raw string) {
		var object map[string]any
		if json.Unmarshal([]byte(raw), &object) != nil || object == nil {
			return
		}
		meta, ok := object["metadata"].(map[string]any)
		if !ok {
			meta = map[string]any{}
			object["metadata"] = meta
		}
		annotations, ok := meta["annotations"].(map[string]any)
		if !ok {
			annotations = map[string]any{}
			meta["annotations"] = annotations
		}
		annotations[netattach.NetworksAnnotation] = networks
		before, err := json.Marshal(object)
		if err != nil {
			return
		}
		_, after, err := injected(t, string(before))
		if err != nil {
			return // not a pod, or refused by validation
		}
		var was, is corev1.Pod
		if err := json.Unmarshal(before, &was); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(after), &is); err != nil {
			t.Fatalf("%v: %s", err, after)
		}
		keeps(t, slots(&was), slots(&is))
		if again, _, err := injected(t, after); err != nil || len(again.Operations) > 0 {
			t.Errorf("not idempotent: %v, %v; after %s", again, err, after)
		}
	})
}

// keeps checks that no container has less than before.
func keeps(t *testing.T, was, is []*slot) {
	t.Helper()
	if len(was) != len(is) {
		t.Fatalf("%d containers, were %d", len(is), len(was))
	}
	for i := range was {
		for name, limit := range was[i].Resources.Limits {
			if now := is[i].Resources.Limits[name]; now.Cmp(limit) < 0 {
				t.Errorf("container %d: limit of %s lowered from %s to %s", i, name, limit.String(), now.String())
			}
		}
		for name, request := range was[i].Resources.Requests {
			if now := is[i].Resources.Requests[name]; now.Cmp(request) < 0 {
				t.Errorf("container %d: request of %s lowered from %s to %s", i, name, request.String(), now.String())
			}
		}
	}
}
