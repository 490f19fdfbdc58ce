package sriov

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// ErrAddress is wrapped by the errors of all functions that take a PCI address and are
// given another string.
var ErrAddress = errors.New("not a PCI address")

// Limits of a PCI address as the kernel prints it.
const (
	minDomainDigits = 4  // the kernel prints the domain with %04x
	maxDomainDigits = 8  // the kernel stores it in 32 bits; VMD domains start at 10000
	tailLength      = 8  // ":bb:dd.f"
	maxDevice       = 31 // 5 bits
	maxFunction     = 7  // 3 bits; ARI functions, too, print as device and function
)

// ParseAddress checks that s is a PCI address as the kernel writes it below
// /sys/bus/pci/devices, domain:bus:device.function in hexadecimal (0000:21:10.2), and
// returns it in lower case.
//
// The domain has four digits, or up to eight without leading zeros (10000:00:1f.0
// behind an Intel VMD). The short form without a domain is refused: it names no
// directory, and assuming domain 0 is wrong on machines with several. The error wraps
// [ErrAddress]. A returned address is safe as a path component.
func ParseAddress(s string) (string, error) {
	if _, ok := parseAddress(s); !ok {
		return "", fmt.Errorf("%s: %w, want dddd:bb:dd.f", quote(s), ErrAddress)
	}
	return strings.ToLower(s), nil
}

// IsAddress reports whether [ParseAddress] accepts s.
func IsAddress(s string) bool {
	_, ok := parseAddress(s)
	return ok
}

// CompareAddresses orders PCI addresses numerically by domain, bus, device and
// function. It returns 0 exactly if both name the same function, regardless of case.
// Strings that are not addresses sort after all addresses, and among themselves in the
// natural order of [CompareIDs].
func CompareAddresses(a, b string) int {
	x, okA := parseAddress(a)
	y, okB := parseAddress(b)
	switch {
	case okA && okB:
		return cmp.Compare(x, y)
	case okA:
		return -1
	case okB:
		return 1
	}
	return compareNatural(a, b)
}

// CompareIDs orders device IDs as device plugins invent them. PCI addresses come first,
// in numeric order. Everything else follows in natural order, where runs of decimal
// digits compare as numbers (eth2 before eth10, mlx5_core.sf.9 before mlx5_core.sf.10).
// It is a total order over all strings and returns 0 only for equal strings, so a
// sorted result never depends on the order of the input.
func CompareIDs(a, b string) int {
	if c := CompareAddresses(a, b); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}

// compareNatural compares byte by byte, but runs of digits by value. Strings that
// differ only in leading zeros are compared by bytes at the end.
func compareNatural(a, b string) int {
	x, y := a, b
	for x != "" && y != "" {
		if !isDigit(x[0]) || !isDigit(y[0]) {
			if c := cmp.Compare(x[0], y[0]); c != 0 {
				return c
			}
			x, y = x[1:], y[1:]
			continue
		}
		var m, n string
		m, x = cutNumber(x)
		n, y = cutNumber(y)
		// Without leading zeros the longer number is the greater. Conversion is no
		// option, because an ID may have any number of digits.
		if c := cmp.Or(cmp.Compare(len(m), len(n)), strings.Compare(m, n)); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(a, b))
}

// cutNumber splits s after its leading digits and drops their leading zeros.
func cutNumber(s string) (number, rest string) {
	i := 0
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return strings.TrimLeft(s[:i], "0"), s[i:]
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// parseAddress returns the address as a number that sorts in the order of addresses.
func parseAddress(s string) (uint64, bool) {
	digits := len(s) - tailLength
	if digits < minDomainDigits || digits > maxDomainDigits {
		return 0, false
	}
	tail := s[digits:]
	if tail[0] != ':' || tail[3] != ':' || tail[6] != '.' {
		return 0, false
	}
	if digits > minDomainDigits && s[0] == '0' {
		return 0, false // the kernel pads to four digits and no further
	}
	domain, ok1 := parseHex(s[:digits])
	bus, ok2 := parseHex(tail[1:3])
	device, ok3 := parseHex(tail[4:6])
	function, ok4 := parseHex(tail[7:])
	if !ok1 || !ok2 || !ok3 || !ok4 || device > maxDevice || function > maxFunction {
		return 0, false
	}
	return domain<<16 | bus<<8 | device<<3 | function, true
}

// parseHex is strconv.ParseUint(s, 16, 64) for at most 16 digits, without signs,
// prefixes and underscores.
func parseHex(s string) (uint64, bool) {
	var n uint64
	for i := range len(s) {
		c := s[i]
		switch {
		case isDigit(c):
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | uint64(c)
	}
	return n, true
}

// quote renders outside input for an error message: escaped, and truncated so that a
// hostile ID cannot flood a log or an Event.
func quote(s string) string {
	const limit = 64
	if len(s) > limit {
		return fmt.Sprintf("%q... (%d bytes)", s[:limit], len(s))
	}
	return fmt.Sprintf("%q", s)
}
