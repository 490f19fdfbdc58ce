package netattach

import (
	"encoding/json"
	"testing"
)

func TestSelectionNamesAClaim(t *testing.T) {
	for in, want := range map[string][2]string{
		`[{"name":"a","manifold.dev/claim":"nics"}]`:                                      {"nics", ""},
		`[{"name":"a","manifold.dev/claim":"nics","manifold.dev/request":"vf"}]`:          {"nics", "vf"},
		`[{"name":"a","manifold.dev/claim":"nics","manifold.dev/request":"vf/fast-one"}]`: {"nics", "vf/fast-one"},
	} {
		got, err := ParseSelections(in, "pod")
		if err != nil {
			t.Fatal(err)
		}
		if got[0].Claim != want[0] || got[0].Request != want[1] || got[0].Unknown != nil {
			t.Errorf("%s: %+v", in, got[0])
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		back, err := ParseSelections(string(again), "pod")
		if err != nil || back[0].Claim != want[0] || back[0].Request != want[1] {
			t.Errorf("%s: written as %s, read as %+v, %v", in, again, back, err)
		}
	}
}

func TestSelectionRefusesWhatIsNoClaim(t *testing.T) {
	for in, part := range map[string]string{
		`[{"name":"a","manifold.dev/claim":"../x"}]`:                                   ClaimKey,
		`[{"name":"a","manifold.dev/claim":["x"]}]`:                                    "wrong type",
		`[{"name":"a","manifold.dev/request":"vf"}]`:                                   "needs " + ClaimKey,
		`[{"name":"a","manifold.dev/claim":"nics","manifold.dev/request":"../vf"}]`:    RequestKey,
		`[{"name":"a","manifold.dev/claim":"nics","manifold.dev/request":"a/b/c"}]`:    RequestKey,
		`[{"name":"a","manifold.dev/claim":"nics","manifold.dev/request":"vf/"}]`:      RequestKey,
		`[{"name":"a","manifold.dev/claim":"nics","manifold.dev/request":"VF upper"}]`: RequestKey,
	} {
		got, err := ParseSelections(in, "pod")
		if err == nil {
			t.Errorf("%s is accepted as %+v", in, got)
			continue
		}
		wantError(t, err, part)
	}
}
