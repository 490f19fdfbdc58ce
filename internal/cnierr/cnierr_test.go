package cnierr

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestRendering(t *testing.T) {
	e := New("assign device", NoDevice, "allocated %d: %w", 0, os.ErrNotExist).WithFix("request %d", 1).
		About(Subject{Network: "ns/fast"}).About(Subject{Network: "other", Pod: "ns/p", Interface: "net1", Resource: "r/x", Device: "d"})
	want := "pod ns/p network ns/fast interface net1 resource r/x device d: assign device: allocated 0: file does not exist; request 1"
	if e.Error() != want {
		t.Errorf("got  %s\nwant %s", e, want)
	}
	if !errors.Is(e, os.ErrNotExist) {
		t.Error("the cause is lost")
	}
}

func TestAnnotateKeepsKindAndNamesTheSubject(t *testing.T) {
	inner := New("run", DelegateFailed, "boom")
	wrapped := Annotate(fmt.Errorf("libcni: %w", inner), Subject{Pod: "ns/p"})
	if KindOf(wrapped) != DelegateFailed || wrapped.Error() != "pod ns/p: libcni: run: boom" {
		t.Errorf("%v of kind %s", wrapped, KindOf(wrapped))
	}
	if err := Annotate(inner, Subject{Pod: "ns/q"}); err.Error() != "pod ns/q: run: boom" {
		t.Error(err)
	}
	if Annotate(nil, Subject{Pod: "x"}) != nil || KindOf(errors.New("plain")) != Other {
		t.Error("nil or plain errors")
	}
	outer := New("release", TeardownIncomplete, "%w", inner)
	if !Is(outer, DelegateFailed) || !Is(outer, TeardownIncomplete) || Is(outer, Busy) {
		t.Error("kinds in a chain")
	}
}

func TestWire(t *testing.T) {
	e := New("plan", TryAgain, "no pod").WithFix("wait").About(Subject{Pod: "ns/p"})
	raw, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var got Error
	if err := json.Unmarshal(raw, &got); err != nil || got.Error() != e.Error() || got.Kind != TryAgain {
		t.Errorf("%s became %v, %v", raw, &got, err)
	}
	if err := json.Unmarshal([]byte(`{"kind":9999}`), &got); err != nil || got.Kind.String() != "other" || got.Kind.Code() != Other.Code() {
		t.Errorf("a kind of a newer version: %v %v", got.Kind, err)
	}
}

func TestCodes(t *testing.T) {
	names := map[string]bool{}
	for _, k := range Kinds() {
		if k.Code() == 0 || k.String() == "" || names[k.String()] {
			t.Errorf("kind %d: name %q, code %d", k, k, k.Code())
		}
		names[k.String()] = true
	}
	own := New("run delegate", DelegateFailed, "%w", &types.Error{Code: 77, Msg: "busy"})
	for _, tc := range []struct {
		err  error
		code uint
	}{
		{own, 77}, {New("release", TeardownIncomplete, "%w", own), 77}, {New("x", NoDevice, "y"), 105}, {errors.New("plain"), 100},
		{New("x", TryAgain, "y"), types.ErrTryAgainLater}, {&types.Error{Code: 5, Msg: "not a delegate's"}, 100}, {New("use device", DeviceVanished, "%w", own), 107},
		{New("status", NotReady, "%w", own), 50}, {New("status", NotReady, "%w", New("run delegate", DelegateFailed, "%w", &types.Error{Code: 51})), 51},
	} {
		if got := ToCNI(tc.err); got.Code != tc.code || got.Msg != tc.err.Error() {
			t.Errorf("%v: code %d, want %d", tc.err, got.Code, tc.code)
		}
	}
	if ToCNI(nil) != nil {
		t.Error("nil")
	}
}
