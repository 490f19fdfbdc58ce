// Package words puts numbers into messages that people read.
package words

import "strconv"

// Count returns n and the noun in its number: one for 1, else many.
func Count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
