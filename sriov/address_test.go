package sriov_test

import (
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/manifold-cni/manifold/sriov"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"0000:21:10.2":     "0000:21:10.2",
		"0000:AB:1F.7":     "0000:ab:1f.7",
		"10000:00:1f.0":    "10000:00:1f.0",
		"ffffffff:ff:1f.7": "ffffffff:ff:1f.7",
	} {
		got, err := sriov.ParseAddress(in)
		if err != nil || got != want {
			t.Errorf("ParseAddress(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
}

func TestParseAddressRefuses(t *testing.T) {
	for _, in := range []string{
		"", "21:10.2", "000:21:10.2", "0000:21:10", "0000:21:10.8", "0000:21:20.0", "0000:2g:10.0",
		"00000:21:10.2", "01000:21:10.2", "100000000:21:10.2", "0000:21:10.02", "0000.21:10.2",
		" 0000:21:10.2", "0000:21:10.2\n", "0000:21:10.2\x00", "0000:21:10.2/..", "../../:21:10.2",
		"+000:21:10.2", "0x00:21:10.2", "0_00:21:10.2", "0000:21:-1.2", "٠٠٠٠:21:10.2", "eth0",
		strings.Repeat("0", 1<<20) + ":21:10.2",
	} {
		got, err := sriov.ParseAddress(in)
		if got != "" || !errors.Is(err, sriov.ErrAddress) {
			t.Errorf("ParseAddress(%.40q) = %q, %v, want ErrAddress", in, got, err)
		}
		if err != nil && len(err.Error()) > 400 {
			t.Errorf("ParseAddress(%.40q): error of %d bytes", in, len(err.Error()))
		}
	}
}

func TestCompareAddresses(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"0000:21:10.2", "0000:21:10.2", 0},
		{"0000:AB:00.0", "0000:ab:00.0", 0},
		{"0000:21:10.2", "0000:21:10.4", -1},
		{"0000:21:1f.7", "0000:22:00.0", -1},
		{"0000:9f:00.0", "0000:a0:00.0", -1},
		{"0000:ff:1f.7", "0001:00:00.0", -1},
		{"ffff:00:00.0", "10000:00:00.0", -1}, // comparison by bytes would give the opposite
		{"ffff:00:00.0", "0000", -1},
		{"eth2", "eth10", -1},
	} {
		if got := sriov.CompareAddresses(c.a, c.b); got != c.want {
			t.Errorf("CompareAddresses(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
		if got := sriov.CompareAddresses(c.b, c.a); got != -c.want {
			t.Errorf("CompareAddresses(%q, %q) = %d, want %d", c.b, c.a, got, -c.want)
		}
	}
}

func TestCompareIDs(t *testing.T) {
	want := []string{
		"0000:21:10.2", "0000:21:10.4", "0000:AB:00.0", "0000:ab:00.0", "ffff:00:00.0", "10000:00:00.0",
		"", "0", "00", "1", "9", "10", "010x", "99999999999999999999999999", "100000000000000000000000000",
		"Eth0", "eth", "eth001", "eth01", "eth1", "eth2", "eth10", "eth10.2", "eth10.10",
		"mlx5_core.sf.9", "mlx5_core.sf.10", "\xff",
	}
	got := slices.Clone(want)
	random := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		random.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
		slices.SortFunc(got, sriov.CompareIDs)
		if !slices.Equal(got, want) {
			t.Fatalf("sorted\n%q, want\n%q", got, want)
		}
	}
}

// FuzzParseAddress checks that an accepted address is a safe path component and parses
// to itself.
func FuzzParseAddress(f *testing.F) {
	f.Add("0000:21:10.2")
	f.Add("10000:AB:1f.7")
	f.Add("../../../etc/passwd")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := sriov.ParseAddress(s)
		if (err == nil) != sriov.IsAddress(s) {
			t.Fatalf("ParseAddress(%q): %v, but IsAddress says %t", s, err, sriov.IsAddress(s))
		}
		if err != nil {
			if got != "" || !errors.Is(err, sriov.ErrAddress) {
				t.Fatalf("ParseAddress(%q) = %q, %v", s, got, err)
			}
			return
		}
		if !strings.EqualFold(got, s) || strings.Trim(got, "0123456789abcdef:.") != "" || strings.Contains(got, "..") {
			t.Fatalf("ParseAddress(%q) = %q", s, got)
		}
		if again, err := sriov.ParseAddress(got); err != nil || again != got {
			t.Fatalf("ParseAddress(%q) = %q, %v", got, again, err)
		}
	})
}

// FuzzCompareIDs checks the laws of a total order on any three strings.
func FuzzCompareIDs(f *testing.F) {
	f.Add("eth2", "eth10", "eth02")
	f.Add("0000:21:10.2", "0000:ab:00.0", "0000:AB:00.0")
	f.Add("10000:00:00.0", "ffff:00:00.0", "")
	f.Add("a1", "a01b", "a1b")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, ba := sriov.CompareIDs(a, b), sriov.CompareIDs(b, a)
		if ab != -ba {
			t.Fatalf("CompareIDs(%q, %q) = %d, the other way round %d", a, b, ab, ba)
		}
		if (ab == 0) != (a == b) {
			t.Fatalf("CompareIDs(%q, %q) = %d", a, b, ab)
		}
		if bc, ac := sriov.CompareIDs(b, c), sriov.CompareIDs(a, c); ab <= 0 && bc <= 0 && ac > 0 {
			t.Fatalf("%q <= %q <= %q, but the first is greater than the last", a, b, c)
		}
		if x := sriov.CompareAddresses(a, b); x != 0 && x != ab {
			t.Fatalf("%q, %q: CompareAddresses %d, CompareIDs %d", a, b, x, ab)
		}
	})
}

func BenchmarkCompareIDs(b *testing.B) {
	for _, pair := range [][2]string{{"0000:21:10.2", "0000:21:10.4"}, {"mlx5_core.sf.9", "mlx5_core.sf.10"}} {
		b.Run(pair[0], func(b *testing.B) {
			for b.Loop() {
				sriov.CompareIDs(pair[0], pair[1])
			}
		})
	}
}
