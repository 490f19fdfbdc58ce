package configfile

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/internal/cnierr"
)

// agentPlaces returns the findings in a configuration of the agent as "line:kind key".
func agentPlaces(in string) (out []string) {
	for _, f := range ValidateAgent([]byte(in)) {
		kind := "error"
		if f.Warning {
			kind = "warning"
		}
		out = append(out, fmt.Sprintf("%d:%s %s", f.Line, kind, f.Key))
	}
	return out
}

// TestEveryKeyOfTheAgentIsValidatedByLineAndKey breaks each key in each way that its
// type and its meaning allow: the findings are what the agent refuses.
func TestEveryKeyOfTheAgentIsValidatedByLineAndKey(t *testing.T) {
	broken := map[string][]string{
		"node": {`"Node 1"`, `"a/b"`}, "reconcile": {`"sometimes"`}, "logFormat": {`"xml"`}, "listen": {`"9100"`, `"host:port"`, `":99999"`},
		"view": {`"9101"`, `":9101"`}, "traces": {`"collector:4318"`, `"ftp://collector"`}, "startupTaint": {`"a/b"`}, "resourceSlices": {`true`},
		"reconcileExclude": {`[""]`, `["a b"]`, `["eth0",""]`},
	}
	c := reflect.TypeFor[Agent]()
	for i := range c.NumField() {
		field := c.Field(i)
		key := field.Tag.Get("json")
		if key == "-" {
			continue
		}
		values := append(wrongTypes(field.Type), broken[key]...)
		if broken[key] == nil {
			values = append(values, `"relative/path"`) // all other keys are paths
		}
		for _, value := range values {
			t.Run(fmt.Sprintf("%s %.40s", key, value), func(t *testing.T) {
				in := fmt.Sprintf("{\n\"snapshot\": \"-\",\n%q: %s}", key, value)
				if key == "snapshot" {
					in = fmt.Sprintf("{\n\n%q: %s}", key, value)
				}
				got := slices.DeleteFunc(agentPlaces(in), func(p string) bool { return strings.Contains(p, "warning") })
				if want := "3:error " + key; len(got) == 0 || slices.ContainsFunc(got, func(p string) bool { return p != want }) {
					t.Errorf("%q, want %q", got, want)
				}
				if _, err := decodeAgent("read", []byte(in)); !cnierr.Is(err, cnierr.InvalidConfig) {
					t.Errorf("the agent says %v", err)
				}
			})
		}
	}
}

func TestValidateAgentLooksAtTheWholeFile(t *testing.T) {
	dir := t.TempDir()
	for in, want := range map[string][]string{
		"{}":                     nil,
		"{\n\"node\": \"a\",\n}": {"3:error "},
		"[]":                     {"1:error "},
		"null":                   {"1:error "},
		"{\n\"clusterNetwork\": \"a\",\n\"colour\": 1}":     {"2:error clusterNetwork", "3:error colour"},
		"{\n\"Node\": \"a\",\n\"node\": \"b\"}":             {"2:warning Node", "3:error node"},
		"{\n\"Reconcile\": \"x\"}":                          {"2:warning Reconcile", "2:error Reconcile"},
		"{\n\"node\": \"a\",\n\"node\": \"b\"}":             {"3:warning node"},
		"{\"reconcileExclude\": [\"eth0\",\n\"a b\"]}":      {"1:warning reconcileExclude", "2:error reconcileExclude"},
		"{\"podManifests\":\n \"" + dir + "/absent\"}":      {"1:warning podManifests"},
		"{\"podManifests\": \"" + dir + "\"}":               nil,
		"{\"apiServer\": \"in-cluster\", \"view\": \":1\"}": nil,
		"{\"kubeletDir\": \"kubelet\"}":                     {"1:error kubeletDir"}, // and nothing about the paths derived from it
		"{\"socket\": \"" + dir + "/absent\"}":              nil,                    // the agent creates it
		"{\"podResources\": \"-\", \"podsAPI\": null}":      nil,
	} {
		if got := agentPlaces(in); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}

// A file without findings starts the agent.
func FuzzValidateAgent(f *testing.F) {
	for _, in := range []string{
		`{}`, `{"node":"a","socket":"/run/a.sock","kubeletDir":"/var/lib/kubelet","apiServer":"in-cluster","resourceSlices":true,"startupTaint":"a/b"}`,
		`{"Node":"a","node":"b","node":7}`, `{"reconcile":"repair","reconcileExclude":["0000:5e:00.0","eth0",""]}`, `{"listen":":9100","view":"x","traces":"http://c"}`,
		`{"snapshot":"-","cniDir":null,"colour":{}}`, "null", `{"a":`, `{"reconcileExclude":[x]}`,
	} {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		right := true
		for _, finding := range ValidateAgent([]byte(in)) {
			right = right && finding.Warning && !strings.Contains(finding.Text, "twice") // the first of two may be wrong
			if finding.Line < 1 || finding.Line > 1+strings.Count(in, "\n") {
				t.Errorf("%s is not in the file", finding)
			}
		}
		if _, err := decodeAgent("read", []byte(in)); right && err != nil {
			t.Errorf("the agent refuses a file without findings: %v", err)
		}
	})
}
