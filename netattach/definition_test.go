package netattach

import (
	"encoding/json"
	"testing"
)

// No object of a list fails the others, whatever somebody wrote into it.
func TestDefinitionsAreDecodedWhateverTheySay(t *testing.T) {
	for spec, want := range map[string]string{
		`{"config":"{}","vendor":[1]}`: "{}", `{"config":null}`: "", `{}`: "", `null`: "", `{"Config":"{}"}`: "",
		`{"config":7}`: "7", `{"config":{"type":"ptp"}}`: `{"type":"ptp"}`, `"text"`: "text", `[null]`: "[null]", `7`: "7",
	} {
		var list DefinitionList
		raw := `{"items":[{"metadata":{"name":"a"},"spec":` + spec + `},{"metadata":{"name":"b"},"spec":{"config":"{}"}},{"metadata":{"name":"c"}}]}`
		if err := json.Unmarshal([]byte(raw), &list); err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		if got := list.Items[0].Spec.Config; got != want || list.Items[1].Spec.Config != "{}" || list.Items[2].Spec.Config != "" {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}
