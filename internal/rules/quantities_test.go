package rules

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/json"
)

// TestMinuteNumbers proves that a number that takes minutes to decode is refused at once,
// wherever a pod has quantities.
func TestMinuteNumbers(t *testing.T) {
	for number, ok := range map[string]bool{
		`"1e-99999999"`: false, `1E-99999999`: false, `"-0.5e-4000"`: false, ` 1e-123456 `: false, `" 1e-99999999"`: false,
		`"1e-9"`: true, `"1e9999999"`: true, `"1"`: true, `null`: true,
	} {
		for _, pod := range []string{
			`{"spec":{"containers":[{"resources":{"limits":{"x.example/a":%s}}}]}}`,
			`{"spec":{"containers":[{"resources":{"limits":{"x.example/a":%s,"x.example/a":"1"}}}]}}`,
			`{"spec":{"initContainers":[{},{"resources":{"requests":{"cpu":%s}}}]}}`,
			`{"spec":{"volumes":[{"name":"v","emptyDir":{"sizeLimit":%s}}]}}`,
			`{"spec":{"volumes":[{"ephemeral":{"volumeClaimTemplate":{"spec":{"resources":{"requests":{"storage":%s}}}}}}]}}`,
			`{"spec":{"containers":[{"env":[{"name":"A","valueFrom":{"resourceFieldRef":{"resource":"limits.cpu","divisor":%s}}}]}]}}`,
			`{"spec":{"overhead":{"cpu":%s}}}`,
			`{"status":{"containerStatuses":[{"allocatedResources":{"cpu":%s}}]}}`,
		} {
			raw := fmt.Sprintf(pod, number)
			if _, err := DecodePod([]byte(raw)); (err == nil) != ok {
				t.Errorf("%s: %v", raw, err)
			}
		}
	}
}

// TestTextLikeAMinuteNumber proves that a text is never taken for a quantity.
func TestTextLikeAMinuteNumber(t *testing.T) {
	for _, raw := range []string{
		`{"metadata":{"name":"web-7e-20261","annotations":{"tolerance":"1e-9999","x":"\"1e-9999\""},"labels":{"a":"1E-99999999"}}}`,
		`{"spec":{"containers":[{"name":"c","args":["1e-9999"],"env":[{"name":"EPS","value":"1e-9999"}]}]}}`,
		`{"future":{"limits":{"cpu":"1e-9999"}},"spec":{"future":[1e-9999,[{"limits":1e-9999}]]}}`,
	} {
		pod, err := DecodePod([]byte(raw))
		if err != nil {
			t.Errorf("%s: %v", raw, err)
		} else if len(pod.Spec.Containers) > 0 && pod.Spec.Containers[0].Env[0].Value != "1e-9999" {
			t.Errorf("%s: environment %v", raw, pod.Spec.Containers[0].Env)
		}
	}
}

// FuzzDecodePod: no text keeps a pod from being decoded, and no number, nor anything
// else, holds decoding up.
func FuzzDecodePod(f *testing.F) {
	f.Add("1e-9999", `{"spec":{"containers":[{"resources":{"limits":{"a":"1e-99999999"}}}]}}`)
	f.Add(`"1e-9999"`, `{"spec":[{"containers":{"resources":1e-9999}}],"metadata":{"annotations":{"a":["1e-9999"]}}}`)
	f.Add(" 1E-99999999 ", `{"spec":{"volumes":[{"emptyDir":{"sizeLimit":1e-9999}}],"volumes":null}} 1e-9999`)
	f.Add(`\`, `{"spec":{"overhead":{"a":"1e-0000"`)
	f.Fuzz(func(t *testing.T, text, raw string) {
		_, _ = DecodePod([]byte(raw)) // the call returns
		text = strings.ToValidUTF8(text, "?")
		with := &corev1.Pod{}
		with.Annotations = map[string]string{"a": text}
		with.Spec.Containers = []corev1.Container{{Args: []string{text}, Env: []corev1.EnvVar{{Value: text}}}}
		encoded, err := json.Marshal(with)
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodePod(encoded)
		if err != nil || got.Annotations["a"] != text || got.Spec.Containers[0].Env[0].Value != text {
			t.Errorf("%q is decoded as %q: %v", text, got.Annotations["a"], err)
		}
	})
}
