package sriov

import (
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A network device whose single answer is too long is found in the dump, with the same
// content. No lab has such a PF, so the test simulates the error.
func TestAnswerThatIsTooLong(t *testing.T) {
	asked := 0
	tooLong := func(name string) (netlink.Link, []byte, error) {
		asked++
		return nil, nil, fmt.Errorf("network device %s: %w", name, unix.EMSGSIZE)
	}
	want, err := Kernel{}.Link("lo")
	if err != nil {
		t.Fatal(err)
	}
	link, body, err := firstThatFits("lo", tooLong, listed)
	if err != nil || asked != 1 {
		t.Fatalf("asked %d times, %v", asked, err)
	}
	if got, err := netDevOf(link, body); !reflect.DeepEqual(got, want.NetDev) || err != nil {
		t.Errorf("%+v, %v, want %+v", got, err, want.NetDev)
	}
	if vfs, err := decodeVFs(body); vfs != nil || err != nil {
		t.Errorf("VFs %v, %v", vfs, err)
	}
	if _, _, err := firstThatFits("nosuchdevice7", tooLong, listed); !errors.Is(err, ErrNoLink) {
		t.Errorf("one that is not there: %v", err)
	}
	if _, _, err := firstThatFits("lo", tooLong, tooLong); !errors.Is(err, unix.EMSGSIZE) {
		t.Errorf("too long in each way: %v", err)
	}
	if _, _, err := firstThatFits("lo", alone, tooLong); err != nil || asked != 4 {
		t.Errorf("one that fits was asked for again: %v", err)
	}
}
